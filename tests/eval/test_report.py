"""Reports: flat rows, seeds nested in groups, the right comparisons and tests, and tables from the JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from lace.engine.result import Strategy
from lace.engine.sampling import SamplingParams
from lace.eval.outcome import METRICS, Outcome
from lace.eval.report import check_entries, make_report
from lace.eval.run import Cell, Entry
from lace.eval.stats import bootstrap_mean, holm, wilson
from lace.eval.table import markdown, tables


def entry(label: str, strategy: Strategy = "lace", temperature: float = 1.0) -> Entry:
    return Entry(label, f"model of {label}", strategy, SamplingParams(temperature=temperature))


def outcome(rng: Random, acc: float, vote: float, self_verified: float, *, attempts: int = 3) -> Outcome:
    """A lattice whose metrics are right with the given probabilities."""
    right = [float(rng.random() < p) for p in (acc, vote, self_verified)]
    return Outcome(
        acc=right[0],
        mean=sum(right) / 3,
        vote=right[1],
        self_verified=right[2],
        passed=max(right),
        tag_valid=1.0,
        diversity=0.7,
        tokens=40,
        steps=20,
        seconds=0.5,
        equations=10,
        false_equations=1,
        attempts=attempts,
        distinct_attempts=min(2, attempts),
    )


def report(chances: Mapping[Entry, tuple[float, float, float]], against: str | None = None, n: int = 60) -> Any:
    """A report of two widths and two budgets, as it is read back from JSON."""
    rng, entries = Random(1), list(chances)
    results = {
        Cell(e, threads, budget): [outcome(rng, *chances[e]) for _ in range(n)]
        for threads in (4, 8)
        for budget in (50, 100)
        for e in entries
    }
    made = make_report(
        results,
        task="countdown",
        split="test",
        seed=7,
        against=check_entries(entries, against),
        weights={e.model: f"digest of {e.label}" for e in entries},
        command="lace eval countdown",
    )
    return json.loads(json.dumps(made))


LACE, ISOLATED = entry("lace"), entry("isolated", "independent", 0.8)
SEEDS = {
    **{entry(f"lace/{seed}"): (0.8, 0.8, 0.8) for seed in (1, 2, 3)},
    **{entry(f"isolated/{seed}", "independent"): (0.5, 0.6, 0.4) for seed in (1, 2)},
}


def test_rows_are_flat_and_say_what_they_are() -> None:
    told = report({LACE: (0.8, 0.8, 0.8), ISOLATED: (0.5, 0.6, 0.4)})
    assert {"task", "split", "n", "seed", "command", "commit", "machine", "entries", "rows", "groups"} <= set(told)
    assert {"cpu", "cores", "torch", "platform", "gpu"} <= set(told["machine"])
    assert told["entries"][1] == {
        "label": "isolated", "group": "isolated", "strategy": "independent", "temperature": 0.8, "top_p": 1.0,
        "model": "model of isolated", "weights": "digest of isolated",
    }  # fmt: skip
    assert [(row["label"], row["threads"], row["max_tokens"]) for row in told["rows"]] == [
        (label, threads, budget) for threads in (4, 8) for budget in (50, 100) for label in ("lace", "isolated")
    ]
    for row in told["rows"]:
        assert (row["group"], row["seed"], row["n"]) == (row["label"], None, 60)
        assert row["strategy"] == ("lace" if row["label"] == "lace" else "independent")
        assert set(row["metrics"]) == set(METRICS)
        for estimate in row["metrics"].values():
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        assert (row["tokens"], row["steps"], row["seconds"], row["false_steps"]) == (40, 20, 0.5, 0.1)
        assert row["distinct_attempts"] == pytest.approx(2 / 3)
    acc = told["rows"][0]["metrics"]["acc"]
    assert acc == wilson(round(60 * acc["value"]), 60).to_dict()


def test_without_seeds_a_group_is_its_entry() -> None:
    told = report({LACE: (0.8, 0.8, 0.8), ISOLATED: (0.5, 0.6, 0.4)})
    for row, group in zip(told["rows"], told["groups"], strict=True):
        assert {**row, "seeds": [None]} == {**group, "label": row["label"], "seed": None}


def test_comparisons_with_isolated_threads() -> None:
    told = report({LACE: (0.8, 0.8, 0.8), ISOLATED: (0.5, 0.6, 0.2)})
    assert told["against"] == "isolated"
    pairs = told["paired"]
    assert [(p["threads"], p["max_tokens"]) for p in pairs[::3]] == [(4, 50), (4, 100), (8, 50), (8, 100)]
    metrics = {row["threads"] * 1000 + row["max_tokens"]: row["metrics"] for row in told["rows"][1::2]}
    for pair in pairs:
        assert (pair["a"]["group"], pair["b"]["group"]) == ("lace", "isolated")
        of_baseline = metrics[pair["threads"] * 1000 + pair["max_tokens"]]
        if pair["question"] == "acc - best selection":
            assert of_baseline[pair["b"]["metric"]]["value"] == max(
                of_baseline["vote@N"]["value"], of_baseline["self_verified"]["value"]
            )
        yes_or_no = pair["a"]["metric"] != "mean@N"
        assert pair["test"] == ("mcnemar" if yes_or_no else "permutation")
        assert pair["difference"]["low"] <= pair["difference"]["value"] <= pair["difference"]["high"]
    assert pairs[0]["b"]["metric"] == "vote@N"
    assert [p["p_holm"] for p in pairs] == pytest.approx(holm([p["p"] for p in pairs]))
    assert pairs[0]["p_holm"] > pairs[0]["p"]


def test_self_verification_can_be_the_best_selection() -> None:
    told = report({LACE: (0.8, 0.8, 0.8), ISOLATED: (0.5, 0.2, 0.6)})
    assert told["paired"][0]["b"]["metric"] == "self_verified"
    assert "lace acc - isolated self_verified (best selection)" in markdown(told)


def test_training_seeds_are_nested_in_their_group() -> None:
    told = report(SEEDS)
    assert [row["seed"] for row in told["rows"][:5]] == [1, 2, 3, 1, 2]
    assert [(g["group"], g["seeds"]) for g in told["groups"][:2]] == [("lace", [1, 2, 3]), ("isolated", [1, 2])]
    of_seeds = [row["metrics"]["acc"]["value"] for row in told["rows"][:3]]
    pooled = told["groups"][0]["metrics"]["acc"]
    assert pooled["value"] == pytest.approx(sum(of_seeds) / 3)
    assert told["groups"][0]["metrics"]["diversity"] == pytest.approx(bootstrap_mean([[0.7] * 60] * 3).to_dict())
    assert len(told["paired"]) == 12
    assert {p["test"] for p in told["paired"]} == {"permutation"}
    best = told["groups"][1]["metrics"]["vote@N"]["value"]
    assert told["paired"][0]["difference"]["value"] == pytest.approx(pooled["value"] - best)


def test_a_baseline_that_talks_answers_with_its_own_choice() -> None:
    told = report({LACE: (0.6, 0.9, 0.9), entry("swapped", "swapped"): (0.3, 0.9, 0.9)}, against="lace")
    assert {(p["a"]["group"], p["a"]["metric"], p["b"]["metric"]) for p in told["paired"]} == {
        ("swapped", "acc", "acc"),
        ("swapped", "acc", "pass@N"),
        ("swapped", "mean@N", "mean@N"),
    }


def test_without_a_baseline_nothing_is_compared() -> None:
    told = report({LACE: (0.6, 0.9, 0.9)})
    assert (told["against"], told["paired"]) == (None, [])
    assert [table.title for table in tables(told)][1:] == ["Entries"]


def test_markdown_is_made_from_the_json_alone() -> None:
    told = report(SEEDS)
    text = markdown(told)
    assert "countdown: n = 60 unseen puzzles (test), seed 7" in text
    assert "Paired by puzzle, against isolated" in text
    assert "| lace/3 | 8 | 100 | " in text
    assert "`lace eval countdown`, commit " in text
    acc = told["groups"][0]["metrics"]["acc"]
    assert f"| lace | 4 | 50 | {100 * acc['value']:.1f} [{100 * acc['low']:.1f}, {100 * acc['high']:.1f}] |" in text
    for table in tables(told):
        assert all(len(row) == len(table.header) for row in table.rows)


def test_a_task_without_ideas_has_no_share_of_distinct_ones() -> None:
    rng = Random(2)
    results = {Cell(LACE, 2, 50): [outcome(rng, 0.5, 0.5, 0.5, attempts=0) for _ in range(4)]}
    told = make_report(
        results, task="chain-sum", split="test", seed=1, against=None, weights={LACE.model: ""}, command=""
    )
    assert told["rows"][0]["distinct_attempts"] is None
    assert tables(told)[0].rows[0][-1] == ""


def test_entries_that_make_no_report_are_refused() -> None:
    with pytest.raises(ValueError, match="two entries have the label 'lace'"):
        check_entries([LACE, LACE], None)
    with pytest.raises(ValueError, match="one strategy, temperature and top_p"):
        check_entries([entry("lace/1"), entry("lace/2", temperature=0.5)], None)
    with pytest.raises(ValueError, match="all say their training seed"):
        check_entries([entry("lace/1"), entry("lace")], None)
    with pytest.raises(ValueError, match="no group 'isolated' to compare with; there are lace"):
        check_entries([LACE], "isolated")
