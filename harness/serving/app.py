"""The routes over one service, as an ASGI application: a route for each path of a dialect, the page, and operations."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from harness.decoding.generation import Token
from harness.registry import STOPS
from harness.serving.completions import (
    DrainingError,
    EarlyExitReport,
    Finished,
    InvalidRequestError,
    LoadingError,
    RefusedError,
    ServingError,
    Ticket,
    Wanted,
)
from harness.serving.dialects import DIALECTS, refusal
from harness.serving.dialects.dialect import Dialect
from harness.serving.guards import CLIENT_GONE, owner_of, read_body
from harness.serving.page import ASSETS, POLICY, asset, document
from harness.serving.service import Service

T = TypeVar("T")
to_json = TypeAdapter(Any).dump_json
Pieces = AsyncIterator[tuple[int, Token | Finished]]

DISTRIBUTION = "early-exit-harness"

MAX_DEPTH = 64
"""Levels of nesting in a body; clients need four."""

MEANINGS = {
    401: "The key is missing or wrong.",
    403: "A web page of another origin, or a host name that is not this server's.",
    408: "The body took too long to arrive.",
    413: "The body is larger than the server takes.",
    422: "The request cannot be served as it is written.",
    424: "Generating failed; the next request works.",
    429: "The queue is full, or the request waited in it for too long. Try again later.",
    500: "A defect of the server; see its log.",
    503: "The model is still loading, or the server is shutting down.",
}

PAGE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "The model is not loaded, or the server stops."}}


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
    modes: list[tuple[type, Any]] = [*((one, "validation") for one in DIALECTS), (EarlyExitReport, "serialization")]
    schemas, defined = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    for dialect in DIALECTS:
        for path, said in dialect.paths.items():
            app.add_api_route(
                path,
                _completed(dialect),
                methods=["POST"],
                tags=[dialect.client],
                description=said,
                response_class=Response,
                responses=_documented(dialect, path),
                openapi_extra=_request(schemas[dialect, "validation"], path),
            )
    app.include_router(operations)
    app.add_exception_handler(ServingError, _refused)
    app.add_exception_handler(HTTPException, _refused_by_http)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=CLIENT_GONE))  # not sent
    app.add_exception_handler(Exception, _undefined)

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            app.openapi_schema["components"]["schemas"] |= defined["$defs"]
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
    return app


# ---------------------------------------------------------------------------------------------------------- completions


def _completed(dialect: type[Dialect]) -> Callable[[Request], Awaitable[Response]]:
    """Return the route of a dialect: its body is JSON, whatever its header says."""

    async def complete(request: Request) -> Response:
        service = _service(request)
        body = _parsed(await read_body(request, service.config))
        try:
            asked = dialect.model_validate(body, context=service)
        except ValidationError as error:
            raise _invalid(error) from None
        if (known := asked.at_once()) is not None:
            return _json(known)
        tickets = _submitted(request, service, asked.wanted())
        if asked.streams:
            return await _streamed(request, asked, tickets)
        return _json(asked.whole(await _whole(request, tickets)))

    return complete


def _submitted(request: Request, service: Service, wanted: Sequence[Wanted]) -> list[Ticket]:
    """Submit all or none; early-exit controls come from the body, the header or the query, in this order."""
    elsewhere = request.headers.get("x-early-exit") or request.query_params.get("early_exit")
    jobs = [service.job(one, elsewhere, owner_of(request.scope)) for one in wanted]
    tickets: list[Ticket] = []
    try:
        tickets.extend(service.submit(job) for job in jobs)
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


async def together(tickets: Sequence[Ticket]) -> Pieces:
    """Yield the pieces of all tickets as they are made, each with its ticket's place; at its end none is at work.

    Raises:
        ServingError: one failed; the others are cancelled, as all are where this is closed.
    """
    made: asyncio.Queue[tuple[int, Token | Finished] | Exception] = asyncio.Queue()

    async def read(place: int, ticket: Ticket) -> None:
        try:
            async for piece in ticket:
                made.put_nowait((place, piece))
        except Exception as error:
            made.put_nowait(error)

    readers = [asyncio.ensure_future(read(*each)) for each in enumerate(tickets)]
    left = len(tickets)
    try:
        while left:
            item = await made.get()
            if isinstance(item, Exception):
                raise item
            left -= isinstance(item[1], Finished)
            yield item
    finally:
        for ticket in tickets:
            ticket.cancel()
        await _cancelled(readers)


async def _whole(request: Request, tickets: Sequence[Ticket]) -> list[Finished]:
    """Wait for all endings, in the order of the tickets."""

    async def collect() -> list[Finished]:
        endings = {place: piece async for place, piece in pieces if isinstance(piece, Finished)}
        return [endings[place] for place in range(len(tickets))]

    pieces = together(tickets)
    try:
        return await _unless_gone(request, collect())
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def _streamed(request: Request, asked: Dialect, tickets: Sequence[Ticket]) -> Response:
    """Answer piece by piece as tokens are made.

    The status is chosen when the first piece is there, so that a refusal has its own status; a failure after
    it becomes an event.
    """
    pieces = together(tickets)
    before, behind = asked.frame

    def lines(place: int, piece: Token | Finished) -> bytes:
        events = asked.last(place, piece) if isinstance(piece, Finished) else asked.chunk(place, piece)
        return b"".join(before + to_json(event) + behind for event in events)

    async def body(first: tuple[int, Token | Finished]) -> AsyncIterator[bytes]:
        try:
            yield lines(*first)
            async for item in pieces:
                yield lines(*item)
            yield asked.closing
        except Exception as error:
            known = error if isinstance(error, ServingError) else _defect()
            yield before + to_json(refusal(request.url.path, known)) + behind
            if known is not error:
                raise

    try:
        first = await _unless_gone(request, anext(pieces))
    except BaseException:
        await pieces.aclose()  # type: ignore[attr-defined]
        raise
    return _Stream(pieces, body(first), asked.media_type)


class _Stream(StreamingResponse):
    """A stream that cancels its jobs when it ends, however it does."""

    def __init__(self, pieces: Any, body: AsyncIterator[bytes], media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(body, media_type=media_type, headers=headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


async def _unless_gone(request: Request, awaited: Awaitable[T]) -> T:
    """Wait, and stop when the client disconnects.

    Raises:
        ClientDisconnect: it has.
    """

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    wanted, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        await _cancelled([wanted, gone])


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _json(answer: object) -> Response:
    return Response(to_json(answer), media_type="application/json")


# --------------------------------------------------------------------------------------------- bodies that are not read


def _parsed(content: bytes) -> dict[str, Any]:
    """Return the JSON object of a body, with no value that would cause errors later: lone surrogates cannot be encoded,
    NaN and infinity are not JSON.

    Raises:
        InvalidRequestError: in one line, what is wrong.
    """
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
            kind = names.get(type(body), "number")
            raise InvalidRequestError(f"the body is a JSON {kind}; send an object with the request's fields.")
        level: list[Any] = [body]
        for _ in range(MAX_DEPTH):
            inside = (one for each in level for one in (each.values() if isinstance(each, dict) else each))
            level = [one for one in inside if isinstance(one, dict | list)]
        if level:
            raise RecursionError
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        said = f"the body is nested too deeply; {MAX_DEPTH} levels are allowed."
    except UnicodeDecodeError as error:
        said = f"the body is not UTF-8: {error.reason} at byte {error.start}."
    except UnicodeEncodeError:
        said = "the body has half a surrogate pair (\\ud800–\\udfff), which is not a character."
    except json.JSONDecodeError as error:
        said = f"the body is not JSON: {f'{error.msg} at character {error.pos}' if error.doc else 'it is empty'}."
    except ValueError as error:
        infinite = "the body has NaN or an infinite number, which is not JSON."
        said = "the body has a number with too many digits." if "digits" in str(error) else infinite
    else:
        return body
    raise InvalidRequestError(said)


def _invalid(error: ValidationError) -> InvalidRequestError:
    """Return the refusal of a body of the wrong shape: the first error in it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    if first["type"] == "missing":
        return InvalidRequestError(f"{where} is missing.")
    return InvalidRequestError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}.")


