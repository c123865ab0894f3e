"""Outcomes of a stage as lines of its log: an item, or a rejection with its reason.

{"key": "…", "kept": true, "id": "…", "parent": "…", "item": {…}}
{"key": "…", "kept": false, "id": "…", "parent": "…", "reason": "…", "detail": "…", "unusable": {…}, "made": "…"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lace.data.pipeline.item import Item, Rejection
from lace.data.pipeline.keyed_log import KEY_LENGTH, KeyedLog

_KEPT = len('{"key": "') + KEY_LENGTH + len('", "kept": ')


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_item(log: KeyedLog, key: str, parent: str, item: Item) -> None:
    """Appends an item."""
    values = {"kept": True, "id": item.question.id, "parent": parent, "item": item.model_dump(mode="json")}
    log.append(key, values)


def write_rejection(log: KeyedLog, key: str, parent: str, rejection: Rejection, identity: str = "") -> None:
    """Appends a rejection."""
    values = {"kept": False, "id": identity, "parent": parent}
    why = {"reason": rejection.reason, "detail": rejection.detail, "unusable": rejection.unusable}
    log.append(key, values | why | {"made": now()})


def count_kept(path: Path) -> int:
    """How many items a log of outcomes holds."""
    with path.open("rb") as file:
        return sum(line[_KEPT : _KEPT + 4] == b"true" for line in file)


def read_items(path: Path) -> Iterator[tuple[str, Item]]:
    """The items of a log of outcomes with their keys, one after another."""
    with path.open("rb") as file:
        for line in file:
            if line[_KEPT : _KEPT + 4] == b"true" and line.endswith(b"\n"):
                values = json.loads(line)
                yield values["key"], Item.model_validate(values["item"])
