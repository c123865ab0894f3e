"""Figures of runs: what is drawn is what was logged, and the same logs give the same bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lace.plot.runs import Run, read_runs, run_figures, smooth
from lace.plot.style import COLOURS, save


def _log(folder: Path, lines: list[dict[str, object]], end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


def _grpo(gain: float, steps: int = 30) -> list[dict[str, object]]:
    return [
        {
            "step": step,
            "reward": gain * step,
            "acc": 0.5,
            "grad_norm": 0.1 + 0.01 * (step % 3),
            **({"gate/2": 0.5, "gate/10": 0.6, "cross_thread_attention/2": 0.9} if step % 10 == 1 else {}),
        }
        for step in range(1, steps + 1)
    ]


def test_smooth() -> None:
    line = np.linspace(0, 1, 200)
    np.testing.assert_allclose(smooth(line)[20:-20], line[20:-20], atol=1e-12)  # centred: a trend is not delayed
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)  # to the very ends
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < 0.4 * noise.std()
    noise[7] = math.nan
    assert np.isnan(smooth(noise)).nonzero()[0].tolist() == [7]


def test_one_run(tmp_path: Path) -> None:
    figures = run_figures(read_runs([_log(tmp_path / "first", _grpo(1.0))]))
    assert list(figures) == ["training", "gate", "cross_thread_attention"]
    panels = {panel.get_title(loc="left"): panel for panel in figures["training"].axes}
    assert list(panels) == ["Reward of a lattice", "Accuracy of the chosen thread", "Gradient norm"]
    assert panels["Gradient norm"].get_yscale() == "log"
    points, line = panels["Reward of a lattice"].lines
    assert points.get_xdata().tolist() == list(range(1, 31))
    assert points.get_ydata().tolist() == list(range(1, 31))
    np.testing.assert_allclose(line.get_ydata()[5:-5], range(6, 26))
    assert points.get_alpha() < line.get_linewidth()
    (gates,) = figures["gate"].axes
    assert gates.get_title(loc="left") == "Mean gate: first"
    assert [text.get_text() for text in figures["gate"].legends[0].get_texts()] == ["layer 2", "layer 10"]
    assert gates.lines[0].get_xdata().tolist() == [1, 11, 21]


def test_runs_over_one_another(tmp_path: Path) -> None:
    folders = [_log(tmp_path / name / "grpo", _grpo(gain)) for name, gain in (("with", 1.0), ("without", 0.5))]
    figures = run_figures(read_runs(folders))
    assert figures["training"].get_suptitle() == "Training: 2 runs"
    assert figures["gate"].get_suptitle() == "Mean gate by layer, while training: 2 runs"
    legend = figures["training"].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["with", "without"]
    for panel in figures["training"].axes:
        assert [line.get_color() for line in panel.lines[1::2]] == list(COLOURS[:2])
    titles = [panel.get_title(loc="left") for panel in figures["gate"].axes]
    assert titles == ["Mean gate, layer 2", "Mean gate, layer 10"]
    for panel in figures["gate"].axes:
        assert len(panel.lines) == 4
        low, high = panel.get_ylim()  # one axis for all layers, which holds all of them
        assert low < 0.5 < 0.6 < high < 1


def test_metrics_that_only_one_run_has_or_nobody_knows(tmp_path: Path) -> None:
    sft = [{"step": s, "loss": 1 / s, "learning_rate": 1e-3, "epoch": 0.1, "own": s} for s in (1, 2, 3)]
    sft.append({"step": 3, "train_loss": 0.5, "total_flos": 1e9})  # as transformers ends a log
    figures = run_figures(read_runs([_log(tmp_path / "rl", _grpo(1.0)), _log(tmp_path / "sft", sft)]))
    titles = [panel.get_title(loc="left") for panel in figures["training"].axes]
    assert titles == [
        "Reward of a lattice",
        "Accuracy of the chosen thread",
        "Loss",
        "Gradient norm",
        "Learning rate",
        "own",
    ]
    own = figures["training"].axes[-1]
    assert [line.get_color() for line in own.lines if len(line.get_xdata())] == [COLOURS[1]] * 2


def test_the_same_logs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = _log(tmp_path / "run", _grpo(1.0))
    written = [save({"gate": run_figures(read_runs([folder]))["gate"]}, tmp_path / name) for name in "ab"]
    assert [path.name for path in written[0]] == ["gate.png", "gate.svg"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_labels(tmp_path: Path) -> None:
    line = [{"step": 1, "loss": 1.0}]
    a = _log(tmp_path / "a" / "sft", line)
    b = _log(tmp_path / "a" / "sft" / "again", line)
    c = _log(tmp_path / "b" / "sft", line)
    assert [run.label for run in read_runs([a])] == ["sft"]
    assert [run.label for run in read_runs([a, c / "log.jsonl"])] == ["a", "b"]
    assert [run.label for run in read_runs([a, b])] == ["sft", "again"]
    assert [run.label for run in read_runs([a, b, c])] == ["a/sft", "a/sft/again", "b/sft"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (run,) = read_runs([_log(tmp_path / "run", [{"step": 1, "loss": 1.0}], end='{"step": 2, "lo')])
    assert run.lines == [{"step": 1, "loss": 1.0}]


def test_errors(tmp_path: Path) -> None:
    good = _log(tmp_path / "good" / "checkpoints", [{"step": 1, "loss": 1.0}])
    with pytest.raises(ValueError, match=r"give .*good/checkpoints$"):
        read_runs([tmp_path / "good"])
    with pytest.raises(ValueError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="given twice"):
        read_runs([good, good / "log.jsonl"])
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_runs([_log(tmp_path / "broken", [{"step": 1}], end="{\n")])
    with pytest.raises(ValueError, match="line 1: no JSON object with a step"):
        read_runs([_log(tmp_path / "strange", [{"loss": 1}])])
    (good / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="bytes is no log: 'utf-8' codec"):
        read_runs([good / "bytes"])
    with pytest.raises(ValueError, match="logged nothing yet"):
        read_runs([_log(tmp_path / "empty", [])])
    with pytest.raises(ValueError, match="nothing to plot"):
        run_figures([Run("r", [{"step": 1, "epoch": 0.5}])])
