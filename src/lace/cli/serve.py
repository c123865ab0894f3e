"""`lace serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lace.cli.defaults import SHIPPED_LACE


def serve(
    model: Annotated[str, typer.Option(help="Shipped name, hub id or directory.")] = SHIPPED_LACE,
    host: Annotated[str, typer.Option(help="Address to listen at; by default this machine alone reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any free one.")] = 8000,
    threads: Annotated[int, typer.Option(help="Threads of a request that does not say.")] = 8,
    max_concurrent: Annotated[
        int, typer.Option(help="Requests that decode at the same time; four times as many may wait.")
    ] = 32,
    cache_tokens: Annotated[
        int, typer.Option(help="Tokens that the cache holds, of all threads of all requests; bounds the memory.")
    ] = 65_536,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with API keys, one a line; clients must send one of them.")
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Serve an address that others can reach to whoever comes.")
    ] = False,
) -> None:
    """Serve a model to OpenAI clients: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    A request is answered by N threads that read each other; n=1 returns the chosen one, n=k returns k of them. What
    is ours is asked for and told under the one key `lace`.
    """
    from lace.cli.models import is_shipped, load_engine

    try:
        from lace.serve.run import run_server
        from lace.serve.settings import ServerSettings, read_api_keys
    except ModuleNotFoundError as error:
        raise ImportError(f"lace serve needs {error.name}: pip install 'lace-llm[serve]'") from None

    settings = ServerSettings(
        model=model,
        host=host,
        port=port,
        threads=threads,
        max_concurrent=max_concurrent,
        cache_tokens=cache_tokens,
        api_keys=read_api_keys(api_key_file) if api_key_file else frozenset(),
        without_key=without_key,
    )
    run_server(
        settings,
        lambda: load_engine(model),
        shipped=is_shipped(model),
        listening=lambda url: typer.echo(f"serving {model} at {url}/v1", err=True),
    )
