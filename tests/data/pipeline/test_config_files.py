"""Every file in configs/data is a config of `lace data run`; what no run can go by is told before one begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from byte_tokenizer import byte_tokenizer
from lace.data.pipeline.config import DataConfig, read_config
from lace.data.pipeline.run import run_pipeline

FILES = sorted((Path(__file__).parents[3] / "configs" / "data").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_config(path: Path) -> None:
    assert read_config(path).run.out.parts[:2] == ("runs", "out")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"opening": "Thread {label} of {all}:"}, "student: opening must hold {label} once and no other brace"),
        ({"opening": "{label} {"}, "student: opening must hold {label} once and no other brace"),
        ({"waiting": " "}, "student.waiting: string should match pattern"),
    ],
)
def test_what_would_fail_when_all_is_paid_for_is_told_first(
    make_config: Callable[..., DataConfig], section: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"config: {told}")):
        make_config("http://127.0.0.1:1", student=section)


def test_a_tokenizer_without_an_end_is_told_before_anything_runs(
    make_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    config = make_config("http://127.0.0.1:1", student={"tokenizer": str(tmp_path / "endless")})
    with pytest.raises(ValueError, match="endless has no end token"):
        run_pipeline(config)
    assert not config.run.out.exists()
