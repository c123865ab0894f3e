"""Serves the programmatic teacher until it is stopped."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from teachers.faults import with_faults
from teachers.puzzles import puzzle_teacher
from teachers.server import Request, Server

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--errors", type=float, default=0.35, help="share of the paths that go wrong")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the calls that fail in mixed ways")
    parser.add_argument("--hang", type=float, default=3600.0, help="seconds that a hanging call takes")
    parser.add_argument("--log", type=Path, help="file for the keys of all requests, one a line")
    options = parser.parse_args()
    script = puzzle_teacher(options.errors, options.latency)
    if options.faults:
        script = with_faults(script, options.faults, hang=options.hang)
    log = options.log.open("a", buffering=1) if options.log else None

    def note(request: Request) -> None:
        if log is not None:
            log.write(request.key + "\n")

    with Server(script, options.port, note) as server:
        print(server.url, flush=True)  # noqa: T201
        while True:
            time.sleep(60)
