"""The look of `lace data stats` and `lace data show`."""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lace.data.pipeline.item import Item, Path
from lace.data.pipeline.stats import Stats
from lace.data.pipeline.text import printable

TAG_STYLES = {"best": "bold green", "success": "green", "fail": "red"}


def print_stats(stats: Stats, console: Console) -> None:
    """Tables of stages, reasons and quality."""
    stages = Table("stage", "kept", "rejected", "calls", "prompt tokens", "completion tokens", "cost", "s/call")
    for column in stages.columns[1:]:
        column.justify = "right"
    reasons = Table("stage", "reason", "items", title="rejections")
    unusable = Table("stage", "reason", "replies", title="replies that could not be used")
    for stage in stats.stages:
        mean = f"{stage.seconds / stage.calls:.2f}" if stage.calls else ""
        used = [f"{n:,}" for n in (stage.calls, stage.prompt_tokens, stage.completion_tokens)]
        stages.add_row(
            stage.name, f"{stage.kept:,}", f"{sum(stage.rejected.values()):,}", *used, f"{stage.cost:.2f}", mean
        )
        for reason, count in stage.rejected.items():
            reasons.add_row(stage.name, reason, f"{count:,}")
        for reason, count in stage.unusable.items():
            unusable.add_row(stage.name, reason, f"{count:,}")
    console.print(stages)
    for table in (reasons, unusable):
        if table.row_count:
            console.print(table)
    console.print(_quality(stats))


def _quality(stats: Stats) -> Table:
    quality = stats.quality
    total = sum(quality.tags.values()) or 1
    table = Table("measure", "value", title="lattices")
    for part, count in stats.parts.items():
        table.add_row(part, f"{count:,}")
    table.add_row("by number of threads", ", ".join(f"{n}: {count:,}" for n, count in quality.threads.items()))
    table.add_row("tags", ", ".join(f"{tag} {count / total:.1%}" for tag, count in sorted(quality.tags.items())))
    table.add_row("tokens", f"{quality.tokens:,}")
    if quality.edit_distance is not None:
        table.add_row("edit distance of two threads", f"{quality.edit_distance:.3f}")
    if quality.embedding_dissimilarity is not None:
        table.add_row("embedding dissimilarity", f"{quality.embedding_dissimilarity:.3f}")
    share = f", causal {quality.causal / quality.references:.2%}" if quality.references else ""
    table.add_row("references", f"{quality.references:,}{share}")
    table.add_row("notes moved to a later step", f"{quality.moved:,}")
    table.add_row("tokens of waiting", f"{quality.waited:,}")
    return table


def print_item(item: Item, console: Console) -> None:
    """The threads of one question side by side; what rests on another thread is marked with an arrow."""
    item = Item.model_validate(_printable(item.model_dump(exclude={"lattice"})))
    question = item.question
    head = Text(question.text + "\n", style="bold")
    head.append(f"answer: {question.answer}   verifier: {question.verifier}   source: {question.source}", style="dim")
    console.print(Panel(head, title=Text(question.id)))
    width = max(30, console.width // max(1, len(item.paths)) - 1)
    threads = [_thread(item, label, path, width) for label, path in zip(item.labels, item.paths, strict=True)]
    console.print(Columns(threads, padding=(0, 0)))
    for mark in item.history:
        made = ", ".join([*mark.models, *mark.prompts]) or "no model"
        console.print(
            Text(f"{mark.made}  {mark.stage:10}  {mark.key[:8]} from {mark.parent[:8]:8}  {made}", style="dim")
        )


def _printable(values: Any) -> Any:
    """Nested values whose texts, a teacher's most of them, do nothing to a terminal."""
    if isinstance(values, dict):
        return {name: _printable(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_printable(value) for value in values]
    return printable(values) if isinstance(values, str) else values


def _thread(item: Item, label: int, path: Path, width: int) -> Panel:
    parts: list[Text] = []
    for number, step in enumerate(path.steps or path.text.splitlines()):
        parts.append(Text.assemble((f"{number + 1} ", "dim"), step))
        for note in path.notes:
            if note.after == number:
                arrow = "◀" if note.kind == "takes" else "✗"
                about = f"  {arrow} Thread {item.labels[note.about]}, step {note.about_step + 1}: "
                parts.append(Text.assemble((about, "bold cyan" if note.kind == "takes" else "bold yellow"), note.text))
    if path.comparison:
        parts.append(Text.assemble(("  ◀ all: ", "bold cyan"), (path.comparison, "italic")))
    right = {True: "right", False: "wrong", None: "not verified"}[path.right]
    style = TAG_STYLES.get(path.tag or "", "")
    answer = f"\n{path.answer}\n" if "\n" in path.answer else f"{path.answer} "
    parts.append(Text(f"answer: {answer}({right})" + (f" [[{path.tag}]]" if path.tag else ""), style=style))
    return Panel(Group(*parts), title=f"Thread {label}", width=width)
