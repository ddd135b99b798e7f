"""For people: the page, rendered for each visit, and the settings to paste into an editor or a program.

The page offers what is loaded: the options of each strategy are controls of a form, and the settings of every client
are filled in. It loads files of this server alone.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.appearance.pages import TOKEN_CSS, depth_shade, templates
from harness.appearance.visible_text import is_hidden, one_line
from harness.config import BASELINE
from harness.config.decode import LONGEST_DRAFT
from harness.config.rules import NONE
from harness.errors import ConfigError, did_you_mean
from harness.registry import KV_POLICIES

if TYPE_CHECKING:
    from harness.models.fill_in_the_middle import FillInTheMiddle
    from harness.serving.config import ServeConfig
    from harness.serving.service import Service

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, nothing inline, no text ever parsed as markup."""

FIRST_TOKENS = 48
"""New tokens the form asks for at first, or the server's cap where that is less."""

EDITOR_TOKENS = 64
"""Limit that an editor asks for: more than a line or two is seldom accepted, and delays what is."""

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


@cache
def depth_style(num_layers: int) -> str:
    """Return the style of tokens on the colours of so many layers: a token looks as in the reports."""
    shades = {layer: depth_shade(layer, num_layers) for layer in range(1, num_layers + 1)}
    rules = (f'[data-layer="{n}"] {{ background: {ground}; color: {ink}; }}\n' for n, (ground, ink) in shades.items())
    return TOKEN_CSS + "".join(rules)


def document(service: Service, url: str) -> str:
    """Return the page as HTML, for a service in any state, which clients reach at ``url``."""
    info, config, settings = service.info, service.config, service.settings
    shallow, lossless = config.prompt_exit != NONE, "lossless" in settings.decodes
    # with --prompt-exit the prompts of lossy requests are not full depth's
    full = {"strategy": BASELINE} | ({"decode": "lossless" if shallow else "lossy"} if lossless else {})
    data = {
        "full": full,
        "lossless": lossless,
        "numLayers": info.num_layers,
        "cached": KV_POLICIES.load(config.kv).facts.keeps_cache,
        "state": service.state,
        "failure": service.failure and one_line(service.failure),
        "measured": service.energy_measured,
        "energy": one_line(service.energy_description),
    }
    source = str(settings.default.decode).partition("+")[2]
    return templates("harness.serving").get_template("page.html").render(
        service=service,
        info=info,
        settings=settings,
        data=data,
        weights=WEIGHTS.get(info.weights, info.weights),
        scale=sorted({*info.exit_points, info.num_layers}),
        sources=sorted({*settings.sources, source} - {""}),
        default_decode="lossless" if settings.default.decode.lossless else "lossy",
        default_source=source,
        draft_cap=LONGEST_DRAFT,
        compares=any(loaded.name == BASELINE for loaded in settings.loaded) and (lossless or not shallow),
        prompt=PROMPT,
        first_tokens=min(FIRST_TOKENS, config.max_new_tokens),
        cap=config.max_new_tokens,
        editors=[
            (client["title"], snippet(name, config, url, service.model_name, service.fim, service.max_prompt_tokens))
            for name, client in clients().items()
        ],
    )  # fmt: skip


@cache
def clients() -> dict[str, dict[str, str]]:
    """Return every known client by its name: its ``title``, and its ``settings``, as of its release of today."""
    return tomllib.loads(files("harness.serving").joinpath("clients.toml").read_text(encoding="utf-8"))


def snippet(
    client: str, config: ServeConfig, url: str, model: str, fim: FillInTheMiddle | None, max_prompt_tokens: int
) -> str:
    """Return what a user of a client pastes, for a server at ``url``.

    Some clients write the markers of ``fim`` into the prompt themselves; where there are none as text, such a client
    sends only what is before the cursor.

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
