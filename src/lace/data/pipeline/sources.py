"""Questions from files, data sets, reasoning-gym and CHAMP, one after another, none of them held in memory."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lace.data.pipeline.config import ChampSource, FileSource, HubSource, ReasoningGymSource, Source
from lace.data.pipeline.gym_scores import check_task
from lace.data.pipeline.item import Question, Rejection
from lace.data.pipeline.keyed_log import content_hash
from lace.data.pipeline.text import printable, tidy, well_formed

DATA_EXTRA = "pip install 'lace-llm[data]'"
ENCODING = "utf-8-sig"
"""A mark of UTF-8 at the beginning of a file, which spreadsheets write, is no part of the first column's name."""
_SPACE = re.compile(r"[^\S\n\t]")


def read_sources(sources: Iterable[Source]) -> Iterator[Question | Rejection]:
    """The questions of all sources, one source after another. Where two of them would number their questions under the
    same name, as train.jsonl of two folders, those of the later one get a hash of their source as well.

    Raises:
        ValueError: as `read_source` does.
    """
    names: set[str] = set()
    for source in sources:
        name = ""
        if isinstance(source, FileSource | HubSource):
            name = _own_name(source)
            if name in names:
                name = f"{name}-{content_hash(source.model_dump(mode='json'))[:6]}"
            names.add(name)
        yield from read_source(source, name)


def read_source(source: Source, name: str = "") -> Iterator[Question | Rejection]:
    """The questions of a source, normalised; what is none is a rejection that tells where it stands.

    Args:
        source: which.
        name: what the ids of its questions begin with, where they have none of their own; by default its own name.

    Raises:
        ValueError: one line, for a source that cannot be read or has not the columns.
    """
    if isinstance(source, FileSource):
        rows = read_rows(source.path)
        return _columns(rows, source.path.name, source, name or _own_name(source))
    if isinstance(source, HubSource):
        return _columns(_hub_rows(source), source.path, source, name or _own_name(source))
    if isinstance(source, ReasoningGymSource):
        return _reasoning_gym(source)
    assert isinstance(source, ChampSource)
    return _champ()


def _own_name(source: FileSource | HubSource) -> str:
    return source.path.stem if isinstance(source, FileSource) else Path(source.path).name


def normalise(text: str) -> str:
    """Composed characters, plain spaces, no control characters, no space at the ends of lines. Within the lines of a
    text of several, spaces stay: they may indent or draw something."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n")
    return tidy(_SPACE.sub(" ", printable(text)))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .csv or .parquet file.

    Raises:
        ValueError: one line with file and line.
        OSError: if the file cannot be read.
    """
    try:
        yield from _rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        with path.open(encoding=ENCODING) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: no JSON object")
                yield row
    elif path.suffix == ".csv":
        with path.open(encoding=ENCODING, newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ValueError(f"reading {path} needs pyarrow: pip install 'lace-llm[parquet]'") from None
        try:
            for batch in parquet.ParquetFile(path).iter_batches(1000):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:  # it tells of broken pages by the latter
            raise ValueError(f"{path} cannot be read: {error}") from None
    else:
        raise ValueError(f"{path} is no .jsonl, .csv or .parquet file")


def _columns(
    rows: Iterator[dict[str, Any]], name: str, source: FileSource | HubSource, short: str
) -> Iterator[Question | Rejection]:
    for number, row in enumerate(rows, start=1):
        for column in filter(None, (source.question, source.answer, source.id)):
            if column not in row:
                raise ValueError(f"{name} has no column {column!r}; its columns are {', '.join(map(str, row))}")
        text, answer = (row[column] for column in (source.question, source.answer))
        where = f"{name}, row {number}"
        own = row[source.id] if source.id else None
        yield _question(
            f"{short}-{number}" if own is None or own == "" else well_formed(str(own)),
            "" if text is None else str(text),
            "" if answer is None else str(answer),
            source.verifier,
            where,
        )


def _question(identity: str, text: str, answer: str, verifier: str, where: str) -> Question | Rejection:
    text, answer = normalise(text), normalise(answer)
    if not text:
        return Rejection("no question", where)
    if not answer and verifier in ("exact", "math"):
        return Rejection("no answer", where)
    return Question(id=identity, text=text, answer=answer or None, verifier=verifier, source=where)


def _hub_rows(source: HubSource) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"reading the data set {source.path} needs the library datasets: {DATA_EXTRA}") from None
    try:
        rows = load_dataset(source.path, source.name, split=source.split, revision=source.revision, streaming=True)
        yield from rows
    except (OSError, ConnectionError) as error:
        raise ValueError(f"cannot read the data set {source.path}: {str(error).splitlines()[0]}") from None


def _reasoning_gym(source: ReasoningGymSource) -> Iterator[Question]:
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(f"the task {source.task} needs the library reasoning-gym: {DATA_EXTRA}") from None
    try:
        task = reasoning_gym.create_dataset(source.task, seed=source.seed, size=source.size, **source.config)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym cannot make the task {source.task!r}: {error}") from None
    check_task(source.task)
    short = content_hash(source.config)[:6] if source.config else "plain"
    for index in range(source.size):
        entry = task[index]
        yield Question(
            id=f"{source.task}-{short}-{source.seed}-{index}",
            text=normalise(entry["question"]),
            answer=None if entry["answer"] is None else str(entry["answer"]),
            verifier="reasoning-gym",
            data={"task": source.task, "seed": source.seed, "index": index, "config": source.config},
            source=f"reasoning-gym {source.task}",
        )


def _champ() -> Iterator[Question | Rejection]:
    try:
        import champ_dataset
    except ImportError:
        raise ValueError("CHAMP needs its package: pip install champ-dataset") from None
    from importlib.resources import files

    problems = champ_dataset.Dataset.from_json(str(files("champ_dataset") / "dataset_files" / "v0.json")).problems
    for problem in problems.values():
        yield _question(f"champ-{problem.identifier}", problem.text, problem.answer, "math", "CHAMP")
