"""`lace train`: one command for each stage of training, from a config file."""

from __future__ import annotations

import logging
import shlex
import sys
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from lace.train.config import AnyRun, Stage


def train(
    stage: Annotated[
        Literal["cpt", "sft", "grpo"],
        typer.Argument(
            help="cpt: the lattice alone learns, on lattices given. sft: all parameters, on lattices given. grpo: "
            "reinforcement learning on lattices that the model samples."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG.toml [--section.key=value ...]", help="The config, and values in place of its."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count: parameters, operations per token, memory.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only list all keys of the stage's config: type, default, meaning.")
    ] = False,
) -> None:
    """Run one stage of training; the model ends up in OUT/model.

    An interrupted run goes on from its last checkpoint when the same command is given again.
    """
    if explain:
        _explain(stage)
        return
    overrides = [text for text in arguments or [] if text.startswith("--")]
    files = [text for text in arguments or [] if not text.startswith("--")]
    if bare := [text for text in overrides if "=" not in text]:
        raise ValueError(f"no such option: {bare[0]}; a key of the config is given as --section.key=value")
    if len(files) != 1:
        raise ValueError(f"lace train {stage} takes one config file, not {len(files)}; --explain lists what is in it")

    from transformers.utils import logging as transformers_logging

    from lace.train.config import read_config

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # tells of every tied weight that it saves once
    config = read_config(stage, files[0], overrides)
    if dry_run:
        _tell_cost(stage, config)
    else:
        _run(stage, config)


def _run(stage: Stage, config: AnyRun) -> None:
    from lace.train.stages import is_main_process, last_step, open_run, run_stage

    out = config.run.out
    command = shlex.join(["lace", *sys.argv[1:]])
    if is_main_process() and open_run(stage, config, command):
        typer.echo(f"{out / 'model'}: finished already", err=True)
        return
    try:
        run_stage(stage, config)
    except KeyboardInterrupt:
        if is_main_process():
            typer.echo(f"interrupted; {out} keeps step {last_step(stage, out)}, go on with: {command}", err=True)
        raise typer.Exit(130) from None
    if is_main_process():
        typer.echo(out / "model")


def _explain(stage: Stage) -> None:
    from lace.train.config import explain, run_class

    for section, keys in groupby(explain(run_class(stage)), key=lambda key: key.name.rpartition(".")[0]):
        typer.echo(f"[{section}]")
        for key in keys:
            default = key.default if key.default == "required" else f"default {key.default}"
            typer.echo(f"  {key.name.rpartition('.')[2]}: {key.type}; {default}")
            typer.echo(textwrap.fill(key.description, 110, initial_indent="      ", subsequent_indent="      "))
        typer.echo()


def _tell_cost(stage: Stage, config: AnyRun) -> None:
    from lace.train.stages import dry_run

    cost = dry_run(stage, config)
    share = cost.lattice / (cost.parameters - cost.lattice)
    typer.echo(f"parameters            {cost.parameters:>15,}")
    typer.echo(f"trainable             {cost.trainable:>15,}")
    typer.echo(f"lattice               {cost.lattice:>15,}  ({share:.2%} of the base)")
    typer.echo(f"operations per token  {cost.forward_flops:>15.3g}  forward")
    typer.echo(f"                      {cost.training_flops:>15.3g}  forward and backward")
    for name, count in cost.memory.items():
        typer.echo(f"memory, {name:13} {count / 1e9:>15.3f}  GB")
