"""What the symbolic teacher writes is true, legal, coordinated, and knowable by whoever writes it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from lace.data.assemble import LAG, RecordRejected, assemble, check_causality
from lace.data.countdown_teacher import LAST_START, CountdownTeacher
from lace.data.record import LatticeRecord, Reference, ThreadRecord
from lace.data.vocabulary import TAGS
from lace.tasks.countdown import TRIPLE_IDEAS, Puzzle, generate, read_trace

Written = tuple[Puzzle, LatticeRecord]


def _write(seed: int, coordinated: bool, visibility: str) -> Written:
    """N from 2 to 8, three numbers twice as often as four."""
    rng = Random(f"teacher/{seed}")
    puzzle = generate(rng, "train", 4 if seed % 3 == 0 else 3)
    labels = rng.sample(range(1, 33), 2 + seed % 7)
    return puzzle, CountdownTeacher(puzzle, labels, rng, coordinated=coordinated, visibility=visibility).write()


@pytest.fixture(scope="module", params=["strict", "causal"])
def visibility(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def coordinated(visibility: str) -> list[Written]:
    return [_write(seed, True, visibility) for seed in range(140)]


@pytest.fixture(scope="module")
def isolated(visibility: str) -> list[Written]:
    return [_write(seed, False, visibility) for seed in range(70)]


def _tags(record: LatticeRecord) -> list[str]:
    return [thread.tokens[-2] for thread in record.threads]


def _answer(thread: ThreadRecord) -> str:
    return " ".join(thread.tokens[thread.tokens.index("answer:") + 1 : -2])


def _ideas(thread: ThreadRecord) -> list[tuple[tuple[str, ...], int]]:
    """The names of a thread's attempts, of those alone that got to their last name, and the step of that."""
    found, first = [], ()
    for step in sorted(thread.choices):
        if thread.tokens[step] in TRIPLE_IDEAS:
            found.append(((*first, thread.tokens[step]), step))
            first = ()
        else:
            first = (thread.tokens[step],)
    return found


def test_form_of_every_thread(coordinated: list[Written], isolated: list[Written]) -> None:
    for puzzle, record in coordinated + isolated:
        assert record.prompt == puzzle.prompt
        assert len({thread.label for thread in record.threads}) == len(record.threads)
        for thread in record.threads:
            assert thread.tokens[:3] == ["Thread", str(thread.label), ":"]
            assert thread.opening == 3
            assert thread.tokens[-1] == "<eos>"
            assert thread.tokens[-2] in TAGS
            assert thread.tokens.count("answer:") == 1


def test_every_equation_is_true_and_legal(coordinated: list[Written], isolated: list[Written]) -> None:
    steps = 0
    for puzzle, record in coordinated + isolated:
        for thread in record.threads:
            report = read_trace(puzzle, " ".join(thread.tokens))
            assert (report.false_steps, report.illegal_steps) == (0, 0)
            assert [a for a in report.attempts if a[-1] in TRIPLE_IDEAS] == [names for names, _ in _ideas(thread)]
            first = [step for step in thread.choices if thread.tokens[step - 1] in (":", ",")]
            assert max(first) <= LAST_START[len(puzzle.numbers)]
            steps += report.steps
    assert steps > 1000


def test_verdicts_and_answers_are_true(coordinated: list[Written], isolated: list[Written]) -> None:
    for puzzle, record in coordinated + isolated:
        for thread in record.threads:
            for step, token in enumerate(thread.tokens):
                if token in ("yes", "no"):
                    assert (thread.tokens[step - 1] == str(puzzle.target)) == (token == "yes")
            answer = _answer(thread)
            assert answer == "none" or puzzle.check(answer)
            assert ("yes" in thread.tokens) == puzzle.check(answer)


