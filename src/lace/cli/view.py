"""`lace view`: a recorded trace as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lace.cli.outputs import check_writable, size_in_words


def view(
    trace: Annotated[Path, typer.Argument(help="A file that `lace solve --trace FILE` has written.")],
    out: Annotated[
        Path | None, typer.Option(help="The page. Default: beside the trace, with the ending .html.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another trace of the same prompt, shown beside it, e.g. of independent threads."),
    ] = None,
) -> None:
    """Make one HTML file that shows what the threads read of each other; it opens from disk, without a server.

    Threads are columns on a common time axis. A token under the pointer, or under the arrow keys, shows arcs to the
    tokens that its thread read when it chose it.
    """
    from lace.viz.page import build_page

    page = build_page([trace, *([compare] if compare else [])])
    out = out or trace.with_suffix(".html")
    if out.resolve() in (path.resolve() for path in (trace, compare) if path is not None):
        raise ValueError(f"the page would replace the trace {out}; name another file with --out")
    check_writable(out)
    out.write_text(page, encoding="utf-8")
    typer.echo(f"{out} ({size_in_words(len(page.encode()))})")
