"""The client against a real HTTP server that answers by a script: retries, waits, refusals."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from lace.data.pipeline.budget import Budget, BudgetSpent
from lace.data.pipeline.config import BudgetConfig, Endpoint
from lace.data.pipeline.item import Rejection
from lace.data.pipeline.replies import Steps
from lace.data.pipeline.teacher import LONGEST_RETRY_AFTER, REFUSALS_PER_TRY, CallFailed, Completion, Teacher
from teachers.faults import TRANSPORT, spoil
from teachers.server import Answer, Request, Script, Server

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
GOOD = Answer('{"steps": ["2"]}')


def call(script: Script, count: int = 1, concurrency: int = 8, **settings: Any) -> tuple[list[Any], Teacher, Server]:
    """Results or errors of some calls, made at once."""

    async def work(url: str) -> tuple[list[Any], Teacher]:
        endpoint = {"base_url": url, "model": "m", "retry_seconds": 0.01, "timeout_seconds": 5.0, **settings}
        teacher = Teacher(Endpoint(**endpoint), concurrency, Budget(BudgetConfig()))
        calls = (teacher.complete(MESSAGES, seed=n, kind=Steps, key=f"call {n}") for n in range(count))
        results = await asyncio.gather(*calls, return_exceptions=True)
        await teacher.close()
        return results, teacher

    with Server(script) as server:
        results, teacher = asyncio.run(work(server.url))
    return results, teacher, server


def first_fails(fault: Callable[[], Answer], times: int = 1) -> Script:
    return lambda request: fault() if request.number < times else GOOD


def test_a_call_says_all_that_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hidden")
    seen: list[Request] = []

    def script(request: Request) -> Answer:
        seen.append(request)
        return GOOD

    (completion,), _, _ = call(script, api_key_env="MY_KEY", temperature=0.5, max_tokens=7)
    assert completion == Completion('{"steps": ["2"]}', None, "stop", "m", 5, 2)
    body = seen[0].body
    assert (body["model"], body["seed"], body["temperature"], body["max_tokens"]) == ("m", 0, 0.5, 7)
    assert body["messages"] == MESSAGES
    assert body["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert seen[0].headers["authorization"] == "Bearer hidden"
    assert seen[0].key == "call 0"


@pytest.mark.parametrize("fault", TRANSPORT)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    # The limit on a hanging call is the only one that may pass, so it is short there.
    timeout = 0.5 if fault == "hang" else 5.0
    (completion,), teacher, server = call(
        first_fails(lambda: spoil(fault, GOOD, retry_after=0.05), times=2), timeout_seconds=timeout
    )
    assert completion.text == GOOD.text
    assert server.requests == {"call 0": 3}
    assert teacher.tries == 3


def test_a_server_that_dribbles_is_given_up() -> None:
    """Silence is not what ends it: the reply never becomes whole."""
    (error,), _, server = call(lambda request: Answer("late", delay=2.0), timeout_seconds=0.2, tries=2)
    assert isinstance(error, CallFailed)
    assert server.requests == {"call 0": 2}


def test_nobody_asks_before_the_time_that_the_server_names() -> None:
    arrivals: list[tuple[float, str]] = []

    def script(request: Request) -> Answer:
        arrivals.append((time.monotonic(), request.key))
        return Answer("busy", status=429, headers={"Retry-After": "0.6"}) if request.number == 0 else GOOD

    results, _, _ = call(script, count=6, concurrency=2, tries=1)
    assert all(result.text == GOOD.text for result in results)
    for place, (moment, key) in enumerate(arrivals):
        refused = key not in [earlier for _, earlier in arrivals[:place]]
        if refused:  # but for a call already on its way, the next comes when it may
            later = [after - moment for after, _ in arrivals[place + 2 :]]
            assert all(gap >= 0.59 for gap in later)


def test_a_date_is_a_time_to_come_back_too() -> None:
    (completion,), _, _ = call(
        first_fails(lambda: Answer("", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    )
    assert completion.text == GOOD.text


def test_a_429_storm_does_not_use_up_the_tries() -> None:
    (completion,), _, server = call(first_fails(lambda: spoil("429", GOOD, retry_after=0.01), times=30), tries=2)
    assert completion.text == GOOD.text
    assert server.requests["call 0"] == 31


def test_concurrency_is_bounded() -> None:
    results, _, server = call(lambda request: Answer("x", delay=0.05), count=30, concurrency=5)
    assert len(results) == 30
    assert server.most_at_once == 5


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_schemas_is_asked_without_from_then_on(status: int) -> None:
    with_schema: list[bool] = []

    def script(request: Request) -> Answer:
        with_schema.append("response_format" in request.body)
        return Answer("unknown field response_format", status=status) if with_schema[-1] else GOOD

    results, teacher, _ = call(script, count=4, concurrency=1)
    assert all(result.text == GOOD.text for result in results)
    assert with_schema == [True, False, False, False, False]
    assert not teacher.structured


def test_a_request_that_is_refused_for_itself_is_a_rejection_and_says_nothing_of_schemas() -> None:
    script: Script = lambda request: Answer("too long", status=400) if request.key == "call 0" else GOOD  # noqa: E731
    results, teacher, _ = call(script, count=2, concurrency=1)
    assert isinstance(results[0], Rejection)
    assert results[0].reason == "request refused"
    assert results[1].text == GOOD.text
    assert teacher.structured


@pytest.mark.parametrize("status", [401, 404])
def test_what_no_call_can_get_past_ends_the_run_in_one_line(status: int) -> None:
    (error,), _, server = call(lambda request: Answer("no such key", status=status))
    assert isinstance(error, ValueError)
    assert "refuses all calls" in str(error)
    assert "OPENAI_API_KEY" in str(error)
    assert "\n" not in str(error)
    assert server.requests == {"call 0": 1}


def test_a_server_that_is_down_ends_the_run() -> None:
    results, _, _ = call(lambda request: spoil("500", GOOD), count=25, tries=2)
    assert sum(isinstance(error, CallFailed) for error in results) == 19
    final = [str(error) for error in results if isinstance(error, ValueError)]
    assert any("20 calls in a row failed" in error for error in final)


def test_a_key_is_asked_for_unless_the_server_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"no key for https://example.org/v1: set the environment variable OPENAI"):
        Teacher(Endpoint(base_url="https://example.org/v1", model="m"), 1, Budget(BudgetConfig()))


def test_a_proxy_that_the_environment_names_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hidden")
    with Server(lambda request: GOOD) as server:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")

        async def work() -> Completion:
            teacher = Teacher(Endpoint(base_url="http://teacher.invalid/v1", model="m"), 1, Budget(BudgetConfig()))
            completion = await teacher.complete(MESSAGES, seed=0, kind=Steps, key="call 0")
            await teacher.close()
            return completion

        assert asyncio.run(work()).text == GOOD.text
        assert server.requests == {"call 0": 1}


@pytest.mark.parametrize("content", [["a", "list"], 7, {"text": "x"}])
def test_a_message_that_is_no_text_is_no_completion(content: object) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    (completion,), _, server = call(first_fails(lambda: Answer(None, body=body)))
    assert (completion.text, server.requests) == (GOOD.text, {"call 0": 2})


def test_the_body_of_a_good_reply_may_lack_its_usage() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    (completion,), _, _ = call(lambda request: Answer(None, body=json.dumps({"choices": [choice]}).encode()))
    assert (completion.text, completion.prompt_tokens, completion.model) == ("x", 0, "m")


def completion_body(**fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], **fields}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(None, body=b"[" * 200_000),
        Answer(None, body=b'{"a":' * 100_000, status=429),
        Answer("", status=503, headers={"Retry-After": "²"}),
        Answer("", status=503, headers={"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}),
        Answer(None, body=b" " * 2**24 + completion_body()),
        Answer(None, body=gzip.compress(b" " * 2**28), headers={"Content-Encoding": "gzip"}),
        Answer(None, body=b"no gzip", headers={"Content-Encoding": "gzip"}),
    ],
    ids=["deep", "deep error", "no digit", "no year", "large", "bomb", "no gzip"],
)
def test_a_hostile_reply_is_a_failed_try(answer: Answer) -> None:
    (completion,), _, server = call(first_fails(lambda: answer))
    assert (completion.text, server.requests) == (GOOD.text, {"call 0": 2})


@pytest.mark.parametrize("count", ["12", [1], -100_000, float("nan"), 1e300, 10**400, None])
def test_a_number_of_tokens_that_is_none_counts_nothing(count: object) -> None:
    body = completion_body(usage={"prompt_tokens": count, "completion_tokens": 3})
    (completion,), teacher, _ = call(lambda request: Answer(None, body=body), price_completion=1.0)
    assert (completion.prompt_tokens, completion.completion_tokens) == (0, 3)
    assert teacher.price(completion) == pytest.approx(3e-6)


def test_half_a_character_is_no_text() -> None:
    body = completion_body(model=["m"]).replace(b'"x"', b'"a \\ud83d b"')
    (completion,), _, _ = call(lambda request: Answer(None, body=body))
    assert (completion.text, completion.model) == ("a ? b", "m")


@pytest.mark.parametrize(("status", "retry_after"), [(429, "0"), (503, "0"), (503, "0.001")])
def test_a_server_that_says_come_at_once_is_backed_off_from(status: int, retry_after: str) -> None:
    arrivals: list[float] = []

    def script(request: Request) -> Answer:
        arrivals.append(time.monotonic())
        return Answer("no", status=status, headers={"Retry-After": retry_after})

    (error,), _, _ = call(script, tries=4, retry_seconds=0.2)
    assert isinstance(error, CallFailed)
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert [gap > least for gap, least in zip(gaps, (0.09, 0.19, 0.39), strict=True)] == [True] * 3


def test_a_storm_of_429s_has_an_end() -> None:
    (error,), _, server = call(lambda request: spoil("429", GOOD, retry_after=0.001), tries=2)
    assert isinstance(error, CallFailed)
    assert server.requests == {"call 0": 2 * REFUSALS_PER_TRY}


def test_nobody_waits_for_longer_than_the_minutes_of_the_budget() -> None:
    """Whatever the server asks for; and who watches is told."""
    told: list[float] = []

    async def work(url: str) -> None:
        budget = Budget(BudgetConfig(minutes=0.02))
        teacher = Teacher(Endpoint(base_url=url, model="m"), 1, budget, told.append)
        try:
            await teacher.complete(MESSAGES, seed=0, kind=Steps, key="call 0")
        finally:
            await teacher.close()

    with Server(lambda request: spoil("429", GOOD, retry_after=36_000)) as server:
        with pytest.raises(BudgetSpent, match=r"budget.minutes = 0.02 is spent"):
            asyncio.run(work(server.url))
        assert server.requests == {"call 0": 1}
    assert LONGEST_RETRY_AFTER - 1 < told[0] <= LONGEST_RETRY_AFTER + 1


def test_no_call_that_failed_is_tried_again_once_the_budget_is_spent() -> None:
    budget = Budget(BudgetConfig(tokens=10))

    def script(request: Request) -> Answer:
        budget.add(10, 0.0)  # as another call would
        return spoil("500", GOOD)

    async def work(url: str) -> None:
        teacher = Teacher(Endpoint(base_url=url, model="m", retry_seconds=0.01), 1, budget)
        try:
            await teacher.complete(MESSAGES, seed=0, kind=Steps, key="call 0")
        finally:
            await teacher.close()

    with Server(script) as server:
        with pytest.raises(BudgetSpent, match=r"budget.tokens = 10 is spent"):
            asyncio.run(work(server.url))
        assert server.requests == {"call 0": 1}


def test_fields_are_added_and_left_out() -> None:
    seen: list[dict[str, Any]] = []

    def script(request: Request) -> Answer:
        seen.append(request.body)
        return GOOD

    extra = {"max_completion_tokens": 7, "chat_template_kwargs": {"enable_thinking": False}}
    call(script, omit=("max_tokens", "temperature", "seed"), extra=extra)
    assert set(seen[0]) == {"model", "messages", "top_p", "response_format", *extra}
    assert seen[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_message_may_come_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    (completion,), _, _ = call(lambda request: Answer(None, body=body))
    assert completion.text == "ab"


def test_the_key_is_in_nothing_that_is_told_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    for status, kind in ((400, Rejection), (401, ValueError), (500, CallFailed)):
        (error,), _, _ = call(
            lambda request, status=status: Answer("no, \x1b[2J" + request.headers["authorization"], status=status),
            api_key_env="MY_KEY",
            tries=1,
        )
        assert isinstance(error, kind)
        assert "no, [2JBearer [key]" in str(error)
    (completion,), _, _ = call(lambda request: Answer(request.headers["authorization"]), api_key_env="MY_KEY")
    assert completion.text == "Bearer [key]"
