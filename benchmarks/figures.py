"""How a benchmark tells its figures: on standard output, and into a file if one is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def tell(figures: dict[str, Any], file: Path | None) -> None:
    """Prints the figures as JSON, and writes the same to the file; its folder is made."""
    text = json.dumps(figures, indent=1)
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
