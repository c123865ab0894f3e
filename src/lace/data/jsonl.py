"""Lattice records as files: one JSON object a line, or the rows of a parquet file; strictly checked when read.

    {"prompt": "...", "threads": [{"label": 7, "tokens": ["Thread", ...], "opening": 3,
                                   "references": [{"step": 9, "source": 0, "source_step": 5}],
                                   "choices": {"4": {"a": 0.5, "b": 0.5}}}, ...],
     "origin": "..."}

The fields are those of `lace.data.record`; the last three of a thread and the origin may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lace.data.assemble import AssembledLattice, assemble
from lace.data.record import LatticeRecord
from lace.data.rounds import Rounds

SUFFIXES = (".jsonl", ".parquet")
HELD_OUT = ("validation", "test")


@with_config(ConfigDict(extra="forbid", strict=True))
class _StrictRecord(LatticeRecord):
    """A record that takes nothing but its fields, each of its very type; the nested classes follow it."""


_ADAPTER = TypeAdapter(_StrictRecord)


def write_records(path: str | Path, records: Iterable[LatticeRecord]) -> None:
    """Writes records as JSON lines."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: str | Path) -> Iterator[LatticeRecord]:
    """The records of one file, in order.

    Raises:
        ValueError: one line with file, line (row of a parquet file) and what is wrong there.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        for row, values in enumerate(_parquet_rows(path), start=1):
            yield _record(json.dumps(values), f"{path}, row {row}")
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _record(line, f"{path}, line {number}")


def _record(text: str, where: str) -> LatticeRecord:
    try:
        record = _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {place + ': ' if place else ''}{first['msg']}") from None
    return LatticeRecord(record.prompt, record.threads, record.origin)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install 'lace-llm[parquet]'") from None
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist(maps_as_pydicts="strict")
    return [_without_nulls(row) for row in rows]


def _without_nulls(value: Any) -> Any:
    """Parquet fills the fields that a row has not with nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def find_files(source: str | Path, revision: str | None = None) -> list[Path]:
    """The record files of a directory, or of a data set on the hub, in the order of their names.

    Files whose names begin with `validation` or `test` are not to be trained on, and left out.

    Raises:
        FileNotFoundError: one line, if there is no such place or no such file in it.
    """
    directory = Path(source)
    if not directory.is_dir():
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        try:
            found = snapshot_download(str(source), repo_type="dataset", revision=revision, allow_patterns=patterns)
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"no records at {str(source)!r}: neither a directory nor a data set to be had from the hub "
                f"({type(error).__name__})"
            ) from None
        directory = Path(found)
    found_files = (path for path in directory.rglob("*") if path.suffix in SUFFIXES)
    files = sorted(path for path in found_files if not path.name.startswith(HELD_OUT))
    if not files:
        raise FileNotFoundError(f"{directory} holds no {' or '.join(SUFFIXES)} file")
    return files


class RecordLattices(Dataset[AssembledLattice]):
    """Records of files, shuffled anew for each round through them. Item i depends on the files, the seed and i alone,
    so a resumed run sees what an unbroken one would have seen.

    Args:
        files: read and checked as a whole at once.
        tokenizer: the student's, which knows the records' tokens.
        size: items, over as many rounds as it takes.
        visibility: references are checked against it, see `assemble`.
        max_threads: of a lattice.
        max_tokens: of a row, prompt included.
        seed: of the order.

    Raises:
        ValueError: one line with file and line, for a record that is malformed or too large, or if there is none.
    """

    def __init__(
        self,
        files: Iterable[Path],
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        *,
        visibility: str = "strict",
        max_threads: int = 8,
        max_tokens: int = 4096,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.size, self.visibility = tokenizer, size, visibility
        self.records: list[LatticeRecord] = []
        self.places: list[str] = []
        for path in files:
            for number, record in enumerate(read_records(path), start=1):
                place = f"{path}, record {number}"
                if not 1 <= len(record.threads) <= max_threads:
                    raise ValueError(f"{place}: {len(record.threads)} threads, not 1 to {max_threads} (max_threads)")
                longest = max(len(thread.tokens) for thread in record.threads)
                longest += len(tokenizer(record.prompt)["input_ids"])
                if longest > max_tokens:
                    raise ValueError(f"{place}: a row of {longest} tokens, more than {max_tokens} (max_tokens)")
                self.records.append(record)
                self.places.append(place)
        if not self.records:
            raise ValueError("the files hold no records")
        self.order = Rounds(len(self.records), seed)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> AssembledLattice:
        if not 0 <= index < self.size:
            raise IndexError(index)
        chosen = self.order[index]
        try:
            return assemble(self.records[chosen], self.tokenizer, self.visibility)
        except ValueError as error:
            raise ValueError(f"{self.places[chosen]}: {error}") from None
