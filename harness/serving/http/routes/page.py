"""``GET /``: the page for people, and the files it loads."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from harness.serving.http.page.document import ASSETS, POLICY, asset, document
from harness.serving.service import Service

router = APIRouter(include_in_schema=False)

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@router.get("/")
def page(request: Request) -> HTMLResponse:
    """Answer with the page, in any state of the model."""
    service: Service = request.app.state.service
    headers = {**_HEADERS, "Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HTMLResponse(document(service, _url(request, service)), headers=headers)


@router.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """Answer with a file of the page."""
    service: Service = request.app.state.service
    if name not in ASSETS:
        raise HTTPException(404, f"the page has no file {name[:80]!r}.")
    headers = {**_HEADERS, "Cache-Control": "no-cache"}
    return Response(asset(name, service.info.num_layers), media_type=ASSETS[name], headers=headers)


def _url(request: Request, service: Service) -> str:
    """Where this client reached the server; where it is configured to listen when the client gives no usable host."""
    try:
        return str(request.base_url).rstrip("/")
    except ValueError:
        return f"http://{service.config.host}:{service.config.port}"
