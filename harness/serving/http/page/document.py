"""The page, rendered for each visit: it offers what is loaded.

Files the page loads: style, scripts and an icon, all from this server.

They are files of this package but for ``depth.css``, which is made from the colours and the token style of the reports,
so that a token looks the same here and there.

The options of loaded strategies as controls of a form.

Editor settings on the page: the settings of :mod:`harness.serving.client_settings`, filled in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from harness.appearance.pages import TOKEN_CSS, depth_shade, templates
from harness.appearance.visible_text import one_line
from harness.config.decode import LONGEST_DRAFT
from harness.registry import KV_POLICIES
from harness.serving.client_settings import CLIENTS, snippet
from harness.serving.exit_settings import Loaded
from harness.serving.service import Service

if TYPE_CHECKING:
    from jinja2 import Template

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"

ASSETS = {
    "page.css": _STYLE,
    "depth.css": _STYLE,
    "page.js": _SCRIPT,
    "form.js": _SCRIPT,
    "stream.js": _SCRIPT,
    "tokens.js": _SCRIPT,
    "figures.js": _SCRIPT,
    "icon.svg": "image/svg+xml",
}
"""Name → media type; nothing else is served."""


@cache
def asset(name: str, num_layers: int) -> bytes:
    """Return the content of one of :data:`ASSETS`.

    Args:
        name: which.
        num_layers: of the model; the depths that ``depth.css`` colours.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in ASSETS:
        raise KeyError(name)
    if name == "depth.css":
        return (TOKEN_CSS + "".join(map(_rule, range(1, num_layers + 1), [num_layers] * num_layers))).encode()
    return files("harness.serving.http.page").joinpath("static", name).read_bytes()


def _rule(layer: int, num_layers: int) -> str:
    ground, ink = depth_shade(layer, num_layers)
    return f'[data-layer="{layer}"] {{ background: {ground}; color: {ink}; }}\n'


STEPS = 100
"""A slider has at least so many positions; the field beside it takes any number between its ends."""

LAYER = "layer"
"""An option of this name is a layer at which the model can be left."""


@dataclass(frozen=True, slots=True)
class Control:
    """One option.

    Attributes:
        name: of the option.
        kind: ``range`` (slider and field), ``layer`` (slider and list of exit points), ``number`` (field alone, where
            there are no limits), or ``switch``.
        value: its default.
        low, high: least and greatest value of a ``range``.
        step: of the slider of a ``range``.
        whole: whether only integers are allowed.
        description: what it means.
    """

    name: str
    kind: Literal["range", "layer", "number", "switch"]
    value: int | float | bool
    low: float
    high: float
    step: float
    whole: bool
    description: str

    @property
    def shown(self) -> str:
        """The default, rounded for display. Unchanged, the exact value is sent."""
        return str(self.value) if isinstance(self.value, int) else f"{self.value:.4g}"


def controls(loaded: Loaded, exit_points: Sequence[int]) -> tuple[Control, ...]:
    """Return the controls of a strategy; options that are neither numbers nor switches have none."""
    return tuple(
        _control(loaded, name, value, exit_points)
        for name, value in loaded.options.items()
        if isinstance(value, (int, float))
    )


def _control(loaded: Loaded, name: str, value: int | float, exit_points: Sequence[int]) -> Control:
    description, whole = loaded.descriptions.get(name, ""), isinstance(value, int)
    if isinstance(value, bool):
        return Control(name, "switch", value, 0, 1, 1, True, description)
    if name == LAYER and value in exit_points:
        return Control(name, "layer", value, 0, len(exit_points) - 1, 1, True, description)
    if name not in loaded.limits:
        return Control(name, "number", value, 0, 0, 1, whole, description)
    low, high = (int(end) if float(end).is_integer() else end for end in loaded.limits[name])
    return Control(name, "range", value, low, high, 1 if whole else _step(high - low), whole, description)


def _step(width: float) -> float:
    """Return the power of ten that cuts a width into at least :data:`STEPS` pieces, and at most ten times as many."""
    power = math.floor(math.log10(width / STEPS) + 1e-9) if width > 0 else 0
    return 10**power if power >= 0 else round(10.0**power, -power)


@dataclass(frozen=True, slots=True)
class Editor:
    """A client and what to paste into it.

    Attributes:
        title: the client's usual name.
        settings: the text, without any key in it.
    """

    title: str
    settings: str


def editors(service: Service, url: str) -> tuple[Editor, ...]:
    """Return settings for every known client, for a server that is reached at ``url``."""
    config = service.config

    def settings(client: str) -> str:
        return snippet(
            client,
            url=url,
            model=service.model_name,
            key=config.api_key_file is not None,
            max_new_tokens=config.max_new_tokens,
            fim=service.fim is not None,
            markers=None if service.fim is None else service.fim.family.texts,
            max_prompt_tokens=service.max_prompt_tokens,
            ignored=config.suffix == "ignore",
        )

    return tuple(Editor(title, settings(client)) for client, title in CLIENTS.items())


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
