"""For people: the page, rendered for each visit, and the settings to paste into an editor or a program.

The page offers what is loaded: the options of each strategy are controls of a form, and the settings of every client
are filled in. It loads files of this server alone: style, scripts and an icon. ``depth.css`` is made from the colours
and the token style of the reports, so that a token looks the same here and there.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from harness.appearance.pages import TOKEN_CSS, depth_shade, templates
from harness.appearance.visible_text import is_hidden, one_line
from harness.config.decode import LONGEST_DRAFT
from harness.errors import ConfigError, did_you_mean
from harness.registry import KV_POLICIES

if TYPE_CHECKING:
    from jinja2 import Template

    from harness.models.fill_in_the_middle import FillInTheMiddle
    from harness.serving.config import ServeConfig
    from harness.serving.exit_settings import Loaded
    from harness.serving.service import Service

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
    """Return the content of one of :data:`ASSETS`; ``depth.css`` colours the depths of so many layers."""
    if name != "depth.css":
        return files("harness.serving").joinpath("static", name).read_bytes()
    shades = {layer: depth_shade(layer, num_layers) for layer in range(1, num_layers + 1)}
    rules = (f'[data-layer="{n}"] {{ background: {ground}; color: {ink}; }}\n' for n, (ground, ink) in shades.items())
    return (TOKEN_CSS + "".join(rules)).encode()


STEPS = 100
"""A slider has at least so many positions; the field beside it takes any number between its ends."""

LAYER = "layer"
"""An option of this name is a layer at which the model can be left."""


@dataclass(frozen=True, slots=True)
class Control:
    """One option.

    Attributes:
        name: of the option. description: what it means.
        kind: ``range`` (slider and field), ``layer`` (slider and list of exit points), ``number`` (field alone, where
            there are no limits), or ``switch``.
        value: its default.
        low, high, step: of the slider of a ``range``.
    """

    name: str
    description: str
    kind: Literal["range", "layer", "number", "switch"]
    value: int | float | bool
    low: float = 0
    high: float = 0
    step: float = 1

    @property
    def whole(self) -> bool:
        """Whether only integers are allowed."""
        return isinstance(self.value, int)

    @property
    def shown(self) -> str:
        """The default, rounded for display. Unchanged, the exact value is sent."""
        return str(self.value) if self.whole else f"{self.value:.4g}"


def controls(loaded: Loaded, exit_points: Sequence[int]) -> tuple[Control, ...]:
    """Return the controls of a strategy; options that are neither numbers nor switches have none."""

    def control(name: str, value: int | float) -> Control:
        said = loaded.descriptions.get(name, "")
        if isinstance(value, bool):
            return Control(name, said, "switch", value)
        if name == LAYER and value in exit_points:
            return Control(name, said, "layer", value, 0, len(exit_points) - 1)
        if name not in loaded.limits:
            return Control(name, said, "number", value)
        low, high = (int(end) if float(end).is_integer() else end for end in loaded.limits[name])
        return Control(name, said, "range", value, low, high, 1 if isinstance(value, int) else _step(high - low))

    return tuple(control(name, value) for name, value in loaded.options.items() if isinstance(value, (int, float)))


def _step(width: float) -> float:
    """Return the power of ten that cuts a width into at least :data:`STEPS` pieces, and at most ten times as many."""
    power = math.floor(math.log10(width / STEPS) + 1e-9) if width > 0 else 0
    return 10**power if power >= 0 else round(10.0**power, -power)


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
    info, config, settings = service.info, service.config, service.settings
    data: dict[str, Any] = {
        "lossless": "lossless" in settings.decodes,
        "numLayers": info.num_layers,
        "cached": KV_POLICIES.load(config.kv).facts.keeps_cache,
        "state": service.state,
        "failure": service.failure and one_line(service.failure),
        "measured": service.energy_measured,
        "energy": one_line(service.energy_description),
    }
    source = str(settings.default.decode).partition("+")[2]
    return _template().render(
        service=service,
        info=info,
        settings=settings,
        data=data,
        weights=WEIGHTS.get(info.weights, info.weights),
        scale=sorted({*info.exit_points, info.num_layers}),
        strategies=[(loaded, controls(loaded, info.exit_points)) for loaded in settings.loaded],
        full=FULL,
        sources=sorted({*settings.sources, source} - {""}),
        default_decode="lossless" if settings.default.decode.lossless else "lossy",
        default_source=source,
        draft_cap=LONGEST_DRAFT,
        compares=any(loaded.name == FULL for loaded in settings.loaded),
        prompt=PROMPT,
        first_tokens=min(FIRST_TOKENS, config.max_new_tokens),
        cap=config.max_new_tokens,
        editors=[
            (client["title"], snippet(name, config, url, service.model_name, service.fim, service.max_prompt_tokens))
            for name, client in clients().items()
        ],
    )


@cache
def _template() -> Template:
    return templates("harness.serving").get_template("page.html")


EDITOR_TOKENS = 64
"""Limit that an editor asks for: more than a line or two is seldom accepted, and delays what is."""


@cache
def clients() -> dict[str, dict[str, str]]:
    """Return every known client by its name: its ``title``, and its ``settings``, as of its release of today."""
    return tomllib.loads(files("harness.serving").joinpath("clients.toml").read_text(encoding="utf-8"))


def snippet(
    client: str, config: ServeConfig, url: str, model: str, fim: FillInTheMiddle | None, max_prompt_tokens: int
) -> str:
    """Return what a user of a client pastes.

    Args:
        client: one of :func:`clients`.
        config: of the server; where it asks for a key, the settings have a place for it.
        url: address of the server, as ``http://127.0.0.1:8080``.
        model: the model's id, as the server names it.
        fim: how the server reads text after the cursor. Some clients write the markers into the prompt themselves;
            where there are none as text, such a client sends only what is before the cursor.
        max_prompt_tokens: limit of a prompt, tokens.

    Raises:
        ConfigError: no such client.
    """
    from jinja2 import Environment, StrictUndefined

    if client not in clients():
        known = f"{did_you_mean(client, clients())} Known: {', '.join(clients())}."
        raise ConfigError(f"unknown client '{client}'.{known}")
    # snippets are no HTML, and each value is quoted for the language it stands in
    language = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)  # nosec B701
    language.filters["quoted"] = _quoted
    prefix, suffix, middle = (fim and fim.family.texts) or ("", "", "")
    return language.from_string(clients()[client]["settings"]).render(
        url=url.rstrip("/"),
        model=model,
        key=config.api_key_file is not None,
        max_new_tokens=config.max_new_tokens,
        editor_tokens=min(config.max_new_tokens, EDITOR_TOKENS),
        fim=fim is not None,
        prefix=prefix,
        suffix=suffix,
        middle=middle,
        max_prompt_tokens=max_prompt_tokens,
        ignored=config.suffix == "ignore",
    )


def _quoted(text: str) -> str:
    """Return a text in double quotes as JSON, YAML, Vim and Python read it."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(f"\\u{ord(one):04x}" if is_hidden(one) and one <= "\uffff" else one for one in quoted)
