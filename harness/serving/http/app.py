"""The routes over one service, as an ASGI application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from harness.serving.failures import ServingError
from harness.serving.http.refusals import (
    ReadAsJson,
    readable,
    refused_by_http,
    refused_by_service,
    undefined,
    unreadable,
)
from harness.serving.http.routes import llama_cpp, ollama, openai, operations, page, tgi
from harness.serving.http.schemas import LlamaCppError, OpenAIError, TgiError, documented
from harness.serving.service import Service

DIALECTS = ((tgi, TgiError), (openai, OpenAIError), (ollama, TgiError), (llama_cpp, LlamaCppError))


def make_app(service: Service) -> FastAPI:
    """Return the application; it starts nothing."""
    app = FastAPI(
        title="early-exit-harness",
        description="Code completion with early exit under the request's control.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST loses its body with most clients
        strict_content_type=False,
    )
    app.state.service = service
    for dialect, error in DIALECTS:
        app.include_router(
            dialect.router,
            dependencies=[Depends(readable), Depends(_controls)],
            responses=documented(error),
        )
    for routes in (operations, page):
        app.include_router(routes.router)
    app.add_middleware(ReadAsJson)
    app.add_exception_handler(ServingError, refused_by_service)
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, refused_by_http)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, undefined)
    return app


def _controls(
    x_early_exit: Annotated[str | None, Header(description="Early exit, unless the body sets it.")] = None,
    early_exit: Annotated[str | None, Query(description="The same, unless the header sets it.")] = None,
) -> None:
    """Document the other two places of early-exit controls; ``submit`` reads them."""


def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # never sent: the client has disconnected
