"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lace.engine.scheduler import Occupancy

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server.

    Args:
        occupancy: asked for at each scrape.
    """

    def __init__(self, occupancy: Callable[[], Occupancy]) -> None:
        registry = self.registry = CollectorRegistry()
        self.responses = Counter("lace_responses", "Responses.", ["path", "status"], registry=registry)
        self.cancelled = Counter("lace_cancelled_requests", "Requests whose client left.", registry=registry)
        self.failures = Counter(
            "lace_engine_failures", "Failures of the engine: steps, recordings, deaths.", registry=registry
        )
        self.prompt_tokens = Counter("lace_prompt_tokens", "Prompt tokens of finished lattices.", registry=registry)
        self.tokens = Counter("lace_generated_tokens", "Sampled tokens, of all threads.", registry=registry)
        self.steps = Counter("lace_steps", "Steps of the engine.", registry=registry)
        self.first_token = Histogram(
            "lace_time_to_first_token_seconds",
            "From the request to the first token of any of its threads.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.step_time = Histogram(
            "lace_step_seconds", "One token of every running thread.", buckets=_SECONDS, registry=registry
        )
        self.request_time = Histogram(
            "lace_request_seconds", "From the request to its last token.", buckets=_SECONDS, registry=registry
        )
        gauges: dict[str, tuple[str, Callable[[Occupancy], int]]] = {
            "lace_lattices_running": ("Lattices that decode or are being prefilled.", lambda now: now.running),
            "lace_lattices_waiting": ("Lattices in line.", lambda now: now.waiting),
            "lace_threads_running": ("Rows of the batch.", lambda now: now.threads),
            "lace_cache_tokens": ("Positions of the cache that running lattices may fill.", lambda now: now.tokens),
        }
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=registry).set_function(partial(_read_now, read, occupancy))

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _read_now(read: Callable[[Occupancy], int], occupancy: Callable[[], Occupancy]) -> float:
    return read(occupancy())
