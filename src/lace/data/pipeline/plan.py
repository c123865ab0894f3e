"""Which stages a run has, what each depends on, and where its outcomes are.

A stage's folder is named by a fingerprint of all that its outcomes depend on: its settings, prompts and models, and
everything before it. A changed setting makes a new folder from that stage on; calls are kept apart from it, by their
content, so that none is made again that would be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lace.data.pipeline.config import DataConfig, Endpoint, FileSource
from lace.data.pipeline.context import Context
from lace.data.pipeline.item import Item
from lace.data.pipeline.keyed_log import content_hash
from lace.data.pipeline.prompts import read_prompt
from lace.data.pipeline.verifiers import named_verifiers, verifier_source
from lace.data.stages.lattice import lattice
from lace.data.stages.notes import notes
from lace.data.stages.pass_rate import pass_rate
from lace.data.stages.solutions import solutions
from lace.data.stages.steps import steps
from lace.data.stages.verify import verify

Stage = Callable[[Item, Context], Awaitable[Item]]
OUTCOMES_NAME = "outcomes.jsonl"
QUESTIONS_VERSION = 3
"""Of the code of the first stage, as of the others below."""
_MODEL_KEYS = {"model", "engine", "temperature", "top_p", "max_tokens"}
"""What of a model decides what it writes."""


@dataclass(frozen=True)
class StageKind:
    """What is fixed of a stage."""

    name: str
    run: Stage
    settings: tuple[str, ...]
    """Sections and keys of the config that it depends on."""
    prompts: tuple[str, ...] = ()
    verifies: bool = False
    """Whether it depends on the verifiers: on their time limit, and on the source of a user's functions."""
    version: int = 1
    """Of the code: raised when it makes something else of the same item."""


STAGES = (
    StageKind("pass-rate", pass_rate, ("base", "pass_rate", "run.seed"), ("attempt",), verifies=True, version=4),
    StageKind(
        "solutions",
        solutions,
        ("teacher", "asks", "solutions", "run.seed", "run.min_threads", "run.max_threads", "student.max_label"),
        ("solve",),
        version=4,
    ),
    StageKind("verify", verify, (), verifies=True, version=4),
    StageKind("steps", steps, ("teacher", "asks", "steps", "student.tokenizer", "run.seed"), ("steps",), version=4),
    StageKind(
        "notes", notes, ("teacher", "asks", "notes", "student.tokenizer", "run.seed"), ("notes", "judge"), version=3
    ),
    StageKind("lattice", lattice, ("student",), version=2),
)


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run."""

    number: int
    name: str
    kind: StageKind | None
    """None for the questions, which are not decided one by one."""
    fingerprint: str
    folder: Path

    @property
    def outcomes(self) -> Path:
        return self.folder / OUTCOMES_NAME

    def key_of(self, parent: str) -> str:
        """The key of what this stage makes of the outcome of that key."""
        return content_hash(self.fingerprint, parent)


def plan_stages(config: DataConfig) -> list[PlannedStage]:
    """The stages of a run in their order.

    Raises:
        OSError: if a file of questions cannot be read.
        ValueError: one line, for a prompt text that is none, or a verifier that is not there.
    """
    files = [source.path for source in config.questions.sources if isinstance(source, FileSource)]
    files += [benchmark.path for benchmark in config.questions.benchmarks]
    asked = config.questions.model_dump(mode="json")
    fingerprint = content_hash("questions", QUESTIONS_VERSION, asked, [_digest(path) for path in files])
    kinds: Iterable[StageKind] = STAGES if config.base is not None else STAGES[1:]
    planned = [_planned(config, 1, "questions", None, fingerprint)]
    for number, kind in enumerate(kinds, start=2):
        versions = [read_prompt(name, config.run.prompts).version for name in kind.prompts]
        settings = [_value(config, key) for key in kind.settings]
        if kind.verifies:
            functions = {verifier: verifier_source(verifier) for verifier in sorted(named_verifiers(config))}
            settings += [config.verify.seconds, functions]
        fingerprint = content_hash(fingerprint, kind.name, kind.version, versions, settings)
        planned.append(_planned(config, number, kind.name, kind, fingerprint))
    return planned


def calls_path(config: DataConfig, stage: str) -> Path:
    """The log of a stage's calls."""
    return config.run.out / "calls" / f"{stage}.jsonl"


def _planned(config: DataConfig, number: int, name: str, kind: StageKind | None, fingerprint: str) -> PlannedStage:
    folder = config.run.out / "stages" / f"{number}-{name}-{fingerprint[:8]}"
    return PlannedStage(number, name, kind, fingerprint, folder)


def _value(config: DataConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    if key in ("teacher", "base"):  # where it is asked, how often and for how long changes nothing
        schema = {"structured": value.structured} if isinstance(value, Endpoint) else {}
        values = value.model_dump(mode="json")
        more = {name: values[name] for name in ("omit", "extra") if values.get(name)}
        return schema | more | {name: v for name, v in values.items() if name in _MODEL_KEYS}
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
