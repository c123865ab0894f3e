"""The wrapper that gives PyTorch its fast matrix products on AMD processors must not change what it wraps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WRAPPER = Path(__file__).parents[1] / "runs" / "mkl_on_amd.sh"
PRODUCT = "import torch; torch.manual_seed(0); a = torch.randn(64, 96); print((a @ a.T).flatten().tolist())"


def wrapped(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(WRAPPER), *command], capture_output=True, text=True)


def test_arguments_and_exit_code_are_the_commands_own() -> None:
    ran = wrapped(sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "two words", "*")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("['two words', '*']\n", "", 3)


def test_products_are_the_same_but_for_rounding() -> None:
    found, usual = (wrapped(sys.executable, "-c", PRODUCT), subprocess.check_output([sys.executable, "-c", PRODUCT]))
    assert found.stderr == ""
    assert json.loads(found.stdout) == pytest.approx(json.loads(usual), rel=1e-4, abs=1e-4)
