"""The page in a real browser: Debian's chromium, driven by playwright, from disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromium import accessibility_tree, needs_chromium, watched_page
from lace.lattice.config import MAX_THREADS
from lace.viz.page import build_page
from lace.viz.trace import Trace
from traces import synthetic_trace

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = needs_chromium
ROW, GUTTER = 18, 44
HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror=window.hit=1>",
    "שלום עולם",
    "\u202eabc",
    "🧵👩‍🚀",
    "a" * 10_000,
]


class Opened:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Browser, folder: Path, traces: list[Trace], **context: Any) -> None:
        self.traces = traces
        paths = [folder / f"{n}.trace" for n in range(len(traces))]
        for trace, path in zip(traces, paths, strict=True):
            trace.save(path)
        (folder / "page.html").write_text(build_page(paths), encoding="utf-8")
        url = (folder / "page.html").as_uri()
        self.page, self.wrong = watched_page(browser, lambda asked: asked == url, **context)
        self.page.goto(url)
        self.page.wait_for_selector(".scroller[data-arcs]")

    @property
    def focus(self) -> tuple[int, int]:
        """Label of the thread and step in the token panel."""
        text = self.page.locator(".token dd").first.inner_text()  # "7, step 12"
        label, step = text.split(", step ")
        return int(label), int(step)

    def scroller(self, pane: int = 0) -> Any:
        return self.page.locator(".scroller").nth(pane)

    def hover(self, thread: int, step: int) -> None:
        """Moves the pointer onto a token that is in sight."""
        canvas = self.page.locator(".scroller canvas").first
        box = canvas.bounding_box()
        assert box is not None
        column = column_of(self)
        down = self.scroller().evaluate("e => e.scrollTop")
        self.page.mouse.move(box["x"] + GUTTER + (thread + 0.5) * column, box["y"] + (step + 0.5) * ROW - down)
        self.settle()

    def settle(self) -> None:
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def reads(self) -> list[tuple[int, int, float]]:
        """Thread, step and weight of each arc, as the page has them."""
        return [
            (int(thread), int(step), float(weight))
            for thread, step, weight in self.page.locator(".reads button").evaluate_all(
                "all => all.map(b => [b.dataset.thread, b.dataset.step, b.dataset.weight])"
            )
        ]

    def recorded(self, place: int, view: int, thread: int, step: int) -> list[tuple[int, int, float]]:
        """The same from the trace."""
        trace = self.traces[0]
        threads = len(trace.threads)
        at = sum(len(other.texts) for other in trace.threads[:thread]) + step
        entries, weights = trace.entries_YVGK[place, view, at].tolist(), trace.weights_YVGK[place, view, at].tolist()
        return [(e % threads, e // threads, w) for e, w in zip(entries, weights, strict=True) if w >= 0.01]

    def close(self) -> None:
        self.page.close()
        assert self.wrong == []


def test_arcs_are_those_of_the_trace(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=4, steps=24, layers=2, heads=2)])
    page = opened.page
    for layer, view, thread, step in [(4, 0, 0, 9), (6, 0, 2, 12), (6, 2, 2, 12), (4, 1, 3, 5)]:
        page.get_by_label("Layer").select_option(str(layer))
        page.get_by_label("Head").select_option(str(view))
        opened.hover(thread, step)
        expected = opened.recorded((layer - 4) // 2, view, thread, step)
        assert expected
        assert [read[:2] for read in opened.reads()] == [read[:2] for read in expected]
        assert [read[2] for read in opened.reads()] == pytest.approx([read[2] for read in expected])
        assert opened.focus == (opened.traces[0].threads[thread].label, step)
        assert opened.scroller().get_attribute("data-arcs") == str(len(expected))
        said = page.locator(".reads .rest").get_attribute("data-weight")
        assert float(said) == pytest.approx(
            max(0.0, all_of_others(opened.traces[0], layer, view, thread, step) - sum(read[2] for read in expected)),
            abs=0.02,
        )
    opened.hover(0, 1)  # a given token was not chosen
    assert opened.reads() == []
    opened.close()


def all_of_others(trace: Trace, layer: int, view: int, thread: int, step: int) -> float:
    """Attention of a token on all other threads together."""
    mass_HN = trace.mass()[trace.layers.index(layer), thread * len(trace.threads[0].texts) + step].clone()
    mass_HN[:, thread] = 0
    by_head = mass_HN.sum(dim=1)
    return float(by_head[view - 1] if view else by_head.mean())


def test_weights_times_the_gate(browser: Browser, tmp_path: Path) -> None:
    """Of one head what was recorded times its gate; of all heads the mean of that."""
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=4, steps=24, layers=1, heads=2)])
    page, trace = opened.page, opened.traces[0]
    page.get_by_label("Weight").select_option("gated")
    thread, step = 2, 12
    place = thread * 24 + step
    gates = trace.gates_YGH[0, place].tolist()
    sums: dict[tuple[int, int], float] = {}
    for view, gate in enumerate(gates, start=1):
        page.get_by_label("Head").select_option(str(view))
        opened.hover(thread, step)
        expected = {
            read[:2]: gate * read[2] for read in opened.recorded(0, view, thread, step) if gate * read[2] >= 0.01
        }
        assert {read[:2]: read[2] for read in opened.reads()} == pytest.approx(expected)
        entries, weights = trace.entries_YVGK[0, view, place].tolist(), trace.weights_YVGK[0, view, place].tolist()
        for entry, weight in zip(entries, weights, strict=True):
            at = (entry % 4, entry // 4)
            sums[at] = sums.get(at, 0) + gate * weight / len(gates)
    page.get_by_label("Head").select_option("0")
    opened.settle()
    assert {read[:2]: read[2] for read in opened.reads()} == pytest.approx(
        {at: w for at, w in sums.items() if w >= 0.01}
    )
    mass_GHN = trace.mass()[0, :24] * trace.gates_YGH[0, :24, :, None].float()  # of the first thread
    cells = page.locator(".matrix tbody tr").first.locator("td").all_inner_texts()
    for cell, share in zip(cells[1:], mass_GHN[2:].mean(dim=(0, 1))[1:].tolist(), strict=True):
        assert float(cell) == pytest.approx(100 * share, abs=0.51)
    opened.close()


def test_arcs_are_drawn(browser: Browser, tmp_path: Path) -> None:
    """The picture changes where an arc goes, in columns that the pointer is not in."""
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=4, steps=24)])
    canvas = opened.page.locator(".scroller canvas").first
    opened.page.mouse.move(2, 2)
    opened.settle()
    before = canvas.evaluate("c => c.toDataURL()")
    opened.hover(1, 15)
    with_arcs = canvas.evaluate("c => c.toDataURL()")
    opened.page.mouse.move(2, 2)
    opened.settle()
    assert canvas.evaluate("c => c.toDataURL()") == before != with_arcs
    opened.close()


def test_the_way_of_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=4, steps=60)])
    page, trace = opened.page, opened.traces[0]
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "scroller":
            break
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "token-in-words keys"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    opened.settle()
    assert opened.focus == (trace.threads[1].label, 3)
    page.keyboard.press("End")
    opened.settle()
    assert opened.focus == (trace.threads[1].label, 59)
    assert opened.scroller().evaluate("e => e.scrollTop") > 0
    said = page.locator("[role=status]").inner_text()
    assert said.startswith(f"Thread {trace.threads[1].label}, step 59, after 1.500 s: ")
    most = opened.reads()[0]
    page.keyboard.press("Enter")
    opened.settle()
    assert opened.focus == (trace.threads[most[0]].label, most[1])
    page.keyboard.press("Backspace")
    opened.settle()
    assert opened.focus == (trace.threads[1].label, 59)
    page.keyboard.press("Home")
    page.keyboard.press("n")  # the next mark behind its first token
    opened.settle()
    assert opened.focus == (trace.threads[2].label, 2) or opened.focus == (trace.threads[0].label, 2)
    page.keyboard.press("Escape")
    opened.settle()
    assert "Point at a token" in page.locator(".token").inner_text()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    opened.close()


def test_what_a_screen_reader_is_told(browser: Browser, tmp_path: Path) -> None:
    """Chromium's accessibility tree: everything has a role and a name, and the columns say in words what is drawn."""
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=40)])
    page, trace = opened.page, opened.traces[0]
    opened.scroller().focus()
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    opened.settle()
    nodes = accessibility_tree(page)
    by_role = {node.role: [n for n in nodes if n.role == node.role] for node in nodes}
    for role in ("button", "combobox", "slider", "searchbox", "table", "region", "complementary", "application"):
        assert by_role[role], role
        assert all(node.name for node in by_role[role]), role
    assert {"banner", "main", "contentinfo", "status"} <= set(by_role)
    assert by_role["status"][0].properties["live"] == "polite"
    assert len({node.name for node in by_role["combobox"]}) == len(by_role["combobox"])
    assert {node.name for node in by_role["columnheader"]} >= {str(thread.label) for thread in trace.threads}
    slider = page.get_by_role("slider", name="Time, in steps")
    assert slider.get_attribute("aria-valuetext") == "step 39 of 39"
    assert {"Threads", "What it reads, the most first"} <= {node.name for node in by_role["list"]}
    named = [node.name for node in by_role["listitem"] if node.name.startswith("Thread ")]
    assert named == [
        "Thread 1, [[success]], verified: right",
        "Thread 4, chosen, [[best]], verified: right",
        "Thread 7, [[success]], verified: wrong",
    ]

    label, step = opened.focus
    (columns,) = by_role["application"]
    assert columns.properties["focused"]
    said = page.locator("[role=status]").inner_text()
    assert columns.description.startswith(f"{said} Arrow keys move")
    thread = next(n for n, each in enumerate(trace.threads) if each.label == label)
    reads = opened.reads()
    listed = page.locator(".reads button").first.inner_text()  # "3.5 % thread 7, step 5: 9"
    after = f"after {float(trace.seconds_S[step]):.3f} s"
    assert said.startswith(f"Thread {label}, step {step}, {after}: {trace.threads[thread].texts[step].strip()}. ")
    assert f"It reads {listed.replace(': ', ', ')}; " in said
    assert f"and {len(reads) - 3} more, through a gate that is" in said

    page.get_by_label("Head").select_option("2")
    opened.settle()
    assert page.locator("[role=status]").inner_text() != said  # other readings, which are told too
    opened.close()


