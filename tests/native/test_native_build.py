"""Sources are compiled once for a machine, and loaded only from where nobody else can write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lace.lattice.native import SOURCE
from lace.native import build

pytestmark = pytest.mark.usefixtures("compiled")


def _made(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time and mode of each library: one, or two where the compiler knows OpenMP but has no library of it."""
    found = {path.name: path.stat() for path in (folder / "lace").iterdir()}
    assert 1 <= len(found) <= 2
    return {name: (about.st_ino, about.st_mtime_ns, about.st_mode & 0o777) for name, about in found.items()}


def test_is_compiled_once_and_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.kernel.__wrapped__(SOURCE) is not None
    made = _made(tmp_path)
    assert {mode for _, _, mode in made.values()} == {(tmp_path / "lace").stat().st_mode & 0o777} == {0o700}
    assert build.kernel.__wrapped__(SOURCE) is not None
    assert _made(tmp_path) == made
    assert capfd.readouterr() == ("", "")


BUILD = """
import sys
from lace.lattice.native import SOURCE
from lace.native.build import kernel
print("ready", flush=True)
sys.stdin.readline()
print(kernel(SOURCE) is not None)
"""


def test_processes_that_build_at_once_all_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ways = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", BUILD], **ways) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["True\n"] * 4
    left = _made(tmp_path)
    assert build.kernel.__wrapped__(SOURCE) is not None
    assert _made(tmp_path) == left


@pytest.mark.parametrize("open_place", [".", "lace"])
def test_nothing_is_loaded_from_where_others_can_write(
    open_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.kernel.__wrapped__(SOURCE) is not None
    for mode in (0o770, 0o707):
        os.chmod(tmp_path / open_place, mode)
        assert build.kernel.__wrapped__(SOURCE) is None


@pytest.mark.parametrize(
    "script", ["exit 1", "echo nonsense; while [ $# -gt 0 ]; do [ $1 = -o ] && echo x > $2; shift; done"]
)
def test_a_compiler_that_fails_leaves_the_operators(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "bad"
    compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    compiler.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "COMPILERS", (str(compiler),))
    assert build.kernel.__wrapped__(SOURCE) is None
    assert not list((tmp_path / "lace").glob("*.part"))
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    assert build.kernel.__wrapped__(SOURCE) is None
    assert capfd.readouterr() == ("", "")
