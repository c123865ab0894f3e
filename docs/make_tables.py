"""Writes the result tables of README.md from the JSON files in docs/results: `python docs/make_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; NAME is the file without its ending.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lace.bench.report import markdown as bench
from lace.eval.table import markdown

ROOT = Path(__file__).parents[1]


def render(text: str) -> str:
    """README text with every table made anew."""
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        table = (markdown if "groups" in report else bench)(report)
        pattern = re.compile(rf"(<!-- {path.stem} -->\n).*?(<!-- end {path.stem} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
