"""Questions: sources, normalisation, repetitions, and overlap with benchmarks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from lace.data.pipeline.config import (
    Benchmark,
    ChampSource,
    DataConfig,
    FileSource,
    HubSource,
    ReasoningGymSource,
)
from lace.data.pipeline.decontaminate import Contamination
from lace.data.pipeline.duplicates import NearDuplicates, similarity
from lace.data.pipeline.item import Question, Rejection
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.outcomes import read_items
from lace.data.pipeline.sources import normalise, read_source
from lace.data.stages.questions import REPORT_NAME, prepare

ROWS = [{"problem": "What is 1 + 1?", "result": "2", "key": "a"}, {"problem": "2 + 2?", "result": 4, "key": "b"}]


def test_files_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with (tmp_path / "q.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["problem", "result", "key"])
        writer.writeheader()
        writer.writerows(ROWS)
    texts = [{name: str(value) for name, value in row.items()} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "q.parquet")
    columns = {"question": "problem", "answer": "result", "id": "key"}
    for suffix in ("jsonl", "csv", "parquet"):
        source = FileSource(kind="file", path=tmp_path / f"q.{suffix}", **columns)
        first, second = read_source(source)
        assert isinstance(first, Question)
        assert (first.id, first.text, first.answer, first.verifier) == ("a", "What is 1 + 1?", "2", "exact")
        assert isinstance(second, Question)
        assert (second.id, second.answer, second.source) == ("b", "4", f"q.{suffix}, row 2")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_what_other_programs_leave_in_a_file_does_no_harm(tmp_path: Path, suffix: str) -> None:
    lines = {"csv": "id,question,answer\nx,1 + 1?,2\n\n,2 + 2?,4\n"}
    rows = [{"id": "x", "question": "1 + 1?", "answer": 2}, {"id": None, "question": "2 + 2?", "answer": 4}]
    lines["jsonl"] = "\n\n".join(map(json.dumps, rows)) + "\n\n"
    path = tmp_path / f"q.{suffix}"
    path.write_text("\ufeff" + lines[suffix], encoding="utf-8")
    found = list(read_source(FileSource(kind="file", path=path, id="id")))
    assert [(each.id, each.text) for each in found if isinstance(each, Question)] == [
        ("x", "1 + 1?"),
        ("q-2", "2 + 2?"),
    ]


def test_a_directory_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Dataset.from_list([{"question": f"{n}?", "answer": str(n)} for n in range(3)]).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    found = list(read_source(HubSource(kind="hub", path=str(tmp_path / "set"))))
    assert [each.id for each in found if isinstance(each, Question)] == ["set-1", "set-2", "set-3"]
    assert all(isinstance(each, Question) and each.verifier == "math" for each in found)


def test_reasoning_gym_and_champ() -> None:
    source = ReasoningGymSource(kind="reasoning-gym", task="chain_sum", size=3, config={"min_terms": 4, "max_terms": 4})
    found = list(read_source(source))
    assert len({each.id for each in found if isinstance(each, Question)}) == 3
    assert all(isinstance(each, Question) and each.text.count(" + ") + each.text.count(" - ") == 3 for each in found)
    champ = list(read_source(ChampSource(kind="champ")))
    assert len(champ) == 270
    assert isinstance(champ[0], Question)
    assert champ[0].answer == "239"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"kind": "reasoning-gym", "task": "no_such", "size": 1}, "reasoning-gym cannot make the task 'no_such'"),
        ({"kind": "file", "path": "q.jsonl"}, "q.jsonl has no column 'question'; its columns are problem, result, key"),
        ({"kind": "file", "path": "bad.jsonl"}, "bad.jsonl, line 1: no JSON"),
        ({"kind": "file", "path": "latin.jsonl"}, "latin.jsonl cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ({"kind": "file", "path": "latin.csv"}, "latin.csv cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ({"kind": "file", "path": "long.csv"}, "long.csv cannot be read: field larger than field limit"),
        ({"kind": "file", "path": "bad.parquet"}, "bad.parquet cannot be read: Parquet magic bytes not found"),
        ({"kind": "file", "path": "deep.jsonl"}, r"deep.jsonl, line 1: no JSON \(maximum recursion depth"),
        ({"kind": "file", "path": "q.txt"}, "q.txt is no .jsonl, .csv or .parquet file"),
    ],
)
def test_what_is_no_source_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., DataConfig], source: dict, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    Path("bad.jsonl").write_text("{\n")
    Path("q.txt").write_text("")
    for name in ("latin.jsonl", "latin.csv"):
        Path(name).write_bytes('{"question": "é"}\n'.encode("latin-1"))
    Path("long.csv").write_text("question,answer\n" + "x" * 200_000)
    Path("bad.parquet").write_bytes(b"nothing of the kind")
    Path("deep.jsonl").write_text("[" * 100_000)
    config = make_config("http://127.0.0.1:1", questions={"sources": [source]})
    with pytest.raises(ValueError, match=told):
        prepare(config, tmp_path / "stage", lambda read, decided: None)
    assert not (tmp_path / "stage" / "outcomes.jsonl").exists()


def test_normalisation() -> None:
    assert normalise(" a\u0301  b\u200b\t c\u00a0\x00 \r\n ") == "á b c"
    assert normalise("a\u0301  b\u200b\u00a0c \r\n   d\x00 ") == "á  b c\n   d"
    family, persian, shaking = "👨\u200d👩\u200d👧", "\u0645\u06cc\u200c\u062e\u0648", "\U0001fae8"
    assert normalise(f"{family} \u202e{persian} {shaking}") == f"{family} {persian} {shaking}"


def test_similarity_counts_words_and_never_mistakes_numbers() -> None:
    text = "A train leaves at noon and travels north at a steady speed of 60 miles an hour; how far is it by night?"
    assert similarity(text, text.upper()) == 1.0
    assert similarity(text, text.replace("noon", "dawn")) > 0.7
    assert similarity(text, text.replace("60", "61")) == 0.0


def test_texts_without_spaces_have_words_too(tmp_path: Path) -> None:
    text = "一列火车中午从北京出发,以每小时60公里的速度向北行驶,到晚上它离北京有多远?"
    assert similarity(text, text.replace("中午", "早上")) > 0.7
    assert similarity(text, "小明有60个苹果,他给了小红一半,然后又买了十个,请问小明现在一共有多少个苹果?") < 0.1
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": text}) + "\n")
    overlap = Contamination([Benchmark(name="bench", path=tmp_path / "bench.jsonl")]).overlap(f"请回答:{text}")
    assert overlap is not None
    assert overlap.share > 0.8


def test_near_duplicates_are_found_among_many() -> None:
    template = "Compute the sum of {} and {} and then tell whether it is larger than the product of both of them"
    texts = [template.format(n, n + 1) for n in range(500)]
    texts += [texts[7].upper(), texts[400].replace("tell", "say"), "something else"]
    found = NearDuplicates()
    for text in texts:
        found.add(text)
    assert found.find(texts.__getitem__, 0.7) == {500: 7, 501: 400}


def test_repetitions_and_benchmarks_are_left_out_with_a_report(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    secret = "Let ABC be a triangle whose sides are 13, 14 and 15. Find the radius of its inscribed circle."
    rows = [
        ("a", "How many primes are there below one hundred, counting two but not counting one?", "25"),
        ("b", "how many primes are there below one hundred,  counting two but not counting one?", "25"),
        ("c", f"  {secret}", "4"),
        ("a", "What is the capital of nothing at all?", "none"),
        ("d", "", "1"),
        ("e", "What is missing?", ""),
    ]
    with (tmp_path / "q.jsonl").open("w") as file:
        file.writelines(json.dumps(dict(zip(("id", "question", "answer"), row, strict=True))) + "\n" for row in rows)
    (tmp_path / "bench.jsonl").write_text(
        json.dumps({"question": "x"}) + "\n" + json.dumps({"question": secret}) + "\n"
    )
    config = make_config(
        "http://127.0.0.1:1",
        questions={
            "sources": [{"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}],
            "benchmarks": [{"name": "bench", "path": str(tmp_path / "bench.jsonl")}],
        },
    )
    prepare(config, tmp_path / "stage", lambda read, decided: None)
    lines = list(read_lines(tmp_path / "stage" / "outcomes.jsonl"))
    assert [item.question.id for _, item in read_items(tmp_path / "stage" / "outcomes.jsonl")] == ["a"]
    reasons = {(line["id"], line["reason"]) for line in lines if not line["kept"]}
    assert reasons == {
        ("b", "near-duplicate"),
        ("c", "in a benchmark"),
        ("a", "id is taken"),
        ("", "no question"),
        ("", "no answer"),
    }
    report = json.loads((tmp_path / "stage" / REPORT_NAME).read_text())
    assert report == {"bench": {"rows": 2, "hits": [{"id": "c", "row": 2, "share": 1.0}]}}
    assert not list((tmp_path / "stage").glob("*.partial"))


def test_procedural_questions_of_one_text_are_one_question(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    digits = {"min_digits": 1, "max_digits": 1, "min_terms": 2, "max_terms": 2}  # 200 questions
    sources = [
        {"kind": "reasoning-gym", "task": "chain_sum", "size": 150, "seed": seed, "config": digits} for seed in (1, 2)
    ]
    config = make_config("http://127.0.0.1:1", questions={"sources": sources, "near_duplicates": 0})
    prepare(config, tmp_path / "stage", lambda read, decided: None)
    lines = list(read_lines(tmp_path / "stage" / "outcomes.jsonl"))
    texts = [item.question.text for _, item in read_items(tmp_path / "stage" / "outcomes.jsonl")]
    assert len(lines) == 300
    assert 100 < len(texts) == len(set(texts)) <= 200
    assert {line["reason"] for line in lines if not line["kept"]} == {"repeated"}


def test_a_rejection_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": null, "answer": "1"}\n')
    (found,) = read_source(FileSource(kind="file", path=tmp_path / "q.jsonl"))
    assert isinstance(found, Rejection)
    assert (found.reason, found.detail) == ("no question", "q.jsonl, row 1")


def test_files_of_one_name_are_all_read(tmp_path: Path, make_config: Callable[..., DataConfig]) -> None:
    """The ids of the first are what they would be alone; so are ids that a file itself gives."""
    sources: list[dict[str, str]] = []
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        rows = [{"question": f"What is {folder} {n}?", "answer": "1", "key": f"{folder}{n}"} for n in range(2)]
        rows.append({"question": "", "answer": "1", "key": "none"})
        path = tmp_path / folder / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"kind": "file", "path": str(path)})
    sources[2]["id"] = "key"
    prepare(
        make_config("http://127.0.0.1:1", questions={"sources": sources}), tmp_path / "s", lambda read, decided: None
    )
    ids = [item.question.id for _, item in read_items(tmp_path / "s" / "outcomes.jsonl")]
    assert ids[:2] + ids[4:] == ["train-1", "train-2", "z0", "z1"]
    assert all(re.fullmatch(r"train-[0-9a-f]{6}-[12]", identity) for identity in ids[2:4])
    lines = list(read_lines(tmp_path / "s" / "outcomes.jsonl"))
    assert len({line["key"] for line in lines}) == len(lines) == 9


def test_rows_that_are_the_same_are_counted(tmp_path: Path, make_config: Callable[..., DataConfig]) -> None:
    row = json.dumps({"id": "a", "question": "How many?", "answer": "2"}) + "\n"
    (tmp_path / "q.jsonl").write_text(row * 3)
    source = {"kind": "file", "path": str(tmp_path / "q.jsonl"), "id": "id"}
    prepare(
        make_config("http://127.0.0.1:1", questions={"sources": [source]}), tmp_path / "s", lambda read, decided: None
    )
    lines = list(read_lines(tmp_path / "s" / "outcomes.jsonl"))
    assert [line.get("reason") for line in lines] == [None, "exact duplicate", "exact duplicate"]
    assert len({line["key"] for line in lines}) == 3


def contamination(folder: Path, *texts: str) -> Contamination:
    (folder / "bench.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    return Contamination([Benchmark(name="bench", path=folder / "bench.jsonl")])


LONG = "A farmer of great renown, who owned eleven cows and no sheep at all, once asked his neighbour: {} Give reasons."


@pytest.mark.parametrize(
    ("short", "question", "found"),
    [
        ("Which river flows through Cologne?", LONG.format("which river flows  through cologne?"), True),
        ("Which river flows through Cologne?", LONG.format("which river flows slowly through Cologne?"), False),
        ("What is 3 + 4 + 5?", LONG.format("What is $3+4+5$?"), True),
        ("What is 3 + 4 + 5?", LONG.format("What is 3 + 4 * 5?"), False),
        ("Compute 14 - 6 * 3 + 72 =", LONG.format("Compute 14 - 6 * 3 + 72."), True),
        ("What is 3 + 4?", LONG.format("What is 3 + 4?"), False),
        ("How many?", LONG.format("How many?"), False),
        ("", LONG.format(""), False),
        ("小明有几个苹果?", "有一天老师在课堂上问大家:小明有几个苹果?请写出计算过程和最后的答案。", True),
        ("小明有几个苹果?", "有一天老师在课堂上问大家:小红有几个苹果?请写出计算过程和最后的答案。", False),
        ("求方程的解", "已知函数的图像经过原点和另外一点,先求方程的解,再计算三角形的面积是多少。", False),
        ("三匹の猫は何色", "先生が昨日の授業で生徒に尋ねました。三匹の猫は何色ですか。理由も書いてください。", True),
        ("三匹の猫は何色", "先生が昨日の授業で生徒に尋ねました。二匹の猫は何色ですか。理由も書いてください。", False),
        ("小明有几个苹果和梨?", "有一天老师在课堂上问大家:小明有几个苹果和梨?请写出计算过程和最后的答案。", True),
    ],
)
def test_a_short_question_of_a_benchmark_is_found_in_a_longer_one(
    tmp_path: Path, short: str, question: str, found: bool
) -> None:
    overlap = contamination(tmp_path, "Something that nobody would ever think of asking in earnest.", short).overlap(
        question
    )
    assert (overlap is not None and overlap.share == 1.0) is found
    if overlap is not None:
        assert overlap.row == 2


def test_a_long_question_of_a_benchmark_is_found_in_one_three_times_as_long(tmp_path: Path) -> None:
    secret = "A cistern is filled by two pipes in four and in six hours; how long do both take?"
    bench = contamination(tmp_path, secret)
    around = " ".join(f"word{n}" for n in range(30))
    overlap = bench.overlap(f"{around} {secret} {around}")
    assert overlap is not None
    assert overlap.share == 1.0
    part = bench.overlap(f"{around} {secret.removesuffix('both take?')} {around}")
    assert part is not None
    assert part.share < 0.2


def test_a_phrase_of_many_benchmark_questions_is_no_question(tmp_path: Path) -> None:
    phrase = "Which of the following is true?"
    others = [f"Think of number {n} and of what it may stand for in a tale. {phrase}" for n in range(3)]
    text = LONG.format(phrase)
    assert contamination(tmp_path, phrase, *others).overlap(text) is None
    assert contamination(tmp_path, phrase, *others[:2]).overlap(text) is not None
    assert contamination(tmp_path, *[phrase] * 5).overlap(text) is not None, "a question that is only repeated"
    assert contamination(tmp_path, phrase, *others).overlap(phrase) is not None, "alone it is the benchmark's question"
