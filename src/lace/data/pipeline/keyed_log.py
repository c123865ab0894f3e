"""Append-only JSON lines with a content hash as key: what a kill leaves of them is whole, and what is there is found.

    {"key": "0f3a…", …}

A line is written by one system call. If a kill tears it, it is cut off when the file is opened next. In memory a line
costs 16 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

KEY_LENGTH = 32
_HEAD = b'{"key": "'


def content_hash(*parts: Any) -> str:
    """The key of a content: SHA-256 over its canonical JSON, cut to 128 bits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def mend(path: Path) -> None:
    """Cuts off a last line without its end, which a kill has left."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = end
        while whole:
            start = max(0, whole - 65536)
            file.seek(start)
            place = file.read(whole - start).rfind(b"\n")
            if place >= 0:
                whole = start + place + 1
                break
            whole = start
        if whole != end:
            file.truncate(whole)


class KeyedLog:
    """One file of keyed lines.

    Args:
        path: read, and made if it is missing.
        write_to: where new lines go, if not to the same file: for one of several processes.

    Raises:
        ValueError: one line, if the file holds anything else.
    """

    def __init__(self, path: Path, write_to: Path | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        mend(path)
        hashes, offsets = array("Q"), array("q")
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if not line.startswith(_HEAD):
                    raise ValueError(f"{path}, line {number}: no line with a key; is it a file of lace data?")
                hashes.append(_short(line[len(_HEAD) : len(_HEAD) + KEY_LENGTH].decode()))
                offsets.append(offset)
                offset += len(line)
        known = np.frombuffer(hashes, dtype=np.uint64)
        order = np.argsort(known, kind="stable")
        self._hashes, self._offsets = known[order], np.frombuffer(offsets, dtype=np.int64)[order]
        self._reader = path.open("rb")
        self._writer = os.open(write_to or path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __len__(self) -> int:
        """Lines that were there when it was opened."""
        return len(self._hashes)

    def __contains__(self, key: str) -> bool:
        """Whether the key was there when the log was opened."""
        return self._line(key) is not None

    def find(self, key: str) -> dict[str, Any] | None:
        """The line of a key that was there when the log was opened."""
        line = self._line(key)
        return None if line is None else json.loads(line)

    def _line(self, key: str) -> bytes | None:
        """The same, not yet parsed: whether a key is there is asked of every item of a resumed run."""
        head = _HEAD + key.encode() + b'"'
        place = int(np.searchsorted(self._hashes, np.uint64(_short(key))))
        while place < len(self._hashes) and self._hashes[place] == _short(key):
            self._reader.seek(int(self._offsets[place]))
            line = self._reader.readline()
            if line.startswith(head):
                return line
            place += 1
        return None

    def append(self, key: str, values: dict[str, Any]) -> None:
        """Writes a line."""
        line = json.dumps({"key": key, **values}, ensure_ascii=False) + "\n"
        data = line.encode("utf-8", errors="replace")  # a lone surrogate in a reply is no text
        end = os.fstat(self._writer).st_size
        try:
            while data:  # one call but for a full disk or a signal
                data = data[os.write(self._writer, data) :]
        except OSError:
            os.ftruncate(self._writer, end)  # lest another line be written behind half of this one
            raise

    def close(self) -> None:
        self._reader.close()
        os.close(self._writer)


def _short(key: str) -> int:
    return int(key[:16], 16)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of a log; one that is being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def merge(parts: list[Path], into: Path) -> None:
    """Moves the lines of other processes' files into one log, each key once, and removes the files."""
    if not parts:
        return
    log = KeyedLog(into)
    for part in parts:
        for values in read_lines(part):
            key = values.pop("key")
            if key not in log:
                log.append(key, values)
    log.close()
    for part in parts:
        part.unlink()