def test_scrubbing_moves_time_and_the_matrix(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=64, layers=1)])
    page, trace = opened.page, opened.traces[0]
    slider = page.get_by_label("Time, in steps")
    slider.fill("40")
    page.get_by_label("Window", exact=True).select_option("8")
    opened.settle()
    assert page.locator(".timeline .clock").inner_text() == "step 40 of 63"
    assert "steps 33 to 40" in page.locator(".who").inner_text()
    mass_HN = trace.mass()[0, 33:41].mean(dim=0)  # of the first thread
    for view, mass_N in enumerate([mass_HN.mean(dim=0), *mass_HN]):
        page.get_by_label("Head").select_option(str(view))
        opened.settle()
        assert ("mean of all heads" if view == 0 else f"head {view - 1};") in page.locator(".who").inner_text()
        cells = page.locator(".matrix tbody tr").first.locator("td").all_inner_texts()
        assert cells[0] == "\N{EN DASH}"
        for cell, share in zip(cells[1:], mass_N[1:].tolist(), strict=True):
            assert float(cell) == pytest.approx(100 * share, abs=0.51)
    opened.scroller().focus()
    page.keyboard.press(",")
    opened.settle()
    assert page.locator(".timeline .clock").inner_text() == "step 39 of 63"
    box = page.locator(".timeline .run").bounding_box()
    assert box is not None
    for step in (10, 50):  # by the pointer, which is dragged over the run at a glance
        page.mouse.move(box["x"] + (step + 0.5) / 64 * box["width"], box["y"] + 5)
        page.mouse.down()
        opened.settle()
        assert page.locator(".timeline .clock").inner_text() == f"step {step} of 63"
    page.mouse.up()
    page.get_by_label("Steps a second").select_option("64")
    page.get_by_role("button", name="Play").click()
    page.locator(".timeline .clock", has_text="step 63 of 63").wait_for()
    page.get_by_role("button", name="Play").wait_for()  # it has stopped by itself
    opened.close()


