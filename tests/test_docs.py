"""The pages in docs tell the truth: their tables are those of the result files, their pictures are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_samples
import make_tables
import pytest

from lace.viz.page import LIVE, VIEWER

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["viewing", "speed", "data", "evidence"])
def test_tables_are_made_from_the_result_files(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (DOCS / "results" / name).glob("*.json")}
    assert names
    assert names == set(re.findall(r"<!-- end ([\w-]+) -->", page))
    assert make_tables.render(page) == page


def test_sample_lattices_are_what_the_pipeline_makes(tmp_path: Path) -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    made = make_samples.render(page, make_samples.samples(tmp_path))
    assert _without_times_and_keys(made) == _without_times_and_keys(page)


def _without_times_and_keys(page: str) -> str:
    """Of the lines that tell where a sample comes from; what made it stays, with the versions of prompts."""
    return re.sub(r"^\S+\+00:00  (\w+) +[0-9a-f]{8} from .{8}", r"\1", page, flags=re.MULTILINE)


def test_the_sizes_of_pages_are_those_of_the_shipped_ones() -> None:
    """`python benchmarks/recording.py --pages` and `python docs/make_tables.py` make them so."""
    told = json.loads((DOCS / "results" / "viewing" / "recording.json").read_text(encoding="utf-8"))["pages"]
    assert {page["page"]: page["bytes"] for page in told} == {page.name: page.stat().st_size for page in (VIEWER, LIVE)}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_pictures_and_pages_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert all((DOCS / other).is_file() for other in named), named
