"""Whatever fits the OpenAPI description, or nearly does, is answered or refused; the server never fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error

from lace.engine.engine import Engine
from running_server import Running, serve


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Running]:
    tiny.max_positions = 64  # what is generated stays short
    with serve(lambda: tiny) as running:
        yield running


def _mend(body: object) -> None:
    """Takes away what nearly every random request would be refused for, so that the other fields come to matter."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = "tiny"
    if isinstance(body.get("messages"), list):
        body["messages"].append({"role": "user", "content": "Use 3 and 4 to make 7"})
    if isinstance(body.get("prompt"), str):
        body["prompt"] += "Use 3 and 4 to make 7"
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None:
            body.pop(name, None)
        elif isinstance(body[name], int):
            body[name] = min(body[name], 20)
    body.setdefault("max_tokens", 5)


def statuses(server: Running, max_examples: int) -> Counter[tuple[str, int]]:
    """Sends many requests to every path, and counts the answers; fails at a 5xx."""
    found: Counter[tuple[str, int]] = Counter()
    for result in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=max_examples,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Case) -> None:
                _mend(case.body)
                response = case.call(timeout=60)
                case.validate_response(response, checks=[not_a_server_error])
                found[case.path, response.status_code] += 1

            if mode is GenerationMode.POSITIVE or operation.body:
                check()
    return found


def test_the_server_never_fails(server: Running) -> None:
    found = statuses(server, 15)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert found[path, 200] > 0, found
        assert found[path, 400] > 0, found
    server.wait_until_idle()


@pytest.mark.slow
def test_the_server_never_fails_in_many_trials(server: Running) -> None:
    statuses(server, 500)
    server.wait_until_idle()


def test_the_description_names_our_key(server: Running) -> None:
    schemas = schemathesis.openapi.from_url(f"{server.url}/openapi.json").raw_schema["components"]["schemas"]
    assert set(schemas["LaceOptions"]["properties"]) == {"threads", "strategy", "select", "expose"}
    assert "lace" in schemas["ChatRequest"]["properties"]
