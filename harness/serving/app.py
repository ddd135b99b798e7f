"""The routes over one service, as an ASGI application: a route for each path of a dialect, the page, and operations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from harness.decoding.generation import Token
from harness.registry import STOPS
from harness.serving.completions import (
    EarlyExitReport,
    Finished,
    InvalidRequestError,
    RefusedError,
    ServingError,
)
from harness.serving.dialects import DIALECTS, refusal
from harness.serving.dialects.dialect import Dialect
from harness.serving.guards import CLIENT_GONE, TooLarge, owner_of, read_body
from harness.serving.page import POLICY, depth_style, document
from harness.serving.service import Service
from harness.serving.worker import Answer

to_json = TypeAdapter(Any).dump_json

DISTRIBUTION = "early-exit-harness"

_DEFECT = ServingError("the server failed; see its log. Other requests are not affected.")

MEANINGS = {
    400: "The request cannot be served as it is written.",
    401: "The key is missing or wrong.",
    403: "A web page of another origin, or a host name that is not this server's.",
    404: "There is no such path.",
    408: "The body took too long to arrive.",
    413: "The body is larger than the server takes.",
    424: "Generating failed; the next request works.",
    429: "The queue is full, or the request waited in it for too long. Try again later.",
    500: "A defect of the server; see its log.",
    503: "The model is still loading, or the server is shutting down.",
}

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": MEANINGS[503]}}


class AnyAnswer(BaseModel):
    """What every dialect's answer has beside its own words."""

    model_config = ConfigDict(extra="allow")

    x_early_exit: EarlyExitReport | None = None


def make_app(service: Service) -> FastAPI:
    """Return the application; it starts nothing."""
    app = FastAPI(
        title=DISTRIBUTION,
        description="Code completion with early exit under the request's control.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST loses its body with most clients
    )
    app.state.service = service
    modes: list[tuple[type[BaseModel], Any]] = [(dialect, "validation") for dialect in DIALECTS]
    schemas, defined = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    name = {"in": "path", "name": "model", "description": "Any.", "required": True, "schema": {"type": "string"}}
    for dialect in DIALECTS:
        body = {"content": {"application/json": {"schema": schemas[dialect, "validation"]}}, "required": True}
        said = f"{dialect.answers}. Besides x_early_exit; of each token exit_layer, drafted_at, accepted."
        answer: dict[str, Any] = {
            "model": AnyAnswer | list[AnyAnswer],
            "description": said,
            "content": {dialect.media_type: {}},
        }
        answers = {200: answer} | {status: {"description": meaning} for status, meaning in MEANINGS.items()}
        for path, said in dialect.paths.items():
            app.add_api_route(
                path,
                _completed(dialect),
                methods=["POST"],
                tags=[dialect.client],
                description=said,
                response_class=Response,
                responses=answers,  # type: ignore[arg-type]
                openapi_extra={"requestBody": body, "parameters": [name] if "{" in path else []},
            )
    app.include_router(operations)
    app.mount("/static", StaticFiles(packages=[("harness.serving", "static")]))
    for refused in (ServingError, HTTPException, Exception):
        app.add_exception_handler(refused, _refused)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=CLIENT_GONE))  # not sent
    described = app.openapi

    def schema() -> dict[str, Any]:
        document = described()
        document["components"]["schemas"] |= defined["$defs"]
        for operations_of in document["paths"].values():  # FastAPI's own refusal, which nothing here ends in
            for operation in operations_of.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = schema  # type: ignore[method-assign]
    return app


# ---------------------------------------------------------------------------------------------------------- completions


