"""What `lace bench` counts and times, and the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lace.bench.bandwidth import step_bytes
from lace.bench.operators import count_operators
from lace.bench.report import markdown
from lace.bench.subjects import model_engine, prompt_of, shape_engine, shape_size
from lace.bench.times import step_times
from lace.cli.main import main
from lace.engine.native_decoder import NativeDecoder
from lace.lattice.native import NativeStep, usable
from lace.native.build import SWITCH


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["lace", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


@pytest.mark.parametrize(("shape", "most"), [("smollm2-135m", 1.085), ("qwen3-0.6b", 1.06)])
def test_a_step_dispatches_few_more_operators(shape: str, most: float) -> None:
    """Than the model's own pass; the lean one has about half of them, and no more for the lattice."""
    engine = shape_engine(shape, narrow=True)
    lean_on, lean_off = (count_operators(engine, 4, 20, side) for side in ("lace", "independent"))
    engine.lean = False
    on, off = (count_operators(engine, 4, 20, side) for side in ("lace", "independent"))
    assert off.compute < off.leaf
    assert on.compute <= most * off.compute
    assert lean_on.compute - lean_off.compute <= on.compute - off.compute
    assert lean_on.compute < 0.7 * off.compute


def test_operators_are_counted_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is that of a GPU, too."""
    monkeypatch.setenv(SWITCH, "1")
    for kind, method in ((NativeStep, "added"), (NativeDecoder, "__call__")):
        monkeypatch.setattr(kind, method, lambda *given: pytest.fail("compiled code was called"))
    engine = shape_engine("qwen3-0.6b", narrow=True)
    assert count_operators(engine, 2, 20, "lace").compute > count_operators(engine, 2, 20, "independent").compute
    assert os.environ[SWITCH] == "1"


def test_short_lengths_are_timed_beside_long_ones() -> None:
    rows = step_times(model_engine("puzzles"), 2, 20, [3, 40], 1)
    assert [row.length for row in rows] == [3, 40]
    assert all(row.on_ms > 0 and row.ratio > 0 for row in rows)


def test_a_step_reads_weights_once_and_the_caches_of_all_threads() -> None:
    """The embedded model: 6 layers of width 128, all with keys and values, 4 of them with a lattice of width 32."""
    engine = model_engine("puzzles")
    threads, context, length = 3, 20, 10
    parameters = dict(engine.model.named_parameters())
    lattice = sum(p.numel() for name, p in parameters.items() if ".lattice." in name)
    base = sum(p.numel() for p in parameters.values()) - lattice
    off = base + threads * (context + length) * 6 * 2 * 128
    assert step_bytes(engine.model, threads, context, length, lattice=False) == 4 * off
    on = off + lattice + threads * length * 4 * 2 * 32
    assert step_bytes(engine.model, threads, context, length, lattice=True) == 4 * on


def test_operators_do_not_depend_on_the_number_of_threads() -> None:
    engine = shape_engine("qwen3-0.6b", narrow=True)
    assert count_operators(engine, 2, 20, "lace") == count_operators(engine, 7, 20, "lace")


@pytest.mark.parametrize("shape", ["qwen3-1.7b", "qwen3-4b"])
def test_the_cache_is_small(shape: str) -> None:
    size = shape_size(shape)
    assert 0 < size.lattice_bytes <= 0.04 * size.main_bytes


def test_prompts_have_the_length_asked_for() -> None:
    engine = model_engine("puzzles")
    assert [len(engine.tokenizer(prompt_of(engine, n))["input_ids"]) for n in (2, 9, 50)] == [2, 9, 50]


def test_quick_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "report" / "speed.json", tmp_path / "speed.md"
    assert run(monkeypatch, "bench", "--quick", "--json", files[0], "--markdown", files[1]) == 0
    report: dict[str, Any] = json.loads(files[0].read_text())
    assert report["command"].startswith("lace bench --quick --json")
    assert (report["bench"], report["dtype"], report["context"], report["rounds"]) == ("puzzles", "float32", 50, 1)
    assert {"cpu", "cores", "torch"} <= report["machine"].keys()
    assert report["step_by"] == ("compiled code" if usable(torch.device("cpu"), torch.float32) else "operators")
    (operators,), (steps,), (speed,) = (report[kind] for kind in ("operators", "steps", "throughput"))
    assert operators["leaf_ratio"] == operators["on"]["leaf"] / operators["off"]["leaf"] > 1
    assert [row["shape"] for row in report["cache"]] == ["qwen3-1.7b", "qwen3-4b"]
    assert (steps["threads"], steps["length"]) == (2, 12)
    assert min(steps["on_ms"], steps["off_ms"], steps["on_cpu_ms"], steps["off_cpu_ms"]) > 0
    assert 0 < steps["limit_share_on"] < 2  # how fast memory is read is only a measurement
    assert speed["ratio"] == pytest.approx(speed["lace"] / max(speed["transformers"].values()))
    assert len(speed["transformers"]) == 3
    assert files[1].read_text() == markdown(report) + "\n"
    assert capsys.readouterr().out.count("operators of a step") == 1
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, "plot", files[0], "--out", tmp_path / "figures") == 2
    assert "speed has step times of one N and length only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["speed"], "unknown kind 'speed'; known are operators, cache, steps, throughput"),
        (["--model", "puzzles", "--shape", "qwen3-4b"], "give --model or --shape, not both"),
        (["operators", "--shape", "qwen3-5b"], "unknown shape 'qwen3-5b'; known are smollm2-135m, qwen3-0.6b"),
        (["--threads", "0"], "--threads takes whole numbers from 1 to 256, not '0'"),
        (["--lengths", "1"], "--lengths takes numbers from 2 on"),
        (["steps", "--lengths", "5000"], "prompt 0 is too long"),
        (["--model", "/nowhere"], "no model '/nowhere'"),
        (["--model", ""], "the name of the model is empty"),
        (["--shape", ""], "unknown shape ''"),
        (["--device", "abacus"], "--device takes cpu, cuda, or a GPU by its number like cuda:0, not 'abacus'"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds "),
    ],
)
def test_errors_in_one_line(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lace: error: {line}")
    assert told.count("\n") == 1
