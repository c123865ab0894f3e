"""Pictures of the viewer and of the live page, as chromium shows them on a desktop and on a phone, in light and dark.

    python benchmarks/pictures.py [FOLDER, by default docs/images]

NAME is `viewer` (a recorded run, the first token in focus that refers to another thread), `compare` (the same beside
independent threads) and `live` (the page of `lace serve`: in the middle of a run, on a phone at its end). Written are
NAME.png, NAME-dark.png, NAME-phone.png and NAME-phone-dark.png. Puzzle and draws are fixed, and so is the page's clock:
the same models give the same pictures, but for the seconds that stand in them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lace.cli.defaults import SHIPPED_LACE
from lace.cli.models import load_engine
from lace.viz.page import build_page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import started_browser
from running_server import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ASK = "Use 9, 14 and 6 to make 30"
THREADS = 4
SCREENS = {"": (1280, 800), "-phone": (390, 844)}
SCHEMES: dict[str, Literal["light", "dark"]] = {"": "light", "-dark": "dark"}
DAY_S = 86_400
"""When the page's clock stops: later than the page is loaded."""
FRAME_MS = 20
HALFWAY = 40
"""The step of a live run at which its picture is taken."""


def recorded(folder: Path, strategy: str) -> Path:
    """The trace of a run, made as a user makes it."""
    path = folder / f"{strategy}.trace"
    options = ["--threads", str(THREADS), "--strategy", strategy, "--trace", str(path)]
    subprocess.run(
        [Path(sys.executable).parent / "lace", "solve", ASK, *options], check=True, stdout=subprocess.DEVNULL
    )
    return path


def viewer(page: Page) -> None:
    """Goes to the first mark."""
    scroller = page.locator(".scroller").first
    page.locator(".scroller[data-arcs]").first.wait_for()
    scroller.focus()
    page.keyboard.press("Home")
    page.keyboard.press("n")
    scroller.evaluate("e => e.blur()")  # a frame around all columns would say nothing


def live(page: Page, *, to_the_end: bool) -> None:
    """Runs the prompt. The page's clock stands still until all has come, and then goes on by its ticks."""
    page.locator("optgroup").first.wait_for(state="attached")  # first: a day later the page has given up waiting for it
    page.clock.pause_at(DAY_S)
    page.get_by_label("Prompt").fill(ASK)
    page.get_by_role("spinbutton", name="Threads").fill(str(THREADS))
    with page.expect_event("requestfinished", lambda request: request.url.endswith("completions")):
        page.get_by_role("button", name="Run").click()
    note = page.locator(".pane header p")
    while not (page.get_by_text("Save as a file").count() if to_the_end else shown(note.inner_text()) >= HALFWAY):
        page.clock.run_for(FRAME_MS)


def shown(note: str) -> int:
    """Steps that the page says it shows, `step 12, 48 tokens`."""
    return int(note.split()[1].rstrip(",")) if note.startswith("step ") else 0


def take(browser: Browser, url: str, file: Path, screen: str, scheme: str) -> None:
    """One picture."""
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=SCHEMES[scheme])
    if url.startswith("http"):
        page.add_init_script("Math.random = () => 0.1")  # the seed of the run
        page.clock.install(time=0)
        page.goto(url)
        live(page, to_the_end=bool(screen))
    else:
        page.goto(url)
        viewer(page)
    if screen:
        page.locator(".pane").first.evaluate("e => e.scrollIntoView()")
    if url.startswith("http"):
        page.clock.run_for(FRAME_MS)  # a page that has changed its size is drawn in the next frame
    page.screenshot(path=file)
    page.close()


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images")
    out.mkdir(parents=True, exist_ok=True)
    engine = load_engine(SHIPPED_LACE)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(lambda: engine, model=SHIPPED_LACE, shipped=True) as server,
        started_browser() as browser,
    ):
        traces = [recorded(Path(folder), strategy) for strategy in ("lace", "independent")]
        urls = {"live": f"{server.url}/"}
        for name, of in (("viewer", traces[:1]), ("compare", traces)):
            page = Path(folder) / f"{name}.html"
            page.write_text(build_page(of), encoding="utf-8")
            urls[name] = page.as_uri()
        for (name, url), screen, scheme in product(urls.items(), SCREENS, SCHEMES):
            file = out / f"{name}{screen}{scheme}.png"
            take(browser, url, file, screen, scheme)
            print(file)


if __name__ == "__main__":
    main()
