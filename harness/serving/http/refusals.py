"""Errors in the form each client expects."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from harness.appearance.visible_text import one_line
from harness.serving.failures import InvalidRequestError, LoadingError, OverloadedError, ServingError
from harness.serving.http.bodies import unparsed

__all__ = ["RefusedError", "refusal", "refused_by_http", "refused_by_service", "undefined", "unreadable"]

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
