"""What a run has made: counts, reasons of rejections, what calls took, and how good the lattices are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lace.data.assemble import LAG
from lace.data.pipeline.config import DataConfig, validate
from lace.data.pipeline.context import Embed
from lace.data.pipeline.item import Item
from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.outcomes import read_items
from lace.data.pipeline.outputs import FILE_NAME, PARTS
from lace.data.pipeline.plan import OUTCOMES_NAME
from lace.data.pipeline.run import RUN_NAME
from lace.data.record import LatticeRecord
from lace.data.stages.solutions import cosine_distance, edit_distance


@dataclass
class StageCounts:
    """Of one stage."""

    name: str
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """By reason."""
    unusable: dict[str, int] = field(default_factory=dict)
    """Replies that could not be used, by reason, whether or not asking again helped."""
    calls: int = 0
    """Finished ones, of all runs and settings with this folder."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    """Of all calls together."""


@dataclass
class Quality:
    """Of all assembled lattices."""

    lattices: int = 0
    threads: dict[int, int] = field(default_factory=dict)
    """Lattices by number of threads."""
    tags: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    """Of all threads."""
    edit_distance: float | None = None
    """Mean over lattices of the mean word edit distance of two threads' steps."""
    embedding_dissimilarity: float | None = None
    """The same with cosine distances of sentence embeddings, if there is an encoder."""
    references: int = 0
    causal: int = 0
    """References that their thread could read; must be all."""
    moved: int = 0
    """Notes that were moved to a later step."""
    waited: int = 0
    """Tokens of waiting."""


@dataclass
class Stats:
    """Of a run."""

    stages: list[StageCounts]
    quality: Quality
    parts: dict[str, int]
    """Lattices in each file for training."""
    commit: str | None = None
    """Of the source that last ran."""


class About(NamedTuple):
    """What a run tells of itself."""

    config: DataConfig
    stages: list[dict[str, str]]
    """Names and folders."""
    commit: str | None
    """Of the source that last ran."""


def read_about(out: Path, name: str = RUN_NAME) -> About:
    """What a run tells of itself; by another name, what its lattices were made with, which may be an earlier run.

    Raises:
        ValueError: one line, if the folder holds no run.
    """
    try:
        about = json.loads((out / name).read_text(encoding="utf-8"))
        config, stages = about["config"], about["stages"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{out} holds no run of lace data ({name})") from None
    return About(validate(config, str(out / name)), stages, about.get("commit"))


def run_stats(out: Path, embed: Embed | None = None, name: str = RUN_NAME) -> Stats:
    """Counts and measures a run.

    Args:
        out: its folder.
        embed: a sentence encoder.
        name: as of `read_about`.
    """
    config, stages, commit = read_about(out, name)
    counts = [_stage_counts(out, stage) for stage in stages]
    last = out / stages[-1]["folder"] / OUTCOMES_NAME
    quality = _quality(last, config, embed) if last.exists() else Quality()
    parts = {}
    for part in PARTS:
        path = out / part / FILE_NAME
        parts[part] = sum(1 for _ in path.open("rb")) if path.exists() else 0
    return Stats(counts, quality, parts, commit)


def as_json(stats: Stats) -> dict[str, Any]:
    """For a file."""
    return asdict(stats)


def _stage_counts(out: Path, stage: dict[str, str]) -> StageCounts:
    counts, rejected, unusable = StageCounts(stage["name"]), Counter[str](), Counter[str]()
    for line in read_lines(out / stage["folder"] / OUTCOMES_NAME):
        if line["kept"]:
            counts.kept += 1
            unusable.update(line["item"]["history"][-1].get("unusable", {}))
        else:
            rejected[line["reason"]] += 1
            unusable.update(line.get("unusable", {}))  # earlier versions did not count them
    counts.rejected, counts.unusable = dict(rejected.most_common()), dict(unusable.most_common())
    for line in read_lines(out / "calls" / f"{stage['name']}.jsonl"):
        counts.calls += 1
        counts.prompt_tokens += line["prompt_tokens"]
        counts.completion_tokens += line["completion_tokens"]
        counts.cost += line["cost"]
        counts.seconds += line["seconds"]
    return counts


def _quality(outcomes: Path, config: DataConfig, embed: Embed | None) -> Quality:
    quality, edits, meanings = Quality(), [], []
    threads, tags = Counter[int](), Counter[str]()
    lag = LAG[config.student.visibility]
    for _, item in read_items(outcomes):
        assert item.lattice is not None
        quality.lattices += 1
        threads[len(item.paths)] += 1
        tags.update(str(path.tag) for path in item.paths)
        quality.tokens += sum(len(thread.tokens) for thread in item.lattice.threads)
        quality.moved += item.moved
        quality.waited += item.waited
        edits.append(_mean_of_pairs([" ".join(path.steps) for path in item.paths], edit_distance))
        if embed is not None:
            meanings.append(_mean_of_pairs(embed(_texts(item)), cosine_distance))
        total, causal = _references(item.lattice, lag)
        quality.references += total
        quality.causal += causal
    quality.threads, quality.tags = dict(sorted(threads.items())), dict(tags)
    quality.edit_distance = fmean(edits) if edits else None
    quality.embedding_dissimilarity = fmean(meanings) if meanings else None
    return quality


def _texts(item: Item) -> list[str]:
    return [" ".join(path.steps) for path in item.paths]


def _mean_of_pairs(values: Sequence[Any], distance: Any) -> float:
    return fmean(distance(a, b) for a, b in combinations(values, 2))


def _references(record: LatticeRecord, lag: int) -> tuple[int, int]:
    """All references, and those whose thread could have read what they rest on."""
    lags = [
        reference.step - reference.source_step
        for thread in record.threads
        for reference in thread.references
        if reference.source_step < len(record.threads[reference.source].tokens)
    ]
    return sum(len(thread.references) for thread in record.threads), sum(each >= lag for each in lags)
