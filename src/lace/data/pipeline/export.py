"""A run as a data set: parquet files and a card, in a directory or on the hub; `lace train` reads it from either."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from lace.data.jsonl import read_records
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.outputs import FILE_NAME, PARTS
from lace.data.pipeline.run import MADE_NAME
from lace.data.pipeline.stats import Stats, read_about, run_stats

ROWS = 500
"""Of a group of the parquet file, held in memory at a time."""
SCHEMA = pyarrow.schema(
    {
        "prompt": pyarrow.string(),
        "threads": pyarrow.list_(
            pyarrow.struct(
                {
                    "label": pyarrow.int64(),
                    "tokens": pyarrow.list_(pyarrow.string()),
                    "opening": pyarrow.int64(),
                    "references": pyarrow.list_(
                        pyarrow.struct({name: pyarrow.int64() for name in ("step", "source", "source_step")})
                    ),
                }
            )
        ),
        "origin": pyarrow.string(),
    }
)


def export(out: Path, target: Path) -> None:
    """Writes `train.parquet`, `validation.parquet` and the card `README.md` into a new directory.

    Raises:
        ValueError: one line, if the run has made no lattices, or the directory is not empty.
    """
    read_about(out)
    if not (out / MADE_NAME).exists():
        raise ValueError(
            f"{out} has no lattices yet, or none that tell of what they were made; run it to its end first"
        )
    config = read_about(out, MADE_NAME).config
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ValueError(f"{target} exists and is not empty; give another directory")
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for part in PARTS:
        _write_parquet(out / part / FILE_NAME, unfinished / f"{part}.parquet")
    (unfinished / "README.md").write_text(card(config, run_stats(out, name=MADE_NAME)), encoding="utf-8")
    if target.exists():
        target.rmdir()
    unfinished.rename(target)


def _write_parquet(source: Path, target: Path) -> None:
    with parquet.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for record in read_records(source):
            rows.append(asdict(record))
            if len(rows) == ROWS:
                writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))
                rows = []
        if rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))


def card(config: DataConfig, stats: Stats) -> str:
    """The card of the data set, with what a hub reads at its top."""
    quality, student = stats.quality, config.student
    sources = "\n".join(f"- `{json.dumps(source.model_dump(mode='json'))}`" for source in config.questions.sources)
    steps = "\n".join(
        f"| {stage.name} | {stage.kept} | {sum(stage.rejected.values())} | "
        f"{', '.join(f'{reason} ({count})' for reason, count in stage.rejected.items()) or 'none'} | {stage.calls} |"
        for stage in stats.stages
    )
    causal = f"{quality.causal / quality.references:.2%}" if quality.references else "no references"
    measured = {
        "lattices": quality.lattices,
        "of them in these files": ", ".join(f"{part} {count}" for part, count in stats.parts.items()),
        "lattices by number of threads": quality.threads,
        "closing tags": quality.tags,
        "tokens": quality.tokens,
        "mean edit distance of two threads (words)": _number(quality.edit_distance),
        "mean embedding dissimilarity of two threads": _number(quality.embedding_dissimilarity),
        "references that are causal": causal,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in measured.items())
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: validation
    path: validation.parquet
tags:
- lattice
- reasoning
- synthetic
---

# Lattices of reasoning threads

Each row is one question with {config.run.min_threads} to {config.run.max_threads} threads that were written side by
side and refer to one another, made by `lace data` with the teacher `{config.teacher.model}`. Threads are aligned in
generated time: token t of every thread is written in the same step, and whatever a thread says of another rests on
tokens that it could have read by then (visibility `{student.visibility}`). The column `origin` holds, as
JSON, where a row comes from: question, verifier's verdicts, and the model, prompt version, seeds, time and parent of
every stage.

Tokens are those of `{student.tokenizer}`. To train on it: `[data] kind = "records"`, `path =` this data set; the
validation split is left out then.

## Questions

{sources}

## Stages

| stage | kept | rejected | why | calls |
|---|---|---|---|---|
{steps}

## Quality

| measure | value |
|---|---|
{table}

The texts were written by a model and may be wrong where they say so: threads with the tag `[[fail]]` do not reach the
right answer. Mind the licences of the questions and of the teacher.
"""


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def push(out: Path, target: str, *, private: bool) -> str:
    """Exports a run to the hub.

    Args:
        out: folder of the run.
        target: id on the hub, such as `name/data-set`; or a directory, if it begins with `.` or `/`.
        private: whether a new data set on the hub is private.

    Returns:
        Where it is.

    Raises:
        OSError: if the hub cannot be reached, or does not take it; what was sent is not sent again.
    """
    if target.startswith((".", "/")):
        export(out, Path(target))
        return target
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by its version

    folder = out / "export"
    shutil.rmtree(folder, ignore_errors=True)
    export(out, folder)
    hub = HfApi()
    try:
        hub.create_repo(target, repo_type="dataset", private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=target, repo_type="dataset", folder_path=folder))
    except (HTTPError, OSError, RuntimeError) as error:  # of the connection, and of both senders of large files
        lacks_xet = "/xet-write-token/" in str(error) and "404" in str(error)
        how = ", with HF_HUB_DISABLE_XET=1 if this hub has no Xet storage" if lacks_xet else ""
        raise OSError(f"{target} was not pushed: {error}; give the command again{how} to go on") from None