def test_exactly_one_thread_is_best(coordinated: list[Written]) -> None:
    solved = 0
    for _, record in coordinated:
        tags, answers = _tags(record), [_answer(thread) for thread in record.threads]
        assert tags.count("[[best]]") == 1
        found = any("yes" in thread.tokens for thread in record.threads)
        solved += found
        best = record.threads[tags.index("[[best]]")]
        assert ("yes" in best.tokens) == found
        assert "see" not in best.tokens
        if found:
            assert "none" not in answers
            assert "[[fail]]" not in tags
        else:
            assert "[[success]]" not in tags
    assert len(coordinated) / 2 < solved


def test_isolated_threads_know_of_nobody(isolated: list[Written]) -> None:
    for _, record in isolated:
        assert "[[best]]" not in _tags(record)
        for thread, tag in zip(record.threads, _tags(record), strict=True):
            assert not thread.references
            assert "see" not in thread.tokens
            assert (tag == "[[success]]") == ("yes" in thread.tokens)


def test_isolated_text_does_not_depend_on_the_mode() -> None:
    for seed in range(10):
        assert _write(seed, False, "strict") == _write(seed, False, "causal")


def test_no_attempt_is_repeated_that_could_be_read(coordinated: list[Written], visibility: str) -> None:
    """Unless nothing else was left."""
    chosen = 0
    for _, record in coordinated:
        ideas = [_ideas(thread) for thread in record.threads]
        for writer, own in enumerate(ideas):
            for number, (names, step) in enumerate(own):
                known = {n for n, _ in own[:number]}
                assert names not in known
                for other, theirs in enumerate(ideas):
                    known |= {n for n, at in theirs if other != writer and at <= step - LAG[visibility]}
                assert names not in known or len([n for n in known if n[:-1] == names[:-1]]) == len(TRIPLE_IDEAS)
                chosen += 1
    assert chosen > 500


def test_solution_is_taken_over_only_after_it_can_be_read(coordinated: list[Written], visibility: str) -> None:
    """Found from the tokens alone, without the teacher's own references."""
    taken, lag = 0, LAG[visibility]
    for puzzle, record in coordinated:
        by_label = {str(thread.label): thread for thread in record.threads}
        for thread in record.threads:
            if "see" not in thread.tokens:
                continue
            see = thread.tokens.index("see")
            step = see - 1  # of the name that was taken over
            source = by_label[thread.tokens[thread.tokens.index("yes", see) + 1]]
            assert source is not thread
            verdict, width = source.tokens.index("yes"), len(puzzle.numbers) - 2
            assert verdict + width <= step - lag  # the name behind the verdict could be read
            names = source.tokens[verdict + 1 : verdict + 1 + width]
            assert source.tokens[verdict + 1 + width] == str(source.label)
            assert [token for token in thread.tokens[step:] if token in names] == names
            assert _answer(thread) == _answer(source)
            taken += 1
    assert taken > 100


def test_solution_is_noticed_at_the_next_step(coordinated: list[Written], visibility: str) -> None:
    """No thread begins another idea once it can know of a solution."""
    for puzzle, record in coordinated:
        finders = [t.tokens for t in record.threads if "yes" in t.tokens and "see" not in t.tokens]
        solved = [tokens.index("yes") + len(puzzle.numbers) - 2 for tokens in finders]
        for thread in record.threads:
            assert not solved or all(step - LAG[visibility] < min(solved) for step in thread.choices)


def test_threads_without_time_wait_for_the_others(coordinated: list[Written], visibility: str) -> None:
    """The last words of a failure come when no other thread is trying any more."""
    waited = 0
    for _, record in coordinated:
        if any("yes" in thread.tokens for thread in record.threads):
            continue
        first = [thread.tokens.index("done") for thread in record.threads]
        for thread, own in zip(record.threads, first, strict=True):
            end = thread.tokens.index("answer:")
            assert thread.tokens[own:end] == ["done"] * (end - own)
            latest = max(step for other, step in zip(record.threads, first, strict=True) if other is not thread)
            assert end == max(own + 1, latest + LAG[visibility])
            waited += end - own
    assert waited > 50


def test_references_are_legal(coordinated: list[Written], isolated: list[Written], visibility: str) -> None:
    for _, record in coordinated + isolated:
        check_causality(record, visibility)
    assert sum(len(thread.references) for _, record in coordinated for thread in record.threads) > 1000


