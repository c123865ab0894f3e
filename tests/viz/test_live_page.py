"""The live page in a real browser, on a real server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from transformers import PreTrainedTokenizerFast

from chromium import accessibility_tree, needs_chromium, watch, watched_page
from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult, TokenEvent
from lace.engine.scheduler import Scheduler
from running_server import Running, serve
from tiny_engine import new_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium
ROW = 18
ASK = "Use 8, 14 and 12 to make 16"
HOSTILE = "<script>window.hit = 1</script> שלום \u202eabc 🧵👩‍🚀 " + "a" * 10_000


@pytest.fixture(scope="module")
def puzzles() -> Iterator[Running]:
    engine = load_engine("puzzles")
    with serve(lambda: engine, model="puzzles", shipped=True) as running:
        yield running


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerFast) -> Engine:
    """Random weights: any prompt will do. Threads end soon."""
    engine = Engine(new_model(tokenizer), tokenizer)
    engine.max_positions = 2**17
    return engine


@pytest.fixture
def tiny(engine: Engine) -> Iterator[Running]:
    with serve(lambda: engine, cache_tokens=2**17) as running:
        yield running


@pytest.fixture
def endless(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads write until they have 256 tokens."""
    monkeypatch.setattr(engine, "end_ids", frozenset())


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take as long as a larger model's, so that a run can be seen while it is going on."""
    step = Scheduler.step

    def slow_step(scheduler: Scheduler) -> list[tuple[int, TokenEvent | LatticeResult]]:
        time.sleep(0.02)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)


def opened(browser: Browser, url: str, **context: Any) -> tuple[Page, list[str]]:
    """The page with a puzzle in it, and what went wrong."""
    settings = {"reduced_motion": "reduce", **context}
    page, wrong = watched_page(browser, lambda asked: asked.startswith((url, "blob:" + url)), **settings)
    page.goto(f"{url}/")
    page.locator("optgroup").first.wait_for(state="attached")
    return page, wrong


def run(page: Page, prompt: str, threads: int, strategy: str = "lace") -> dict[str, Any]:
    """Starts a run; returns what the server is asked."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("spinbutton", name="Threads").fill(str(threads))
    page.get_by_label("Strategy").select_option(strategy)
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Run").click()
    return json.loads(sent.value.post_data)


def notes(page: Page) -> Any:
    return page.locator(".pane header p")


def settle(page: Page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def tokens_of(server: Running, body: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the API tells about the same request: tokens, and the report."""
    lines = server.post(body).text.split("\n\n")
    told = [json.loads(line[6:]).get("lace", {}) for line in lines if line.startswith("data: {")]
    return [each for each in told if "delta" in each], next(each for each in told if "chosen" in each)


