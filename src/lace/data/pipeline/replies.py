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


_LATEX_N = r"(?:neq|nabla|neg|not|notin|nleq|ngeq|nsubseteq|newline|nonumber)(?![A-Za-z])"
_LATEX_T = r"(?:times|theta|tau|tan|tanh|text|text[a-z]{2}|to|top|tfrac|tilde|triangle|therefore|tag)(?![A-Za-z])"
_ESCAPE = re.compile(
    rf'\\(?:["\\/]|u[0-9a-fA-F]{{4}}|[bfr](?![A-Za-z])|(?!{_LATEX_N})n|(?!{_LATEX_T})t)'  # JSON means these
    r"|\\"  # and here LaTeX stands unescaped
)
_SORRY = re.compile(r"\W*(i.?m sorry|i am sorry|sorry|i can(?:no|.)t|i am unable|as an ai)\b", re.IGNORECASE)


def read_reply(text: str, kind: type[R]) -> R:
    """The last JSON object of a text that is of the kind, whatever stands around it: drafts come first, and thoughts
    do not count.

    Raises:
        Rejection: with the reason `empty`, `refusal`, `truncated` or `malformed`.
    """
    text, thinks, _ = text.rpartition("</think>")[2].partition("<think>")  # the first mark may be in the prompt
    text = text.strip()
    if not text and thinks:
        raise Rejection("truncated", "the reply ends before its thoughts do")
    if not text:
        raise Rejection("empty", "the reply has no text")
    objects = list(_objects(text))
    problem = ""
    for values in reversed(objects):
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            problem = problem or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    whole = text.rstrip("`\n ").endswith("}")
    if objects and whole:
        raise Rejection("malformed", problem)
    if _SORRY.match(text):
        raise Rejection("refusal", text[:200])
    if "{" in text and not whole:
        raise Rejection("truncated", f"no whole JSON object in {text[-200:]!r}")
    raise Rejection("malformed", f"no JSON object can be read in {text[:200]!r}")


def _objects(text: str) -> list[Any]:
    """The outermost JSON objects of a text.

    After so many braces that begin no object, or one nested too deep, the rest is not looked at.
    """
    decoder, text = json.JSONDecoder(strict=False), _with_latex(text)
    found, place, failures = [], text.find("{"), 0
    while place >= 0 and failures < MOST_FAILURES:
        try:
            values, end = decoder.raw_decode(text, place)
        except RecursionError:
            break
        except ValueError:
            end, failures = place + 1, failures + 1
        else:
            found.append(values)
        place = text.find("{", end)
    return found


def _with_latex(text: str) -> str:
    r"""The text with the backslashes of LaTeX escaped, where a model forgot to: those that begin no escape, and those
    of `\frac`, `\times` and the like, which JSON would read as a form feed or a tab before some letters.

    Commands that are taken for a new line and a word, as `\nu`, are left: a line may begin so.
    """
    return _ESCAPE.sub(lambda found: found[0] if len(found[0]) > 1 else r"\\", text)


@cache
def schema_of(kind: type[Reply]) -> dict[str, Any]:
    """What a request names as `response_format`."""
    schema = {"name": kind.__name__.lower(), "strict": True, "schema": kind.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}
