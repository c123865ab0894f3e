"""The page as a file: built from its sources, closed to the network, and free of anything that a model could write."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lace.viz.page import LIVE, VIEWER, build_page
from traces import synthetic_trace

SOURCES = Path(__file__).parents[2] / "viewer"
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202eabc",
    "שלום",
    "🧵",
    "a" * 10_000,
]


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "hostile.trace"
    synthetic_trace(texts=HOSTILE, prompt="<script>alert(2)</script>").save(path)
    return path


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources of the viewer are not here")
@pytest.mark.parametrize("page", [VIEWER, LIVE], ids=lambda page: page.stem)
def test_the_shipped_pages_are_built_from_the_sources(page: Path) -> None:
    """`make viewer` builds them anew."""
    digest = hashlib.sha256()
    for path in [SOURCES / "live.html", SOURCES / "viewer.html", *sorted((SOURCES / "src").iterdir())]:
        digest.update(f"{path.relative_to(SOURCES).as_posix()}\n".encode() + path.read_bytes())
    built_from = re.search(r'name="lace-viewer-source" content="(\w+)"', page.read_text(encoding="utf-8"))
    assert built_from is not None
    assert built_from[1] == digest.hexdigest(), "viewer/ has changed: run `make viewer` and commit the pages"


@pytest.mark.skipif(
    shutil.which("node") is None or not (SOURCES / "node_modules").is_dir(),
    reason="needs node and the viewer's tools (npm ci in viewer/)",
)
def test_building_gives_the_shipped_pages(tmp_path: Path) -> None:
    environment = {**os.environ, "LACE_VIEWER_OUT": str(tmp_path)}
    for page, mode in ((VIEWER, "production"), (LIVE, "live")):
        command = ["npx", "vite", "build", "--mode", mode]
        subprocess.run(command, cwd=SOURCES, env=environment, check=True, capture_output=True, timeout=120)
        assert (tmp_path / page.name).read_bytes() == page.read_bytes()


def test_nothing_runs_but_what_was_built(trace_file: Path) -> None:
    page = build_page([trace_file])
    policy = check_policy(page)
    assert "connect-src" not in policy  # and default-src is 'none'
    rest = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!data:)', rest)


def test_the_live_page_asks_its_own_server_alone() -> None:
    policy = check_policy(LIVE.read_text(encoding="utf-8"))
    assert "connect-src 'self';" in policy
    viewer = check_policy(VIEWER.read_text(encoding="utf-8"))
    for allowed in re.findall(r"'sha256-[^']+'", viewer):  # which it opens under its own policy
        assert allowed in policy


def check_policy(page: str) -> str:
    """The policy of a page, which allows its own script and style and is otherwise closed."""
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for kind, pattern in (("script", r'<script type="module">(.*?)</script>'), ("style", r"<style>(.*?)</style>")):
        bodies = re.findall(pattern, page, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert "innerHTML" not in page
    return policy[1]


def test_what_was_written_stands_in_the_page_as_data_alone(trace_file: Path) -> None:
    page = build_page([trace_file, trace_file])
    assert "alert(" not in page
    blocks = re.findall(r'<script class="trace" type="application/octet-stream">([\w+/=]+)</script>', page)
    assert [gzip.decompress(base64.b64decode(block)) for block in blocks] == [trace_file.read_bytes()] * 2
    assert build_page([trace_file, trace_file]) == page


def test_only_traces_of_one_prompt_are_compared(trace_file: Path, tmp_path: Path) -> None:
    synthetic_trace(prompt="another").save(tmp_path / "other.trace")
    with pytest.raises(ValueError, match="only traces of one prompt"):
        build_page([trace_file, tmp_path / "other.trace"])