@pytest.mark.usefixtures("unhurried")
def test_threads_stream_and_arcs_are_those_of_the_api(browser: Browser, puzzles: Running) -> None:
    page, wrong = opened(browser, puzzles.url)
    body = run(page, ASK, 3)
    notes(page).filter(has_text=re.compile(r"step \d+, \d+ tokens")).wait_for()
    page.get_by_text("Open in the full viewer").wait_for()
    tokens, report = tokens_of(puzzles, body)

    outcome = notes(page).inner_text()
    chosen = report["threads"][report["chosen"]]
    assert f"chosen: thread {chosen['label']}" in outcome
    if chosen["answer"] is not None:
        assert chosen["answer"] in outcome
    assert ("verified: right" if chosen["correct"] else "verified: wrong") in outcome
    assert f"{report['steps']} steps, {sum(t['step'] is not None and not t['given'] for t in tokens)} tokens" in outcome
    assert page.get_by_role("status").inner_text().endswith(outcome)
    page.get_by_text("Texts of the threads").click()
    shown = page.locator(".transcript p").all_inner_texts()
    for n, text in enumerate(shown):
        mine = [t for t in tokens if t["thread"] == n and not t["given"]]
        assert text.strip() == "".join(t["delta"] for t in mine).strip()

    settle(page)
    top, height = page.locator(".scroller").evaluate("e => [e.scrollTop, e.clientHeight]")
    reads = [(read["weight"], read["step"]) for token in tokens for read in token["exchanges"]]
    strongest_at = [step for weight, step in reads if weight > max(reads)[0] - 2e-3]
    assert any(top <= step * ROW < top + height for step in strongest_at), (top, height, strongest_at)

    # The way of the keyboard to the tokens that have read most.
    strongest = sorted((t for t in tokens if t["exchanges"]), key=lambda t: -t["exchanges"][0]["weight"])[:3]
    scroller = page.locator(".scroller")
    scroller.focus()
    for token in strongest:
        page.keyboard.press("Escape")
        page.keyboard.press("Home")
        for _ in range(token["thread"]):
            page.keyboard.press("ArrowRight")
        for _ in range(token["step"]):
            page.keyboard.press("ArrowDown")
        settle(page)
        assert page.locator(".token dd").first.inner_text() == f"{token['label']}, step {token['step']}"
        reads = page.locator(".reads button").evaluate_all(
            "all => all.map(b => ({thread: +b.dataset.thread, step: +b.dataset.step, weight: +b.dataset.weight}))"
        )
        assert [(r["thread"], r["step"]) for r in reads] == [(r["thread"], r["step"]) for r in token["exchanges"]]
        assert [r["weight"] for r in reads] == pytest.approx([r["weight"] for r in token["exchanges"]], abs=2e-3)
        assert scroller.get_attribute("data-arcs") == str(len(reads))
    page.keyboard.press("Escape")
    settle(page)
    drawn = sum(r["weight"] >= 0.05 for t in tokens for r in t["exchanges"])
    assert int(scroller.get_attribute("data-arcs") or 0) == pytest.approx(min(80, drawn), abs=2)

    with page.context.expect_page() as tab:
        page.get_by_text("Open in the full viewer").click()
    viewer_wrong = watch(tab.value, lambda asked: asked.startswith("blob:"))
    tab.value.wait_for_selector(".scroller[data-arcs]")
    assert outcome.rpartition(",")[0] in tab.value.locator(".pane header p").inner_text()  # seconds are rounded twice
    with page.expect_download() as saved:
        page.get_by_text("Save as a file").click()
    assert saved.value.suggested_filename == f"lace-{body['seed']}.html"
    assert wrong == viewer_wrong == []
    tab.value.close()
    page.close()


TELL_RUNS = """() => {
    const fetched = window.fetch;
    window.told = [];
    window.fetch = async (url, given) => {
        if (!given?.body) return fetched(url, given);
        const { strategy } = JSON.parse(given.body).lace;
        told.push(`asked ${strategy}`);
        const response = await fetched(url, given);
        const watch = new TransformStream({
            transform(chunk, out) {
                if (new TextDecoder().decode(chunk).includes("[DONE]")) told.push(`answered ${strategy}`);
                out.enqueue(chunk);
            },
        });
        return new Response(response.body.pipeThrough(watch), response);
    };
}"""
"""Runs as they are asked for and answered, by the page's own clock; the browser's events of requests come later."""


