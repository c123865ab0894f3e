"""The pages in docs tell the truth: their tables are those of the result files, their pictures are there."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["viewing", "speed", "data", "evidence"])
def test_tables_are_made_from_the_result_files(make_tables: ModuleType, name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (DOCS / "results" / name).glob("*.json")}
    assert names
    assert names == set(re.findall(r"<!-- end ([\w-]+) -->", page))
    assert make_tables.render(page) == page


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_pictures_and_pages_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert all((DOCS / other).is_file() for other in named), named
