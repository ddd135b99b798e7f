"""Server-sent events, and how the schema of the API describes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

__all__ = ["documented_events", "whole_schema"]


def documented_events(
    event: type[BaseModel], failure: type[BaseModel], ending: str, *, last: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Return a stream as FastAPI's ``responses``.

    Args:
        event: JSON of an event.
        failure: JSON of the event that ends a stream which failed half-way.
        ending: how to tell that the stream is complete.
        last: what is sent last where that is not JSON.
    """
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [whole_schema(event), whole_schema(failure)]},
    }
    if last is not None:
        data = {"anyOf": [data, {"const": last}]}
    return {
        200: {
            "description": f"The completion. As server-sent events: {ending}",
            "content": {
                "text/event-stream": {
                    "itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]},
                }
            },
        }
    }


def whole_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a schema that refers to nothing outside; the models do not contain themselves."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return put_in(definitions[node["$ref"].rpartition("/")[2]])
            return {key: put_in(value) for key, value in node.items()}
        return [put_in(item) for item in node] if isinstance(node, list) else node

    whole: dict[str, Any] = put_in(schema)
    return whole