def matrix_of(opened: Opened) -> list[list[str]]:
    return opened.page.locator(".matrix tbody tr").evaluate_all(
        "all => all.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
    )


def expect_matrix(opened: Opened, first: int, last: int) -> None:
    """The caption names these steps, and every cell is the mean of the trace over them and over heads."""
    opened.settle()
    assert f"steps {first} to {last}, layer" in opened.page.locator(".who").inner_text()
    trace = opened.traces[0]
    steps = len(trace.threads[0].texts)
    mass_NSN = trace.mass()[0].mean(dim=1).unflatten(0, (len(trace.threads), steps))
    expected = mass_NSN[:, max(first, trace.threads[0].given) : last + 1].mean(dim=1)
    for n, (row, shares) in enumerate(zip(matrix_of(opened), expected.tolist(), strict=True)):
        assert row.pop(n) == "\N{EN DASH}"
        del shares[n]
        assert list(map(float, row)) == pytest.approx([100 * share for share in shares], abs=0.51)


def test_a_window_of_time_drawn_by_pointer(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=64, layers=1)])
    page = opened.page
    expect_matrix(opened, 0, 63)
    box = page.locator(".band").bounding_box()
    assert box is not None

    def drag(begin: float, end: float) -> None:
        """From step to step; halves are the middles of steps."""
        x, y = box["x"], box["y"] + box["height"] / 2
        page.mouse.move(x + begin / 64 * box["width"], y)
        page.mouse.down()
        page.mouse.move(x + (begin + end) / 128 * box["width"], y)
        page.mouse.move(x + end / 64 * box["width"], y + 30)  # the pointer may leave the band
        page.mouse.up()

    picture = "c => c.toDataURL()"
    before = [page.locator(canvas).evaluate(picture) for canvas in (".band", ".scroller canvas", ".run")]
    drag(10.5, 20.5)
    expect_matrix(opened, 10, 20)
    after = [page.locator(canvas).evaluate(picture) for canvas in (".band", ".scroller canvas", ".run")]
    assert all(old != new for old, new in zip(before, after, strict=True))  # it is seen on all of them
    assert page.locator("[role=status]").inner_text() == "Who reads whom is about steps 10 to 20."
    page.get_by_label("Time, in steps").fill("5")  # it stays, wherever the time is
    expect_matrix(opened, 10, 20)
    drag(21.0, 40.5)  # by its end
    expect_matrix(opened, 10, 40)
    drag(10.0, 5.5)  # by its begin
    expect_matrix(opened, 5, 40)
    drag(50.5, 45.5)  # backwards, and another one
    expect_matrix(opened, 45, 50)
    assert page.get_by_label("Window", exact=True).input_value() == "chosen"
    page.get_by_role("button", name="Clear").click()
    expect_matrix(opened, 0, 5)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Window"
    assert not page.get_by_role("button", name="Clear").is_visible()
    drag(30.5, 33.5)
    expect_matrix(opened, 30, 33)
    page.mouse.click(box["x"] + 3, box["y"] + 5)
    expect_matrix(opened, 0, 5)
    opened.close()


