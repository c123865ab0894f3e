"""The pages in docs tell the truth: their tables are those of the result files, their pictures are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from lace.viz.page import LIVE, VIEWER

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["viewing", "speed", "data", "evidence"])
def test_tables_are_made_from_the_result_files(make_tables: ModuleType, name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (DOCS / "results" / name).glob("*.json")}
    assert names
    assert names == set(re.findall(r"<!-- end ([\w-]+) -->", page))
    assert make_tables.render(page) == page


def test_the_sizes_of_pages_are_those_of_the_shipped_ones() -> None:
    """`python benchmarks/recording.py --pages` and `python docs/make_tables.py` make them so."""
    told = json.loads((DOCS / "results" / "viewing" / "recording.json").read_text(encoding="utf-8"))["pages"]
    assert {page["page"]: page["bytes"] for page in told} == {page.name: page.stat().st_size for page in (VIEWER, LIVE)}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_pictures_and_pages_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert all((DOCS / other).is_file() for other in named), named
