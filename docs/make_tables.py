"""Writes the result tables of README.md and of pages in docs from docs/results: `python docs/make_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; NAME is the file without its ending.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lace.bench.report import markdown as bench
from lace.eval.table import markdown
from lace.report_table import Table, as_markdown, cells_as_markdown, percent_with_interval
from lace.viz.exchange_table import markdown as exchange

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("viewing", "speed", "data", "evidence")))


def render(text: str) -> str:
    """A page's text with every table made anew."""
    results = ROOT / "docs" / "results"
    for path in sorted(results.rglob("*.json")):
        if f"<!-- {path.stem} -->\n" not in text:
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        kind = next((kind for kind in TABLES if kind in report), "bench")
        table = TABLES[kind](report)
        text = placed(text, f"<!-- {path.stem} -->\n", f"<!-- end {path.stem} -->", f"{table}\n")
    return text


def placed(text: str, begin: str, end: str, made: str) -> str:
    """A page's text with what was made between two marks."""
    before, behind = text.split(begin)
    _, behind = behind.split(end)  # fails where a page lacks the mark, rather than losing what stands behind
    return f"{before}{begin}{made}{end}{behind}"


def recording(report: dict[str, Any]) -> str:
    """The table of `benchmarks/recording.py`."""
    trace, rates = report["trace"], report["frames_per_second"]
    size = f"{trace['threads']} threads of {trace['tokens']:,} tokens"
    pages = [
        [f"`{page['page']}`", f"{page['bytes'] / 1e3:.1f} kB, {page['gzip_bytes'] / 1e3:.1f} kB as gzip"]
        for page in report["pages"]
    ]
    rows = [
        *pages,
        [
            f"trace of {size}, {trace['layers']} layers of {trace['heads']} heads",
            f"{trace['bytes'] / 1e6:.1f} MB; its page {trace['page_bytes'] / 1e6:.1f} MB",
        ],
        ["recording it, after decoding it", f"{trace['record_s']:.0f} s, {trace['decode_s']:.0f} s"],
        [
            "frames a second of that page, while it is scrolled and played",
            f"{rates['scrolling']:.0f}, {rates['playing']:.0f}",
        ],
        *(
            [
                f"{row['what']}, {row['task']}, N = {report['threads']}",
                f"{100 * row['ratio'] - 100:+.0f} % ({row['off_s']:.2f} s without, {row['on_s']:.2f} s with)",
            ]
            for row in report["overhead"]
        ),
    ]
    title = f"What looking costs; times are medians of {report['rounds']} interleaved rounds"
    machine = report["machine"]
    about = f"{machine['torch_threads']} threads of torch {machine['torch']}"
    return as_markdown([Table(title, ["what", "measured"], rows)], report, about)


def live_page(report: dict[str, Any]) -> str:
    """The table of `benchmarks/live_page.py`."""
    parts = dict(zip(("first third", "second third", "last third"), report["thirds"], strict=True))
    rows = [
        [
            name,
            f"{part['busy_ms_a_step']:.1f}",
            *(f"{part[f'{kind}_a_frame']:.1f}" for kind in ("busy_ms", "script_ms", "layout_ms")),
            f"{part['steps_per_second']:.0f}",
            f"{part['frames_per_second']:.0f}",
        ]
        for name, part in parts.items()
    ]
    size = f"{report['threads']} threads of {report['tokens']:,} tokens"
    title = f"The live page with {size}; ms of its main thread's processor time"
    header = [
        "",
        "a step that is shown",
        "a frame",
        "of it script",
        "of it layout",
        "steps a second",
        "frames a second",
    ]
    return _told([Table(title, header, rows)], report)


def throughput(report: dict[str, Any]) -> str:
    """The table of `benchmarks/data_pipeline.py throughput`."""
    ideal = report["ideal_calls_per_second"]
    stages = {name: report[name] for name in ("solutions", "steps", "notes")}
    rows = [
        [name, f"{found['calls']:,}", f"{found['calls_per_second']:.0f}", _percent(found["share_of_ideal"])]
        for name, found in stages.items()
    ]
    title = f"{report['concurrency']} calls in flight, {ideal:.0f} calls a second at best"
    return _told([Table(title, ["stage", "calls", "calls a second", "of the ideal"], rows)], report)


def memory(report: dict[str, Any]) -> str:
    """The table of `benchmarks/data_pipeline.py memory`."""
    samples = {int(tenth): mib for tenth, mib in report["resident_mib_at_each_tenth"].items() if int(tenth)}
    done = [f"{tenth * report['questions'] // 10:,}" for tenth in samples]
    return cells_as_markdown(
        ["questions", *done], [["resident memory, MiB", *(f"{mib:.0f}" for mib in samples.values())]]
    )


