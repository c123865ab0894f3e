"""Writes the result tables of README.md from the JSON files in docs/results: `python docs/make_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; NAME is the file without its ending.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lace.eval.table import markdown

ROOT = Path(__file__).parents[1]


def estimate(values: dict[str, float], sign: str = "") -> str:
    value, low, high = (100 * values[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def old_evaluation(report: dict[str, Any]) -> str:
    """Markdown of a `lace eval` report without groups: countdown3.json and countdown4.json; goes when they go."""
    metrics = list(report["rows"][0]["metrics"])
    lines = [
        f"n = {report['n']} unseen puzzles of {report['numbers']} numbers, seed {report['seed']}, at most "
        f"{report['rows'][0]['max_tokens']} tokens a thread; % [95 % interval]. "
        f"`{report['command']}`, commit {report['commit']}",
        "",
        f"| strategy | N | {' | '.join(metrics)} | tokens | seconds | false steps | distinct attempts |",
        "|---|---|" + "---|" * (len(metrics) + 4),
    ]
    for row in report["rows"]:
        cells = " | ".join(estimate(row["metrics"][metric]) for metric in metrics)
        lines.append(
            f"| {row['strategy']} | {row['threads']} | {cells} | {row['tokens']:.0f} | {row['seconds']:.2f} "
            f"| {100 * row['false_steps']:.2f} % | {100 * row['distinct_attempts']:.0f} % |"
        )
    lines += ["", "| paired difference, points | N | [95 % interval] |", "|---|---|---|"]
    for pair in report["paired"]:
        names = " - ".join(f"{pair[side]['strategy']} {pair[side]['metric']}" for side in "ab")
        lines.append(f"| {names} | {pair['threads']} | {estimate(pair['difference'], '+')} |")
    return "\n".join(lines)


def step_time(report: dict[str, Any]) -> str:
    """Markdown of a report of benchmarks/step_time.py."""
    lines = [
        f"{report['tokens']} tokens, median of {report['rounds']} interleaved rounds, "
        f"{report['torch_threads']} threads of torch on {report['processor']}, {report['dtype']}",
        "",
        "| N | lattice on, ms a step | off | ratio |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(f"| {row['threads']} | {row['on_ms']:.2f} | {row['off_ms']:.2f} | {row['ratio']:.3f} |")
    return "\n".join(lines)


def render(text: str) -> str:
    """README text with every table made anew."""
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        renderer = markdown if "groups" in report else old_evaluation if "task" in report else step_time
        table = renderer(report)
        pattern = re.compile(rf"(<!-- {path.stem} -->\n).*?(<!-- end {path.stem} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
