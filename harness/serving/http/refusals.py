"""Errors in the form each client expects.

Reading a request's body: JSON, whatever its header says, and no value that would cause errors later.
"""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from harness.appearance.visible_text import one_line
from harness.serving.failures import InvalidRequestError, LoadingError, OverloadedError, ServingError

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


HTTP_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}

RETRY_AFTER_S = {OverloadedError: "1", LoadingError: "5"}


class RefusedError(ServingError):
    """A refusal with a status of HTTP's own."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def refusal(path: str, error: ServingError) -> dict[str, Any]:
    """Return the body of an error answer to a request at ``path``.

    OpenAI and llama.cpp nest it; TGI has the message and an ``error_type`` beside it, which Ollama's clients and llm-ls
    can read. The message is one line in which nothing is hidden, whatever a client's text brought into it.
    """
    message = one_line(str(error))
    if path.startswith("/v1/") or path == "/completions":
        detail = [{"loc": "body", "msg": message, "type": error.kind}]
        return {
            "error": {"message": message, "type": error.kind, "param": None, "code": error.status},
            "detail": detail,  # where llm-ls looks
        }
    if path in {"/infill", "/completion"}:
        return {"error": {"code": error.status, "message": message, "type": error.kind}}
    return {"error": message, "error_type": error.kind}


def refused_by_service(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that cannot be served."""
    assert isinstance(error, ServingError)
    headers = {"Retry-After": seconds} if (seconds := RETRY_AFTER_S.get(type(error))) else None
    return JSONResponse(refusal(request.url.path, error), status_code=error.status, headers=headers)


def unreadable(request: Request, error: Exception) -> JSONResponse:
    """Answer a body of the wrong shape: the first error in it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "header", "path"})
    if first["type"] == "json_invalid":
        return refused_by_service(request, unparsed(error.__cause__ or error))
    if first["type"] == "missing":
        message = f"{where or 'the body'} is missing."
    else:
        message = f"{where or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return refused_by_service(request, InvalidRequestError(message))


def refused_by_http(request: Request, error: Exception) -> Response:
    """Answer an unknown route, a wrong method, or a body that the framework could not parse."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ValueError | RecursionError):  # the framework could not parse the body
        return refused_by_service(request, unparsed(error.__cause__))
    where = f"{request.method} {request.url.path[:80]}"
    message = {
        404: f"there is no {where}. GET /openapi.json lists the routes.",
        405: f"there is no {where}; other methods are allowed there: {(error.headers or {}).get('Allow', '')}.",
    }.get(error.status_code, str(error.detail))
    refused = RefusedError(message, error.status_code, HTTP_KINDS.get(error.status_code, "refused"))
    body = refusal(request.url.path, refused)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def undefined(request: Request, error: Exception) -> JSONResponse:
    """Answer after a defect; the traceback is logged and not shown to the client."""
    defect = ServingError("the server failed; see its log. Other requests are not affected.")
    return JSONResponse(refusal(request.url.path, defect), status_code=defect.status)
