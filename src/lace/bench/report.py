"""The report of `lace bench`: JSON, and tables made from it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from lace.bench.bandwidth import read_bandwidth, step_bytes
from lace.bench.operators import count_operators
from lace.bench.subjects import shape_size
from lace.bench.times import SIDES, TRANSFORMERS, step_times, throughput
from lace.engine.decode_step import WholeModel
from lace.engine.engine import Engine
from lace.engine.native_decoder import NativeDecoder
from lace.lattice.native import usable
from lace.provenance import machine, source_commit
from lace.report_table import Table, as_markdown

CACHE_SHAPES = ("qwen3-1.7b", "qwen3-4b")
Rows = list[dict[str, Any]]


def operator_rows(engine: Engine, threads: list[int], context: int) -> Rows:
    rows = []
    for count in threads:
        on, off = (count_operators(engine, count, context, side) for side in SIDES)
        ratios = {"leaf_ratio": on.leaf / off.leaf, "compute_ratio": on.compute / off.compute}
        rows.append({"threads": count, "on": on._asdict(), "off": off._asdict(), **ratios})
    return rows


def cache_rows() -> Rows:
    """Bytes per token of a thread, in bfloat16."""
    sizes = {name: shape_size(name) for name in CACHE_SHAPES}
    return [
        {
            "shape": name,
            "lattice_bytes": size.lattice_bytes,
            "main_bytes": size.main_bytes,
            "share": size.lattice_bytes / size.main_bytes,
        }
        for name, size in sizes.items()
    ]


def step_rows(
    engine: Engine, threads: list[int], context: int, lengths: list[int], rounds: int, progress: Callable[[], None]
) -> Rows:
    bandwidth = read_bandwidth(engine.model.device)
    rows = []
    for count in threads:
        for row in step_times(engine, count, context, lengths, rounds, progress):
            least_ms = [
                1000 * step_bytes(engine.model, count, context, row.length, lattice=side == "lace") / bandwidth
                for side in SIDES
            ]
            on, off = least_ms[0] / row.on_ms, least_ms[1] / row.off_ms
            rows.append({**asdict(row), "bytes_per_second": bandwidth, "limit_share_on": on, "limit_share_off": off})
    return rows


def throughput_rows(
    engine: Engine,
    threads: list[int],
    context: int,
    tokens: int,
    rounds: int,
    progress: Callable[[], None],
    settings: Sequence[str] = tuple(TRANSFORMERS),
) -> Rows:
    found = [throughput(engine, count, context, tokens, rounds, progress, settings) for count in threads]
    return [{**asdict(row), "ratio": row.ratio} for row in found]


def about(subject: str, engine: Engine, settings: dict[str, Any], command: str) -> dict[str, Any]:
    """What a report says of its origin."""
    return {
        "bench": subject,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": str(engine.model.device),
        **settings,
        "command": command,
        "commit": source_commit(),
        "machine": machine(),
    }


def step_by(engine: Engine) -> str:
    """What a step goes by: compiled code or operators, see `lace.engine.decode_step`."""
    step = engine.decode_step()
    if engine.static or isinstance(step, WholeModel) or not usable(engine.model.device, engine.model.dtype):
        return "operators"
    return "compiled code" if isinstance(step, NativeDecoder) else "operators, the lattice's part by compiled code"


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report in Markdown, and how they were made."""
    of = report["machine"]
    return as_markdown(tables(report), report, f"{of['torch_threads']} threads of torch {of['torch']}")


def tables(report: dict[str, Any]) -> list[Table]:
    """One of each part that was measured."""
    name = f"{report['bench']}, {report['dtype']}"
    shown: list[Table] = []
    if rows := report.get("operators"):
        header = ["N", "on", "off", "ratio", "computing, on", "off", "ratio"]
        cells = [
            [str(row["threads"])]
            + [
                text
                for kind in ("leaf", "compute")
                for text in (str(row["on"][kind]), str(row["off"][kind]), f"{row[f'{kind}_ratio']:.3f}")
            ]
            for row in rows
        ]
        shown.append(Table(f"{name}: operators of a step, lattice on against off", header, cells))
    if rows := report.get("cache"):
        header = ["shape", "lattice", "main", "share"]
        cells = [
            [row["shape"], str(row["lattice_bytes"]), str(row["main_bytes"]), f"{row['share']:.2%}"] for row in rows
        ]
        shown.append(Table("Cache, bytes per token in bfloat16", header, cells))
    if rows := report.get("steps"):
        header = ["N", "tokens", "on, ms", "off, ms", "ratio", "on, CPU ms", "off, CPU ms", "ratio"]
        times = ("on_ms", "off_ms", "ratio", "on_cpu_ms", "off_cpu_ms", "cpu_ratio")
        cells = [
            [str(row["threads"]), str(row["length"])]
            + [f"{row[key]:.3f}" if "ratio" in key else f"{row[key]:.2f}" for key in times]
            for row in rows
        ]
        title = f"{name}: time of a step, lattice on against off; {report['context']} tokens of prompt"
        if "step_by" in report:  # not in reports from before there was a choice
            title += f"; by {report['step_by']}"
        if "bytes_per_second" in rows[0]:  # not in reports from before it was measured
            title += f"; memory is read at {rows[0]['bytes_per_second'] / 1e9:.1f} GB/s"
            header += ["of that limit, on", "off"]
            for line, row in zip(cells, rows, strict=True):
                line += [f"{row[f'limit_share_{side}']:.0%}" for side in ("on", "off")]
        shown.append(Table(title, header, cells))
    if rows := report.get("throughput"):
        settings = list(rows[0]["transformers"])
        header = ["N", "lace", "independent", *(f"transformers, {setting}" for setting in settings), "ratio to best"]
        cells = [
            [str(row["threads"])]
            + [f"{value:.0f}" for value in (row["lace"], row["independent"], *row["transformers"].values())]
            + [f"{row['ratio']:.2f}"]
            for row in rows
        ]
        shown.append(Table(f"{name}: tokens per second, {rows[0]['tokens']} tokens of each thread", header, cells))
    return shown
