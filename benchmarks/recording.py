"""What looking at threads costs: the pages, a trace, recording on against off, and the viewer's frames a second.

    python benchmarks/recording.py [--rounds 15] [--json docs/results/viewing/recording.json]
    python benchmarks/recording.py --pages docs/results/viewing/recording.json    # only the pages' sizes

Recording is a second reading of a finished text (`lace.viz.trace`), told here as a share of the decoding that it
follows; the live page's exchanges are read while decoding (`lace.engine.exchanges`). Sides take turns, round by round,
and what is reported are medians, also of the ratios of each round. Frames are counted in headless chromium while a page
of 16 threads of 1,024 tokens is scrolled from top to bottom with a token in focus, and while time is played.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from figures import provenance, tell

from lace.cli.defaults import MAX_TOKENS, SHIPPED_LACE, TEMPERATURE, TOP_P
from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.exchanges import step_with_exchanges
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.engine.scheduler import Scheduler
from lace.tasks.task import get_task
from lace.viz.page import LIVE, VIEWER, build_page
from lace.viz.trace import Trace, record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import CHROMIUM, started_browser

WIDE, LONG = 16, 1024
"""Threads and tokens of the largest trace that is promised to stay small."""
THREADS = 8
FRAMES = """async (move) => {
    const scroller = document.querySelector('.scroller');
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    if (move === 'play') document.querySelector('.play').click();
    const from = performance.now();
    for (let n = 0; n < 180; n++) {
        if (move === 'scroll') scroller.scrollTop = (n / 179) * scroller.scrollHeight;
        await frame();
    }
    return 180000 / (performance.now() - from);
}"""


def page_sizes() -> list[dict[str, Any]]:
    """Of the two pages, without a trace."""
    pages = [(path.name, path.read_bytes()) for path in (VIEWER, LIVE)]
    return [{"page": name, "bytes": len(page), "gzip_bytes": len(gzip.compress(page))} for name, page in pages]


def long_trace(engine: Engine) -> tuple[Trace, float, float]:
    """A recording of 16 threads of 1,024 tokens each, opening included; seconds of decoding and of recording."""
    assert engine.config is not None  # the embedded model has a lattice
    given = len(engine.tokenizer(engine.config.opening.format(label=1), add_special_tokens=False)["input_ids"])
    ends, positions = engine.end_ids, engine.max_positions
    engine.end_ids, engine.max_positions = frozenset(), 2 * LONG  # the text is nonsense, its length is what matters
    params = SamplingParams(threads=WIDE, max_tokens=LONG - given, grace=None, seed=0)
    result = engine.generate("Use 9, 14 and 6 to make 30", params)[0]
    began = time.perf_counter()
    trace = record(engine, result, model=SHIPPED_LACE)
    engine.end_ids, engine.max_positions = ends, positions
    return trace, result.seconds, time.perf_counter() - began


def frames(page: Path) -> dict[str, float]:
    """Frames a second of a page from disk."""
    with started_browser() as browser:
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.goto(page.as_uri())
        opened.wait_for_selector(".scroller[data-arcs]")
        opened.locator(".scroller").focus()
        opened.keyboard.press("End")
        rates = {move: round(opened.evaluate(FRAMES, move), 1) for move in ("scroll", "play")}
    return {"scrolling": rates["scroll"], "playing": rates["play"]}


def overheads(engine: Engine, rounds: int) -> list[dict[str, Any]]:
    """Recording against not recording, afterwards and while decoding, on validation puzzles of both tasks."""
    rows = []
    for task, budget in MAX_TOKENS.items():
        params = SamplingParams(threads=THREADS, max_tokens=budget, temperature=TEMPERATURE[task], top_p=TOP_P)
        prompts = [puzzle.prompt for puzzle in get_task(task).puzzles(rounds + 1, 0, "validation")]
        times: dict[str, list[float]] = {"off": [], "trace": [], "stepwise": [], "exchanges": []}
        for number, prompt in enumerate(prompts):
            seeded = replace(params, seed=number)
            results: list[LatticeResult] = []
            sides: list[tuple[str, Callable[[], object]]] = [
                ("off", partial(decoded, engine, prompt, seeded, into=results)),
                ("trace", partial(recorded, engine, results)),
                ("stepwise", partial(scheduled, engine, prompt, seeded, told=False)),
                ("exchanges", partial(scheduled, engine, prompt, seeded, told=True)),
            ]
            for name, side in sides:
                began = time.perf_counter()
                side()
                if number:  # the first round is warm-up
                    times[name].append(time.perf_counter() - began)
        for name, off, on in (
            ("recorded afterwards", times["off"], [a + b for a, b in zip(times["off"], times["trace"], strict=True)]),
            ("exchanges told live", times["stepwise"], times["exchanges"]),
        ):
            ratios = [b / a for a, b in zip(off, on, strict=True)]
            row = {"task": task, "what": name, "off_s": statistics.median(off), "on_s": statistics.median(on)}
            rows.append({**row, "ratio": statistics.median(ratios)})
    return rows


def decoded(engine: Engine, prompt: str, params: SamplingParams, *, into: list[LatticeResult]) -> None:
    """One lattice without recording."""
    into.extend(engine.generate(prompt, params))


def recorded(engine: Engine, results: list[LatticeResult]) -> None:
    """The trace of a lattice that was decoded before."""
    record(engine, results[-1])


def scheduled(engine: Engine, prompt: str, params: SamplingParams, *, told: bool) -> None:
    """One lattice through the scheduler, as the server decodes it."""
    scheduler = Scheduler(engine)
    handle = scheduler.add(engine.new_lattice(prompt, params, "lace", lazy=False))
    while scheduler.busy:
        step_with_exchanges(scheduler, {handle}) if told else scheduler.step()


def main() -> None:
    """Measures, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pages", type=Path)
    options = parser.parse_args()
    if options.pages:
        report = json.loads(options.pages.read_text(encoding="utf-8"))
        tell({**report, "pages": page_sizes()}, options.pages)
        return
    engine = load_engine(SHIPPED_LACE)
    trace, decode_s, record_s = long_trace(engine)
    with tempfile.TemporaryDirectory() as folder:
        path, page = Path(folder) / "long.trace", Path(folder) / "long.html"
        trace.save(path)
        page.write_text(build_page([path]), encoding="utf-8")
        report = {
            "recording": SHIPPED_LACE,
            "pages": page_sizes(),
            "trace": {
                "threads": WIDE,
                "tokens": LONG,
                "layers": len(trace.layers),
                "heads": trace.gates_YGH.shape[2],
                "kept": trace.weights_YVGK.shape[3],
                "bytes": path.stat().st_size,
                "page_bytes": page.stat().st_size,
                "decode_s": round(decode_s, 2),
                "record_s": round(record_s, 2),
            },
            "frames_per_second": frames(page) if CHROMIUM else None,
            "threads": THREADS,
            "rounds": options.rounds,
            "overhead": overheads(engine, options.rounds),
            **provenance(),
        }
    tell(report, options.json)


if __name__ == "__main__":
    main()
