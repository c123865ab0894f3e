"""The pages in docs tell the truth: their tables are those of the result files, their pictures are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["viewing", "speed"])
def test_tables_are_made_from_the_result_files(name: str) -> None:
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (DOCS / "results" / name).glob("*.json")}
    assert names
    assert names == set(re.findall(r"<!-- end ([\w-]+) -->", page))
    assert module.render(page) == page


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_pictures_and_pages_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert all((DOCS / other).is_file() for other in named), named
