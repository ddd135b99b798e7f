"""The schema of the API is true: whatever is sent by it, or against it, is answered as it says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from harness.serving.http.routes.openai import Chunk
from harness.serving.http.routes.tgi import StreamEvent

EXAMPLES = 160
"""In all, shared by the operations."""

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def short(body: Any, stream: bool) -> Any:
    """Return a body that asks for two tokens in every dialect, in one piece or as a stream, whatever else is in it."""
    if not isinstance(body, dict):
        return body
    inside = {key: body[key] if isinstance(body.get(key), dict) else {} for key in ("parameters", "options")}
    limits = {"parameters": {"max_new_tokens": 2}, "options": {"num_predict": 2}}
    return {
        **body,
        "stream": stream,
        "max_tokens": 2,
        "n_predict": 2,
        **{key: inside[key] | limits[key] for key in inside},
    }


def statuses_of(operation: Any, mode: Any, url: str, examples: int) -> set[int]:
    """Send what is generated from the schema of an operation, and return the statuses of the answers."""
    statuses: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), stream=st.booleans())
    def send(case: Any, stream: bool) -> None:
        case.body = short(case.body, stream)
        statuses.add(case.call_and_validate(base_url=url, checks=CHECKS).status_code)

    send()
    return statuses


@pytest.fixture(scope="module")
def operations(server: Any) -> list[Any]:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [made.ok() for made in api.get_all_operations()]
    return [operation for operation in found if operation.method == "post"]


def test_every_post_route_answers_as_its_schema_says(server: Any, operations: list[Any]) -> None:
    examples = max(EXAMPLES // (len(operations) * len(MODES)), 5)
    seen = {
        operation.path: set[int]().union(*(statuses_of(operation, mode, server.url, examples) for mode in MODES))
        for operation in operations
    }
    assert {"/generate", "/generate_stream", "/", "/models/{model}", "/v1/completions", "/completions"} <= seen.keys()
    # Both sides of the schema were met. Other dialects may take everything, or nothing of what chance wrote.
    assert all({200, 422} <= seen[path] for path in ("/generate", "/generate_stream", "/v1/completions")), seen


def test_events_are_as_their_schema_says(server: Any) -> None:
    import jsonschema_rs

    schema = httpx.get(f"{server.url}/openapi.json").json()
    for path, body, model in (
        ("/generate_stream", {"inputs": "def add(a, b):", "parameters": {"max_new_tokens": 3}}, StreamEvent),
        ("/v1/completions", {"prompt": "def add(a, b):", "max_tokens": 3, "stream": True, "logprobs": 1}, Chunk),
    ):
        content = schema["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        data = content["itemSchema"]["properties"]["data"]
        documented = jsonschema_rs.validator_for(data.get("anyOf", [data])[0]["contentSchema"])
        blocks = httpx.post(server.url + path, json=body).text.strip().split("\n\n")
        events = [json.loads(block.removeprefix("data:")) for block in blocks if block != "data: [DONE]"]
        assert len(events) >= 3
        for event in events:
            documented.validate(event)
            model.model_validate(event)
        assert not documented.is_valid(events[0] | {"undocumented": 1})
