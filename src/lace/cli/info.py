"""`lace info`: what a model is and what its lattice costs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    model: Annotated[str, typer.Argument(help="Shipped name, hub id or directory.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's lattice: grafted layers, new parameters in %, cache bytes per token against the main cache.

    For a plain model: what the default lattice would cost.
    """
    from transformers.utils import logging

    from lace.lattice.checkpoint import load_shape
    from lace.lattice.config import LatticeConfig
    from lace.lattice.graft import graft, lattice_layers
    from lace.lattice.size import lattice_size

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load_shape(model)
    grafted = bool(lattice_layers(loaded))
    if not grafted:
        graft(loaded, LatticeConfig())
    size = lattice_size(loaded)
    config: LatticeConfig = loaded.lattice_config  # type: ignore[assignment]  # typed as a submodule by torch
    facts = {
        "model": model,
        "model_type": loaded.config.model_type,
        "grafted": grafted,
        "layers": size.layers,
        "parameters": size.base_parameters,
        "new_parameters": size.parameters,
        "new_parameters_percent": round(100 * size.share, 3),
        "lattice_cache_bytes_per_token": size.lattice_bytes,
        "main_cache_bytes_per_token": size.main_bytes,
        "lattice_cache_percent": round(100 * size.lattice_bytes / size.main_bytes, 2),
        "visibility": config.visibility,
        "opening": config.opening,
    }
    if json_output:
        typer.echo(json.dumps(facts))
        return
    would = "" if grafted else " (not grafted; figures of the default lattice)"
    typer.echo(f"{model}: {facts['model_type']}, {size.base_parameters:,} parameters{would}")
    typer.echo(f"lattice on layers {size.layers} of {loaded.config.get_text_config().num_hidden_layers}")
    typer.echo(f"new parameters: {size.parameters:,} ({facts['new_parameters_percent']} %)")
    typer.echo(
        f"lattice cache: {size.lattice_bytes:,} bytes per token of a thread, "
        f"{facts['lattice_cache_percent']} % of the main cache's {size.main_bytes:,}"
    )
    typer.echo(f"visibility: {config.visibility}; opening: {config.opening!r}")
