"""docs/viewing.md tells the truth: its tables are those of the result files, its pictures are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "viewing.md").read_text(encoding="utf-8")


def test_tables_are_made_from_the_result_files() -> None:
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {path.stem for path in (DOCS / "results" / "viewing").glob("*.json")}
    assert names == set(re.findall(r"<!-- end ([\w-]+) -->", PAGE))
    assert module.render(PAGE) == PAGE


def test_pictures_exist() -> None:
    pictures = re.findall(r"\]\((images/[^)]+)\)", PAGE)
    assert pictures
    assert all((DOCS / path).is_file() for path in pictures)
