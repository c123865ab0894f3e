"""Every file in configs/data is a config of `lace data run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lace.data.pipeline.config import read_config

FILES = sorted((Path(__file__).parents[3] / "configs" / "data").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_config(path: Path) -> None:
    assert read_config(path).run.out.parts[:2] == ("runs", "out")
