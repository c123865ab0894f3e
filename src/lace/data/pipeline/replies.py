"""What the teacher replies with: schemas that a server can enforce, and a tolerant reader for servers that do not."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from lace.data.pipeline.item import Rejection, Tag
from lace.data.pipeline.text import well_formed

R = TypeVar("R", bound="Reply")
Text = Annotated[str, AfterValidator(well_formed)]
"""What a teacher writes: JSON can spell halves of characters."""
MOST_FAILURES = 1000
"""Braces of one reply that may begin no object."""


class Reply(BaseModel):
    """A JSON object. More keys than asked for do no harm; a schema still forbids them, as strict servers demand."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


class Solution(Reply):
    """One path to an answer."""

    solution: Text
    answer: Text
    summary: Text


class Steps(Reply):
    """A path in steps."""

    steps: list[Text]


class NoteReply(Reply):
    """One note; threads by label, steps from 1 on."""

    thread: int
    after_step: int
    about_thread: int
    about_step: int
    kind: Literal["takes", "warns"]
    text: Text


class Notes(Reply):
    """What the threads say of one another."""

    notes: list[NoteReply]


class Verdict(Reply):
    """How one thread closes."""

    thread: int
    comparison: Text
    tag: Tag


class Judgement(Reply):
    """How all threads close."""

    threads: list[Verdict]


_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_BAD_ESCAPE = re.compile(r'\\(?!["\\/bfnrtu])')
_SORRY = re.compile(r"\W*(i.?m sorry|i am sorry|sorry|i can(?:no|.)t|i am unable|as an ai)\b", re.IGNORECASE)


def read_reply(text: str, kind: type[R]) -> R:
    """The first JSON object of a text that is of the kind, whatever stands around it.

    Raises:
        Rejection: with the reason `empty`, `refusal`, `truncated` or `malformed`.
    """
    text = _THOUGHT.sub("", text).strip()
    if not text:
        raise Rejection("empty", "the reply has no text")
    objects = list(_objects(text))
    problem = ""
    for values in objects:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            problem = problem or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if objects and text.rstrip("`\n ").endswith("}"):
        raise Rejection("malformed", problem)
    if _SORRY.match(text):
        raise Rejection("refusal", text[:200])
    if "{" in text:
        raise Rejection("truncated", f"no whole JSON object in {text[-200:]!r}")
    raise Rejection("malformed", f"no JSON object in {text[:200]!r}")


def _objects(text: str) -> list[Any]:
    """The outermost JSON objects of a text; a backslash that begins no escape, as of LaTeX, is taken as itself.

    After so many braces that begin no object, or one nested too deep, the rest is not looked at.
    """
    decoder = json.JSONDecoder(strict=False)
    for candidate in (text, _BAD_ESCAPE.sub(r"\\\\", text)):
        found, place, failures = [], candidate.find("{"), 0
        while place >= 0 and failures < MOST_FAILURES:
            try:
                values, end = decoder.raw_decode(candidate, place)
            except RecursionError:
                break
            except ValueError:
                end, failures = place + 1, failures + 1
            else:
                found.append(values)
            place = candidate.find("{", end)
        if found:
            return found
    return []


@cache
def schema_of(kind: type[Reply]) -> dict[str, Any]:
    """What a request names as `response_format`."""
    schema = {"name": kind.__name__.lower(), "strict": True, "schema": kind.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}