def test_a_window_of_time_chosen_by_key(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=64, layers=1)])
    page = opened.page
    status = page.locator("[role=status]")
    opened.scroller().focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("b")
    expect_matrix(opened, 6, 63)
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("e")
    expect_matrix(opened, 6, 15)
    assert status.inner_text() == "Who reads whom is about steps 6 to 15."
    nodes = accessibility_tree(page)
    fields = {node.name: node for node in nodes if node.role == "spinbutton"}
    assert set(fields) == {"Window from step", "Window to step"}
    page.get_by_label("Window from step").fill("2")
    page.keyboard.press("Enter")
    expect_matrix(opened, 2, 15)
    page.get_by_label("Window to step").fill("999")
    page.keyboard.press("Tab")
    expect_matrix(opened, 2, 63)
    page.get_by_label("Window to step").fill("")
    page.keyboard.press("Tab")
    opened.settle()
    assert page.get_by_label("Window to step").input_value() == "63"
    opened.scroller().focus()
    page.keyboard.press("c")
    expect_matrix(opened, 0, 63)
    assert status.inner_text() == "Who reads whom is about steps 0 to 63, as time goes on."
    page.get_by_label("Window", exact=True).select_option("8")
    expect_matrix(opened, 56, 63)
    page.get_by_label("Window", exact=True).select_option("chosen")
    page.get_by_label("Time, in steps").fill("20")
    expect_matrix(opened, 56, 63)
    page.get_by_label("Window", exact=True).select_option("32")
    expect_matrix(opened, 0, 20)
    opened.close()


