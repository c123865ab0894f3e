"""The tables of a `lace observe` report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lace.report_table import Table, as_markdown, percent_with_interval
from lace.viz.moments import MOMENTS


def tables(report: dict[str, Any]) -> list[Table]:
    """For each task: what comes through at which moments, and what is lost with each head silenced."""
    return [table for task, found in report["tasks"].items() for table in _of_task(task, found)]


def markdown(report: dict[str, Any]) -> str:
    """The tables in Markdown, and how they were made."""
    machine = report["machine"]
    return as_markdown(tables(report), report, f"{machine['cores']} cores, torch {machine['torch']}")


def _of_task(task: str, found: dict[str, Any]) -> Iterator[Table]:
    counts = ", ".join(map(str, found["threads"]))
    layers = [f"layer {layer}" for layer in found["layers"]]
    yield Table(
        f"{task}, {found['puzzles']} puzzles, N = {counts}: gate times attention to other threads, % (attention alone)",
        ["a token that", "tokens", *layers],
        [
            [
                MOMENTS[moment],
                str(seen["n"]),
                *(
                    f"{100 * through:.1f}{_half_width(half)} ({100 * share:.0f})"
                    for through, half, share in zip(
                        seen["through"]["value"], seen["through"]["half"], seen["share"]["value"], strict=True
                    )
                ),
            ]
            for moment, seen in found["moments"].items()
        ],
    )
    if "silenced" not in found:
        return
    whole, *parts = found["silenced"]
    yield Table(
        f"{task}: with a layer or a head silenced; % [95 % interval]",
        ["silenced", "acc", "lost acc", "mean@N", "lost mean@N", "tag_valid", "distinct attempts", "false steps"],
        [
            [
                _silent(row),
                f"{100 * row['acc']['value']:.1f}",
                percent_with_interval(row["lost"]),
                f"{100 * row['mean']['value']:.1f}",
                percent_with_interval(row["lost_mean"]),
                f"{100 * row['tag_valid']['value']:.1f}",
                "" if row["distinct_attempts"] is None else f"{100 * row['distinct_attempts']:.0f}",
                f"{100 * row['false_steps']:.2f}",
            ]
            for row in [whole, *sorted(parts, key=lambda row: -row["lost_mean"]["value"])]
        ],
    )


def _half_width(half: float | None) -> str:
    """Of one puzzle there is none."""
    return "" if half is None else f" ± {100 * half:.1f}"


def _silent(row: dict[str, Any]) -> str:
    if row["layer"] is None:
        return "none"
    return f"layer {row['layer']}" + ("" if row["head"] is None else f", head {row['head']}")
