"""The official OpenAI client against a real server: what its users do, and that the offline engine answers the same."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest
from openai import AsyncOpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from lace.cli.defaults import MAX_TOKENS, TEMPERATURE, TOP_P
from lace.engine.engine import Engine
from lace.engine.parity import ROUNDING
from lace.engine.result import LatticeResult, ThreadResult
from lace.engine.sampling import SamplingParams
from lace.tasks.task import get_task
from running_server import Running

ASK = "Use 9, 14 and 6 to make 30"
MESSAGES: Any = [{"role": "system", "content": "You solve puzzles."}, {"role": "user", "content": ASK}]
COMMON: dict[str, Any] = {"model": "puzzles", "seed": 5, "temperature": 0.9, "top_p": 0.9}


@pytest.fixture(scope="module")
def offline(puzzles: Engine) -> LatticeResult:
    """What the requests of this file shall be answered."""
    params = SamplingParams(threads=4, max_tokens=100, temperature=0.9, top_p=0.9, seed=5)
    return puzzles.generate(ASK, params)[0]


def chosen(result: LatticeResult) -> ThreadResult:
    return result.threads[result.chosen]


def collect(stream: Stream[ChatCompletionChunk]) -> tuple[dict[int, str], list[ChatCompletionChunk]]:
    texts: dict[int, str] = defaultdict(str)
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, chunks


def test_one_choice_is_the_chosen_thread(shipped_server: Running, offline: LatticeResult) -> None:
    answer = shipped_server.client().chat.completions.create(messages=MESSAGES, **COMMON)
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].message.content == chosen(offline).text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "puzzles"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("lace-")
    report = answer.model_extra["lace"]
    assert report["chosen"] == offline.chosen
    assert report["answer"] == offline.answer
    assert [t["label"] for t in report["threads"]] == [t.label for t in offline.threads]
    assert [t["tokens"] for t in report["threads"]] == [len(t.token_ids) for t in offline.threads]
    assert [t["selected"] for t in report["threads"]] == [n == offline.chosen for n in range(4)]
    assert all("text" not in thread for thread in report["threads"])


def test_usage_counts_all_threads(shipped_server: Running, offline: LatticeResult) -> None:
    usage = shipped_server.client().chat.completions.create(messages=MESSAGES, **COMMON).usage
    assert usage.prompt_tokens == offline.prompt_tokens
    assert usage.completion_tokens == offline.completion_tokens == sum(len(t.token_ids) for t in offline.threads)
    assert usage.total_tokens == offline.prompt_tokens + offline.completion_tokens


def test_n_choices_are_the_threads(shipped_server: Running, offline: LatticeResult) -> None:
    answer = shipped_server.client().chat.completions.create(messages=MESSAGES, n=4, **COMMON)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in answer.choices] == [thread.text for thread in offline.threads]


def test_fewer_choices_than_threads(shipped_server: Running, offline: LatticeResult) -> None:
    options = {"lace": {"threads": 4, "expose": "threads"}}
    answer = shipped_server.client().chat.completions.create(messages=MESSAGES, n=2, extra_body=options, **COMMON)
    assert [choice.message.content for choice in answer.choices] == [t.text for t in offline.threads[:2]]
    assert [t["text"] for t in answer.model_extra["lace"]["threads"]] == [t.text for t in offline.threads]
    assert answer.usage.completion_tokens == offline.completion_tokens


def test_stream_of_all_threads(shipped_server: Running, offline: LatticeResult) -> None:
    stream = shipped_server.client().chat.completions.create(
        messages=MESSAGES, n=4, stream=True, stream_options={"include_usage": True}, **COMMON
    )
    texts, chunks = collect(stream)
    assert texts == {n: thread.text for n, thread in enumerate(offline.threads)}
    assert [(c.choices[0].index, c.choices[0].delta.role) for c in chunks[:4]] == [(n, "assistant") for n in range(4)]
    assert all(len(chunk.choices) == 1 for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    ends = [c.choices[0].index for c in chunks[:-1] if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2, 3]
    order = [chunk.choices[0].index for chunk in chunks[4:-1]]
    assert order[:8] == [0, 1, 2, 3, 0, 1, 2, 3]  # interleaved: they write side by side
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == offline.completion_tokens


def test_stream_of_the_chosen_thread(shipped_server: Running, offline: LatticeResult) -> None:
    """It is known at the end only; stock clients get nothing but what they know."""
    texts, chunks = collect(shipped_server.client().chat.completions.create(messages=MESSAGES, stream=True, **COMMON))
    assert texts == {0: chosen(offline).text}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert all("lace" not in chunk.model_extra for chunk in chunks)


def test_stream_shows_the_other_threads_to_who_asks(shipped_server: Running, offline: LatticeResult) -> None:
    stream = shipped_server.client().chat.completions.create(
        messages=MESSAGES, stream=True, extra_body={"lace": {"expose": "threads"}}, **COMMON
    )
    texts, chunks = collect(stream)
    assert texts == {0: chosen(offline).text}
    written: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        piece = chunk.model_extra.get("lace", {})
        if "delta" in piece:
            written[piece["thread"]] += piece["delta"]
            assert piece["label"] == offline.threads[piece["thread"]].label
    assert written == {thread.index: thread.text for thread in offline.threads}
    assert chunks[-1].model_extra["lace"]["chosen"] == offline.chosen


def test_a_single_thread_streams_as_it_writes(shipped_server: Running, puzzles: Engine) -> None:
    params = SamplingParams(threads=1, max_tokens=30, temperature=0.9, top_p=0.9, seed=5)
    expected = puzzles.generate(ASK, params)[0].threads[0]
    stream = shipped_server.client().chat.completions.create(
        messages=MESSAGES, stream=True, max_completion_tokens=30, extra_body={"lace": {"threads": 1}}, **COMMON
    )
    texts, chunks = collect(stream)
    assert texts == {0: expected.text}
    assert len(chunks) > 10


def test_independent_threads_and_votes(shipped_server: Running, puzzles: Engine) -> None:
    params = SamplingParams(threads=4, max_tokens=100, temperature=0.9, top_p=0.9, seed=5)
    expected = puzzles.generate(ASK, params, strategy="independent")[0]
    for select, by in (("vote", {"majority", "first"}), ("first", {"first"})):
        options = {"lace": {"threads": 4, "strategy": "independent", "select": select, "expose": "threads"}}
        answer = shipped_server.client().chat.completions.create(messages=MESSAGES, extra_body=options, **COMMON)
        report = answer.model_extra["lace"]
        assert [t["text"] for t in report["threads"]] == [t.text for t in expected.threads]
        assert report["chosen_by"] in by
        assert answer.choices[0].message.content == expected.threads[report["chosen"]].text


def test_logprobs_are_the_engines(shipped_server: Running, offline: LatticeResult, puzzles: Engine) -> None:
    answer = shipped_server.client().chat.completions.create(messages=MESSAGES, logprobs=True, n=4, **COMMON)
    for choice, thread in zip(answer.choices, offline.threads, strict=True):
        kept = [(t, p) for t, p in zip(thread.token_ids, thread.logprobs, strict=True) if t not in puzzles.end_ids]
        assert [entry.token for entry in choice.logprobs.content] == [puzzles.tokenizer.decode([t]) for t, _ in kept]
        found = [entry.logprob for entry in choice.logprobs.content]
        assert found == pytest.approx([p for _, p in kept], abs=ROUNDING)
        assert bytes(choice.logprobs.content[0].bytes).decode() == choice.logprobs.content[0].token
    stream = shipped_server.client().chat.completions.create(
        messages=MESSAGES, logprobs=True, n=4, stream=True, **COMMON
    )
    streamed: dict[int, list[str]] = defaultdict(list)
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += [e.token for e in choice.logprobs.content] if choice.logprobs else []
    assert streamed == {n: [e.token for e in answer.choices[n].logprobs.content] for n in range(4)}


def test_stop_and_length(shipped_server: Running, offline: LatticeResult) -> None:
    client = shipped_server.client()
    cut = client.chat.completions.create(messages=MESSAGES, n=4, max_completion_tokens=7, **COMMON)
    assert [choice.finish_reason for choice in cut.choices] == ["length"] * 4
    assert cut.usage.completion_tokens == 28
    stopped = client.chat.completions.create(messages=MESSAGES, n=4, stop=[" =", "nowhere"], **COMMON)
    for choice, thread in zip(stopped.choices, offline.threads, strict=True):
        assert choice.message.content == thread.text.partition(" =")[0].strip()
        assert choice.finish_reason == "stop"


def test_same_seed_same_text_and_another_seed_another(shipped_server: Running) -> None:
    client = shipped_server.client()
    texts = [
        [c.message.content for c in client.chat.completions.create(messages=MESSAGES, n=4, **settings).choices]
        for settings in (COMMON, COMMON, {**COMMON, "seed": 6})
    ]
    assert texts[0] == texts[1] != texts[2]
    unseeded = {k: v for k, v in COMMON.items() if k != "seed"}
    reports = [client.chat.completions.create(messages=MESSAGES, **unseeded).model_extra["lace"] for _ in range(2)]
    assert reports[0]["seed"] != reports[1]["seed"]


def test_the_drawn_seed_repeats_a_request(shipped_server: Running) -> None:
    client = shipped_server.client()
    first = client.chat.completions.create(model="puzzles", messages=MESSAGES, n=2)
    seed = first.model_extra["lace"]["seed"]
    assert seed < 2**53  # clients in JavaScript read longer integers wrongly
    again = client.chat.completions.create(model="puzzles", messages=MESSAGES, n=2, seed=seed)
    assert [c.message.content for c in again.choices] == [c.message.content for c in first.choices]


def test_completions_of_several_prompts(shipped_server: Running, puzzles: Engine) -> None:
    prompts = [ASK, get_task("chain-sum").puzzles(1, 0, "validation")[0].prompt]
    params = SamplingParams(threads=2, max_tokens=40, temperature=0.9, top_p=0.9, seed=5)
    expected = [thread for result in puzzles.generate(prompts, params) for thread in result.threads]
    client = shipped_server.client()
    answer = client.completions.create(prompt=prompts, n=2, max_tokens=40, logprobs=0, **COMMON)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [thread.text for thread in expected]
    assert answer.usage.completion_tokens == sum(len(thread.token_ids) for thread in expected)
    assert len(answer.model_extra["lace"]["prompts"]) == 2
    for choice in answer.choices:
        probs = choice.logprobs
        assert len(probs.tokens) == len(probs.token_logprobs) == len(probs.text_offset)
        for token, offset in zip(probs.tokens, probs.text_offset, strict=True):
            assert choice.text[offset:].lstrip().startswith(token)
    texts: dict[int, str] = defaultdict(str)
    offsets: dict[int, list[int]] = defaultdict(list)
    for chunk in client.completions.create(prompt=prompts, n=2, max_tokens=40, stream=True, logprobs=0, **COMMON):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert offsets == {choice.index: choice.logprobs.text_offset for choice in answer.choices}
    assert texts == {n: thread.text for n, thread in enumerate(expected)}


def test_defaults_suit_the_task(shipped_server: Running, puzzles: Engine) -> None:
    """A question as people write it; sampling that nobody has chosen is that of `lace solve`."""
    question = get_task("chain-sum").puzzles(1, 0, "validation")[0].prompt
    name = "chain-sum"
    params = SamplingParams(threads=4, max_tokens=MAX_TOKENS[name], temperature=TEMPERATURE[name], top_p=TOP_P, seed=3)
    expected = puzzles.generate(question, params)[0]
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": f" {question.lower()}\n"}]}]
    answer = shipped_server.client().chat.completions.create(model="puzzles", messages=messages, seed=3, n=4)
    assert [c.message.content for c in answer.choices] == [t.text for t in expected.threads]


def test_models(shipped_server: Running) -> None:
    client = shipped_server.client()
    assert [model.id for model in client.models.list()] == ["puzzles"]
    assert client.models.retrieve("puzzles").owned_by == "lace"


def test_async_requests_side_by_side(shipped_server: Running, puzzles: Engine) -> None:
    """Each is answered as if it were alone."""

    async def ask(client: AsyncOpenAI, seed: int, stream: bool) -> list[str]:
        settings = {**COMMON, "seed": seed, "messages": MESSAGES, "n": 3, "max_tokens": 40}
        if not stream:
            return [c.message.content for c in (await client.chat.completions.create(**settings)).choices]
        texts: dict[int, str] = defaultdict(str)
        async for chunk in await client.chat.completions.create(**settings, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return [texts[n] for n in range(3)]

    async def all_of_them() -> list[list[str]]:
        async with AsyncOpenAI(base_url=f"{shipped_server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed, bool(seed % 2)) for seed in range(8)))

    params = [SamplingParams(threads=3, max_tokens=40, temperature=0.9, top_p=0.9, seed=seed) for seed in range(8)]
    expected = [[t.text for t in r.threads] for r in puzzles.generate([ASK] * 8, params)]
    assert asyncio.run(all_of_them()) == expected
    shipped_server.wait_until_idle()