def test_the_time_of_a_token(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=40)])
    page, trace = opened.page, opened.traces[0]
    for thread, step in ((0, 1), (2, 12)):  # one that was given, and one that was chosen
        opened.hover(thread, step)
        after = f"after {float(trace.seconds_S[step]):.3f} s"
        assert after in page.locator(".token dl").first.inner_text()
        assert f"step {step}, {after}: " in page.locator("#token-in-words").text_content()
    opened.close()


def test_hostile_text_is_text(browser: Browser, tmp_path: Path) -> None:
    trace = synthetic_trace(
        threads=3, steps=20, texts=HOSTILE, prompt="<script>window.hit = 1</script> " + "b" * 10_000
    )
    opened = Opened(browser, tmp_path, [trace])
    page = opened.page
    assert page.locator(".prompt").inner_text() == trace.prompt
    for step in range(2, 8):
        opened.hover(0, step)
        assert page.locator(".token .text").inner_text().strip() == trace.threads[0].texts[step]
    page.get_by_text("Texts of the threads").click()
    assert "<img src=x onerror=window.hit=1>" in page.locator(".transcript").inner_text()
    page.get_by_label("Search the threads").fill("<SCRIPT>")
    assert page.locator(".search output").inner_text().strip() == f"{_count(trace, '<script>')} found"
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.close()


def _count(trace: Trace, text: str) -> int:
    return sum("".join(thread.texts).count(text) for thread in trace.threads)


def test_search_goes_over_tokens(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=2, steps=20)])
    box = opened.page.get_by_label("Search the threads")
    box.fill("us SEE 14")  # three tokens
    assert (
        opened.page.locator(".search output").inner_text().strip() == f"{_count(opened.traces[0], 'us see 14')} found"
    )
    box.press("Enter")
    opened.settle()
    label, step = first = opened.focus
    thread = next(thread for thread in opened.traces[0].threads if thread.label == label)
    assert "".join(thread.texts[step : step + 3]) == " us see 14"
    count = _count(opened.traces[0], "us see 14")
    places = []
    for keys, at in (("Enter", 2), ("Shift+Enter", 1), ("Shift+Enter", count), ("Enter", 1)):
        box.press(keys)
        opened.settle()
        assert opened.page.locator(".search output").inner_text().strip() == f"{at} of {count}"
        places.append(opened.focus)
    assert places[1] == places[3] == first
    assert first not in (places[0], places[2])
    opened.close()


def test_search_where_small_letters_are_longer(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=2, steps=20, texts=[" \u0130\u0130\u0130", " end"])])
    box = opened.page.get_by_label("Search the threads")
    box.fill("END")
    assert opened.page.locator(".search output").inner_text().strip() == f"{_count(opened.traces[0], ' end')} found"
    box.press("Enter")
    opened.settle()
    label, step = opened.focus
    thread = next(thread for thread in opened.traces[0].threads if thread.label == label)
    assert thread.texts[step] == " end"
    opened.close()


