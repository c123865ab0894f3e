"""The report of an evaluation, ready for JSON: metrics with 95 % intervals, paired differences, corrected p values.

    entries   what was compared, with a digest of each model's weights
    rows      one per entry, number of threads and budget
    groups    the same, the training seeds of a group taken together
    paired    each group against the baseline, at equal threads and budget

Shape letters: S training seeds, P puzzles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lace.eval.outcome import METRICS, YES_OR_NO, Outcome
from lace.eval.run import Cell, Entry
from lace.eval.stats import Estimate, bootstrap_difference, bootstrap_mean, holm, mcnemar, permutation, wilson
from lace.provenance import machine, source_commit

SELECTIONS = ("vote@N", "self_verified")
"""How isolated threads can choose their answer without talking."""

_Row = tuple[str, int, int]  # group, threads, budget


def check_entries(entries: Sequence[Entry], against: str | None) -> str | None:
    """Checks that the entries make a report, before hours are spent on them.

    Args:
        entries: what is to be compared.
        against: group that the others are compared with; None for the first whose strategy is `independent`.

    Returns:
        The group that the others are compared with; None if there is none.

    Raises:
        ValueError: if a label occurs twice, the entries of a group differ in more than their model, or there is no
            group `against`.
    """
    first: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        if entry.label in [other.label for other in entries[:number]]:
            raise ValueError(f"two entries have the label {entry.label!r}")
        known = first.setdefault(entry.group, entry)
        if (known.strategy, known.sampling) != (entry.strategy, entry.sampling):
            raise ValueError(f"the entries of group {entry.group!r} must have one strategy, temperature and top_p")
        if (known.seed is None) != (entry.seed is None):
            raise ValueError(f"the entries of group {entry.group!r} must all say their training seed")
    if against is None:
        return next((entry.group for entry in entries if entry.strategy == "independent"), None)
    if against not in first:
        raise ValueError(f"no group {against!r} to compare with; there are {', '.join(first)}")
    return against


def make_report(
    results: Mapping[Cell, Sequence[Outcome]],
    *,
    task: str,
    split: str,
    seed: int,
    against: str | None,
    weights: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """Puts everything that was measured together.

    Args:
        results: the outcomes of each cell on the same puzzles.
        task, split, seed: as they were evaluated.
        against: group that the others are compared with; None for no comparisons.
        weights: digests by model name.
        command: that the report is made by.
    """
    grouped: dict[_Row, dict[Cell, Sequence[Outcome]]] = {}
    for cell, outcomes in results.items():
        grouped.setdefault((cell.entry.group, cell.threads, cell.max_tokens), {})[cell] = outcomes
    return {
        "task": task,
        "split": split,
        "n": len(next(iter(results.values()))),
        "seed": seed,
        "against": against,
        "command": command,
        "commit": source_commit(),
        "machine": machine(),
        "entries": [
            {"label": entry.label, **_settings(entry), "model": entry.model, "weights": weights[entry.model]}
            for entry in dict.fromkeys(cell.entry for cell in results)
        ],
        "rows": [
            {"label": cell.entry.label, "seed": cell.entry.seed, **_row(cell, [outcomes])}
            for cell, outcomes in results.items()
        ],
        "groups": [
            {"seeds": [cell.entry.seed for cell in cells], **_row(next(iter(cells)), list(cells.values()))}
            for cells in grouped.values()
        ],
        "paired": _paired(grouped, against),
    }


def _settings(entry: Entry) -> dict[str, Any]:
    return {
        "group": entry.group,
        "strategy": entry.strategy,
        "temperature": entry.sampling.temperature,
        "top_p": entry.sampling.top_p,
    }


def _row(cell: Cell, by_seed: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """Metrics of one cell, or of the cells of a group; tokens, decoding steps and seconds are means per puzzle."""
    every = [outcome for outcomes in by_seed for outcome in outcomes]
    total = {field: sum(getattr(outcome, field) for outcome in every) for field in _TOTALS}
    return {
        **_settings(cell.entry),
        "threads": cell.threads,
        "max_tokens": cell.max_tokens,
        "n": len(by_seed[0]),
        "metrics": {name: _estimate(name, _values(name, by_seed)).to_dict() for name in METRICS},
        "tokens": total["tokens"] / len(every),
        "steps": total["steps"] / len(every),
        "seconds": total["seconds"] / len(every),
        "false_steps": _share(total["false_equations"], total["equations"]),
        "distinct_attempts": _share(total["distinct_attempts"], total["attempts"]),
    }


_TOTALS = ("tokens", "steps", "seconds", "equations", "false_equations", "attempts", "distinct_attempts")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _values(name: str, by_seed: Sequence[Sequence[Outcome]]) -> NDArray[np.float64]:
    """(S, P) values of a metric."""
    return np.array([[getattr(outcome, METRICS[name]) for outcome in outcomes] for outcomes in by_seed])


def _estimate(name: str, values_SP: NDArray[np.float64]) -> Estimate:
    if name in YES_OR_NO and len(values_SP) == 1:
        return wilson(int(values_SP.sum()), values_SP.size)
    return bootstrap_mean(values_SP)


# --- comparisons ------------------------------------------------------------------------------------------------


def _paired(grouped: Mapping[_Row, Mapping[Cell, Sequence[Outcome]]], against: str | None) -> list[dict[str, Any]]:
    """All comparisons, with p values corrected for their number by Holm's method."""
    comparisons = []
    for (group, threads, max_tokens), cells in grouped.items():
        if against is None or group == against:
            continue
        baseline = grouped[against, threads, max_tokens]
        first, second = list(cells.values()), list(baseline.values())
        for question, left, right in _questions(next(iter(baseline)).entry, second):
            comparisons.append(
                {
                    "threads": threads,
                    "max_tokens": max_tokens,
                    "question": question,
                    "a": {"group": group, "metric": left},
                    "b": {"group": against, "metric": right},
                    **_compare(left, _values(left, first), right, _values(right, second)),
                }
            )
    corrected = holm([comparison["p"] for comparison in comparisons])
    return [{**comparison, "p_holm": p} for comparison, p in zip(comparisons, corrected, strict=True)]


def _questions(baseline: Entry, outcomes: Sequence[Sequence[Outcome]]) -> Iterator[tuple[str, str, str]]:
    """What is asked of a group against the baseline: (question, metric of the group, metric of the baseline).

    The best selection of isolated threads is the better of `SELECTIONS` on these very puzzles, which favours the
    baseline. Threads that talk answer with their own choice.
    """
    selections = SELECTIONS if baseline.strategy == "independent" else ("acc",)
    best = max(selections, key=lambda name: float(_values(name, outcomes).mean()))
    yield "acc - best selection", "acc", best
    yield "acc - oracle", "acc", "pass@N"
    yield "mean@N - mean@N", "mean@N", "mean@N"


def _compare(left: str, first_SP: NDArray[np.float64], right: str, second_SP: NDArray[np.float64]) -> dict[str, Any]:
    exact = len(first_SP) == len(second_SP) == 1 and {left, right} <= set(YES_OR_NO)
    test = mcnemar(first_SP[0], second_SP[0]) if exact else permutation(first_SP, second_SP)
    difference = bootstrap_difference(first_SP, second_SP).to_dict()
    return {"difference": difference, "test": test.test, "differing": test.differing, "p": test.p}