def test_strict_records_are_legal_in_causal_mode_but_not_the_reverse() -> None:
    for seed in range(20):
        check_causality(_write(seed, True, "strict")[1], "causal")
    hasty = [_write(seed, True, "causal")[1] for seed in range(20)]
    sooner = LAG["strict"] - 1
    hasty = [r for r in hasty if any(x.step - x.source_step == sooner for t in r.threads for x in t.references)]
    assert hasty
    for record in hasty:
        with pytest.raises(RecordRejected, match="readable from step"):
            check_causality(record, "strict")


def test_reference_shifted_too_early_is_rejected(coordinated: list[Written], visibility: str) -> None:
    rng, lag = Random(0), LAG[visibility]
    for _, record in coordinated[:40]:
        index = rng.choice([n for n, thread in enumerate(record.threads) if thread.references])
        thread = record.threads[index]
        number = rng.randrange(len(thread.references))
        reference = thread.references[number]
        early = replace(reference, step=reference.source_step + lag - 1)
        references = [*thread.references[:number], early, *thread.references[number + 1 :]]
        threads = [replace(t, references=references) if t is thread else t for t in record.threads]
        source = record.threads[reference.source]
        message = (
            f"thread {thread.label}, step {early.step}: rests on step {reference.source_step} of thread "
            f"{source.label}, readable from step {reference.source_step + lag} on in '{visibility}' mode"
        )
        with pytest.raises(RecordRejected) as error:
            check_causality(LatticeRecord(record.prompt, threads), visibility)
        assert str(error.value) == message


def _pair(reference: Reference, labels: tuple[int, int] = (4, 9), word: str = "no") -> LatticeRecord:
    tokens = ["Thread", "4", ":", word, "no", "no"]
    return LatticeRecord(
        "Use 3 and 7 to make 10",
        [ThreadRecord(labels[0], tokens, 3, [reference]), ThreadRecord(labels[1], tokens, 3)],
    )


@pytest.mark.parametrize(
    ("record", "visibility", "message"),
    [
        (_pair(Reference(5, 0, 3)), "strict", "thread 4, step 5: refers to itself"),
        (_pair(Reference(6, 1, 3)), "strict", "points outside of the text"),
        (_pair(Reference(5, 1, -1)), "strict", "points outside of the text"),
        (_pair(Reference(4, 1, 3)), "strict", "rests on step 3 of thread 9, readable from step 5"),
        (_pair(Reference(3, 1, 3)), "causal", "readable from step 4"),
        (_pair(Reference(5, 1, 3)), "same_step", "keeps no memory of other threads"),
        (_pair(Reference(5, 1, 3), labels=(4, 4)), "strict", "labels are not distinct"),
        (_pair(Reference(5, 1, 3), word="maybe"), "strict", "thread 4: token 'maybe' is not in the vocabulary"),
    ],
)
def test_bad_records_are_rejected_with_the_reason(
    record: LatticeRecord, visibility: str, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RecordRejected, match=message) as error:
        assemble(record, tokenizer, visibility)
    assert "\n" not in str(error.value)


def test_everything_is_in_the_vocabulary(
    coordinated: list[Written], isolated: list[Written], visibility: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    for _, record in coordinated + isolated:
        lattice = assemble(record, tokenizer, visibility)
        assert tokenizer.unk_token_id not in lattice.prompt_ids
        assert lattice.thread_ids == [thread.label for thread in record.threads]
        for thread, ids, learned in zip(record.threads, lattice.tokens, lattice.learned, strict=True):
            assert tokenizer.decode(ids) == " ".join(thread.tokens)
            # What a model writes, read back as text, is the same tokens.
            assert tokenizer(" ".join(thread.tokens), add_special_tokens=False)["input_ids"] == ids
            assert learned == [False] * 3 + [True] * (len(ids) - 3)
            assert len(lattice.prompt_ids) + len(ids) <= tokenizer.model_max_length
