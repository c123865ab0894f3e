"""What the live page costs the browser while many threads stream, measured in headless chromium on a real server.

    python benchmarks/live_page.py [--threads 16] [--tokens 512] [--json docs/results/viewing/live.json]

The embedded model writes behind the application of `lace serve`, in this process, for as many tokens as asked: its
end token is taken away, and the text is nonsense. The page gets every token with what it had read. How fast steps
come rests on the machine, which server and browser share with whatever else runs on it. Hence the page's work is told
as processor time of its main thread, from chromium's own counters: for each frame that the page asks for, and for
each step that was shown, over the first, the middle and the last third of the run.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import provenance, tell

from lace.cli.defaults import SHIPPED_LACE
from lace.cli.models import load_engine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import started_browser
from running_server import serve

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page, Route

ASK = "Use 9, 14 and 6 to make 30"
LATEST_S = 1200
"""A run that has not ended by then has gone wrong."""
COUNT = """
    window.frames_seen = 0;
    window.uncounted = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = (draw) => uncounted((time) => { window.frames_seen++; draw(time); });
"""
"""Frames that the page asks for: a loop beside it would make the browser draw where nothing is new."""


class Meter:
    """Frames, steps that are shown, and processor time of the page's main thread."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.session: CDPSession = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def read(self) -> dict[str, float]:
        found = {each["name"]: each["value"] for each in self.session.send("Performance.getMetrics")["metrics"]}
        frames, note = self.page.evaluate("[frames_seen, document.querySelector('.pane header p')?.textContent ?? '']")
        steps = re.search(r"\bstep (\d+)|(\d+) steps", note)
        return {
            "seconds": time.perf_counter(),
            "frames": frames,
            "steps": int(steps[1] or steps[2]) if steps else 0,
            "busy_ms": 1000 * found["TaskDuration"],
            "script_ms": 1000 * found["ScriptDuration"],
            "layout_ms": 1000 * (found["LayoutDuration"] + found["RecalcStyleDuration"]),
        }


def between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What has passed between two readings."""
    passed = {name: after[name] - before[name] for name in before}
    frames, steps = passed["frames"], passed["steps"]
    of_frame = {f"{name}_a_frame": round(passed[name] / frames, 2) for name in ("busy_ms", "script_ms", "layout_ms")}
    return {
        "steps": steps,
        "steps_per_second": round(steps / passed["seconds"], 1),
        "frames_per_second": round(frames / passed["seconds"], 1),
        **of_frame,
        **({"busy_ms_a_step": round(passed["busy_ms"] / steps, 2)} if steps else {}),
    }


def measured(page: Page, steps: int) -> list[dict[str, float]]:
    """Thirds of a run that has been asked for."""
    meter = Meter(page)
    began = meter.read()
    readings = [began]
    while len(readings) < 4:
        page.wait_for_timeout(200)
        now = meter.read()
        if now["seconds"] - began["seconds"] > LATEST_S:
            raise RuntimeError(f"the run has come to step {now['steps']} of {steps} only")
        if now["steps"] >= len(readings) * steps // 3:
            readings.append(now)
    return [between(before, after) for before, after in pairwise(readings)]


def main() -> None:
    """Measures, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = load_engine(SHIPPED_LACE)
    engine.end_ids, engine.max_positions = frozenset(), 2 * options.tokens + 64

    def longer(route: Route) -> None:
        """The page leaves the length to the server."""
        body = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps({**body, "max_tokens": options.tokens}))

    with serve(lambda: engine, model=SHIPPED_LACE, shipped=True) as server, started_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(COUNT)
        page.route("**/v1/chat/completions", longer)
        page.goto(f"{server.url}/")
        page.locator("optgroup").first.wait_for(state="attached")
        page.get_by_label("Prompt").fill(ASK)
        page.get_by_role("spinbutton", name="Threads").fill(str(options.threads))
        page.get_by_role("button", name="Run").click()
        thirds = measured(page, options.tokens)
    report: dict[str, Any] = {
        "live_page": SHIPPED_LACE,
        "threads": options.threads,
        "tokens": options.tokens,
        "thirds": thirds,
        **provenance(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
