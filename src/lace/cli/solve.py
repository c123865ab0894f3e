"""`lace solve`: N threads work on one prompt before your eyes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lace.cli.defaults import EXAMPLES, MAX_TOKENS, SHIPPED_LACE, TEMPERATURE, TOP_P
from lace.cli.outputs import check_writable, size_in_words

if TYPE_CHECKING:
    from lace.engine.engine import Engine
    from lace.engine.result import LatticeResult
    from lace.engine.sampling import SamplingParams
    from lace.tasks.task import Puzzle

PACE = 0.04
"""Seconds that the live view gives each step at least; the small model is faster than the eye."""


def solve(
    prompt: Annotated[str, typer.Argument(help=f"The question, e.g. {EXAMPLES}.")],
    model: Annotated[str | None, typer.Option(help="Hub id or directory. Default: the shipped model.")] = None,
    threads: Annotated[int, typer.Option(help="Threads that work side by side.")] = 8,
    strategy: Annotated[str, typer.Option(help="lace: threads read each other. independent: they do not.")] = "lace",
    max_tokens: Annotated[
        int | None, typer.Option(help="Sampled tokens per thread at most. Default: what the task needs, else 256.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most likely token. Default: what suits the task, else 1.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this mass.")] = TOP_P,
    seed: Annotated[int, typer.Option(help="Same seed, same threads.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live view.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Record what the threads read of each other in this file, for `lace view`.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Decoder layers to record, e.g. 3,5. Default: all with a lattice, if there is room for them."
        ),
    ] = None,
) -> None:
    """Let N threads of a model solve one prompt together.

    In a terminal every thread has a column. Afterwards: the answer, whose it is, and whether the verifier agrees (it
    knows Countdown and chained sums; of other questions it says nothing).
    """
    from lace.cli.models import independent_model, is_shipped, load_engine

    name = SHIPPED_LACE if model is None else model
    if strategy == "independent":
        name = independent_model(name)
    task, puzzle = _read_puzzle(prompt, required=is_shipped(name))
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"there is no folder {trace.parent} for the trace")
    check_writable(trace)
    if layers is not None and (trace is None or strategy == "independent"):
        raise ValueError("--layers says what --trace FILE records of threads that read each other")
    recorded = _layer_numbers(layers)

    from lace.engine.sampling import SamplingParams  # only now: a wrong question is told before torch is imported

    if max_tokens is None:
        max_tokens = MAX_TOKENS[task] if is_shipped(name) else 256
    if temperature is None:
        temperature = TEMPERATURE[task] if is_shipped(name) else 1.0
    params = SamplingParams(threads=threads, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = load_engine(name)
    if trace is not None and strategy != "independent":
        from lace.viz.trace import recorded_layers

        recorded_layers(engine, threads, recorded)  # says before the run what recording would say after it
    text = puzzle.prompt if puzzle and is_shipped(name) else _chat(engine, prompt)
    live = not json_output and not plain and sys.stdout.isatty()
    result = _run(engine, text, params, strategy, live=live)
    correct = puzzle.check(result.answer) if puzzle else None
    if json_output:
        typer.echo(json.dumps(_to_json(prompt, result, correct), ensure_ascii=False))
    else:
        _report(result, correct, threads_too=not live)
    if trace is not None:
        from lace.viz.trace import record

        words = [puzzle.check(thread.answer) if puzzle else None for thread in result.threads]
        record(engine, result, model=name, correct=words, layers=recorded).save(trace)
        typer.echo(f"Trace: {trace}, {size_in_words(trace.stat().st_size)}; `lace view {trace}` shows it", err=True)


def _layer_numbers(text: str | None) -> list[int] | None:
    """The layers that `--layers` names, if it names any."""
    if text is None:
        return None
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise ValueError(f"--layers takes numbers of decoder layers, e.g. 3,5, not {part!r}")
    return sorted({int(part) for part in text.split(",")})


def _read_puzzle(prompt: str, *, required: bool) -> tuple[str, Puzzle | None]:
    """The task and the puzzle that the prompt asks; an empty name and None for another question.

    Raises:
        ValueError: if it is `required`, and none, or beyond what the shipped models know.
    """
    from lace.cli.models import shipped_puzzle
    from lace.tasks.task import find_task

    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if required:
        return shipped_puzzle(prompt)
    try:
        return find_task(prompt)
    except ValueError:
        return "", None


def _chat(engine: Engine, prompt: str) -> str:
    """The prompt in the model's chat format, if it has one."""
    from lace.engine.chat import chat_text

    if engine.tokenizer.chat_template is None:
        return prompt
    return chat_text(engine.tokenizer, [{"role": "user", "content": prompt}])


def _run(engine: Engine, text: str, params: SamplingParams, strategy: Any, *, live: bool) -> LatticeResult:
    if not live:
        return engine.generate(text, params, strategy=strategy)[0]
    from lace.cli.live import ThreadColumns
    from lace.engine.result import LatticeResult

    with ThreadColumns(params.threads) as columns:
        step = -1
        for event in engine.generate_stream(text, params, strategy=strategy):
            if isinstance(event, LatticeResult):
                columns.finish(event)
                return event
            if event.thread <= step or step < 0:  # the first thread again: a new step begins
                columns.show()
                time.sleep(PACE)
            step = event.thread
            columns.write(event)
    raise AssertionError("the stream ends with the result")


def _to_json(prompt: str, result: LatticeResult, correct: bool | None) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answer": result.answer,
        "correct": correct,
        "chosen_thread": result.chosen,
        "chosen_by": result.chosen_by,
        "threads": [
            {
                "index": thread.index,
                "label": thread.label,
                "text": thread.text,
                "answer": thread.answer,
                "tag": thread.tag,
                "finish_reason": thread.finish_reason,
                "tokens": len(thread.token_ids),
            }
            for thread in result.threads
        ],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "steps": result.steps,
        },
        "seconds": round(result.seconds, 4),
    }


_REASONS = {
    "best_tag": "it called itself [[best]]",
    "majority": "its answer is the most frequent; no or several threads called themselves [[best]]",
    "first": "no thread gave an answer",
}


def _report(result: LatticeResult, correct: bool | None, *, threads_too: bool) -> None:
    for thread in result.threads if threads_too else ():
        typer.echo(f"Thread {thread.label}: {thread.text}")
    chosen = result.threads[result.chosen]
    verdict = {True: "the verifier agrees", False: "the verifier disagrees", None: "no verifier for this question"}
    answer = "no answer" if result.answer is None else result.answer
    typer.echo(f"Answer: {answer}  ({verdict[correct]})")
    typer.echo(f"Chosen: thread {chosen.label}, since {_REASONS[result.chosen_by]}")
    typer.echo(
        f"{len(result.threads)} threads, {result.steps} steps, {result.completion_tokens} tokens, "
        f"{result.seconds:.2f} seconds"
    )
