"""The config of `lace data run`: a TOML file into frozen, strictly checked values; configs/data holds examples."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
)
from pydantic import model_validator as validator

from lace.config_file import UNKNOWN_KEY, first_problem, read_toml, tell

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
Share = Annotated[float, Field(ge=0, le=1)]
TopShare = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(_Section):
    """The run as such."""

    out: Path
    """Folder of everything that the run makes."""
    seed: int = 0
    """Of labels, samples and choices."""
    concurrency: PositiveInt = 64
    """Calls in flight at most."""
    min_threads: Annotated[int, Field(ge=2)] = 2
    max_threads: int = 4
    """Threads of a lattice; the number is drawn for each question."""
    prompts: Path | None = None
    """Folder of prompt texts that take the place of the package's own of the same name."""

    @validator(mode="after")
    def _fits(self) -> Self:
        if self.max_threads < self.min_threads:
            raise ValueError(f"max_threads must be at least min_threads, {self.min_threads}, not {self.max_threads}")
        return self


class BudgetConfig(_Section):
    """Where a run stops by itself; 0 for no limit. Calls in flight are still finished, but not tried again."""

    tokens: NonNegativeInt = 0
    """Of prompts and completions, over all runs with this folder."""
    money: NonNegativeFloat = 0.0
    """In the currency of the prices, over all runs with this folder."""
    minutes: NonNegativeFloat = 0.0
    """Of one run."""


class Endpoint(_Section):
    """A model behind an OpenAI-compatible server."""

    base_url: str
    """Such as http://127.0.0.1:8000/v1"""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    temperature: NonNegativeFloat = 0.8
    top_p: TopShare = 1.0
    max_tokens: PositiveInt = 4096
    timeout_seconds: PositiveFloat = 300.0
    """Of one try of a call."""
    tries: PositiveInt = 8
    """Of one call that fails in passing; of the 429s that say when to come back, every twentieth counts."""
    retry_seconds: PositiveFloat = 1.0
    """Longest wait before the second try, drawn from its upper half; it doubles with each further one, up to a minute.
    A server that says when to come back is not asked before, nor left alone for more than ten minutes."""
    structured: bool = True
    """Whether to ask for JSON by schema; where the server refuses that, the run goes on without."""
    price_prompt: NonNegativeFloat = 0.0
    """Of a million tokens."""
    price_completion: NonNegativeFloat = 0.0
    """Of a million tokens."""
    extra: dict[str, Any] = {}
    """More fields of every request, such as max_completion_tokens or chat_template_kwargs."""
    omit: tuple[Literal["temperature", "top_p", "max_tokens", "seed"], ...] = ()
    """Fields that are left out of every request, for servers that refuse them."""

    @validator(mode="after")
    def _can_be_called(self) -> Self:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError("base_url must look like http://127.0.0.1:8000/v1")
        if url.username or url.password:
            raise ValueError("base_url must not hold a name or password, since the config is written down")
        if not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable, not a key")
        if reserved := sorted(self.extra.keys() & {"model", "messages", "stream", "response_format"}):
            raise ValueError(f"extra must not hold {reserved[0]}")
        return self

    def sampling(self, seed: int) -> dict[str, Any]:
        """The fields of a request that say how its completion is sampled."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "seed": seed}
        return {name: value for name, value in fields.items() if name not in self.omit} | self.extra


class Engine(_Section):
    """A model of ours, run in this process."""

    engine: str
    """Shipped name, hub id or directory."""
    temperature: NonNegativeFloat = 1.0
    top_p: TopShare = 1.0
    max_tokens: PositiveInt = 512


def _kind_of_base(values: Any) -> str:
    """Of a table that is read, or of a section that is written."""
    return "an engine" if isinstance(values, Engine) or "engine" in values else "an endpoint"


BaseModelSource = Annotated[
    Annotated[Endpoint, Tag("an endpoint")] | Annotated[Engine, Tag("an engine")], Discriminator(_kind_of_base)
]


class _Columns(_Section):
    """Names of the columns of a table of questions."""

    question: str = "question"
    answer: str = "answer"
    id: str = ""


class FileSource(_Columns):
    """Questions of a .jsonl, .csv or .parquet file."""

    kind: Literal["file"]
    path: Path
    verifier: str = "exact"
    """`exact`, `math`, or a function of yours as `module:function`, of a module beside the config or installed."""


class HubSource(_Columns):
    """Questions of a data set in the format of the library datasets."""

    kind: Literal["hub"]
    path: str
    """Id on the hub, or a directory."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    revision: str | None = None
    verifier: str = "math"


class ReasoningGymSource(_Section):
    """Questions of a reasoning-gym task, scored by the task itself."""

    kind: Literal["reasoning-gym"]
    task: str
    size: PositiveInt
    seed: int = 0
    config: dict[str, Any] = {}
    """Arguments of the task."""


class ChampSource(_Section):
    """The competition problems of the package champ-dataset."""

    kind: Literal["champ"]


Source = Annotated[FileSource | HubSource | ReasoningGymSource | ChampSource, Field(discriminator="kind")]


class Benchmark(_Section):
    """Questions that must not be trained on."""

    name: str
    path: Path
    """.jsonl, .csv or .parquet"""
    question: str = "question"
    """Name of the column."""


class QuestionsConfig(_Section):
    """Where questions come from, and which are left out."""

    sources: tuple[Source, ...] = Field(min_length=1)
    near_duplicates: Share = 0.8
    """Questions of the same numbers and at least this Jaccard similarity of word trigrams are one; 0: those of
    the same text."""
    benchmarks: tuple[Benchmark, ...] = ()
    overlap: TopShare = 0.5
    """Share of a question's word 8-grams found in a benchmark from which on it is left out; one in which a benchmark's
    question stands whole always is."""


