"""The page, rendered for each visit: it offers what is loaded."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from harness.appearance.pages import templates
from harness.appearance.visible_text import one_line
from harness.config.decode import LONGEST_DRAFT
from harness.registry import KV_POLICIES
from harness.serving.http.page.controls import controls
from harness.serving.http.page.editors import editors
from harness.serving.service import Service

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["POLICY", "document"]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy of the page: nothing from elsewhere, nothing inline, no text ever parsed as markup."""

FULL = "full"
"""The strategy that never exits."""

FIRST_TOKENS = 48
"""New tokens the form asks for at first, or the server's cap where that is less."""

PROMPT = """\
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self."""
"""A prompt that even a small model completes."""

WEIGHTS = {"tuned": "tuned", "pretrained": "base", "random": "random: the text means nothing"}


def document(service: Service, url: str) -> str:
    """Return the page as HTML.

    Args:
        service: what is behind it, in any state.
        url: where clients reach the server, without a trailing slash.
    """
    info, cap = service.info, service.config.max_new_tokens
    strategies = [(loaded, controls(loaded, info.exit_points)) for loaded in service.settings.loaded]
    offered, default = service.settings, service.settings.default.decode
    own = str(default).partition("+")[2]
    lossless = "lossless" in offered.decodes
    data: dict[str, Any] = {
        "lossless": lossless,
        "numLayers": info.num_layers,
        "cached": KV_POLICIES.load(service.config.kv).facts.keeps_cache,
        "state": service.state,
        "failure": service.failure and one_line(service.failure),
        "measured": service.energy_measured,
        "energy": one_line(service.energy_description),
    }
    return _template().render(
        model=service.model_name,
        weights=WEIGHTS.get(info.weights, info.weights),
        dtype=service.dtype,
        device=service.device,
        kv=service.config.kv,
        num_layers=info.num_layers,
        exit_points=info.exit_points,
        scale=sorted({*info.exit_points, info.num_layers}),
        cached=data["cached"],
        energy=service.energy_description,
        strategies=strategies,
        full=FULL,
        lossless=lossless,
        decodes=offered.decodes,
        sources=sorted({*offered.sources, own} - {""}),
        default_decode="lossless" if default.lossless else "lossy",
        default_source=own,
        draft_max=offered.draft_max,
        draft_cap=LONGEST_DRAFT,
        compares=any(loaded.name == FULL for loaded, _ in strategies),
        prompt=PROMPT,
        first_tokens=min(FIRST_TOKENS, cap),
        cap=cap,
        key=service.config.api_key_file is not None,
        editors=editors(service, url),
        data=data,
    )


@cache
def _template() -> Template:
    return templates("harness.serving.http.page").get_template("page.html")
