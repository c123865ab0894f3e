"""The teacher of chained sums, its mistakes, and what of its traces is learned."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from lace.data.assemble import check_causality
from lace.data.chain_sum_teacher import exact, write_chain_sum, write_sums, write_votes
from lace.data.mistakes import SHAPE, Mistakes
from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
from lace.data.vocabulary import build_tokenizer
from lace.tasks.chain_sum import MAX_VALUE, ROUTES, generate, parse, read_trace

LABELS = [9, 4, 30]


def often_wrong(rng: Random, x: int, y: int) -> tuple[int, dict[str, float]]:
    wrong = x + y + rng.choice((-1, 1, 10))
    return (wrong if rng.random() < 0.25 and 12 < x + y < 780 else x + y), {str(x + y): 0.75, str(wrong): 0.25}


def test_threads_that_read_end_with_the_right_answer_however_often_they_slip() -> None:
    words_seen = set()
    for seed in range(30):
        rng = Random(seed)
        puzzle = generate(rng, "train")
        record, strays = write_chain_sum(puzzle, LABELS, rng, coordinated=True, adder=often_wrong)
        check_causality(record, "strict")
        assert not any(strays)
        for thread in record.threads:
            text = " ".join(thread.tokens)
            report = read_trace(puzzle, text)
            assert (report.steps, report.illegal_steps) == (len(puzzle.terms), 0)
            assert puzzle.check(text.split("answer:")[1].split()[0])
            words_seen |= set(thread.tokens)
        assert [thread.tokens[-2] for thread in record.threads] == ["[[success]]", "[[best]]", "[[success]]"]
    assert {"ok", "fix", "keep"} <= words_seen


def test_threads_that_do_not_read_keep_what_they_have() -> None:
    right = wrong = 0
    for seed in range(30):
        rng = Random(seed)
        puzzle = generate(rng, "train")
        record, strays = write_chain_sum(puzzle, LABELS, rng, coordinated=False, adder=often_wrong, stray=0.5)
        assert not any(strays)
        for thread in record.threads:
            words = thread.tokens
            report = read_trace(puzzle, " ".join(words))
            assert (report.steps, report.illegal_steps) == (len(puzzle.terms), 0)
            for step, word in enumerate(words):
                if word == "ok":
                    assert words[step - 3] == words[step - 2] == words[step - 1]
                    goes_on = step + 3 if words[step + 2] == "answer:" else step + 2
                    assert words[goes_on] == words[step - 1]
            assert {"see", "keep", "fix"}.isdisjoint(words)
            assert words[-2] == "[[success]]"
            values = [int(words[step + 1]) for step, word in enumerate(words) if word == "="]
            assert min(values) >= 1
            assert max(values) <= MAX_VALUE
            right, wrong = right + puzzle.check(words[-3]), wrong + (not puzzle.check(words[-3]))
    assert right > 0
    assert wrong > 0


def test_strays_calculate_on_with_wrong_values_and_are_brought_back() -> None:
    strayed = 0
    for seed in range(20):
        rng = Random(seed)
        puzzle = generate(rng, "train")
        record, strays = write_chain_sum(puzzle, LABELS, rng, coordinated=True, adder=often_wrong, stray=0.3)
        for thread, wrong in zip(record.threads, strays, strict=True):
            words, right = thread.tokens, puzzle.start
            verdicts = [step for step, word in enumerate(words) if word in ("ok", "keep", "fix")]
            expected = set()
            for step, block in zip(verdicts, puzzle.blocks, strict=True):
                right += sum(block)
                if words[step - 1] != str(right):
                    expected |= {step - 1, step}
                assert (words[step] == "fix") == (words[step - 1] != words[step - 3])
                if step != verdicts[-1]:
                    assert words[step + 2] == words[step - 1]
            assert wrong == expected
            strayed += len(expected) // 2
            assert words[verdicts[-1] - 1] == str(puzzle.answer)
    assert strayed > 30


def test_verdicts_say_who_was_wrong() -> None:
    puzzle = parse("Compute 112 + 35 - 68")
    results = iter([44, 79, 147, 80, 147, 79])

    def adder(rng: Random, x: int, y: int) -> tuple[int, dict[str, float]]:
        return next(results), {str(x + y): 0.9, "80": 0.1}

    record, strays = write_chain_sum(puzzle, LABELS, Random(0), coordinated=True, adder=adder)
    texts = [" ".join(thread.tokens[3:]) for thread in record.threads]
    assert texts[0] == "9 see 2 , 112 - 68 = 44 , 44 + 35 = 79 79 see 79 keep , answer: 79 [[success]] <eos>"
    assert texts[1] == "4 see 1 , 112 + 35 = 147 , 147 - 68 = 80 80 see 79 fix , answer: 79 [[best]] <eos>"
    assert texts[2].startswith("30 see 3 , 112 + 35 = 147 , 147 - 68 = 79 79 see 79 keep ,")
    assert strays == [set(), set(), set()]
    assert record.threads[1].tokens[17] == "80"
    assert record.threads[1].choices == {5: {"1": 1.0}, 11: {"147": 0.9, "80": 0.1}, 17: {"79": 0.9, "80": 0.1}}
    verdict = record.threads[1].tokens.index("fix")
    assert {(r.step, r.source, r.source_step) for r in record.threads[1].references} == {
        *((step, source, verdict - 4) for step in (verdict - 1, verdict) for source in (0, 2)),
        *((5, source, 1) for source in (0, 2)),
    }


@pytest.mark.parametrize("coordinated", [True, False])
def test_every_thread_takes_the_route_that_it_names(coordinated: bool) -> None:
    rng = Random(1)
    puzzle = generate(rng, "train")
    record, _ = write_chain_sum(puzzle, LABELS, rng, coordinated=coordinated)
    places = [int(thread.tokens[5 if coordinated else 4]) for thread in record.threads]
    assert places == ([2, 1, 3] if coordinated else [1, 4, 6])
    for thread, place in zip(record.threads, places, strict=True):
        words = thread.tokens[7 if coordinated else 6 :]
        added = [int(words[6 * n + 1] + words[6 * n + 2]) for n in range(4)]
        assert added == [puzzle.blocks[0][at] for at in ROUTES[place - 1]]


@pytest.mark.parametrize("kind", ["chain_sums", "sums"])
@pytest.mark.parametrize("coordinated", [True, False])
def test_the_probabilities_of_the_model_are_learned_where_sums_stand(
    tmp_path: Path, kind: str, coordinated: bool
) -> None:
    results, chances = torch.zeros(*SHAPE, 1), torch.zeros(*SHAPE, 1)
    results[:], chances[:] = 7, 0.5
    Mistakes(results, chances).save(tmp_path / "mistakes.safetensors")
    file = str(tmp_path / "mistakes.safetensors")
    mixture = PuzzleMixture(coordinated=coordinated, mistakes=file, **{kind: 1.0})
    tokenizer = build_tokenizer()
    slipped = 0
    for item in map(PuzzleLattices(mixture, tokenizer, 10).__getitem__, range(10)):
        assert item.blind == (kind == "sums")
        for ids, learned, choices in zip(item.tokens, item.learned, item.choices, strict=True):
            words = tokenizer.convert_ids_to_tokens(ids)
            for step, word in enumerate(words):
                if step >= 3 and words[step - 1] == "=":
                    right = _result(words[step - 4 : step])
                    assert learned[step]
                    assert {tokenizer.decode(token): p for token, p in choices[step].items()} == {"7": 0.5, right: 0.5}
                    slipped += word != right
                else:
                    assert learned[step] == (step >= 3 and kind == "chain_sums")
                if word == "fix":
                    assert coordinated
                    assert words[step - 3] != words[step - 1]
    assert slipped > 20


def _result(equation: list[str]) -> str:
    x, sign, y, _ = equation
    return str(int(x) + (int(y) if sign == "+" else -int(y)))


def test_results_are_drawn_at_the_temperature_of_use(tmp_path: Path) -> None:
    results, chances = torch.zeros(*SHAPE, 2), torch.zeros(*SHAPE, 2)
    results[1, 150, 20], results[1, 151, 20] = torch.tensor([131, 120]), torch.tensor([132, 121])
    chances[1, 150, 20], chances[1, 151, 20] = torch.tensor([0.4, 0.125]), torch.tensor([0.2, 0.1])
    Mistakes(results, chances).save(tmp_path / "table.safetensors")
    table = Mistakes.load(tmp_path / "table.safetensors")
    rng = Random(0)
    value, probabilities = table.draw(rng, 150, -20)
    assert probabilities == pytest.approx({"130": 0.475, "131": 0.4, "120": 0.125}, abs=1e-3)
    drawn = [table.draw(rng, 150, -20)[0] for _ in range(4000)]
    share = 0.4**10 / (0.4**10 + 0.475**10)
    assert drawn.count(131) / 4000 == pytest.approx(share, abs=0.03)
    assert value in {130, 131}
    assert {table.draw(rng, 151, -20)[0] for _ in range(100)} == {131}
    assert table.draw(rng, 150, 20) == (170, {"170": 1.0})
    assert table.draw(rng, 900, 20) == (920, {})


def test_a_missing_or_foreign_table_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"make one with python -m lace.train.mistakes"):
        PuzzleLattices(PuzzleMixture(coordinated=True, mistakes=str(tmp_path / "none")), build_tokenizer(), 1)
    with pytest.raises(ValueError, match="a table of mistakes has shape"):
        Mistakes(torch.zeros(3), torch.zeros(3))


def test_votes_ask_for_what_most_others_have() -> None:
    seen = set()
    for seed in range(20):
        record, given = write_votes([3, 8, 20, 1], Random(seed), coordinated=True)
        check_causality(record, "strict")
        assert [thread.tokens[5] for thread in record.threads] == ["2", "3", "4", "1"]  # places
        assert all(thread.choices == {5: {thread.tokens[5]: 1.0}} for thread in record.threads)
        rows = [thread.tokens[7:] for thread in record.threads]
        for at in range(0, len(rows[0]), 6):
            values = [row[at] for row in rows]
            right = {row[at + 3] for row in rows}
            assert len(right) == 1
            assert values.count(*right) > len(rows) / 2
            for row in rows:
                wanted = "fix" if {row[at]} != right else "ok" if set(values) == right else "keep"
                assert row[at + 4] == wanted
                seen.add(wanted)
        assert all(steps == {*range(7, 7 + len(rows[0]), 6)} for steps in given)
    assert seen == {"ok", "keep", "fix"}


def test_votes_of_threads_that_do_not_read_say_the_same_value_again() -> None:
    record, given = write_votes([3, 8], Random(0), coordinated=False)
    for thread, steps in zip(record.threads, given, strict=True):
        rows = [thread.tokens[at : at + 5] for at in range(6, len(thread.tokens), 5)]
        assert all(row == [row[0], row[0], row[0], "ok", ","] for row in rows)
        assert steps == {*range(6, len(thread.tokens), 5)}
        assert not thread.references


def test_rows_of_sums_are_true() -> None:
    thread = write_sums(9, Random(1))
    assert not thread.choices
    equations = " ".join(thread.tokens[thread.opening :]).rstrip(" ,").split(" , ")
    assert len(equations) > 6
    for equation in equations:
        x, sign, y, _, value = equation.split()
        assert exact(Random(0), int(x), int(y) if sign == "+" else -int(y)) == (int(value), {})
