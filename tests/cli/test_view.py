"""`lace solve --trace` and `lace view`, as users run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from command import Run
from lace.viz.trace import Trace
from traces import synthetic_trace

PUZZLE = "Use 9, 14 and 6 to make 30"


def test_a_recorded_run_becomes_a_page(lace: Callable[..., Run], tmp_path: Path) -> None:
    one, other = tmp_path / "lace.trace", tmp_path / "alone.trace"
    solve = ("solve", PUZZLE, "--threads", "3", "--max-tokens", "60", "--json")
    plain, run = lace(*solve), lace(*solve, "--trace", str(one))
    assert run.returncode == 0
    assert f"lace view {one}" in run.stderr
    result = json.loads(run.stdout)
    assert [thread["text"] for thread in result["threads"]] == [
        thread["text"] for thread in json.loads(plain.stdout)["threads"]
    ]
    trace = Trace.load(one)
    assert [thread.label for thread in trace.threads] == [thread["label"] for thread in result["threads"]]
    assert trace.threads[trace.chosen].correct is result["correct"]
    assert trace.layers
    assert lace(*solve, "--strategy", "independent", "--trace", str(other)).returncode == 0
    run = lace("view", str(one), "--compare", str(other))
    assert run.returncode == 0
    page = tmp_path / "lace.html"
    assert run.stdout.startswith(f"{page} (")
    assert page.read_text(encoding="utf-8").count('<script class="trace"') == 2


def test_some_layers_are_recorded(lace: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "some.trace"
    solve = ("solve", PUZZLE, "--threads", "2", "--max-tokens", "20", "--plain")
    assert lace(*solve, "--trace", str(path), "--layers", "5,3").returncode == 0
    assert Trace.load(path).layers == [3, 5]
    for wrong, message in (
        (("--layers", "3"), "--trace FILE"),
        (("--layers", "3", "--trace", str(path), "--strategy", "independent"), "threads that read each other"),
        (("--layers", "3,", "--trace", str(path)), "not ''"),
        (
            ("--layers", "0,3", "--trace", str(path)),
            "layers [0] have no lattice to record; there is one in [2, 3, 4, 5]",
        ),
        (("--layers", "2,3", "--trace", str(path), "--threads", "256"), "256 threads and 2 layers are too many"),
    ):
        run = lace(*solve, *wrong)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert message in run.stderr


def test_where_the_page_goes(lace: Callable[..., Run], tmp_path: Path) -> None:
    trace, page = tmp_path / "a.trace", tmp_path / "b.html"
    synthetic_trace().save(trace)
    assert lace("view", str(trace), "--out", str(page)).returncode == 0
    assert page.exists()
    before = trace.read_bytes()
    run = lace("view", str(trace), "--out", str(trace))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "would replace the trace" in run.stderr
    run = lace("view", str(trace), "--out", str(tmp_path))
    assert (run.returncode, run.stderr) == (2, f"lace: error: cannot write {str(tmp_path)!r}: Is a directory\n")
    new = tmp_path / "pages" / "c.html"
    assert lace("view", str(trace), "--out", str(new)).stdout == f"{new} ({len(page.read_bytes()) / 1e3:.1f} kB)\n"
    assert trace.read_bytes() == before


def test_what_is_no_trace(lace: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    run = lace("view", str(tmp_path / "notes.txt"))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "is no trace" in run.stderr
    (tmp_path / "page.html").write_text("<p>a page of before")
    run = lace("view", str(tmp_path / "page.html"))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "page.html is no trace" in run.stderr
    assert lace("view", str(tmp_path / "missing.trace")).returncode == 2
    run = lace("view", str(tmp_path))
    assert (run.returncode, run.stderr) == (2, f"lace: error: {tmp_path} is a folder, not a trace\n")
    run = lace("solve", PUZZLE, "--trace", str(tmp_path / "no" / "where.trace"))
    assert run.returncode == 2
    assert "there is no folder" in run.stderr
