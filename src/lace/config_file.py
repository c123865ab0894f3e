"""What all TOML configs share: reading one, and telling in one line what is wrong with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
"""Types of pydantic's problem with a key that is none, of a dataclass and of a model."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """Nested values.

    Raises:
        ValueError: one line, if the file is no TOML.
        OSError: if it cannot be read.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None


def first_problem(error: ValidationError) -> Any:
    """The problem to tell: an unknown key first, since if it is a slip, the key that was meant is missed too."""
    return min(error.errors(), key=lambda problem: problem["type"] not in UNKNOWN_KEY)


def tell(problem: Any, key: str) -> str:
    """What is wrong with a known key, in one line; the key is empty for the config as a whole."""
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"
