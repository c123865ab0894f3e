"""Every stage's good path and its rejections, each asked over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import byte_tokenizer
from lace.data.assemble import check_causality
from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.context import Context
from lace.data.pipeline.item import Item, Question, Rejection
from lace.data.pipeline.item import Path as ThreadPath
from lace.data.pipeline.keyed_log import KeyedLog, content_hash, read_lines
from lace.data.pipeline.plan import STAGES
from lace.data.pipeline.replies import Judgement, Notes, Solution, Steps, read_reply
from lace.data.pipeline.resources import Helpers, open_resources
from teachers.faults import CONTENT, spoil
from teachers.puzzles import puzzle_teacher
from teachers.server import Answer, Script, Server

QUESTION = Question(id="q1", text="Calculate 17 + 25 - 8.", answer="34", verifier="exact", source="test")
CONFIG = {"questions": {"sources": [{"kind": "file", "path": "q.jsonl"}]}}
RIGHT = ThreadPath(text="17 + 25 = 42.\n42 - 8 = 34.", answer="34", summary="In order.", distance=1.0, right=True)
WRONG = ThreadPath(text="25 - 8 = 16.\n16 + 17 = 33.", answer="33", summary="Backwards.", distance=0.7, right=False)
SPLIT = Item(
    question=QUESTION,
    labels=(7, 3),
    paths=(
        RIGHT.model_copy(update={"steps": ("17 + 25 = 42.", "42 - 8 = 34.")}),
        WRONG.model_copy(update={"steps": ("25 - 8 = 16.", "16 + 17 = 33.")}),
    ),
)


@pytest.fixture
def decide(tmp_path: Path, make_config: Callable[..., DataConfig]) -> Callable[..., Item | Rejection]:
    """What a stage makes of an item with a teacher of that script."""

    def run(name: str, item: Item, script: Script, helpers: Helpers | None = None, **sections: Any) -> Item | Rejection:
        stage = next(kind for kind in STAGES if kind.name == name)

        async def work(config: DataConfig) -> Item | Rejection:
            calls = KeyedLog(tmp_path / "calls.jsonl")
            tokenizer, budget = byte_tokenizer(), Budget(config.budget)
            opened = open_resources(
                config, name, calls, budget, tokenizer, helpers or Helpers(), 8, lambda calls, tokens, money: None
            )
            async with opened as resources:
                try:
                    return await stage.run(item, Context(resources, "key"))
                except Rejection as rejection:
                    return rejection

        with Server(script) as server:
            base = {"base": {"base_url": server.url, "model": "base"}} if sections.pop("with_base", False) else {}
            return asyncio.run(work(make_config(server.url, **CONFIG, **base, **sections)))

    return run


def always(reply: object) -> Script:
    return lambda request: Answer(reply if isinstance(reply, str) else json.dumps(reply))


def reason(outcome: Item | Rejection) -> str:
    assert isinstance(outcome, Rejection), outcome
    return outcome.reason


# --- pass rate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "expected"), [(2, None), (0, "solved too rarely"), (3, "solved too often"), (4, "solved too often")]
)
def test_pass_rate_keeps_what_is_solved_sometimes(
    decide: Callable[..., Item | Rejection], right: int, expected: str | None
) -> None:
    seen: list[int] = []

    def script(request: Any) -> Answer:
        seen.append(request.body["seed"])
        assert request.text == QUESTION.text
        return Answer("So it is 34.\nAnswer: 34" if len(seen) <= right else r"\boxed{35}")

    outcome = decide("pass-rate", Item(question=QUESTION), script, with_base=True, pass_rate={"samples": 4})
    assert len(set(seen)) == 4
    if expected is None:
        assert isinstance(outcome, Item)
        assert outcome.pass_rate == 0.5
    else:
        assert reason(outcome) == expected


def test_pass_rate_of_a_model_in_this_process(decide: Callable[..., Item | Rejection]) -> None:
    class Sampler:
        model = "mine"

        async def __call__(self, messages: list[dict[str, str]], count: int, seed: int) -> list[str]:
            assert [message["role"] for message in messages] == ["system", "user"]
            assert 'begins with "answer:"' in messages[0]["content"]
            assert messages[1]["content"] == QUESTION.text
            return ["answer: 34", *["answer: none"] * (count - 1)]

    helpers = Helpers(load_sampler=Sampler)
    outcome = decide("pass-rate", Item(question=QUESTION), always(""), helpers, pass_rate={"samples": 5})
    assert isinstance(outcome, Item)
    assert outcome.pass_rate == 0.2


def test_a_sample_that_fails_counts_as_wrong(decide: Callable[..., Item | Rejection]) -> None:
    count = [0]

    def script(request: Any) -> Answer:
        count[0] += 1
        if count[0] == 1:
            return Answer("", finish_reason="content_filter")
        return Answer("", refusal="no") if count[0] == 2 else Answer("answer: 34" if count[0] == 3 else "answer: 35")

    outcome = decide("pass-rate", Item(question=QUESTION), script, with_base=True, pass_rate={"samples": 5})
    assert isinstance(outcome, Item)
    assert outcome.pass_rate == 0.2
    other = Item(question=QUESTION.model_copy(update={"id": "q2"}))
    every = decide("pass-rate", other, lambda request: Answer("", refusal="no"), with_base=True)
    assert reason(every) == "refusal", "no rate can be told where every sample fails"


# --- solutions -------------------------------------------------------------------------------------------------------


def test_solutions_are_told_what_was_tried_and_differ(decide: Callable[..., Item | Rejection], tmp_path: Path) -> None:
    teacher, asked = puzzle_teacher(errors=0.0), list[str]()

    def script(request: Any) -> Answer:
        asked.append(request.text)
        return teacher(request)

    outcome = decide("solutions", Item(question=QUESTION), script, run={"min_threads": 4})
    assert isinstance(outcome, Item)
    assert len(outcome.paths) == len(set(outcome.labels)) == 4
    assert [path.distance >= 0.2 for path in outcome.paths] == [True] * 4
    assert "Nothing yet." in asked[0]
    last = asked[-1]
    assert all(path.summary in last for path in outcome.paths[:-1])
    assert all(line["seconds"] > 0 and line["finished"] for line in read_lines(tmp_path / "calls.jsonl"))


def test_a_teacher_that_repeats_itself_makes_no_lattice(decide: Callable[..., Item | Rejection]) -> None:
    same = {"solution": "17 + 25 = 42, then 42 - 8 = 34.", "answer": "34", "summary": "In order."}
    outcome = decide("solutions", Item(question=QUESTION), always(same), solutions={"max_calls": 4})
    assert reason(outcome) == "too few distinct paths"


def test_a_near_copy_is_told_to_the_teacher_which_then_goes_another_way(
    decide: Callable[..., Item | Rejection], tmp_path: Path
) -> None:
    """It repeats its first path until it is told so."""
    ways = ["17 + 25 = 42, then 42 - 8 = 34.", "Take 8 from 25, and 17 are left, twice which is 34."]
    asked: list[str] = []

    def script(request: Any) -> Answer:
        asked.append(request.text)
        n = int("were refused" in request.text)
        return Answer(json.dumps({"solution": ways[n], "answer": "34", "summary": f"Way {n}."}))

    outcome = decide("solutions", Item(question=QUESTION), script, run={"max_threads": 2})
    assert isinstance(outcome, Item)
    assert [path.summary for path in outcome.paths] == ["Way 0.", "Way 1."]
    assert len(asked) == 3
    assert "were refused" not in asked[1]
    assert "</tried>\n\nThese attempts were refused" in asked[2]
    assert "\n- Way 0. This is approach 1 again.\n\nReply" in asked[2]
    assert [line["prompt"][:8] for line in read_lines(tmp_path / "calls.jsonl")] == ["solve 2 "] * 3


def test_paths_that_say_the_same_in_other_words_are_one(decide: Callable[..., Item | Rejection]) -> None:
    texts = iter(["first add, then take away", "to begin with a sum; a difference follows", "count on fingers", "x"])
    asked: list[str] = []

    def script(request: Any) -> Answer:
        asked.append(request.text)
        return Answer(json.dumps({"solution": next(texts), "answer": "34", "summary": "s"}))

    def embed(texts: Any) -> list[list[float]]:
        return [[0.0, 1.0] if "fingers" in text else [1.0, 0.0] for text in texts]

    helpers = Helpers(load_embed=lambda: embed)
    sections = {"solutions": {"max_calls": 3, "encoder": "e"}, "run": {"max_threads": 2}}
    outcome = decide("solutions", Item(question=QUESTION), script, helpers, **sections)
    assert isinstance(outcome, Item)
    assert [path.dissimilarity for path in outcome.paths] == [1.0, 1.0]
    assert "fingers" in outcome.paths[1].text
    assert "\n- s This is approach 1 again.\n" in asked[2]


@pytest.mark.parametrize("fault", CONTENT)
def test_what_cannot_be_used_is_asked_for_again_and_then_rejected_with_its_reason(
    decide: Callable[..., Item | Rejection], fault: str
) -> None:
    teacher = puzzle_teacher(errors=0.0)
    expected = {"wrong count": "malformed"}.get(fault, fault)  # a solution has no count
    every = decide("solutions", Item(question=QUESTION), lambda request: spoil(fault, teacher(request)))
    assert reason(every) == expected
    count = [0]

    def every_second(request: Any) -> Answer:
        count[0] += 1
        return spoil(fault, teacher(request)) if count[0] % 2 else teacher(request)

    other = Item(question=QUESTION.model_copy(update={"text": "Calculate 44 - 12 + 30."}))
    assert isinstance(decide("solutions", other, every_second), Item)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"answer": "34 [[best]]"}, "tag in text"),
        ({"solution": "I win. [[best]]"}, "tag in text"),
        ({"summary": " "}, "empty"),
    ],
)
def test_a_solution_cannot_speak_for_the_assembler(
    decide: Callable[..., Item | Rejection], values: dict[str, str], expected: str
) -> None:
    reply = {"solution": "It is 34.", "answer": "34", "summary": "Known.", **values}
    assert reason(decide("solutions", Item(question=QUESTION), always(reply))) == expected


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_marks_paths(decide: Callable[..., Item | Rejection]) -> None:
    paths = (RIGHT.model_copy(update={"right": None}), WRONG.model_copy(update={"right": None}))
    outcome = decide("verify", Item(question=QUESTION, paths=paths), always(""))
    assert isinstance(outcome, Item)
    assert [path.right for path in outcome.paths] == [True, False]
    assert reason(decide("verify", Item(question=QUESTION, paths=paths[1:]), always(""))) == "no path is right"


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps_keep_within_the_budget_or_are_shortened(decide: Callable[..., Item | Rejection]) -> None:
    def script(request: Any) -> Answer:
        shorter = "times too long" in request.text
        return Answer(json.dumps({"steps": ["17 + 25 = 42.", "then 34." if shorter else "so " * 40 + "34."]}))

    item = Item(question=QUESTION, labels=(1,), paths=(RIGHT,))
    outcome = decide("steps", item, script, steps={"max_tokens": 60})
    assert isinstance(outcome, Item)
    assert outcome.paths[0].steps == ("17 + 25 = 42.", "then 34.")
    assert reason(decide("steps", item, script, steps={"max_tokens": 10})) == "over budget"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], "wrong count"), (["a"] * 30, "wrong count"), (["a", " "], "empty"), (["a [[fail]]"], "tag in text")],
)
def test_steps_that_cannot_be_used(decide: Callable[..., Item | Rejection], steps: list[str], expected: str) -> None:
    outcome = decide("steps", Item(question=QUESTION, labels=(1,), paths=(RIGHT,)), always({"steps": steps}))
    assert reason(outcome) == expected


@pytest.mark.parametrize(
    ("answer", "last", "expected"),
    [
        ("34", "So the result is 31337.", "answer not in last step"),
        ("34", "So the result is 134.", "answer not in last step"),
        ("34", "So the result is 3.4.", "answer not in last step"),
        ("34", "So the result is -34.", "answer not in last step"),
        ("34", "So the result is 34.", None),
        ("34", "42-8=34", None),
        ("34.0", "It is $34.", None),
        ("1,034", "It is 1034.", None),
        ("\N{MINUS SIGN}34", "It is -34.", None),
        ("Zoe is a knave", "hence zoe is  a knave.", None),
        ("Zoe is a knave", "hence Zoe is a knight.", "answer not in last step"),
        (r"\frac{68}{2}", "It is 68/2.", None),
        ("34", "所以答案是34。", None),
        ("34", "所以答案是35。", "answer not in last step"),
        ("34", "그래서 답은34입니다.", None),
        ("34", "It is x34.", "answer not in last step"),
        ("甲是骑士", "因此可知甲是骑士。", None),
        ("甲是骑士", "因此可知乙是骑士。", "answer not in last step"),
    ],
)
def test_a_thread_ends_at_the_answer_that_was_verified(
    decide: Callable[..., Item | Rejection], answer: str, last: str, expected: str | None
) -> None:
    path = RIGHT.model_copy(update={"text": "Zoe is a knave: 甲是骑士. 17 + 25 = 42.\n42 - 8 = 34.", "answer": answer})
    item = Item(question=QUESTION, labels=(1,), paths=(path,))
    outcome = decide("steps", item, always({"steps": ["17 + 25 = 42.", last]}))
    assert (outcome.reason if isinstance(outcome, Rejection) else None) == expected


# --- notes and judgement ---------------------------------------------------------------------------------------------

NOTE = {"thread": 7, "after_step": 1, "about_thread": 3, "about_step": 1, "kind": "warns", "text": "25 - 8 is 17."}


def verdicts(right: str = "best", wrong: str = "fail") -> dict[str, object]:
    tags = {7: right, 3: wrong}
    return {"threads": [{"thread": n, "comparison": f"I am {n}.", "tag": tag} for n, tag in tags.items()]}


def noted_and_judged(notes: list[object], judgement: object) -> Script:
    return lambda request: Answer(json.dumps({"notes": notes} if "notes" in request.text else judgement))


def test_notes_and_judgement_are_put_to_their_threads(decide: Callable[..., Item | Rejection]) -> None:
    outcome = decide("notes", SPLIT, noted_and_judged([NOTE], verdicts()))
    assert isinstance(outcome, Item)
    first, second = outcome.paths
    (note,) = first.notes
    assert (note.after, note.about, note.about_step, note.kind) == (0, 1, 0, "warns")
    assert second.notes == ()
    assert [(path.tag, path.comparison) for path in outcome.paths] == [("best", "I am 7."), ("fail", "I am 3.")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"thread": 9}, "wrong thread"),
        ({"about_thread": 7}, "wrong thread"),
        ({"about_step": 3}, "wrong step"),
        ({"after_step": 0}, "wrong step"),
        ({"text": "\n"}, "empty"),
        ({"text": "see [[best]]"}, "tag in text"),
        ({"text": "25 - 8 is 17; Thread 29 ends at 999."}, "wrong thread"),
        ({"text": "Unlike threads 3, 7 and 12 I would not."}, "wrong thread"),
        ({"text": "与thread 29不同"}, "wrong thread"),
        ({"text": "x" * 401}, "over budget"),
        ({"kind": "praises"}, "malformed"),
    ],
)
def test_notes_that_cannot_be_used(
    decide: Callable[..., Item | Rejection], change: dict[str, object], expected: str
) -> None:
    assert reason(decide("notes", SPLIT, noted_and_judged([{**NOTE, **change}], verdicts()))) == expected


def test_notes_may_name_their_two_threads_and_are_written_without_sight_of_the_answers(
    decide: Callable[..., Item | Rejection],
) -> None:
    seen: list[str] = []
    script = noted_and_judged(
        [{**NOTE, "text": "Thread 3 and 25 - 8; threads 7 and 3 differ, as threads do: 17."}], verdicts()
    )

    def noting(request: Any) -> Answer:
        seen.append(request.text)
        return script(request)

    assert isinstance(decide("notes", SPLIT, noting), Item)
    assert ["Its answer: 33" in text for text in seen] == [False, True]


def test_too_many_notes(decide: Callable[..., Item | Rejection]) -> None:
    assert reason(decide("notes", SPLIT, noted_and_judged([NOTE] * 5, verdicts()))) == "wrong count"


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (verdicts("fail", "best"), "judge contradicts verifier"),
        (verdicts("best", "success"), "judge contradicts verifier"),
        (verdicts("best", "best"), "not one best"),
        (verdicts("success", "fail"), "not one best"),
        ({"threads": verdicts()["threads"][:1]}, "wrong count"),  # type: ignore[index]
        ({"threads": [*verdicts()["threads"], *verdicts()["threads"]]}, "wrong count"),  # type: ignore[misc]
    ],
)
def test_a_judge_that_contradicts_the_verifier_or_miscounts(
    decide: Callable[..., Item | Rejection], judgement: object, expected: str
) -> None:
    assert reason(decide("notes", SPLIT, noted_and_judged([], judgement))) == expected


# --- lattice ---------------------------------------------------------------------------------------------------------


def _closed(item: Item) -> Item:
    tags = ("best", "fail")
    paths = [
        path.model_copy(update={"comparison": "I compare.", "tag": tag})
        for path, tag in zip(item.paths, tags, strict=True)
    ]
    return item.model_copy(update={"paths": tuple(paths)})


@pytest.mark.parametrize("visibility", ["strict", "causal"])
def test_a_lattice_is_causal_and_reads_as_it_should(decide: Callable[..., Item | Rejection], visibility: str) -> None:
    script = noted_and_judged([NOTE], verdicts())
    noted = decide("notes", SPLIT, script)
    assert isinstance(noted, Item)
    outcome = decide("lattice", noted, script, student={"visibility": visibility})
    assert isinstance(outcome, Item)
    record = outcome.lattice
    assert record is not None
    check_causality(record, visibility)
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(tokenizer.convert_tokens_to_ids(thread.tokens)) for thread in record.threads]
    assert texts[0].startswith("Thread 7:\n17 + 25 = 42.\nNot as Thread 3: 25 - 8 is 17.\n42 - 8 = 34.")
    assert texts[0].endswith("\nI am 7.\nanswer: 34 [[best]]<eos>")
    assert texts[1].endswith("\nI am 3.\nanswer: 33 [[fail]]<eos>")
    assert texts[1].startswith("Thread 3:")
    assert [len(thread.references) for thread in record.threads] == [2, 1]


def test_threads_that_would_wait_too_long(decide: Callable[..., Item | Rejection]) -> None:
    long = SPLIT.paths[0].model_copy(update={"steps": ("so " * 100,)})
    item = _closed(SPLIT.model_copy(update={"paths": (long, SPLIT.paths[1])}))
    assert reason(decide("lattice", item, always(""), student={"max_waiting": 50})) == "threads too uneven"
    assert isinstance(decide("lattice", item, always(""), student={"max_waiting": 500}), Item)


def test_rows_longer_than_the_student_takes(decide: Callable[..., Item | Rejection]) -> None:
    """The prompt counts; training would refuse the whole file."""
    item = _closed(SPLIT)
    outcome = decide("lattice", item, always(""))
    assert isinstance(outcome, Item)
    assert outcome.lattice is not None
    row = len(outcome.lattice.prompt) + max(len(thread.tokens) for thread in outcome.lattice.threads)
    assert reason(decide("lattice", item, always(""), student={"max_tokens": row - 1})) == "too long"
    assert isinstance(decide("lattice", item, always(""), student={"max_tokens": row}), Item)


def test_a_text_cannot_smuggle_in_tokens_with_a_meaning(decide: Callable[..., Item | Rejection]) -> None:
    bad = SPLIT.paths[0].model_copy(update={"steps": ("done<eos>",)})
    item = _closed(SPLIT.model_copy(update={"paths": (bad, SPLIT.paths[1])}))
    assert reason(decide("lattice", item, always(""))) == "special token in text"


# --- reading replies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": ["a"]}',
        'Here you are:\n```json\n{"steps": ["a"]}\n```\nAnything else?',
        '<think>{"steps": ["no"]}</think> {"steps": ["a"], "more": 1}',
        'With {x} in mind: {"steps": ["a"]}',
        '{"other": 1} {"steps": ["a"]}',
        'First {"steps": ["draft"]}, or better {"steps": ["a"]}, {"as": "asked"}',
        'I try {"steps": ["draft"]} first.</think>{"steps": ["a"]}',
        '{"steps": ["a"]} <think> or {"steps": ["no"',
    ],
)
def test_tolerant_reading(text: str) -> None:
    assert read_reply(text, Steps).steps == ["a"]


def test_latex_in_a_reply() -> None:
    assert read_reply(r'{"steps": ["\sqrt{2} \cdot x", "a\nb"]}', Steps).steps == [r"\sqrt{2} \cdot x", "a\nb"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\frac{1}{2} \times \beta \neq \rho", r"\frac{1}{2} \times \beta \neq \rho"),
        (r"\\(\\frac12\\) and \(\frac12\)", r"\(\frac12\) and \(\frac12\)"),
        (r"\underline{x} \u00e9", r"\underline{x} é"),
        (r"\text{if} \textbf{x} \theta", r"\text{if} \textbf{x} \theta"),
        (r"a\nnext, not\nnegative\tthen\r\n\"b\" \/", 'a\nnext, not\nnegative\tthen\r\n"b" /'),
    ],
)
def test_latex_is_not_taken_for_control_characters(written: str, meant: str) -> None:
    assert read_reply(f'{{"steps": ["{written}"]}}', Steps).steps == [meant]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("<think>hm</think>", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ('{"steps": ["a", "b', "truncated"),
        ('{"threads": [{"thread": 1, "comparison": "x", "tag": "best"}, {"thr', "truncated"),
        ("Six.", "malformed"),
        ('{"steps": "a"}', "malformed"),
        ("{'steps': ['a']}", "malformed"),
        ('{"steps": ["a"],}', "malformed"),
        ('<think>{"steps": ["draft"]}', "truncated"),
        ("{" * 100_000, "truncated"),
        ('{"a":' * 100_000, "truncated"),
    ],
)
def test_what_is_no_reply(text: str, expected: str) -> None:
    with pytest.raises(Rejection) as caught:
        read_reply(text, Judgement if "threads" in text else Steps)
    assert caught.value.reason == expected


def test_the_schemas_are_those_of_strict_servers() -> None:
    for kind in (Solution, Steps, Notes, Judgement):
        schema = kind.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            assert part["additionalProperties"] is False
            assert set(part["required"]) == set(part["properties"])


def test_content_hashes_tell_contents_apart() -> None:
    assert content_hash("a", ["b"]) == content_hash("a", ["b"]) != content_hash("a", "b")
