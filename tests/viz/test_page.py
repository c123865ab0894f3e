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

from lace.viz.page import VIEWER, build_page
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
def test_the_shipped_page_is_built_from_the_sources() -> None:
    """`make viewer` builds it anew."""
    digest = hashlib.sha256()
    for path in [SOURCES / "index.html", *sorted((SOURCES / "src").iterdir())]:
        digest.update(f"{path.relative_to(SOURCES).as_posix()}\n".encode() + path.read_bytes())
    built_from = re.search(r'name="lace-viewer-source" content="(\w+)"', VIEWER.read_text(encoding="utf-8"))
    assert built_from is not None
    assert built_from[1] == digest.hexdigest(), "viewer/ has changed: run `make viewer` and commit the page"


@pytest.mark.skipif(
    shutil.which("node") is None or not (SOURCES / "node_modules").is_dir(),
    reason="needs node and the viewer's tools (npm ci in viewer/)",
)
def test_building_gives_the_shipped_page(tmp_path: Path) -> None:
    environment = {**os.environ, "LACE_VIEWER_OUT": str(tmp_path)}
    subprocess.run(["npx", "vite", "build"], cwd=SOURCES, env=environment, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "viewer.html").read_bytes() == VIEWER.read_bytes()


def test_nothing_runs_but_what_was_built(trace_file: Path) -> None:
    page = build_page([trace_file])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for kind, pattern in (("script", r'<script type="module">(.*?)</script>'), ("style", r"<style>(.*?)</style>")):
        bodies = re.findall(pattern, page, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    rest = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!data:)', rest)
    assert "innerHTML" not in page


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
