"""What the tests of the pipeline share: a student's tokenizer, a config, and a run of it against a scripted teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import byte_tokenizer
from lace.data.pipeline.config import DataConfig, validate


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tokenizer."""
    folder = tmp_path_factory.mktemp("student")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(tmp_path: Path, student: Path) -> Callable[..., DataConfig]:
    """A config for a teacher at a URL; keyword arguments replace values of its sections."""

    def make(url: str, **sections: dict[str, Any]) -> DataConfig:
        values: dict[str, Any] = {
            "run": {"out": str(tmp_path / "out"), "concurrency": 8},
            "teacher": {"base_url": url, "model": "scripted", "retry_seconds": 0.01, "timeout_seconds": 5.0},
            "questions": {"sources": [{"kind": "reasoning-gym", "task": "chain_sum", "size": 8}]},
            "student": {"tokenizer": str(student), "max_waiting": 4000},
            "verify": {"processes": 1, "seconds": 60.0},
            "steps": {"max_tokens": 4000},
            "notes": {"max_tokens": 400},
            "lattices": {"validation": 0.3, "balance": 0},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return validate(values, "config")

    return make