def faults(report: dict[str, Any]) -> str:
    """The table of `benchmarks/data_pipeline.py faults`."""
    rejected = Counter[str]()
    for reasons in report["rejected"].values():
        rejected.update(reasons)
    rows = [
        ["requests, finished calls", f"{report['requests']:,}, {report['finished_calls']:,}"],
        ["finished at each kill", ", ".join(f"{count:,}" for count in report["finished_at_each_kill"])],
        ["items lost, items doubled", f"{report['items_lost']}, {report['items_doubled']}"],
        ["calls doubled, finished calls made again", f"{report['calls_doubled']}, {report['finished_calls_repeated']}"],
        ["lattices", f"{report['lattices']:,}"],
        ["rejected", ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())],
    ]
    title = f"{report['questions']:,} questions, {report['concurrency']} calls in flight"
    return _told([Table(title, ["what", "count"], rows)], report)


def quality(report: dict[str, Any]) -> str:
    """The table of `lace data stats`, without its stages, beside what the paper tells of its data."""
    found, threads = report["quality"], sum(report["quality"]["tags"].values())
    tags = [f"{tag} {_percent(found['tags'][tag] / threads)}" for tag in ("best", "success", "fail")]
    rows = [
        ["lattices, tokens", f"{found['lattices']:,}, {found['tokens']:,}", ""],
        ["lattices of 2, 3, 4 threads", ", ".join(f"{count:,}" for count in found["threads"].values()), ""],
        ["edit distance of two threads (words)", f"{found['edit_distance']:.3f}", "0.77"],
        ["embedding dissimilarity (all-MiniLM-L6-v2)", f"{found['embedding_dissimilarity']:.3f}", "0.12"],
        ["threads by tag", ", ".join(tags), ""],
        ["references that are causal", f"{found['causal']:,} of {found['references']:,}", ""],
        ["notes moved to a later step", f"{found['moved']:,}", ""],
        ["tokens of waiting", f"{found['waited']:,}", ""],
    ]
    return f"{cells_as_markdown(['measure', 'here', 'paper'], rows)}\n\nCommit {report['commit']}"


def student(report: dict[str, Any]) -> str:
    """The table of `benchmarks/student.py ask`."""
    names = {
        "lace": "lattice on",
        "swapped": "lattice of another question",
        "independent": "lattice off",
        "isolated": "isolated threads",
    }
    (task,) = report["tasks"].values()
    rows = [
        [f"`{metric}`", *(percent_with_interval(task[strategy][metric]) for strategy in names)]
        for metric in task["lace"]
    ]
    rows.append(["attention to other threads", f"{100 * report['cross_thread_attention']:.1f}", "", "", ""])
    title = (
        f"n = {task['n']} questions that the data does not hold, N = {report['threads']}, temperature "
        f"{report['temperature']}, {report['max_tokens']} tokens at most; % [95 % interval]"
    )
    differences = [
        [f"`acc` less `{of}`, {names[strategy]}", percent_with_interval(found, "+"), f"{found['p']:.2g}"]
        for (strategy, of), found in ((name.split(), found) for name, found in task["lace acc less"].items())
    ]
    header = ["paired by question, points", "[95 % interval]", "p (McNemar)"]
    read = report["reading"]
    shares = [
        ["results quoted from another thread", read["quotes"], "as that thread has them", read["quotes_true"]],
        ["lattices with one `[[best]]`", read["one_best"], "it has the smallest label", read["smallest_label_best"]],
        ["lattices that disagree", read["disagreeing"], "the chosen one is right", read["disagreeing_chosen_right"]],
        ["", "", "a thread is right", read["disagreeing_threads_right"]],
        ["threads", report["threads"] * task["n"], "that warn of another", read["threads_that_warn"]],
    ]
    told = [[of, str(count), what, _percent(share)] for of, count, what, share in shares]
    tables = [Table(title, ["", *names.values()], rows), Table("Lattice on:", header, differences)]
    return _told([*tables, Table("And what its threads write:", ["of", "n", "", ""], told)], report)


def vllm_tokens(report: dict[str, Any]) -> str:
    """The table of `benchmarks/vllm_tokens.py`."""
    sides = ("lace", "independent", "vllm")
    rows = [
        [str(row["threads"]), *(f"{row[side]:.0f}" for side in sides), f"{row['ratio']:.2f}"]
        for row in report["vllm_tokens"]
    ]
    title = f"Tokens per second, {report['rounds']} rounds in turns, against vLLM {report['vllm_version']}, a core each"
    return _told([Table(title, ["N", "lace", "independent", "vLLM", "lace to vLLM"], rows)], report)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _told(tables: list[Table], report: dict[str, Any]) -> str:
    return as_markdown(tables, report, f"{report['machine']['cores']} cores")


TABLES = {
    "groups": markdown,
    "bench": bench,
    "observed": exchange,
    "recording": recording,
    "live_page": live_page,
    "ideal_calls_per_second": throughput,
    "resident_mib_at_each_tenth": memory,
    "items_lost": faults,
    "quality": quality,
    "cross_thread_attention": student,
    "vllm_tokens": vllm_tokens,
}
"""By a key that only reports of this kind have."""


def main() -> None:
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
