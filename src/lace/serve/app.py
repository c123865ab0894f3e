"""The application: routes, and a request's way through it.

    Gate -> route -> make_job (in a helper thread) -> Worker.submit -> events -> Reply

A watcher stands beside every running request: when its client leaves, its lattices are taken out of the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from lace import __version__
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.serve.errors import ApiError, install_error_handlers
from lace.serve.gate import Gate
from lace.serve.prompts import make_job
from lace.serve.protocol import ChatRequest, CompletionRequest
from lace.serve.replies import ChatReply, CompletionReply, Reply
from lace.serve.settings import WAITING_PER_RUNNING, ServerSettings
from lace.serve.stream import stream
from lace.serve.worker import Ticket, Worker
from lace.tasks.task import TASKS, get_task
from lace.viz.page import LIVE, VIEWER
from lace.viz.trace import Trace

Item = TypeVar("Item")
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/lace/puzzles",
    "/health",
    "/metrics",
    "/",
    "/viewer.html",
)
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The rest of the policy stands in the pages."""


def create_app(
    settings: ServerSettings, load: Callable[[], Engine], *, shipped: bool, on_end: Callable[[], None]
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: see there.
        load: makes the engine, in a thread of its own, while requests are answered with 503 already.
        shipped: whether the model is an embedded one, which knows its tasks and nothing else.
        on_end: called if the engine could not be loaded, or has ended.
    """
    worker = Worker(
        load,
        max_concurrent=settings.max_concurrent,
        cache_tokens=settings.cache_tokens,
        max_waiting=WAITING_PER_RUNNING * settings.max_concurrent,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start(on_end)
        yield
        await worker.stop()

    app = FastAPI(title="LACE", version=__version__, lifespan=lifespan, redoc_url=None)
    app.state.worker = worker
    install_error_handlers(app)
    app.add_middleware(Gate, keys=settings.api_keys, metrics=worker.metrics, paths=PATHS)
    model = {"id": settings.model, "object": "model", "created": int(time.time()), "owned_by": "lace"}

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 once the model is loaded; 503 before and after, and while step after step fails."""
        status = worker.health
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(worker.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The one model that is served."""
        _check_model(name, settings.model)
        return model

    @app.get("/v1/lace/puzzles")
    def puzzles(
        n: Annotated[int, Query(ge=1, le=20)] = 5, seed: Annotated[int, Query(ge=0, lt=2**63)] = 0
    ) -> dict[str, Any]:
        """Questions that a verifier knows, `n` of each task, none of them in the training data."""
        drawn = [(task, puzzle) for task in TASKS for puzzle in get_task(task).puzzles(n, seed, "test")]
        return {"object": "list", "data": [{"task": task, "prompt": puzzle.prompt} for task, puzzle in drawn]}

    @app.post("/v1/chat/completions")
    async def chat(http: Request, request: ChatRequest) -> Response:
        """Threads of one lattice answer a conversation."""
        return await _answer(http, request, ChatReply, worker, settings, shipped)

    @app.post("/v1/completions")
    async def completions(http: Request, request: CompletionRequest) -> Response:
        """Threads of one lattice for each prompt go on with it."""
        return await _answer(http, request, CompletionReply, worker, settings, shipped)

    live_html, viewer_html = (page.read_text(encoding="utf-8") for page in (LIVE, VIEWER))

    @app.get("/", include_in_schema=False)
    async def live_page() -> Response:
        """Where people watch threads at work; all it knows comes from the paths above."""
        return HTMLResponse(live_html, headers=PAGE_HEADERS)

    @app.get("/viewer.html", include_in_schema=False)
    async def viewer() -> Response:
        """What the live page puts a recording into."""
        return HTMLResponse(viewer_html, headers=PAGE_HEADERS)

    return app


def _check_model(name: str, served: str) -> None:
    if name != served:
        raise ApiError(
            404, f"no such model: {name!r}; this server has {served!r}", param="model", code="model_not_found"
        )


async def _answer(
    http: Request,
    request: ChatRequest | CompletionRequest,
    reply_class: type[Reply],
    worker: Worker,
    settings: ServerSettings,
    shipped: bool,
) -> Response:
    engine = worker.ready_engine(len(request.prompts) if isinstance(request, CompletionRequest) else 1)
    _check_model(request.model, settings.model)
    # Long prompts take long to tokenize: not in the event loop, where everybody would wait.
    job = await asyncio.to_thread(make_job, engine, request, threads=settings.threads, shipped=shipped)
    reply = reply_class(request, job, engine.tokenizer, engine.end_ids, worker.fingerprint)
    told = request.lace.exposes
    ticket = Ticket(
        job.lattices,
        exchanges=told("exchanges"),
        record=partial(reply.record, engine) if told("trace") else None,
    )
    worker.submit(ticket)
    watcher = asyncio.create_task(_watch(http, ticket, worker))
    if request.stream:
        return StreamingResponse(
            _closing(stream(ticket, reply), ticket, worker, watcher),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    results: dict[int, LatticeResult] = {}
    traces: dict[int, Trace] = {}
    async for prompt, event in _closing(ticket.events(), ticket, worker, watcher):
        if isinstance(event, LatticeResult):
            results[prompt] = event
        elif isinstance(event, Trace):
            traces[prompt] = event
    if len(results) < len(job.lattices):
        raise ApiError(499, "the client has left")  # nobody reads this
    in_order = [results[prompt] for prompt in sorted(results)], [traces[prompt] for prompt in sorted(traces)]
    return JSONResponse(await asyncio.to_thread(reply.whole, *in_order))


async def _watch(http: Request, ticket: Ticket, worker: Worker) -> None:
    """Closes the ticket as soon as the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    worker.metrics.cancelled.inc()
    worker.close(ticket)


async def _closing(
    source: AsyncIterator[Item], ticket: Ticket, worker: Worker, watcher: asyncio.Task[None]
) -> AsyncIterator[Item]:
    """The same items; the ticket is closed behind the last, and whatever happens."""
    try:
        async for item in source:
            yield item
    finally:
        watcher.cancel()
        worker.close(ticket)
