"""`lace plot` as users run it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Run
from lace.cli.main import main


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["lace", "plot", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_a_run_becomes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert _run(monkeypatch, tmp_path, "--out", tmp_path / "figures") == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert files == [tmp_path / "figures" / f"training.{suffix}" for suffix in ("png", "svg")]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()


def test_reports_of_real_runs(lace: Callable[..., Run], tmp_path: Path) -> None:
    """Widths of two training seeds and of independent threads, and step times: the same bytes each time."""
    pytest.importorskip("matplotlib")
    width, growth = tmp_path / "width.json", tmp_path / "growth.json"
    entries = ("lace/0=puzzles", "lace/1=puzzles", "isolated=puzzles-isolated@independent")
    command = ["eval", "countdown", "--threads", "1,2,4", "--n", "4", "--max-tokens", "50", "--json", str(width)]
    assert lace(*command, *(f"--entry={entry}" for entry in entries)).returncode == 0
    assert lace("bench", "steps", "--threads", "1,2", "--lengths", "4,8", "--json", str(growth)).returncode == 0
    found = []
    for out in (tmp_path / "a", tmp_path / "b"):
        run = lace("plot", str(width), str(growth), "--out", str(out))
        assert (run.returncode, run.stderr) == (0, "")
        found.append([Path(line) for line in run.stdout.splitlines()])
    assert [path.name for path in found[0]] == ["width.png", "width.svg", "growth.png", "growth.svg"]
    assert [path.read_bytes() for path in found[0]] == [path.read_bytes() for path in found[1]]
    drawn = found[0][1].read_text()
    assert all(label in drawn for label in ("lace -->", "isolated, best selection -->", "threads N -->"))
    assert "lattice on / off -->" in found[0][3].read_text()


def test_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert _run(monkeypatch, tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "training.json").write_text(json.dumps({"groups": [{}]}))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert _run(monkeypatch, tmp_path, tmp_path / "training.json") == 2
    assert "two figures would be called training" in capsys.readouterr().err


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _run(monkeypatch, "run") == 2
    assert capsys.readouterr().err == "lace: error: plots need matplotlib: pip install 'lace-llm[plot]'\n"
