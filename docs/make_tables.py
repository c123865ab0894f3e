"""Writes the result tables of README.md and of pages in docs from docs/results: `python docs/make_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; NAME is the file without its ending.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lace.bench.report import markdown as bench
from lace.eval.table import markdown
from lace.report_table import Table, as_markdown
from lace.viz.exchange_table import markdown as exchange

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "viewing.md", ROOT / "docs" / "speed.md")


def render(text: str) -> str:
    """A page's text with every table made anew."""
    results = ROOT / "docs" / "results"
    for path in sorted(results.rglob("*.json")):
        if f"<!-- {path.stem} -->" not in text:
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        kind = next((kind for kind in TABLES if kind in report), "bench")
        table = TABLES[kind](report)
        pattern = re.compile(rf"(<!-- {path.stem} -->\n).*?(<!-- end {path.stem} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def recording(report: dict[str, Any]) -> str:
    """The table of `benchmarks/recording.py`."""
    trace, rates = report["trace"], report["frames_per_second"]
    size = f"{trace['threads']} threads of {trace['tokens']:,} tokens"
    pages = [
        [f"`{page['page']}`", f"{page['bytes'] / 1e3:.1f} kB, {page['gzip_bytes'] / 1e3:.1f} kB as gzip"]
        for page in report["pages"]
    ]
    rows = [
        *pages,
        [
            f"trace of {size}, {trace['layers']} layers of {trace['heads']} heads",
            f"{trace['bytes'] / 1e6:.1f} MB; its page {trace['page_bytes'] / 1e6:.1f} MB",
        ],
        ["recording it, after decoding it", f"{trace['record_s']:.0f} s, {trace['decode_s']:.0f} s"],
        [
            "frames a second of that page, while it is scrolled and played",
            f"{rates['scrolling']:.0f}, {rates['playing']:.0f}",
        ],
        *(
            [
                f"{row['what']}, {row['task']}, N = {report['threads']}",
                f"{100 * row['ratio'] - 100:+.0f} % ({row['off_s']:.2f} s without, {row['on_s']:.2f} s with)",
            ]
            for row in report["overhead"]
        ),
    ]
    title = f"What looking costs; times are medians of {report['rounds']} interleaved rounds"
    machine = report["machine"]
    about = f"{machine['torch_threads']} threads of torch {machine['torch']}"
    return as_markdown([Table(title, ["what", "measured"], rows)], report, about)


TABLES = {"groups": markdown, "bench": bench, "observed": exchange, "recording": recording}
"""By a key that only reports of this kind have."""


def main() -> None:
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
