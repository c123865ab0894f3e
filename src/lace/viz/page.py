"""One HTML file that shows a trace, or two side by side: it opens from disk and asks no network.

`viewer.html` is the built form of the sources in `viewer/` (`make viewer`). Its Content-Security-Policy allows its own
script and style, by their hashes, and nothing else. Traces stand in it as data, gzip in base64, and everything that a
model or a user wrote is put into the page as text by its script.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path

from lace.viz.trace import Trace

VIEWER = Path(__file__).with_name("viewer.html")
LIVE = VIEWER.with_name("live.html")
"""What `lace serve` shows at `/`, built from the same sources."""
_PLACE = "<!-- traces -->"


def build_page(paths: Sequence[str | Path]) -> str:
    """The page of one trace, or of two of the same prompt.

    Raises:
        ValueError: if a file is no trace, or the prompts differ.
        FileNotFoundError: if there is none.
    """
    prompts = [Trace.load(path).prompt.strip() for path in paths]
    if len(set(prompts)) > 1:
        raise ValueError(f"only traces of one prompt can be compared, not {prompts[0][:60]!r} and {prompts[1][:60]!r}")
    blocks = [
        '<script class="trace" type="application/octet-stream">'
        f"{base64.b64encode(gzip.compress(Path(path).read_bytes(), mtime=0)).decode()}</script>"
        for path in paths
    ]
    return VIEWER.read_text(encoding="utf-8").replace(_PLACE, "\n    ".join(blocks))
