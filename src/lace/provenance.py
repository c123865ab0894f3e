"""Which source made a result, and on what machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def source_commit() -> str | None:
    """The commit of a source checkout, with `-dirty` if this package was changed since; None elsewhere."""
    here = Path(__file__).parent
    try:
        tracked, head, changed = (
            subprocess.run(
                ["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10
            ).stdout.strip()
            for command in (["ls-files", __file__], ["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if tracked and changed else head if tracked else None


def machine() -> dict[str, Any]:
    """What this machine computes with."""
    import torch

    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
