"""Tables of a report, as Markdown and on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A title and cells of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_markdown(tables: Sequence[Table], report: dict[str, Any], computing: str) -> str:
    """The tables, and how they were made.

    Args:
        tables: made from the report.
        report: has `command`, `commit` and `machine` (`lace.provenance`).
        computing: what of the machine matters, besides its processor.
    """
    blocks = [f"{table.title}\n\n{cells_as_markdown(table.header, table.rows)}" for table in tables]
    processor = report["machine"]["gpu"] or report["machine"]["cpu"]
    return "\n\n".join([*blocks, f"`{report['command']}`, commit {report['commit']}, {processor}, {computing}"])


def cells_as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells alone."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def percent_with_interval(estimate: Mapping[str, float], sign: str = "") -> str:
    """A share or difference of shares in percent, with its interval, e.g. `59.7 [57.8, 61.6]`.

    Args:
        estimate: `value`, `low` and `high` (`lace.eval.stats.Estimate`).
        sign: `+` to write it of positive numbers too.
    """
    value, low, high = (f"{100 * estimate[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def print_tables(tables: Sequence[Table], width: int) -> None:
    """Shows the tables; `width` is the columns of an output that is no terminal."""
    from rich import table as rich_table
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width, markup=False)
    for table in tables:
        shown = rich_table.Table(*table.header, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
