"""README.md tells the truth: its tables are those of the result files, and its commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import make_tables
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_made_from_the_result_files() -> None:
    names = {path.stem for path in (ROOT / "docs" / "results").glob("*.json")}
    assert names
    assert names == set(re.findall(r"<!-- end (\w+) -->", README))
    assert make_tables.render(README) == README


def test_evaluations_that_are_shown_are_large_enough() -> None:
    for path in (ROOT / "docs" / "results").glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "groups" in report:
            assert (report["split"], report["n"] >= 2000) == ("test", True), path
            assert {row["threads"] for row in report["groups"]} >= {4, 8}, path
            assert "dirty" not in report["commit"], path


@pytest.mark.parametrize("path", re.findall(r"(?:runs|docs|benchmarks|src|configs)/(?!out/)[\w/.-]+\w", README))
def test_files_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_shell_commands_parse() -> None:
    """Every `lace VERB` of the README knows its options; what they do is tested in tests/cli."""
    commands = re.findall(r"^\.venv/bin/lace (\w+)(.*)$", README, re.MULTILINE)
    assert commands
    for verb, rest in commands:
        run = subprocess.run(
            [sys.executable, "-m", "lace.cli.main", verb, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0
        assert all(option in run.stdout for option in re.findall(r"--[\w-]+", rest))


def test_import_is_quick() -> None:
    code = "import sys, lace; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
