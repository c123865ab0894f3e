"""`lace data`: from questions to training lattices with any OpenAI-compatible teacher, and a look at the result."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lace.cli.outputs import check_writable

if TYPE_CHECKING:
    from lace.data.pipeline.config import DataConfig
    from lace.data.pipeline.context import Embed
    from lace.data.pipeline.resources import Helpers

app = typer.Typer(
    help="Make training lattices from questions with any OpenAI-compatible teacher.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("run")
def run(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="See configs/data.")],
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: the same stages on a Ray cluster, which needs the extra ray.")
    ] = "local",
) -> None:
    """Run all stages; the lattices end up in OUT/train and OUT/validation.

    A run that was interrupted or killed goes on when the same command is given again; no finished call is repeated.
    """
    from transformers.utils import logging

    from lace.data.pipeline.config import read_config
    from lace.data.pipeline.run import Stopped, run_pipeline

    logging.set_verbosity_error()
    config = read_config(config_file)
    sys.path.append(str(config_file.resolve().parent))  # where a user's verifiers stand; processes inherit it
    command = shlex.join(["lace", *sys.argv[1:]])
    try:
        written = run_pipeline(config, command, executor, _helpers(config))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {config.run.out} keeps all finished calls, go on with: {command}", err=True)
        raise typer.Exit(130) from None
    except Stopped as reason:
        typer.echo(f"lace data: stopped: {reason}", err=True)
        raise typer.Exit(1) from None
    for part, count in written.items():
        typer.echo(f"{part}: {count} lattices", err=True)
    typer.echo(config.run.out)


@app.command("stats")
def stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder, hub id or directory: measures distance in meaning too.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Tell what a run has made: counts, reasons of rejections, tokens and cost, quality of the lattices."""
    import json

    from rich.console import Console

    from lace.cli.data_view import print_stats
    from lace.data.pipeline.stats import as_json, run_stats

    check_writable(json_file)
    found = run_stats(folder, _embed(encoder) if encoder else None)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
    print_stats(found, Console(width=None if sys.stdout.isatty() else 160))


@app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    identity: Annotated[str, typer.Argument(metavar="ID", help="Of a question.")],
) -> None:
    """Show the threads of a question side by side, as far as the stages have brought it."""
    from rich.console import Console

    from lace.cli.data_view import print_item
    from lace.data.pipeline.find import find_item
    from lace.data.pipeline.text import printable

    item, rejection = find_item(folder, identity)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if item is not None:
        print_item(item, console)
    if rejection is not None:
        told = printable(f"rejected by {rejection.stage}: {rejection.reason}; {rejection.detail}")
        console.print(told, markup=False)


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New directory.")],
) -> None:
    """Write the lattices as parquet files with a data card."""
    from lace.data.pipeline.export import export as write

    write(folder, target)
    typer.echo(target)


@app.command("push")
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Id of a data set on the hub, or a directory: ./… or /…")
    ],
    private: Annotated[bool, typer.Option(help="Whether a new data set on the hub is private.")] = True,
) -> None:
    """Export the lattices to the hub."""
    from lace.data.pipeline.export import push as send

    typer.echo(send(folder, target, private=private))


def _helpers(config: DataConfig) -> Helpers:
    """What loads the models that the config names, in whichever process."""
    from functools import partial

    from lace.data.pipeline.config import Engine
    from lace.data.pipeline.resources import Helpers

    sampler = None
    if isinstance(config.base, Engine):
        from lace.cli.base_sampler import EngineSampler

        sampler = partial(EngineSampler, config.base)
    return Helpers(sampler, partial(_embed, config.solutions.encoder) if config.solutions.encoder else None)


def _embed(encoder: str) -> Embed:
    from lace.train.embedding_diversity import EmbeddingDiversity

    loaded = EmbeddingDiversity(encoder)
    return lambda texts: loaded.embed(texts).tolist()
