"""Debian's chromium, driven by playwright, and pages that remember what went wrong in them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright (the extra dev)"),
]


@contextmanager
def started_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=CHROMIUM, args=as_root, timeout=120_000)
        yield started
        started.close()


def watched_page(browser: Browser, expected: Callable[[str], bool], **context: Any) -> tuple[Page, list[str]]:
    """A new page, and a list that fills with what it says on the console, its errors, and unexpected requests."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **context})
    page.set_default_timeout(120_000)
    return page, watch(page, expected)


class Node(NamedTuple):
    """What a screen reader is told of one thing on a page."""

    role: str
    name: str
    description: str
    properties: dict[str, Any]


def accessibility_tree(page: Page) -> list[Node]:
    """Chromium's own, without what it keeps from screen readers, in the order of the page."""
    session = page.context.new_cdp_session(page)
    session.send("Accessibility.enable")
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()

    def value(node: dict[str, Any], key: str) -> str:
        return str(node.get(key, {}).get("value", ""))

    return [
        Node(
            value(node, "role"),
            value(node, "name"),
            value(node, "description"),
            {each["name"]: each["value"].get("value") for each in node.get("properties", ())},
        )
        for node in nodes
        if not node["ignored"]
    ]


def watch(page: Page, expected: Callable[[str], bool]) -> list[str]:
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: None if expected(request.url) else wrong.append(request.url))
    return wrong
