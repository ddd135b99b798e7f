"""Reading a request's body: JSON, whatever its header says, and no value that would cause errors later."""

from __future__ import annotations

import json
import math

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from harness.serving.failures import InvalidRequestError

__all__ = ["MAX_DEPTH", "ReadAsJson", "readable", "unparsed"]

MAX_DEPTH = 64
"""Levels of nesting in a body; clients need four."""


class ReadAsJson:
    """Middleware: every POST body is JSON, also from ``curl -d``, which calls it a form.

    A web page can send such a form anywhere without asking; refusing foreign origins is the guards' task.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the content type JSON."""
        if scope["type"] == "http" and scope["method"] == "POST":
            others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            # In place: the router notes its route in this scope, under which the request is counted.
            scope["headers"] = [*others, (b"content-type", b"application/json")]
        await self.app(scope, receive, send)


async def readable(request: Request) -> None:
    """Dependency of the routes with a body: refuse anything but a JSON object of finite numbers and valid texts.

    Lone surrogates cannot be encoded, NaN and infinity are not JSON.

    Raises:
        InvalidRequestError: in one line, what is wrong.
    """
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise unparsed(error) from None
    if not isinstance(body, dict):
        raise InvalidRequestError(f"the body is a JSON {_kind(body)}; send an object with the request's fields.")
    _check(body)


def unparsed(error: BaseException) -> InvalidRequestError:
    """Return the refusal of a body that could not be parsed."""
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}.")
    if isinstance(error, json.JSONDecodeError):
        where = f"{error.msg} at character {error.pos}" if error.doc else "it is empty"
        return InvalidRequestError(f"the body is not JSON: {where}.")
    return InvalidRequestError("the body has a number with too many digits.")


def _check(body: dict[str, object]) -> None:
    # Not recursive: the depth is the client's choice. Plain values never wait: a body may have half a million.
    waiting: list[tuple[dict[str, object] | list[object], int]] = [(body, 1)]
    while waiting:
        holder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(holder, dict):
            for key in holder:
                _check_text(key)
            holder = list(holder.values())
        for value in holder:
            if isinstance(value, float):
                if not math.isfinite(value):
                    raise InvalidRequestError("the body has NaN or an infinite number, which is not JSON.")
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict | list):
                waiting.append((value, depth + 1))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "the body has half a surrogate pair (\\ud800–\\udfff), which is not a character."
        ) from None


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(f"the body is nested too deeply; {MAX_DEPTH} levels are allowed.")


def _kind(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
