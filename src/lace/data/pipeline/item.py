"""What flows through the stages: one question with its paths, growing on the way into a lattice."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lace.data.record import LatticeRecord

Tag = Literal["best", "success", "fail"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(_Frozen):
    """A question whose answers a program can check."""

    id: str
    text: str
    answer: str | None
    """The expected one; None where the verifier needs none."""
    verifier: str
    """See `lace.data.pipeline.verifiers`."""
    data: dict[str, Any] = {}
    """What else the verifier needs."""
    source: str
    """Where it comes from."""


class Note(_Frozen):
    """What a thread says of another at the boundary between two of its steps."""

    after: int
    """Index of the step that it follows."""
    about: int
    """Index of the other thread."""
    about_step: int
    """Index of the step of the other thread that it rests on."""
    kind: Literal["takes", "warns"]
    text: str


class Path(_Frozen):
    """One way to an answer, right or wrong; a thread later on."""

    text: str
    answer: str
    summary: str
    """Of the kind that the solutions cache shows to later attempts."""
    distance: float
    """Smallest edit distance to the earlier paths, 0..1; 1 for the first."""
    dissimilarity: float | None = None
    """Smallest cosine distance of sentence embeddings to the earlier paths, if it was measured."""
    right: bool | None = None
    """What the verifier says; None before it was asked."""
    steps: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    comparison: str = ""
    """What the thread says of all threads in closing."""
    tag: Tag | None = None


class Mark(_Frozen):
    """What a stage leaves on an item: provenance."""

    stage: str
    key: str
    """Of the outcome."""
    parent: str
    """Key of the outcome that it was made from."""
    made: str
    """UTC."""
    models: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Names with versions."""
    seeds: tuple[int, ...] = ()
    unusable: dict[str, int] = {}
    """Replies that the stage could not use, by reason."""


class Item(_Frozen):
    """A question and what the stages so far have made of it."""

    question: Question
    pass_rate: float | None = None
    """Share of the base model's samples that are right."""
    labels: tuple[int, ...] = ()
    """One per path, distinct."""
    paths: tuple[Path, ...] = ()
    lattice: LatticeRecord | None = None
    moved: int = 0
    """Notes that stand later than the teacher put them, so that their thread could know."""
    waited: int = 0
    """Tokens of waiting before the closings, over all threads."""
    history: tuple[Mark, ...] = ()


class Rejection(Exception):
    """An item that a stage cannot use.

    Args:
        reason: a few words, the same for all such cases: they are counted.
        detail: what is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
        self.unusable: dict[str, int] = {}
        """Replies that the stage could not use, by reason; of an item that it rejected."""
