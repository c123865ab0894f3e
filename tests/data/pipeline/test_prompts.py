"""Prompt texts of one's own, and what is wrong with some of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.plan import plan_stages
from lace.data.pipeline.prompts import read_prompt


def test_a_file_takes_the_place_of_the_prompt_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "solve.txt").write_text("solve, version 3\nBe terse.\n---\n{{question}}, not {{tried}}")
    own = read_prompt("solve", tmp_path)
    assert own.version.startswith("solve 3 ")
    messages = own.fill({"question": "What is {{tried}}?", "tried": "that"})
    assert messages[1]["content"] == "What is {{tried}}?, not that"
    assert read_prompt("judge", tmp_path) == read_prompt("judge")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            b"solve, version 2\nx\n---\n{{question}} {{foo}}",
            "has the place {{foo}}, .* {{question}}, {{refused}}, {{tried}}",
        ),
        (b"solve, version 2\n{{question}}\n---\nx", "behind the line '---' alone, and not for {{question}}"),
        (b"solve\n{{question}}", "must begin with the line 'solve, version 1' and have a line '---'"),
        (b"solve, version 2\n\xe9", "solve.txt is no UTF-8"),
        (None, "run.prompts: .*nowhere is no folder"),
    ],
)
def test_what_is_no_prompt_is_told_before_anything_runs(
    tmp_path: Path, make_config: Callable[..., DataConfig], text: bytes | None, told: str
) -> None:
    if text is not None:
        (tmp_path / "solve.txt").write_bytes(text)
    folder = tmp_path if text is not None else tmp_path / "nowhere"
    with pytest.raises(ValueError, match=told):
        plan_stages(make_config("http://127.0.0.1:1", run={"prompts": str(folder)}))
