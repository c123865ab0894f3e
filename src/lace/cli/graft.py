"""`lace graft`: puts an untrained lattice onto a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def graft(
    model: Annotated[str, typer.Argument(help="Hub id or directory of a causal language model.")],
    out: Annotated[Path, typer.Argument(help="New directory for the lattice.")],
    layers: Annotated[
        str, typer.Option(help="'middle-every-other', or comma-separated layer numbers.")
    ] = "middle-every-other",
    low_dim: Annotated[int, typer.Option(help="Width of the down-projection.")] = 128,
    heads: Annotated[int, typer.Option(help="Query heads; they share one key and value.")] = 4,
    time_dims: Annotated[int, typer.Option(help="Rotary dimensions of a head for time.")] = 48,
    thread_dims: Annotated[int, typer.Option(help="Rotary dimensions of a head for the thread id.")] = 16,
    visibility: Annotated[str, typer.Option(help="strict, causal or same_step.")] = "strict",
    opening: Annotated[str, typer.Option(help="Text that each thread begins with, e.g. 'Thread {label}:'.")] = "",
    whole: Annotated[bool, typer.Option("--whole", help="Save the base model beside the lattice.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random projections.")] = 0,
) -> None:
    """Graft an untrained lattice onto MODEL and save it to OUT.

    The grafted model computes exactly what MODEL does until the lattice is trained. Without --whole only the lattice
    is saved, with the base model's name.
    """
    import torch
    from transformers.utils import logging

    from lace.lattice.checkpoint import load, save
    from lace.lattice.config import LatticeConfig
    from lace.lattice.graft import graft as graft_model
    from lace.lattice.size import lattice_size

    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(f"{out} exists and is not an empty directory")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2**63 - 1, not {seed}")
    try:
        listed: str | tuple[int, ...] = layers if layers[:1].isalpha() else tuple(map(int, layers.split(",")))
    except ValueError:
        raise ValueError(f"--layers takes 'middle-every-other' or numbers like 14,16,18, not {layers!r}") from None
    config = LatticeConfig(
        layers=listed,
        low_dim=low_dim,
        num_heads=heads,
        time_dims=time_dims,
        thread_dims=thread_dims,
        visibility=visibility,  # type: ignore[arg-type]  # checked by the config
        opening=opening,
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load(model)
    torch.manual_seed(seed)
    graft_model(loaded.model, config)
    base = str(Path(model).resolve()) if Path(model).is_dir() else model
    save(loaded.model, out, whole=whole, base=base)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(out)
    size = lattice_size(loaded.model)
    typer.echo(f"{out}: lattice on layers {size.layers}, {size.parameters:,} new parameters ({size.share:.2%})")