def test_two_traces_side_by_side(browser: Browser, tmp_path: Path) -> None:
    alone = synthetic_trace(threads=3, steps=30, layers=0, heads=0)
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=40), alone])
    boxes = [opened.scroller(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    opened.scroller().focus()
    opened.page.keyboard.press("End")
    opened.settle()
    assert opened.scroller().evaluate("e => e.scrollTop") > 0
    assert opened.scroller(1).evaluate("e => e.scrollTop") > 0  # time is the same in both
    opened.scroller(1).focus()
    opened.page.keyboard.press("End")
    opened.settle()
    assert "These threads do not read each other." in opened.page.locator(".token").inner_text()
    assert opened.page.locator(".pane h2").all_inner_texts() == [
        "LACE: threads read each other",
        "Independent threads: synthetic, lattice off",
    ]
    opened.close()


def test_two_traces_of_different_layers(browser: Browser, tmp_path: Path) -> None:
    one, other = synthetic_trace(threads=3, steps=30, layers=1), synthetic_trace(threads=3, steps=30, layers=2)
    opened = Opened(browser, tmp_path, [one, other])
    page = opened.page
    titles = page.locator(".pane h2").all_inner_texts()
    assert titles == [f"LACE: threads read each other, recording {number}" for number in (1, 2)]
    first, second = page.locator(".matrix").nth(0), page.locator(".matrix").nth(1)
    for layer, known in ((4, True), (6, False)):
        page.get_by_label("Layer").select_option(str(layer))
        opened.settle()
        assert ("".join(set(first.locator("td").all_inner_texts())) == "\N{EN DASH}") is not known
        assert len(set(second.locator("td").all_inner_texts())) > 1
    opened.scroller().focus()
    page.keyboard.press("End")
    opened.settle()
    assert "Layer 6 was not recorded here." in page.locator(".token").inner_text()
    opened.close()


def test_two_traces_of_different_heads(browser: Browser, tmp_path: Path) -> None:
    """Every head can be picked; where there is none of that number, this is said, and no other number stands there."""
    one, other = (synthetic_trace(threads=3, steps=30, layers=1, heads=heads) for heads in (2, 4))
    opened = Opened(browser, tmp_path, [one, other])
    page = opened.page
    assert page.get_by_label("Head").locator("option").all_inner_texts() == ["mean", "0", "1", "2", "3"]
    page.get_by_label("Head").select_option("4")
    opened.settle()
    first, second = page.locator(".matrix").nth(0), page.locator(".matrix").nth(1)
    assert set(first.locator("td").all_inner_texts()) == {"\N{EN DASH}"}
    cells = second.locator("tbody tr").first.locator("td").all_inner_texts()
    mass_N = other.mass()[0, :30, 3][2:].mean(dim=0)
    assert float(cells[1]) == pytest.approx(100 * float(mass_N[1]), abs=0.51)
    opened.scroller().focus()
    page.keyboard.press("End")
    opened.settle()
    assert opened.scroller().get_attribute("data-arcs") == "0"
    assert "Layer 4, head 3 was not recorded here." in page.locator(".token").inner_text()
    assert "NaN" not in page.locator("aside").inner_text()
    opened.close()


def test_verified_answers_stand_out(browser: Browser, tmp_path: Path) -> None:
    """Behind an answer's tokens lies what the verifier says of it, and a chosen thread is green if it is right."""
    trace = synthetic_trace(threads=3, steps=20, texts=[" answer:", " 3", "0", " ."])
    for right in (True, False):
        threads = [
            replace(thread, correct=right if n == trace.chosen else None) for n, thread in enumerate(trace.threads)
        ]
        opened = Opened(browser, tmp_path, [replace(trace, threads=threads)])
        texts = trace.threads[trace.chosen].texts
        last = max(step for step, text in enumerate(texts) if text == " 3")
        colours = opened.page.evaluate(
            """([x, steps]) => {
                const canvas = document.querySelector('.scroller canvas');
                const { data } = canvas.getContext('2d').getImageData(x, 0, 1, canvas.height);
                return steps.map((y) => [...data.slice(4 * y, 4 * y + 3)]);
            }""",
            [
                GUTTER + trace.chosen * column_of(opened) + 60,
                [step * ROW + 4 for step in (last - 1, last, last + 1, last + 2)],
            ],
        )
        before, three, zero, behind = colours
        assert three == zero != before == behind
        red, green, _ = three
        assert (green > red) == right
        assert (before[1] > max(before[0], before[2])) == right
        opened.close()


def column_of(opened: Opened) -> float:
    return float(opened.scroller().evaluate("e => parseFloat(e.style.getPropertyValue('--column'))"))


def colours_at(opened: Opened, places: list[tuple[float, float]]) -> list[tuple[int, int, int]]:
    """Red, green and blue of the columns' picture, at pixels from its upper left corner."""
    found = opened.page.evaluate(
        """places => {
            const canvas = document.querySelector('.scroller canvas');
            const { width, height } = canvas;
            const copy = Object.assign(document.createElement('canvas'), { width, height });
            const picture = copy.getContext('2d', { willReadFrequently: true }); // else the browser complains
            picture.drawImage(canvas, 0, 0);
            return places.map(([x, y]) => [...picture.getImageData(x, y, 1, 1).data.slice(0, 3)]);
        }""",
        places,
    )
    return [(red, green, blue) for red, green, blue in found]


def rgb(text: str) -> tuple[int, int, int]:
    """Of a colour like #1a56c4."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def test_the_strip_beside_a_token_is_its_heat(browser: Browser, tmp_path: Path) -> None:
    """As strong as the number of the trace, whichever number is chosen."""
    trace = synthetic_trace(threads=3, steps=24, layers=1)
    opened = Opened(browser, tmp_path, [trace])
    steps = range(trace.threads[0].given, 24)
    of_thread = slice(steps[0], 24)  # the first one, which is not the chosen one
    heats = {
        "gate": trace.gates_YGH[0, of_thread].float().mean(dim=-1),
        "read": trace.mass()[0, of_thread, :, 1:].sum(dim=-1).mean(dim=-1),
        "entropy": trace.entropy_G[of_thread].float() / 2,
        "surprise": -trace.logprobs_G[of_thread].float() / 4,
    }
    (back,) = colours_at(opened, [(GUTTER + 3, ROW / 2)])  # beside a given token, which has none
    heat = rgb(opened.scroller().evaluate("e => getComputedStyle(e).getPropertyValue('--heat')").strip())
    for name, values in heats.items():
        opened.page.get_by_label("Heat").select_option(name)
        opened.settle()
        shown = colours_at(opened, [(GUTTER + 3, step * ROW + ROW / 2) for step in steps])
        for colour, value in zip(shown, values.clamp(0, 1).tolist(), strict=True):
            expected = [b + (h - b) * value for b, h in zip(back, heat, strict=True)]
            assert colour == pytest.approx(expected, abs=3), name
    opened.close()


def test_marks_are_drawn_and_told(browser: Browser, tmp_path: Path) -> None:
    """Where a thread cites another, corrects itself, or was closed: a sign beside the token, and words in the panel."""
    trace = synthetic_trace(threads=3, steps=24)
    first, *rest = trace.threads
    marks: list[tuple[int, str, int | None]] = [
        (4, "cite", 7),
        (8, "cite", None),
        (12, "fix", None),
        (23, "stop", None),
    ]
    opened = Opened(browser, tmp_path, [replace(trace, threads=[replace(first, marks=marks), *rest])])
    signs = {"cite": rgb("#56b4e9"), "fix": rgb("#e69f00"), "stop": rgb("#d55e00")}
    at = GUTTER + column_of(opened) - 11
    shown = colours_at(opened, [(at, step * ROW + ROW / 2) for step, *_ in marks])
    assert shown == [signs[kind] for _, kind, _ in marks]
    words = ("cites thread 7", "cites another thread", "corrects itself", "was closed, since another had finished")
    for (step, *_), text in zip(marks, words, strict=True):
        opened.hover(0, step)
        assert opened.page.locator(".token div p", has_text=text).count() == 1
        assert f"It {text}." in (opened.page.locator("#token-in-words").text_content() or "")
    opened.hover(0, 5)
    assert opened.page.locator(".token .sign").count() == 0
    opened.close()


def test_light_or_dark_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace()], color_scheme="light")
    page = opened.page
    corner = (GUTTER + 3.0, 3.0)

    def light() -> tuple[bool, bool]:
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, back[4:-1].split(","))) > 380, sum(colours_at(opened, [corner])[0]) > 380

    for expected in (True, False, True):
        opened.settle()
        assert light() == (expected, expected)  # the page, and what is drawn on it
        page.get_by_role("button", name="Light or dark").click()
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(browser: Browser, tmp_path: Path, scheme: str) -> None:
    traces = [synthetic_trace(threads=8, steps=50), synthetic_trace(threads=8, steps=50, seed=1)]
    phone = {"viewport": {"width": 390, "height": 780}, "has_touch": True}
    opened = Opened(browser, tmp_path, traces, **phone, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heads = opened.page.locator(".head")
    assert heads.count() == 16
    assert all(heads.evaluate_all("all => all.map(head => head.scrollWidth <= head.clientWidth)"))  # names are whole
    box = opened.page.locator(".scroller canvas").first.bounding_box()
    opened.page.touchscreen.tap(box["x"] + GUTTER + 20, box["y"] + 9.5 * ROW)
    opened.settle()
    assert opened.focus == (traces[0].threads[0].label, 9)
    assert opened.reads()
    opened.page.keyboard.press("Escape")
    boxes = [opened.scroller(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    opened.scroller().focus()
    opened.page.keyboard.press("ArrowDown")
    for _ in range(7):
        opened.page.keyboard.press("ArrowRight")
    opened.settle()
    assert opened.focus == (traces[0].threads[7].label, 2)
    assert opened.scroller().evaluate("e => e.scrollLeft") > 0
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) > 380) == (scheme == "light")
    opened.close()


def test_as_many_threads_as_can_be_asked_for(browser: Browser, tmp_path: Path) -> None:
    """The run at a glance leaves the columns their room, and labels of three digits stand apart."""
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=MAX_THREADS, steps=20, layers=1, heads=1)])
    columns, glance = opened.scroller().bounding_box(), opened.page.locator(".timeline .run").bounding_box()
    assert columns is not None
    assert glance is not None
    assert glance["height"] <= 96
    assert columns["height"] >= 320
    assert columns["y"] + columns["height"] <= opened.page.locator(".timeline").bounding_box()["y"]
    heat = opened.page.locator(".timeline .run").evaluate(
        "c => new Set(c.getContext('2d').getImageData(c.width / 2, 0, 1, c.height).data).size"
    )
    assert heat > 4  # not one colour: rows are drawn, thinner than a pixel
    labels = opened.page.locator(".matrix thead th").evaluate_all(
        "all => all.every(cell => cell.scrollWidth <= cell.clientWidth)"
    )
    assert labels
    opened.close()


def test_a_page_that_is_not_laid_out_for_a_while(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=3, steps=40)])
    canvas = opened.page.locator(".timeline .run")
    before = canvas.evaluate("c => c.toDataURL()")
    opened.page.evaluate("document.body.style.display = 'none'")
    opened.settle()
    opened.page.evaluate("document.body.style.display = ''")
    opened.settle()
    opened.settle()
    assert canvas.evaluate("c => c.toDataURL()") == before
    opened.close()


def test_sixteen_threads_of_1024_tokens(browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scrolls through all of it with the pointer on a token: a frame draws what is in sight, however long the run is.

    The frames a second are told, the machine decides them.
    """
    opened = Opened(browser, tmp_path, [synthetic_trace(threads=16, steps=1024, layers=7, heads=4)])
    opened.hover(5, 20)
    spent, texts = opened.page.evaluate(
        """async () => {
            let texts = 0;
            const draw = CanvasRenderingContext2D.prototype.fillText;
            CanvasRenderingContext2D.prototype.fillText = function (...what) { texts++; draw.apply(this, what); };
            const scroller = document.querySelector('.scroller');
            const frame = () => new Promise(requestAnimationFrame);
            await frame();
            const from = performance.now();
            for (let n = 0; n < 60; n++) {
                scroller.scrollTop = (n / 59) * scroller.scrollHeight;
                await frame();
            }
            return [performance.now() - from, texts];
        }"""
    )
    in_sight = opened.page.evaluate("document.querySelector('.scroller').clientHeight") / ROW
    assert 0 < texts / 60 < 2 * 17 * in_sight
    with capsys.disabled():
        print(f"\n16 threads x 1,024 tokens: {60_000 / spent:.0f} frames a second while scrolling")  # noqa: T201
    slider = opened.page.get_by_label("Time, in steps")
    slider.fill("512")
    opened.settle()
    assert opened.page.locator(".timeline .clock").inner_text() == "step 512 of 1023"
    opened.close()
