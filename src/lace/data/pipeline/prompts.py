"""Prompt texts as files of the package, with versions.

solve, version 1
…what the model is told once…
---
…the request, with {{names}} of values…
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

_FIRST_LINE = re.compile(r"(?P<name>[a-z_]+), version (?P<version>\d+)")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt text."""

    name: str
    version: str
    """Name, number and hash of the text, so that an edited text is another version whatever its number says."""
    system: str
    request: str

    def fill(self, values: dict[str, str]) -> list[dict[str, str]]:
        """The messages. Values are put in as they are; what looks like a place within them stays."""
        request = _PLACE.sub(lambda place: values[place[1]], self.request)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": request}]


@cache
def read_prompt(name: str, folder: Path | None = None) -> Prompt:
    """The prompt of that name: from the folder if it is there, else the package's.

    Raises:
        ValueError: one line, if there is no such folder, or for a file that is no prompt.
    """
    shipped = _parse((files("lace.data") / "prompts" / f"{name}.txt").read_bytes(), name, f"the prompt {name}")
    if folder is None:
        return shipped
    if not folder.is_dir():
        raise ValueError(f"run.prompts: {folder} is no folder")
    own = folder / f"{name}.txt"
    if not own.is_file():
        return shipped
    prompt = _parse(own.read_bytes(), name, str(own))
    places = set(_PLACE.findall(shipped.request))
    if unknown := sorted(set(_PLACE.findall(prompt.request)) - places):
        known = ", ".join(f"{{{{{place}}}}}" for place in sorted(places))
        raise ValueError(f"{own} has the place {{{{{unknown[0]}}}}}, for which there is no value; there are {known}")
    if found := _PLACE.search(prompt.system):
        raise ValueError(f"{own}: values are put in behind the line '---' alone, and not for {found[0]}")
    return prompt


def _parse(data: bytes, name: str, where: str) -> Prompt:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no UTF-8: {error}") from None
    text = text.replace("\r\n", "\n")
    first, _, rest = text.partition("\n")
    system, line, request = rest.partition("\n---\n")
    found = _FIRST_LINE.fullmatch(first.strip())
    if found is None or found["name"] != name or not line:
        raise ValueError(f"{where} must begin with the line '{name}, version 1' and have a line '---' in it")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Prompt(name, f"{name} {found['version']} {digest}", system.strip(), request.strip())
