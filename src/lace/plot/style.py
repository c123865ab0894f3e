"""How figures look and how they are written: whatever the user's settings, the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any colour vision (Okabe and Ito, Color Universal Design, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Of the same lines, for who sees no colour."""
DASHES = ("-", "--", "-.", ":")
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "figure.titlesize": 11,
    "savefig.dpi": 150,
    "svg.hashsalt": "lace",
}


def style() -> AbstractContextManager[None]:
    """Figures are made and saved within this block."""
    return matplotlib.style.context(["default", _STYLE])


def look(number: int) -> dict[str, str]:
    """Colour and dashes of the line `number`, counted from 0; 28 of them differ."""
    turn, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[turn % len(DASHES)]}


def save(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Writes NAME.png and NAME.svg of each figure into the folder, without a date in them.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with style():
        for name, figure in figures.items():
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                paths.append(out / f"{name}.{suffix}")
                figure.savefig(paths[-1], metadata=metadata)
    return paths
