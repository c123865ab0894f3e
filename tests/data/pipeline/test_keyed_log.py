"""Logs that outlive a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from lace.data.pipeline.keyed_log import KeyedLog, content_hash, merge, read_lines


def test_lines_are_found_by_key_when_the_log_is_opened_again(tmp_path: Path) -> None:
    log = KeyedLog(tmp_path / "log.jsonl")
    keys = [content_hash(n) for n in range(300)]
    for n, key in enumerate(keys):
        log.append(key, {"n": n, "text": "ä\n\ud800"})
    log.close()
    log = KeyedLog(tmp_path / "log.jsonl")
    assert len(log) == 300
    assert [log.find(key)["n"] for key in keys] == list(range(300))
    assert log.find(keys[0])["text"] == "ä\n?"
    assert content_hash("else") not in log


@pytest.mark.parametrize("torn", [b'{"key": "', b"x" * 100_000, b'{"key": "%s", "n": 1}' % (b"0" * 32)])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    log = KeyedLog(path)
    log.append(content_hash(1), {"n": 1})
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    log = KeyedLog(path)
    log.append(content_hash(2), {"n": 2})
    log.close()
    assert path.read_bytes().startswith(whole)
    assert [line["n"] for line in read_lines(path)] == [1, 2]


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(ValueError, match=r"notes.txt, line 1: no line with a key"):
        KeyedLog(tmp_path / "notes.txt")


def _write_forever(path: Path) -> None:
    log = KeyedLog(path)
    n = 0
    while True:
        log.append(content_hash(n), {"n": n, "text": "x" * 5000})
        n += 1


def test_kill_9_in_the_midst_of_writing_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(path,))
    writer.start()
    while not path.exists() or path.stat().st_size < 100_000:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    KeyedLog(path).close()
    assert [json.loads(line)["n"] for line in path.open()] == list(range(len(path.read_text().splitlines())))


def _write_until_full(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    log = KeyedLog(path)
    log.append(content_hash(0), {"n": 0})
    with pytest.raises(OSError, match="File too large"):
        log.append(content_hash(1), {"n": 1, "text": "x" * 20_000})
    log.append(content_hash(2), {"n": 2})


def test_a_full_disk_tears_no_line(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_write_until_full, args=(tmp_path / "log.jsonl",))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert [line["n"] for line in read_lines(tmp_path / "log.jsonl")] == [0, 2]


def test_lines_of_other_processes_are_merged_once(tmp_path: Path) -> None:
    log = KeyedLog(tmp_path / "log.jsonl")
    log.append(content_hash(1), {"n": 1})
    log.close()
    part = KeyedLog(tmp_path / "log.jsonl", write_to=tmp_path / "log.a.part")
    assert content_hash(1) in part
    part.append(content_hash(2), {"n": 2})
    part.append(content_hash(1), {"n": 1})
    part.close()
    merge([tmp_path / "log.a.part"], tmp_path / "log.jsonl")
    assert [line["n"] for line in read_lines(tmp_path / "log.jsonl")] == [1, 2]
    assert not (tmp_path / "log.a.part").exists()