def test_two_rows_at_the_width_of_a_phone(browser: Browser, tiny: Running) -> None:
    page, wrong = opened(browser, tiny.url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.evaluate(TELL_RUNS)
    run(page, ASK, 4, "both")
    page.get_by_text("Save as a file").wait_for()
    order = ["asked lace", "answered lace", "asked independent", "answered independent"]  # neither slows the other down
    assert page.evaluate("told") == order
    assert page.locator(".pane h2").all_inner_texts() == [
        "LACE: threads read each other",
        "Independent threads: the same model, lattice off",
    ]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [page.locator(".scroller").nth(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert page.locator(".scroller").nth(1).get_attribute("data-arcs") == "0"
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, back[4:-1].split(","))) < 380
    assert wrong == []
    page.close()


def test_what_a_screen_reader_is_told(browser: Browser, tiny: Running) -> None:
    page, wrong = opened(browser, tiny.url)
    run(page, ASK, 3)
    page.get_by_text("Save as a file").wait_for()
    page.locator(".scroller").focus()
    page.keyboard.press("ArrowDown")
    settle(page)
    nodes = accessibility_tree(page)
    for role in ("button", "combobox", "textbox", "spinbutton", "link", "application", "complementary", "region"):
        named = [node.name for node in nodes if node.role == role]
        assert named, role
        assert all(named), role
    assert {"alert", "status"} <= {node.role for node in nodes if node.properties.get("live")}
    (columns,) = (node for node in nodes if node.role == "application")
    said = page.get_by_role("status").inner_text()
    assert re.match(r"Thread \d+, step \d+: .*\. It reads ", said)
    assert columns.description.startswith(said)
    assert wrong == []
    page.close()


def test_hostile_text_is_text(browser: Browser, tiny: Running, puzzles: Running) -> None:
    page, wrong = opened(browser, tiny.url, viewport={"width": 360, "height": 740})
    run(page, HOSTILE, 2)
    page.get_by_text("Save as a file").wait_for()
    assert page.locator(".prompt").inner_text() == HOSTILE.strip()
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert wrong == []
    page.close()
    page, _ = opened(browser, puzzles.url, viewport={"width": 360, "height": 740})
    run(page, HOSTILE, 2)  # which the shipped model does not know; the refusal quotes it
    page.get_by_role("alert").filter(has_text="<script>window.hit = 1</script>").wait_for()
    assert page.locator(".head strong").all_inner_texts() == ["Thread"] * 2  # nobody has got a label
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


class Line:
    """A connection to a server that can be cut."""

    def __init__(self, server: Running) -> None:
        self.target = int(server.url.rpartition(":")[2])
        self.cut_after: int | None = None
        """Bytes of one answer; then its connection is closed, and the next one is whole."""
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                passed += len(data)
                if answer and self.cut_after is not None and passed > self.cut_after:
                    self.cut_after, self.cuts = None, self.cuts + 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.usefixtures("endless")
def test_a_dropped_connection_is_shown_and_recovers(browser: Browser, tiny: Running) -> None:
    line = Line(tiny)
    page, _ = opened(browser, line.url)
    line.cut_after = 10_000
    body = run(page, ASK, 2)
    page.get_by_role("alert").filter(has_text="the connection was lost; trying again in 1 s").wait_for()
    page.get_by_text("Save as a file").wait_for()
    assert line.cuts == 1
    assert page.get_by_role("alert").inner_text() == ""
    page.get_by_text("Texts of the threads").click()
    tokens, _ = tokens_of(tiny, body)
    for n, text in enumerate(page.locator(".transcript p").all_inner_texts()):
        assert text.strip() == "".join(t["delta"] for t in tokens if t["thread"] == n and not t["given"]).strip()
    page.close()
    line.listener.close()


def test_pages_and_models_that_do_not_come_are_asked_for_again(browser: Browser, tiny: Running) -> None:
    page, _ = watched_page(browser, lambda asked: True)
    page.route("**/v1/models", lambda route: None)  # it hangs
    page.goto(f"{tiny.url}/")
    page.get_by_role("alert").filter(has_text="the server does not answer").wait_for()
    page.unroute("**/v1/models")
    page.locator("optgroup").first.wait_for(state="attached")
    assert page.get_by_role("alert").inner_text() == ""
    page.route("**/viewer.html", lambda route: route.abort())
    run(page, ASK, 2)
    page.get_by_role("alert").filter(has_text="the server cannot be reached; trying again in 1 s").wait_for()
    page.unroute("**/viewer.html")
    page.get_by_text("Save as a file").wait_for()
    assert page.get_by_role("alert").inner_text() == ""
    page.close()


def test_puzzles_are_offered_once(browser: Browser, tiny: Running) -> None:
    """However often the server had to be asked, by the page and by whoever did not want to wait."""
    page, _ = watched_page(browser, lambda asked: True)
    page.route("**/v1/models", lambda route: route.abort())
    page.goto(f"{tiny.url}/")
    page.get_by_role("alert").filter(has_text="the server cannot be reached").wait_for()
    page.unroute("**/v1/models")
    run(page, ASK, 2)
    page.get_by_text("Save as a file").wait_for()
    page.wait_for_timeout(6_000)  # the page would have asked again by itself
    assert page.locator("optgroup").count() == 2
    page.close()


class Stall:
    """An engine whose steps stand still when they are told to: connections stay open, and nothing comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.steps = 0
        step = Scheduler.step

        def halting_step(scheduler: Scheduler) -> list[tuple[int, TokenEvent | LatticeResult]]:
            self.steps += 1
            if self.steps == 20:
                self.goes_on.clear()
            assert self.goes_on.wait(timeout=300)
            return step(scheduler)

        monkeypatch.setattr(Scheduler, "step", halting_step)


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stall]:
    halting = Stall(monkeypatch)
    yield halting
    halting.goes_on.set()


@pytest.mark.usefixtures("endless")
def test_a_silent_server_is_told_and_recovers(browser: Browser, stall: Stall, tiny: Running) -> None:
    page, wrong = opened(browser, tiny.url)
    body = run(page, ASK, 2)
    said, status = page.locator(".silence"), page.get_by_role("status")
    said.wait_for()
    first = said.locator("span").inner_text()
    assert re.fullmatch(r"The server has been silent for \d+ s\.", first)
    page.wait_for_function("first => document.querySelector('.silence span').textContent !== first", arg=first)
    assert status.inner_text() == first  # it counts, but is said once
    assert re.match(r"step \d+, \d+ tokens; the server has been silent for \d+ s", notes(page).inner_text())
    assert page.get_by_role("button", name="Try again").is_visible()
    assert page.get_by_role("button", name="Stop").is_visible()
    assert page.get_by_role("alert").inner_text() == ""
    stall.goes_on.set()
    said.wait_for(state="hidden")
    page.get_by_text("Save as a file").wait_for()
    page.get_by_text("Texts of the threads").click()
    tokens, _ = tokens_of(tiny, body)
    for n, text in enumerate(page.locator(".transcript p").all_inner_texts()):
        assert text.strip() == "".join(t["delta"] for t in tokens if t["thread"] == n and not t["given"]).strip()
    assert wrong == []
    page.close()


@pytest.mark.usefixtures("endless")
def test_a_silent_server_is_asked_again_or_left(browser: Browser, stall: Stall, tiny: Running) -> None:
    page, wrong = opened(browser, tiny.url)
    body = run(page, ASK, 2)
    said = page.locator(".silence")
    said.wait_for()
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Try again").press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Stop"  # what was pressed is gone
    assert json.loads(sent.value.post_data) == body  # the same seed: the same text
    said.wait_for(state="hidden")
    said.wait_for()  # it hangs still
    stall.goes_on.set()
    page.get_by_text("Save as a file").wait_for()
    assert not said.is_visible()
    tokens, _ = tokens_of(tiny, body)
    page.get_by_text("Texts of the threads").click()
    for n, text in enumerate(page.locator(".transcript p").all_inner_texts()):
        assert text.strip() == "".join(t["delta"] for t in tokens if t["thread"] == n and not t["given"]).strip()

    stall.steps = 0
    run(page, ASK, 2)
    said.wait_for()
    page.get_by_role("button", name="Stop").click()
    said.wait_for(state="hidden")
    notes(page).filter(has_text="stopped").wait_for()
    stall.goes_on.set()
    tiny.wait_until_idle()
    assert wrong == []
    page.close()


@pytest.mark.usefixtures("endless", "unhurried")
def test_a_run_that_is_stopped_is_freed(browser: Browser, tiny: Running) -> None:
    page, wrong = opened(browser, tiny.url)
    run(page, ASK, 8)
    notes(page).filter(has_text=re.compile(r"step \d+")).wait_for()
    page.get_by_role("button", name="Stop").click()
    notes(page).filter(has_text="stopped").wait_for()
    tiny.wait_until_idle()
    assert wrong == []
    page.close()


def test_a_server_with_keys_is_given_one(browser: Browser, engine: Engine) -> None:
    with serve(lambda: engine, api_keys=frozenset({"secret"})) as server:
        page, _ = watched_page(browser, lambda asked: True)
        page.goto(f"{server.url}/")
        page.get_by_role("alert").filter(has_text="This server wants an API key.").wait_for()
        page.get_by_label("API key").fill("secret")
        assert run(page, ASK, 2)["model"] == "tiny"
        page.get_by_text("Save as a file").wait_for()
        page.close()
