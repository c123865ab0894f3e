"""The configs of `lace train`: TOML files and overrides into validated, frozen dataclasses.

A field is documented by the text under it, which `lace train STAGE --explain` prints. Unknown keys are refused. What
belongs together is told once: see `_FOLLOWS`.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from lace.config_file import UNKNOWN_KEY, first_problem, read_toml, tell
from lace.data.puzzle_mixture import PuzzleMixture
from lace.lattice.config import LatticeConfig
from lace.train.grpo import GRPOSettings
from lace.train.new_model import ModelShape
from lace.train.sft import OptimizerName

Stage = Literal["cpt", "sft", "grpo"]
Tracker = Literal["none", "tensorboard", "trackio"]
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run as such."""

    out: Path
    """Folder of the run: `resolved.json`, `log.jsonl`, checkpoints, and in the end the model, in `model`. An unfinished
    run of the same config goes on."""
    seed: int = 0
    """Of new weights, and of the order of data and draws."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained."""

    init: str
    """Directory, hub id or shipped name of the model to start from, or `new` for a small one from nothing."""
    revision: str | None = None
    """Of a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. Small updates are lost in bfloat16 weights; prefer float32 and the setting `bf16`."""
    shape: ModelShape | None = None
    """Sizes of a `new` model. For a model to be loaded: sizes that a dry run takes instead of asking for it."""


@dataclass(frozen=True, kw_only=True)
class PuzzleData(PuzzleMixture):
    """Lattices by the symbolic teachers, without end."""

    kind: Literal["puzzles"]
    """Puzzles of the tasks, and drills for them."""


