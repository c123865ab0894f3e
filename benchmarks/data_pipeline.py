"""The local executor of `lace data` against a scripted teacher: throughput, memory, and what a fault run loses.

    python benchmarks/data_pipeline.py throughput --questions 2000   # share of the ideal calls per second
    python benchmarks/data_pipeline.py faults --questions 10000      # 20 % of calls fail, five times kill -9
    python benchmarks/data_pipeline.py memory --questions 100000     # resident memory of the run while it goes on

Teacher and pipeline are processes of their own. On Linux `--pin` gives each of the two a core to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from figures import provenance, tell
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lace.data.pipeline.keyed_log import read_lines
from lace.data.pipeline.stats import run_stats

ROOT = Path(__file__).parents[1]
CONFIG = """
[run]
out = "{folder}/out"
concurrency = {concurrency}
min_threads = 2
max_threads = 2
[teacher]
base_url = "{url}"
model = "puzzles"
retry_seconds = 0.1
timeout_seconds = {timeout}
[questions]
near_duplicates = {near_duplicates}
[[questions.sources]]
kind = "file"
path = "{folder}/questions.jsonl"
[student]
tokenizer = "{folder}/tokenizer"
max_waiting = 4000
[steps]
max_tokens = 4000
[notes]
max_tokens = 400
"""


def write_questions(path: Path, count: int) -> None:
    rng = Random(0)
    with path.open("w") as file:
        for _ in range(count):
            numbers = [rng.randint(10, 999) for _ in range(5)]
            row = {"question": f"Calculate {' + '.join(map(str, numbers))}.", "answer": str(sum(numbers))}
            file.write(json.dumps(row) + "\n")


def write_tokenizer(folder: Path) -> None:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


@contextmanager
def teacher(folder: Path, *arguments: str, core: int | None = None) -> Iterator[str]:
    """The programmatic teacher in a process of its own, on a core of its own if one is given; yields its URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "teachers", "--port", "0", "--log", str(folder / "requests.txt"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def start(folder: Path) -> subprocess.Popen[bytes]:
    program = "from lace.cli.main import main; main()"
    return subprocess.Popen([sys.executable, "-c", program, "data", "run", str(folder / "config.toml")])


def set_up(folder: Path, options: argparse.Namespace, url: str, timeout: float, near_duplicates: float = 0.8) -> None:
    write_questions(folder / "questions.jsonl", options.questions)
    write_tokenizer(folder / "tokenizer")
    values = {"concurrency": options.concurrency, "timeout": timeout, "near_duplicates": near_duplicates}
    (folder / "config.toml").write_text(CONFIG.format(folder=folder, url=url, **values))


def throughput(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Calls per second of each stage, from its first call to its last, as a share of concurrency / latency."""
    first, second = sorted(os.sched_getaffinity(0))[:2] if options.pin else (None, None)
    with teacher(folder, "--latency", str(options.latency), core=first) as url:
        set_up(folder, options, url, timeout=60.0)
        run = start(folder)
        if second is not None:
            os.sched_setaffinity(run.pid, {second})
        code = run.wait()
    result: dict[str, Any] = {"exit": code, "ideal_calls_per_second": options.concurrency / options.latency}
    for stage in ("solutions", "steps", "notes"):
        ends, begins = [], []
        for line in read_lines(folder / "out" / "calls" / f"{stage}.jsonl"):
            ends.append(datetime.fromisoformat(line["finished"]).timestamp())
            begins.append(ends[-1] - line["seconds"])
        rate = len(ends) / (max(ends) - min(begins))
        share = rate / result["ideal_calls_per_second"]
        result[stage] = {"calls": len(ends), "calls_per_second": round(rate, 1), "share_of_ideal": round(share, 3)}
    return result


def faults(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kills the run again and again, lets it come to its end, and counts what is lost, doubled, or called again."""
    requests = folder / "requests.txt"
    kills: list[tuple[set[str], int]] = []
    with teacher(folder, "--faults", "0.2", "--hang", "20") as url:
        set_up(folder, options, url, timeout=5.0)
        for _ in range(options.kills):
            run, before = start(folder), len(lines_of(requests))
            while run.poll() is None and len(lines_of(requests)) < before + options.questions:
                time.sleep(0.5)
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills.append((set(call_keys(folder)), len(lines_of(requests))))
        runs = 1
        while (code := start(folder).wait()) == 1 and runs < 5:  # some calls failed at every try
            runs += 1
    asked = lines_of(requests)
    stages = run_stats(folder / "out").stages
    outcomes = [
        Counter(line["key"] for line in read_lines(path)) for path in folder.glob("out/stages/*/outcomes.jsonl")
    ]
    return {
        "exit": code,
        "runs_after_the_last_kill": runs,
        "requests": len(asked),
        "finished_calls": len(call_keys(folder)),
        "finished_at_each_kill": [len(finished) for finished, _ in kills],
        "items_lost": sum(
            before.kept - stage.kept - sum(stage.rejected.values()) for before, stage in pairwise(stages)
        ),
        "items_doubled": sum(count - 1 for keys in outcomes for count in keys.values()),
        "calls_doubled": len(call_keys(folder)) - len(set(call_keys(folder))),
        "finished_calls_repeated": sum(key in finished for finished, since in kills for key in asked[since:]),
        "lattices": stages[-1].kept,
        "rejected": {stage.name: stage.rejected for stage in stages},
    }


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of the run at each tenth of the stage of solutions; told on standard error as it goes on."""
    with teacher(folder) as url:
        # Procedural questions cannot repeat one another but for equal ones.
        set_up(folder, options, url, timeout=60.0, near_duplicates=0.0)
        run, samples = start(folder), dict[int, float]()
        done, read = 0, 0
        while run.poll() is None:
            time.sleep(1.0)
            for path in folder.glob("out/stages/2-*/outcomes.jsonl"):
                with path.open("rb") as file:
                    file.seek(read)
                    new = file.read()
                done, read = done + new.count(b"\n"), read + len(new)
            tenth = 10 * done // options.questions
            if tenth not in samples and run.poll() is None:
                pages = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
                samples[tenth] = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
                print(f"{done} questions: {samples[tenth]} MiB", file=sys.stderr, flush=True)
            if tenth == 10:
                run.terminate()
    return {"questions": options.questions, "resident_mib_at_each_tenth": samples}


def call_keys(folder: Path) -> list[str]:
    """Of all finished calls."""
    return [line["key"] for path in sorted((folder / "out" / "calls").glob("*.jsonl")) for line in read_lines(path)]


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "faults", "memory"])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds, for throughput")
    parser.add_argument("--pin", action="store_true", help="for throughput: a core each for teacher and run")
    parser.add_argument("--kills", type=int, default=5, help="for faults")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    measure = {"throughput": throughput, "faults": faults, "memory": memory}[options.what]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = {
            "what": options.what,
            **provenance(),
            "questions": options.questions,
            "concurrency": options.concurrency,
        }
        result |= measure(Path(folder), options)
    result |= {"seconds": round(time.monotonic() - began, 1), "load": os.getloadavg()[0]}
    tell(result, options.json)


if __name__ == "__main__":
    main()