class PassRateConfig(_Section):
    """Which questions are worth a teacher: those that the base model solves sometimes."""

    samples: Annotated[int, Field(ge=1, le=256)] = 8
    """Of one question; an engine of ours writes them side by side, and has no more threads."""
    above: Share = 0.0
    """The pass rate must be larger than this,"""
    up_to: Share = 0.5
    """and not larger than this."""


class SolutionsConfig(_Section):
    """Diverse solutions."""

    max_calls: PositiveInt = 10
    """Solutions asked for one question at most."""
    min_distance: Share = 0.2
    """Word edit distance to every earlier path from which on a path counts as another one."""
    encoder: str | None = None
    """Sentence encoder (all-MiniLM-L6-v2 or its like) that measures distance in meaning too; hub id or directory."""
    min_dissimilarity: Share = 0.02
    """Cosine distance to every earlier path from which on it counts, where there is an encoder."""


class VerifyConfig(_Section):
    """Checking answers."""

    processes: PositiveInt = 2
    seconds: PositiveFloat = 10.0
    """For one answer; a verifier that takes longer is killed."""


class StudentConfig(_Section):
    """The model that is to learn from the lattices."""

    tokenizer: str
    """Hub id or directory."""
    revision: str | None = None
    visibility: Literal["strict", "causal"] = "strict"
    prompt: str = "{question}"
    """Text of a prompt; for a chat model what its template makes of the question."""
    opening: str = "Thread {label}:"
    """As in the student's lattice config."""
    max_label: PositiveInt = 32
    """As max_thread_id in the student's lattice config."""
    waiting: str = Field(" ...", pattern=r"\S")
    """What a thread writes while it waits for the others before it closes."""
    max_waiting: NonNegativeInt = 256
    """Tokens that a thread may wait; a lattice of threads more uneven than that is rejected."""
    max_tokens: PositiveInt = 4096
    """Of a row, prompt included, as in the student's training, which refuses files with longer ones."""

    @validator(mode="after")
    def _templates(self) -> Self:
        for name, field in (("prompt", "question"), ("opening", "label")):
            if f"{{{field}}}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{{field}}}")
        if re.findall(r"{.*?}|[{}]", self.opening) != ["{label}"]:
            raise ValueError(f"opening must hold {{label}} once and no other brace: {self.opening!r}")
        return self


class StepsConfig(_Section):
    """Splitting and compressing."""

    max_tokens: PositiveInt = 2048
    """Of the steps of a thread, in the student's tokens."""
    max_steps: PositiveInt = 24


class NotesConfig(_Section):
    """What threads say of one another."""

    max_notes: PositiveInt = 4
    """Of a thread."""
    max_tokens: PositiveInt = 64
    """Of a note."""


class LatticesConfig(_Section):
    """The files that training reads."""

    validation: Share = 0.05
    """Share of the questions that is kept for validation."""
    balance: NonNegativeFloat = 2.0
    """No kind of lattice (number of threads, share of right ones, length) is more frequent than this many times what
    each would be were all alike; what is more is left out of the files. 0: all are kept."""


class DataConfig(_Section):
    """Config of `lace data run`."""

    run: RunConfig
    budget: BudgetConfig = BudgetConfig()
    teacher: Endpoint
    asks: PositiveInt = 2
    """How often the teacher is asked for the same thing while its replies cannot be used."""
    base: BaseModelSource | None = None
    """The base model; without one there is no stage pass-rate."""
    questions: QuestionsConfig
    pass_rate: PassRateConfig = PassRateConfig()
    solutions: SolutionsConfig = SolutionsConfig()
    verify: VerifyConfig = VerifyConfig()
    student: StudentConfig
    steps: StepsConfig = StepsConfig()
    notes: NotesConfig = NotesConfig()
    lattices: LatticesConfig = LatticesConfig()

    @validator(mode="after")
    def _labels(self) -> Self:
        if self.student.max_label < self.run.max_threads:
            raise ValueError(f"student.max_label must be at least run.max_threads, {self.run.max_threads}")
        return self


def read_config(path: str | Path) -> DataConfig:
    """Reads a config.

    Raises:
        ValueError: one line that names the key that is wrong and, if it is unknown, the nearest known one.
        OSError: if the file cannot be read.
    """
    return validate(read_toml(path), str(path))


def validate(values: dict[str, Any], where: str) -> DataConfig:
    """Checks nested values and makes the config of them.

    Raises:
        ValueError: one line that begins with `where`.
    """
    try:
        return DataConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise ValueError(f"{where}: {_told(first_problem(error))}") from None


def _told(problem: Any) -> str:
    classes = {"an endpoint", "an engine", "file", "hub", "reasoning-gym", "champ"}  # members of unions are no keys
    key = ".".join(str(part) for part in problem["loc"] if part not in classes)
    if problem["type"] in UNKNOWN_KEY:
        name = str(problem["loc"][-1])
        nearest = get_close_matches(name, sorted(_names(_Section)), n=1, cutoff=0.0)[0]
        return f"unknown key {key}; the nearest known one is {nearest}"
    return tell(problem, key)


def _names(section: type[BaseModel]) -> set[str]:
    """All names of keys, of a kind of section and those derived from it."""
    return set(section.model_fields).union(*(_names(each) for each in section.__subclasses__()))
