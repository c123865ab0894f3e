"""Which source made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path


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