def _completed(dialect: type[Dialect]) -> Callable[..., Awaitable[Response]]:
    """Return the route of a dialect: its body is JSON, whatever its header says."""

    async def complete(
        request: Request,
        header: Annotated[
            str | None, Header(alias="X-Early-Exit", description="Early exit, unless the body sets it.")
        ] = None,
        early_exit: Annotated[str | None, Query(description="The same, unless the header sets it.")] = None,
    ) -> Response:
        service = _service(request)
        try:
            asked = dialect.model_validate_json(await read_body(request, service.config), context=service)
        except ValidationError as error:
            raise _invalid(error) from None
        service.check_model(request.path_params.get("model") or asked.model)
        if (known := asked.at_once()) is not None:
            return _json(known)
        given = (header or early_exit) if asked.early_exit is None else asked.early_exit
        make = partial(service.job, early_exit=given, owner=owner_of(request.scope))
        answer = service.submit(asked.jobs(make))
        pieces, gone = aiter(answer), asyncio.ensure_future(_watch(request, answer))
        try:
            if asked.streams:  # once the first piece is there, so that a refusal has its own status
                return _Stream(answer, _events(asked, await anext(pieces), pieces, request), asked.media_type)
            endings = {place: piece async for place, piece in pieces if isinstance(piece, Finished)}
            return _json(asked.whole([endings[place] for place in sorted(endings)]))
        except BaseException:
            answer.cancel()
            raise
        finally:
            gone.cancel()

    return complete


async def _watch(request: Request, answer: Answer) -> None:
    """End an answer when its client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answer.put(ClientDisconnect())


async def _events(
    asked: Dialect, first: tuple[int, Token | Finished], pieces: AsyncIterator[Any], request: Request
) -> AsyncIterator[bytes]:
    """Yield the events of a stream as tokens are made; a failure is the last."""

    def lines(place: int, piece: Token | Finished) -> bytes:
        events = asked.last(place, piece) if isinstance(piece, Finished) else asked.chunk(place, piece)
        return b"".join(before + to_json(event) + behind for event in events)

    before, behind = asked.frame
    try:
        yield lines(*first)
        async for item in pieces:
            yield lines(*item)
        yield asked.closing
    except ClientDisconnect:  # nobody reads on
        return
    except Exception as error:
        known = error if isinstance(error, ServingError) else _DEFECT
        yield before + to_json(refusal(request.url.path, known)) + behind
        if known is not error:
            raise


class _Stream(StreamingResponse):
    """A stream that cancels its jobs when it ends, however it does."""

    def __init__(self, answer: Answer, events: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(events, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


def _json(answer: object) -> Response:
    return Response(to_json(answer), media_type="application/json")


# ------------------------------------------------------------------------------------------------------------- refusals


def _invalid(error: ValidationError) -> InvalidRequestError:
    """Return the refusal of a body that is no JSON or has the wrong shape: the first error in it."""
    first = error.errors(include_url=False)[0]
    where, said = ".".join(map(str, first["loc"])), f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] == "missing":
        return InvalidRequestError(f"{where} is missing.", where)
    if not where:
        return InvalidRequestError(f"the body: {said}.")
    return InvalidRequestError(f"{where} = {str(first['input'])[:60]!r}: {said}.", where)


def _refused(request: Request, error: Exception) -> Response:
    """Answer a request that cannot be served, an unknown route, a wrong method, or after a defect, whose traceback is
    logged and not shown to the client.
    """
    known, headers = error if isinstance(error, ServingError) else _DEFECT, {}
    if isinstance(error, HTTPException):
        where, headers = f"{request.method} {request.url.path[:80]}", dict(error.headers or {})
        said, kind = f"there is no {where}. GET /openapi.json lists the routes.", "not_found"
        if error.status_code == 405:
            others = headers.get("Allow", "")
            said, kind = f"there is no {where}; other methods are allowed there: {others}.", "method_not_allowed"
        known = RefusedError(said, error.status_code, kind)
    elif known.retry_s is not None:
        headers["Retry-After"] = str(known.retry_s)
    answer = TooLarge if known.status == 413 else JSONResponse
    return answer(refusal(request.url.path, known), status_code=known.status, headers=headers)


# ------------------------------------------------------------------------------------------------- operations, a page

operations = APIRouter(tags=["operations"])


@operations.get("/health", responses=NOT_READY)
@operations.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """Whether requests are accepted: 200, or 503 with ``loading``, ``failed``, or ``draining`` on open connections."""
    service = _service(request)
    ready = service.state == "ready"
    return JSONResponse(
        {"status": service.state, "error": service.failure},
        status_code=200 if ready else 503,
        headers={"Cache-Control": "no-store", **({} if ready else {"Retry-After": "1"})},
    )


@operations.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "All series, in the requested format."}},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format, or OpenMetrics."""
    content, media_type = _service(request).metrics.page(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})


