"""From the stream of lattices to tensors."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lace.data.assemble import LAG, AssembledLattice
from lace.data.collate import IGNORED, LatticeCollator
from lace.data.countdown_drills import EQUATIONS
from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
from lace.data.vocabulary import TAGS
from lace.tasks.countdown import TRIPLE_IDEAS, Puzzle, parse, puzzles, read_trace


@pytest.mark.parametrize("visibility", ["strict", "causal"])
@pytest.mark.parametrize("coordinated", [True, False])
def test_item_depends_on_mixture_and_index_alone(
    tokenizer: PreTrainedTokenizerFast, coordinated: bool, visibility: str
) -> None:
    mixture = PuzzleMixture(coordinated=coordinated, visibility=visibility, equations=0.15, lucky=0.15, group=2, seed=4)
    one, two = PuzzleLattices(mixture, tokenizer, 20), PuzzleLattices(mixture, tokenizer, 30)
    assert len(one) == 20
    forward = [one[n] for n in range(12)]
    assert forward == [two[n] for n in reversed(range(12))][::-1]
    assert len({str(item.tokens) for item in forward}) == 12
    for index in (-1, 20):
        with pytest.raises(IndexError):
            one[index]


def test_seeds_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    items = [PuzzleLattices(PuzzleMixture(coordinated=True, seed=seed), tokenizer, 1)[0] for seed in (1, 2)]
    assert items[0] != items[1]


def test_lattices_of_the_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = PuzzleLattices(PuzzleMixture(coordinated=True, four_numbers=0.3, group=1), tokenizer, 60)
    sizes, numbers = set(), set()
    for index in range(60):
        item = dataset[index]
        puzzle = parse(tokenizer.decode(item.prompt_ids[1:]))
        assert puzzle.split == "train"
        assert all(1 <= label <= 32 for label in item.thread_ids)
        assert all(len(ids) == len(learned) for ids, learned in zip(item.tokens, item.learned, strict=True))
        sizes.add(len(item.tokens))
        numbers.add(len(puzzle.numbers))
    assert sizes == set(range(2, 9))
    assert numbers == {3, 4}


def _words(item: AssembledLattice, tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in item.tokens]


def _is_equations(item: AssembledLattice, tokenizer: PreTrainedTokenizerFast) -> bool:
    return _words(item, tokenizer)[0][3].isdigit()


def test_neighbours_are_of_one_kind(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = PuzzleMixture(
        coordinated=True, equations=0.2, lucky=0.2, chain_sums=0.2, sums=0.1, votes=0.1, four_numbers=0.3, group=4
    )
    dataset = PuzzleLattices(mixture, tokenizer, 160)

    def kind(item: AssembledLattice) -> str:
        question = tokenizer.decode(item.prompt_ids[1:])
        if question.startswith("Use"):
            return "equations" if _is_equations(item, tokenizer) else str(len(item.prompt_ids))
        return "votes" if question == "Compute" else "sums" if item.blind else "chain_sums"

    kinds = [kind(item) for item in map(dataset.__getitem__, range(160))]
    assert all(len(set(kinds[n : n + 4])) == 1 for n in range(0, 160, 4))
    assert len(set(kinds)) == 6
    with pytest.raises(ValueError, match=r"the shares .* must be from 0 to 1 in sum"):
        PuzzleMixture(coordinated=True, equations=0.6, sums=0.5)
    with pytest.raises(ValueError, match="must rise from 1 on"):
        PuzzleMixture(coordinated=True, min_threads=5, max_threads=4)


def test_drills_of_equations_learn_results_and_verdicts(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = PuzzleLattices(PuzzleMixture(coordinated=False, equations=1.0), tokenizer, 10)
    right = verdicts = 0
    for item in map(dataset.__getitem__, range(10)):
        assert item.blind
        target = tokenizer.decode(item.prompt_ids[-1:])
        for words, learned in zip(_words(item, tokenizer), item.learned, strict=True):
            report = read_trace(Puzzle((1, 1, 1), 1), " ".join(words))
            assert (report.steps, report.false_steps) == (EQUATIONS, 0)
            assert learned == [words[n - 1] == "=" or word in ("yes", "no") for n, word in enumerate(words)]
            for before, word in pairwise(words):
                if word in ("yes", "no"):
                    assert (word == "yes") == (before == target)
                    right, verdicts = right + (word == "yes"), verdicts + 1
    assert 0.3 < right / verdicts < 0.5


def test_drills_of_searches_do_not_learn_choices(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = PuzzleLattices(PuzzleMixture(coordinated=True, lucky=1.0, group=1), tokenizer, 15)
    solved = threads = 0
    for item in map(dataset.__getitem__, range(15)):
        for ids, learned, choices in zip(item.tokens, item.learned, item.choices, strict=True):
            words = tokenizer.convert_ids_to_tokens(ids)
            hidden = {step for step in range(3, len(ids)) if not learned[step]}
            assert hidden == {*choices, *(step for step, word in enumerate(words) if word in TAGS)}
            assert not learned[0]
            assert learned[-1]
            assert "see" not in words  # isolated, even in the stream of coordinated lattices
            solved += "yes" in words
            threads += 1
    assert solved / threads > 0.3


@pytest.mark.parametrize("coordinated", [True, False])
def test_drills_of_ideas_learn_choices_and_what_is_said_again(
    tokenizer: PreTrainedTokenizerFast, coordinated: bool
) -> None:
    mixture = PuzzleMixture(coordinated=coordinated, idea_drills=1.0, group=1)
    repeated = followed = 0
    for item in map(PuzzleLattices(mixture, tokenizer, 30).__getitem__, range(30)):
        assert not item.blind
        rows = _words(item, tokenizer)
        found = [words for words in rows if "yes" in words and "see" not in words]
        assert len(found) <= 1
        for thread, (words, learned, choices) in enumerate(zip(rows, item.learned, item.choices, strict=True)):
            again = [step + 1 for step in choices if words[step + 1] == words[step]]
            assert len(again) >= len(choices) - 1  # all but what was begun when somebody was seen to have the solution
            again += [step + 1 for step, word in enumerate(words) if word == "yes"]
            if words in found:
                yes = words.index("yes")
                assert words[yes + 1 : yes + 3] == [words[[*choices][-1]], words[1]]
                again.append(yes + 2)
            if "see" in words:
                name, (solver,) = words.index("see") - 1, found
                assert solver.index("yes") <= name - LAG["strict"]
                assert words[name] == solver[solver.index("yes") + 1]
                assert words[words.index("yes") + 1] == solver[1]
                again += [name, name + 1]
                followed += 1
            assert [step for step, counts in enumerate(learned) if counts] == sorted([*choices, *again])
            for step, options in choices.items():
                others = {
                    item.tokens[other][s]
                    for other, theirs in enumerate(item.choices)
                    for s in theirs
                    if other != thread and s <= step - LAG["strict"]
                }
                assert options[item.tokens[thread][step]] > 0
                assert not {item.tokens[thread][s] for s in choices if s < step} & set(options)
                repeated += bool(others & set(options))
    assert (repeated == 0) == coordinated
    assert (followed > 30) == coordinated


def test_prompts_survive_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for puzzle in puzzles(40, seed=0) + puzzles(10, seed=0, numbers=4):
        ids = tokenizer(puzzle.prompt)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert parse(tokenizer.decode(ids, skip_special_tokens=True)) == puzzle


def test_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token] == ["<pad>", "<bos>", "<eos>"]
    assert tokenizer.tokenize("(x+y)*z a-b [[best]] answer: 12+3") == [
        "(x+y)*z", "a-b", "[[best]]", "answer:", "12", "+", "3"
    ]  # fmt: skip
    assert tokenizer("800 eel")["input_ids"][1:] == [tokenizer.unk_token_id] * 2


PAD = 0
LATTICES = [
    AssembledLattice(
        [1, 5, 6],
        [9, 4],
        [[7, 8], [7, 8, 9, 2]],
        [[False, True], [False, True, True, True]],
        [{0: {7: 1.0}}, {2: {9: 0.75, 3: 0.25}}],  # the first is not learned
    ),
    AssembledLattice([1, 5], [3, 1, 2], [[7], [8], [9]], [[True], [False], [True]], [{}, {}, {}]),
]


def test_collator() -> None:
    batch = LatticeCollator(PAD, 10)(LATTICES)
    expected = {
        "input_ids": [
            [1, 5, 6, 7, 8, 0, 0],
            [1, 5, 6, 7, 8, 9, 2],
            [1, 5, 7, 0, 0, 0, 0],
            [1, 5, 8, 0, 0, 0, 0],
            [1, 5, 9, 0, 0, 0, 0],
        ],
        "steps": [
            [-1, -1, -1, 0, 1, -1, -1],
            [-1, -1, -1, 0, 1, 2, 3],
            *[[-1, -1, 0, -1, -1, -1, -1]] * 3,
        ],
        "thread_ids": [9, 4, 3, 1, 2],
        "lattice_rows": [[0, 1, -1], [2, 3, 4]],
    }
    for name, values in expected.items():
        assert torch.equal(batch[name], torch.tensor(values)), name
    learned = batch["labels"] != IGNORED
    assert learned.sum() == sum(sum(row) for lattice in LATTICES for row in lattice.learned)
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    assert batch["labels"][0].tolist() == [IGNORED] * 4 + [8] + [IGNORED] * 2
    assert batch["choice_places"].tolist() == [[1, 5]]
    assert batch["choice_probabilities"].tolist() == [[0, 0, 0, 0.25, 0, 0, 0, 0, 0, 0.75]]
    assert set(batch) == {*expected, "labels", "choice_places", "choice_probabilities"}


def test_choices_are_what_the_teacher_could_have_written(tokenizer: PreTrainedTokenizerFast) -> None:
    """The draw is among them, and what a thread knows to be tried is not."""
    mixture = PuzzleMixture(coordinated=True, four_numbers=0.0, max_threads=4, group=1, seed=4)
    lattices = PuzzleLattices(mixture, tokenizer, 40)
    count = 0
    for lattice in (lattices[n] for n in range(40)):
        for tokens, choices in zip(lattice.tokens, lattice.choices, strict=True):
            for step, options in choices.items():
                assert sum(options.values()) == pytest.approx(1)
                assert options[tokens[step]] > 0
                count += 1
        for thread, choices in enumerate(lattice.choices):
            for step, options in choices.items():
                known = {
                    lattice.tokens[other][s]
                    for other, theirs in enumerate(lattice.choices)
                    for s in theirs
                    if s < step and (other == thread or s <= step - 2)
                }
                assert not known & set(options) or len(known) == len(TRIPLE_IDEAS)
    assert count > 200
