"""The tables of a report, made from its JSON alone, and their Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lace.report_table import Table, as_markdown, percent_with_interval


def tables(report: dict[str, Any]) -> list[Table]:
    """What is shown of a `lace eval` report: the groups, their differences, training seeds, and the entries."""
    about = (
        f"{report['task']}: n = {report['n']} unseen puzzles ({report['split']}), seed {report['seed']}; "
        "% [95 % interval]"
    )
    shown = [_metrics(about, "group", [{"label": row["group"], **row} for row in report["groups"]])]
    if report["paired"]:
        shown.append(_differences(report))
    if len(report["rows"]) > len(report["groups"]):
        shown.append(_metrics("Every training seed on its own", "entry", report["rows"]))
    return [*shown, _entries(report)]


def markdown(report: dict[str, Any]) -> str:
    """The tables in Markdown, and how they were made."""
    machine = report["machine"]
    return as_markdown(tables(report), report, f"{machine['cores']} cores, torch {machine['torch']}")


def _metrics(title: str, name: str, rows: Sequence[dict[str, Any]]) -> Table:
    metrics = list(rows[0]["metrics"])
    header = [name, "N", "budget", *metrics, "tokens", "steps", "seconds", "false steps", "distinct attempts"]
    cells = [
        [
            row["label"],
            str(row["threads"]),
            str(row["max_tokens"]),
            *(percent_with_interval(row["metrics"][metric]) for metric in metrics),
            f"{row['tokens']:.0f}",
            f"{row['steps']:.0f}",
            f"{row['seconds']:.2f}",
            _share(row["false_steps"], 2),
            _share(row["distinct_attempts"], 0),
        ]
        for row in rows
    ]
    return Table(title, header, cells)


def _differences(report: dict[str, Any]) -> Table:
    header = ["difference, points", "N", "budget", "[95 % interval]", "p", "p, Holm", "test"]
    cells = [
        [
            _difference(pair),
            str(pair["threads"]),
            str(pair["max_tokens"]),
            percent_with_interval(pair["difference"], "+"),
            _p(pair["p"]),
            _p(pair["p_holm"]),
            pair["test"],
        ]
        for pair in report["paired"]
    ]
    return Table(f"Paired by puzzle, against {report['against']}", header, cells)


def _difference(pair: dict[str, Any]) -> str:
    a, b = (f"{pair[side]['group']} {pair[side]['metric']}" for side in "ab")
    return f"{a} - {b}" + (" (best selection)" if pair["question"] == "acc - best selection" else "")


def _entries(report: dict[str, Any]) -> Table:
    keys = ["label", "model", "strategy", "temperature", "top_p", "weights"]
    cells = [[str(entry[key]) for key in keys] for entry in report["entries"]]
    return Table("Entries", ["entry", *keys[1:]], cells)


def _share(share: float | None, digits: int) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