@operations.get("/info", responses=NOT_READY)
async def info(request: Request) -> dict[str, Any]:
    """The model and its limits, in TGI's words, and everything that decides its early exits."""
    service = _loaded(request)
    config, facts, settings = service.config, service.info, service.settings
    return {
        "model_id": service.model_name,
        "model_sha": facts.fingerprint or None,
        "model_dtype": facts.weights_format,
        "model_device_type": service.device,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": config.batch_size + config.max_queue,
        "max_batch_size": config.batch_size,
        "max_best_of": 1,
        "max_stop_sequences": None,
        "max_input_tokens": service.max_prompt_tokens,
        "max_new_tokens": config.max_new_tokens,
        "max_total_tokens": min(service.max_prompt_tokens + config.max_new_tokens, facts.max_positions),
        "max_body_bytes": config.max_body_bytes,
        "sampling": "greedy",
        "fill_in_the_middle": None if service.fim is None else service.fim.family.name,
        "router": DISTRIBUTION,
        "version": version(DISTRIBUTION),
        "early_exit": {
            "num_layers": facts.num_layers,
            "exit_points": list(facts.exit_points),
            "exit_head": facts.exit_head,
            "kv": config.kv,
            "kv_input": config.kv_input,
            "weights": {
                "kind": facts.weights,
                "source": service.weights_source,
                "fingerprint": facts.fingerprint or None,
                "base_fingerprint": facts.base_fingerprint or None,
            },
            "default": {
                "strategy": settings.default.name,
                "options": settings.default.options,
                "decode": str(settings.default.decode),
                "draft_max": settings.draft_max,
                "stop_rule": settings.stop,
            },
            "decode": list(settings.decodes),
            "drafts": list(settings.sources),
            "stops": list(STOPS.names()),
            "strategies": [asdict(loaded) for loaded in settings.loaded],
            "energy": {
                "source": service.energy_source,
                "measured": service.energy_measured,
                "description": service.energy_description,
            },
        },
    }


@operations.get("/v1/models", responses=NOT_READY)
@operations.get("/models", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """The one model, as OpenAI lists models."""
    return {"object": "list", "data": [_model(_loaded(request))]}


@operations.get("/v1/models/{model_id:path}", responses=NOT_READY | {404: {"description": "No such model."}})
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """The one model by its name."""
    service = _loaded(request)
    try:
        service.check_model(model_id)
    except InvalidRequestError as error:
        raise RefusedError(str(error), 404, "not_found") from None
    return _model(service)


@operations.get("/", include_in_schema=False)
def page(request: Request) -> Response:
    """Answer with the page, in any state of the model."""
    service = _service(request)
    try:
        url = str(request.base_url).rstrip("/")
    except ValueError:  # the client gives no usable host
        url = service.config.url(service.config.port)
    return HTMLResponse(
        document(service, url), headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    )


@operations.get("/static/depth.css", include_in_schema=False)
def depth(request: Request) -> Response:
    """Answer with the colours of the model's layers."""
    return Response(depth_style(_service(request).info.num_layers), media_type="text/css")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _loaded(request: Request) -> Service:
    service = _service(request)
    service.check_ready()
    return service


def _model(service: Service) -> dict[str, Any]:
    created = int(time.time())  # unknown when the weights were made; clients expect a number
    return {"id": service.model_name, "object": "model", "created": created, "owned_by": DISTRIBUTION}
