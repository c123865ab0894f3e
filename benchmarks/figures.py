"""How a benchmark tells its figures: what made them, and on standard output and into a file if one is wanted."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from lace.provenance import machine, source_commit


def provenance() -> dict[str, Any]:
    """Command, commit and machine of the benchmark that is running."""
    return {"command": shlex.join(["python", *sys.argv]), "commit": source_commit(), "machine": machine()}


def tell(figures: dict[str, Any], file: Path | None) -> None:
    """Prints the figures as JSON, and writes the same to the file; its folder is made."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