def _refused(request: Request, error: Exception) -> Response:
    """Answer a request that cannot be served."""
    assert isinstance(error, ServingError)
    headers = {} if error.retry_s is None else {"Retry-After": str(error.retry_s)}
    return JSONResponse(refusal(request.url.path, error), status_code=error.status, headers=headers)


def _refused_by_http(request: Request, error: Exception) -> Response:
    """Answer an unknown route or a wrong method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]}"
    said, kind = {
        404: (f"there is no {where}. GET /openapi.json lists the routes.", "not_found"),
        405: (
            f"there is no {where}; other methods are allowed there: {(error.headers or {}).get('Allow', '')}.",
            "method_not_allowed",
        ),
    }.get(error.status_code, (str(error.detail), "refused"))
    body = refusal(request.url.path, RefusedError(said, error.status_code, kind))
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _defect() -> ServingError:
    return ServingError("the server failed; see its log. Other requests are not affected.")


def _undefined(request: Request, error: Exception) -> Response:
    """Answer after a defect; the traceback is logged and not shown to the client."""
    return JSONResponse(refusal(request.url.path, _defect()), status_code=500)


# ------------------------------------------------------------------------------------------------ the schema of the API


def _documented(dialect: type[Dialect], path: str) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route, as FastAPI's ``responses``."""
    report = {"anyOf": [{"$ref": "#/components/schemas/EarlyExitReport"}, {"type": "null"}]}
    answer = {"type": "object", "properties": {"x_early_exit": report}}
    content: dict[str, Any] = {
        "application/json": {"schema": {"anyOf": [answer, {"type": "array", "items": answer}]}},
        dialect.media_type: {},
    }
    said = f"{dialect.answers}. Besides x_early_exit (EarlyExitReport); of each token exit_layer, drafted_at, accepted."
    answers: dict[int | str, dict[str, Any]] = {200: {"description": said, "content": content}}
    if "{" in path:
        answers[404] = {"description": "A name with a line break."}
    return answers | {status: {"description": meaning} for status, meaning in MEANINGS.items()}