@dataclass(frozen=True, kw_only=True)
class RecordsData:
    """Lattice records from files, see `lace.data.jsonl`."""

    kind: Literal["records"]
    """Files that hold the tokens of the student's tokenizer."""
    path: str
    """Directory, or id of a data set on the hub, of .jsonl or .parquet files."""
    revision: str | None = None
    """Of a hub id."""
    visibility: Literal["strict", "causal"] = "strict"
    """How soon a thread can read what another has written; references that come too early are refused."""
    max_threads: int = 4
    """Threads of a lattice at most; a record with more is refused."""
    max_tokens: int = 4096
    """Tokens of a row at most, prompt included; a longer record is refused."""
    seed: int = 0
    """Of the order of the records."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Supervised training.

    Raises:
        ValueError: one line that names the field and what it may be.
    """

    steps: int
    """Optimiser steps of the whole learning-rate schedule: warm-up, then a cosine down to a twentieth."""
    stop_after: int | None = None
    """End earlier, after this many of them."""
    wrong_sums: float | None = None
    """End earlier, as soon as at most this share of sums is wrong, looked at with each line of the log; a run that
    never comes so far fails. For data of kind puzzles."""
    learning_rate: float
    """Highest of the schedule."""
    lattices_per_step: int = 8
    """Lattices of one optimiser step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches that a step is split into, on each process; the gradient does not depend on it."""
    choice_weight: float = 1.0
    """Weight in the loss of the tokens that the symbolic teacher drew at random."""
    warmup_steps: int = 100
    """Steps until the learning rate is at its highest."""
    weight_decay: float = 0.05
    """Decoupled, as in AdamW."""
    optimizer: OptimizerName = "adamw"
    """`muon`: for the matrices (arXiv 2502.16982), with AdamW for the rest. `adafactor`: keeps next to no state (arXiv
    1804.04235), where AdamW keeps twice the size of what is trained."""
    bf16: bool = False
    """Whether to compute in bfloat16 where that is safe (autocast); the weights stay as they are."""
    gradient_checkpointing: bool = False
    """Whether to keep the inputs of the layers alone and compute the rest again: a third more work, little memory."""
    data_workers: int = 0
    """Processes that prepare batches while the model learns; with 0 it waits for each. Worth it beside a GPU."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of the log."""
    lattice: Literal["on", "off"] = "on"
    """`off`: the threads do not read each other while training, and the lattice stays as it is; for controls."""
    trackers: Tracker = "none"
    """Where the metrics go besides `log.jsonl`; needs the package of that name."""
    fsdp: bool = False
    """Whether to spread weights, gradients and optimiser over the processes of `accelerate launch` or torchrun."""

    def __post_init__(self) -> None:
        for name in ("steps", "lattices_per_step", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ValueError(f"stop_after must be from 1 to steps, {self.steps}, not {self.stop_after}")
        if self.wrong_sums is not None and not 0 < self.wrong_sums < 1:
            raise ValueError(f"wrong_sums must be between 0 and 1, not {self.wrong_sums}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.optimizer == "muon" and self.fsdp:
            raise ValueError("optimizer 'muon' needs whole matrices, which fsdp spreads over processes")
        if self.data_workers < 0:
            raise ValueError(f"data_workers must be 0 or more, not {self.data_workers}")
        if self.lattices_per_step % self.accumulate:
            raise ValueError(f"lattices_per_step must be a multiple of accumulate, {self.accumulate}")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GRPOSettings):
    """Lattice GRPO."""

    questions: str
    """Names of tasks, separated by commas, whose training parts are asked in turns, or a .jsonl file of lines
    `{"prompt": …, "answer": …}`."""
    rehearsal: str | None = None
    """The same, of what is rehearsed."""
    trackers: Tracker = "none"
    """Where the metrics go besides `log.jsonl`; needs the package of that name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rehearsal is None) != (self.rehearsal_lattices == 0):
            raise ValueError("rehearsal, what to ask, and rehearsal_lattices, how many of it, belong together")


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class SupervisedRun:
    """Config of the stages cpt and sft."""

    run: RunConfig
    model: ModelConfig
    lattice: LatticeConfig | None = None
    data: Annotated[PuzzleData | RecordsData, Field(discriminator="kind")]
    train: TrainConfig

    def __post_init__(self) -> None:
        _check_new(self.model)


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class GRPORun:
    """Config of the stage grpo."""

    run: RunConfig
    model: ModelConfig
    lattice: LatticeConfig | None = None
    grpo: GRPOConfig

    def __post_init__(self) -> None:
        _check_new(self.model)


AnyRun = SupervisedRun | GRPORun


def _check_new(model: ModelConfig) -> None:
    if model.init == "new" and model.revision is not None:
        raise ValueError("model.revision is of a model to be loaded, but model.init is 'new'")
    if model.init == "new" and model.shape is not None and model.shape.vocab_size is not None:
        raise ValueError("model.shape.vocab_size: a new model has its tokenizer's vocabulary; leave it out")


def run_class(stage: Stage) -> type[SupervisedRun] | type[GRPORun]:
    """The config class of a stage."""
    return GRPORun if stage == "grpo" else SupervisedRun


# --- reading ---------------------------------------------------------------------------------------------------------

_FOLLOWS = (
    ("data.seed", "run.seed", None),
    ("grpo.seed", "run.seed", None),
    ("data.group", "train.lattices_per_step", "puzzles"),
    ("data.max_label", "lattice.max_thread_id", "puzzles"),
    ("data.visibility", "lattice.visibility", None),
)
"""Keys that, left out, are as another one that is given; the last column: for this kind of data alone."""


def read_config(stage: Stage, path: str | Path, overrides: Sequence[str] = ()) -> AnyRun:
    """Reads the config of a stage.

    Args:
        stage: whose.
        path: a TOML file.
        overrides: `--section.key=value` each; the value is TOML, or else taken for a text.

    Raises:
        ValueError: one line that names the key that is wrong and, if it is unknown, the nearest known one.
        OSError: if the file cannot be read.
    """
    values = read_toml(path)
    for override in overrides:
        _override(values, override)
    _follow(values)
    return validate(stage, values, str(path))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not override.startswith("--") or not equals or not key:
        raise ValueError(f"{override!r} is no override: write --section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"--{key}: {section} is no section")
    values[name] = value


def _follow(values: dict[str, Any]) -> None:
    for target, source, kind in _FOLLOWS:
        (section, name), (of, given) = target.split("."), source.split(".")
        known = values.get(section), values.get(of)
        if not all(isinstance(table, dict) for table in known) or given not in values[of]:
            continue
        value = values[of][given]
        if value == "same_step":  # a lattice without memory is a control; it learns from what the others learn from
            value = "strict"
        if kind in (None, values[section].get("kind")):
            values[section].setdefault(name, value)


def validate(stage: Stage, values: dict[str, Any], where: str) -> AnyRun:
    """Checks nested values and makes the config of them.

    Raises:
        ValueError: one line that begins with `where`.
    """
    cls = run_class(stage)
    try:
        return _ADAPTERS[cls].validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ValueError(f"{where}: {_told(first_problem(error), [key.name for key in explain(cls)])}") from None


_ADAPTERS: dict[type, TypeAdapter[AnyRun]] = {cls: TypeAdapter(cls) for cls in (SupervisedRun, GRPORun)}


def _told(problem: Any, known: list[str]) -> str:
    """One problem in one line; `known` are the dotted names of all keys."""
    place: list[str] = []
    for part in map(str, problem["loc"]):  # some parts name the member of a union that was tried, not a key
        longer = ".".join([*place, part])
        if any(name == longer or name.startswith(f"{longer}.") for name in known):
            place.append(part)
    path = ".".join(place)
    if problem["type"] in UNKNOWN_KEY:
        key = ".".join([*place, str(problem["loc"][-1])])
        nearest = get_close_matches(key, known, n=1, cutoff=0.0)[0]
        return f"unknown key {key}; the nearest known one is {nearest}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{path}.kind must be 'puzzles' or 'records'"
    return tell(problem, path)


# --- telling ---------------------------------------------------------------------------------------------------------


def resolved(config: AnyRun) -> dict[str, Any]:
    """All values of a config, defaults included, as JSON would hold them."""
    values: dict[str, Any] = _ADAPTERS[type(config)].dump_python(config, mode="json")
    return values


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    items: dict[str, Any] = {}
    for name, value in values.items():
        items |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return items


@dataclass(frozen=True)
class Key:
    """What is known of one key."""

    name: str
    """Dotted."""
    type: str
    default: str
    """As Python writes it; `required` for none."""
    description: str


def explain(cls: type, prefix: str = "") -> Iterator[Key]:
    """All keys of a config class, section by section."""
    hints, texts = get_type_hints(cls), _attribute_docs(cls)
    for field in fields(cls):
        hint = hints[field.name]
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        sections = [member for member in members if is_dataclass(member)]
        for section in sections:
            assert isinstance(section, type)
            yield from explain(section, f"{prefix}{field.name}.")
        if sections:
            continue
        default = "required" if field.default is MISSING else repr(field.default)
        yield Key(f"{prefix}{field.name}", _type_text(hint), default, texts.get(field.name, ""))


def _type_text(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_type_text(member) for member in get_args(hint) if member is not type(None))
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"list of {_type_text(get_args(hint)[0])}"
    plain = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true | false"}
    return plain[hint]


def _attribute_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass and of those it comes from, in one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                assert isinstance(after.value, ast.Constant)
                texts[field.target.id] = " ".join(str(after.value.value).split())
    return texts
