"""Routes for operators: health, description and metrics."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from harness.registry import STOPS
from harness.serving.failures import DrainingError, LoadingError, ServingError
from harness.serving.service import Service

DISTRIBUTION = "early-exit-harness"

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "The model is not loaded, or the server stops."}}
NO_SUCH_MODEL: dict[int | str, dict[str, Any]] = {404: {"description": "No such model."}}

router = APIRouter(tags=["operations"])


class UnknownModelError(ServingError):
    """A model that this server does not have."""

    status = 404
    kind = "not_found"


@router.get("/health", responses=NOT_READY)
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> JSONResponse:
    """Whether requests are accepted: 200, or 503 with ``loading``, ``failed``, or ``draining`` on open connections."""
    service = _service(request)
    ready = service.state == "ready"
    return JSONResponse(
        {"status": service.state, "error": service.failure},
        status_code=200 if ready else 503,
        headers={"Cache-Control": "no-store", **({} if ready else {"Retry-After": "1"})},
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "All series, in the requested format."}},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format, or OpenMetrics."""
    service = _service(request)
    service.metrics.bind(service)
    page = service.metrics.page(request.headers.get("accept", ""))
    return Response(page.content, headers={"Content-Type": page.media_type})


@router.get("/info", responses=NOT_READY)
async def info(request: Request) -> dict[str, Any]:
    """The model and its limits, in TGI's words, and everything that decides its early exits."""
    service = _loaded(request)
    config, facts = service.config, service.info
    default = service.settings.default
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
                "strategy": default.name,
                "options": default.options,
                "decode": str(default.decode),
                "draft_max": service.settings.draft_max,
                "stop_rule": service.settings.stop,
            },
            "decode": list(service.settings.decodes),
            "drafts": list(service.settings.sources),
            "stops": list(STOPS.names()),
            "strategies": [
                {
                    "name": loaded.name,
                    "options": loaded.options,
                    "limits": {option: list(bounds) for option, bounds in loaded.limits.items()},
                    "descriptions": loaded.descriptions,
                    "artefacts": loaded.artefacts,
                    "default": loaded.default,
                }
                for loaded in service.settings.loaded
            ],
            "energy": {
                "source": service.energy_source,
                "measured": service.energy_measured,
                "description": service.energy_description,
            },
        },
    }


@router.get("/v1/models", responses=NOT_READY)
@router.get("/models", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """The one model, as OpenAI lists models."""
    return {"object": "list", "data": [_model(_loaded(request))]}


@router.get("/v1/models/{model_id:path}", responses=NOT_READY | NO_SUCH_MODEL)
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """The one model by its name."""
    service = _loaded(request)
    if model_id != service.model_name:
        raise UnknownModelError(f"model {model_id[:80]!r} is not served here. This server has {service.model_name!r}.")
    return _model(service)


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
    return {
        "id": service.model_name,
        "object": "model",
        "created": int(time.time()),  # unknown when the weights were made; clients expect a number
        "owned_by": DISTRIBUTION,
    }