def _request(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what a route reads, for its schema."""
    places = [("header", "X-Early-Exit", "Early exit, unless the body sets it."),
              ("query", "early_exit", "The same, unless the header sets it.")]  # fmt: skip
    named = [("path", "model", "Any.")] if "{" in path else []
    return {
        "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True},
        "parameters": [
            {"in": place, "name": name, "description": said, "required": place == "path", "schema": {"type": "string"}}
            for place, name, said in (*named, *places)
        ],
    }


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
    service = _service(request)
    service.metrics.bind(service)
    content, media_type = service.metrics.page(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})


@operations.get("/info", responses=NOT_READY)
async def info(request: Request) -> dict[str, Any]:
    """The model and its limits, in TGI's words, and everything that decides its early exits."""
    service = _loaded(request)
    config, facts, settings = service.config, service.info, service.settings
    return {
        "model_id": service.model_name,
        "model_sha": facts.fingerprint or None,
        "model_dtype": service.dtype,
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
    if model_id != service.model_name:
        said = f"model {model_id[:80]!r} is not served here. This server has {service.model_name!r}."
        raise RefusedError(said, 404, "not_found")
    return _model(service)


@operations.get("/", include_in_schema=False)
def page(request: Request) -> Response:
    """Answer with the page, in any state of the model."""
    service = _service(request)
    try:
        url = str(request.base_url).rstrip("/")
    except ValueError:  # the client gives no usable host
        url = service.config.url(service.config.port)
    headers = {**PAGE_HEADERS, "Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HTMLResponse(document(service, url), headers=headers)


@operations.get("/static/{name}", include_in_schema=False)
def static(request: Request, name: str) -> Response:
    """Answer with a file of the page."""
    if name not in ASSETS:
        raise HTTPException(404, f"the page has no file {name[:80]!r}.")
    headers = {**PAGE_HEADERS, "Cache-Control": "no-cache"}
    return Response(asset(name, _service(request).info.num_layers), media_type=ASSETS[name], headers=headers)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _loaded(request: Request) -> Service:
    """Return the service once the model is loaded."""
    service = _service(request)
    if service.state == "loading":
        raise LoadingError("the model is being loaded. Try again when /health says ready.")
    if service.state == "failed":
        raise LoadingError(f"the model could not be loaded: {service.failure}")
    if service.state == "draining" and not service.weights_source:
        raise DrainingError("the server is shutting down before its model was loaded.")
    return service


def _model(service: Service) -> dict[str, Any]:
    created = int(time.time())  # unknown when the weights were made; clients expect a number
    return {"id": service.model_name, "object": "model", "created": created, "owned_by": DISTRIBUTION}
