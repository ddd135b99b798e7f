"""HTML: the one way in which text of others enters a page, the style of tokens, and colours of depth.

Viridis (van der Walt and Smith 2015), shallow bright and deep dark: equal steps of depth look like equal steps, and it
reads without colour vision and in print.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def escape_html(text: str) -> str:
    """Return HTML that shows a text as it stands; newlines and tabs stay."""
    return html.escape(visible(text))


def templates(package: str) -> Environment:
    """Return the templates of a package; every expression in them is escaped as by :func:`escape_html`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["parts"] = re.compile("(?<=[:@])").split  # of a name, between which a narrow screen may break it
    return made


def _shown(value: Any) -> Any:
    """Return an expression's value before jinja2 escapes it; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


TOKEN_CSS = """
.tokens { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; tab-size: 4; }
.tok { position: relative; unicode-bidi: isolate; border-radius: 2px; padding: .1em 0 .2em; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; box-shadow: 0 0 0 .5px rgb(128 128 128 / .35); }
.tok.differs { text-decoration: underline 2px; text-underline-offset: .16em; text-decoration-skip-ink: none; }
.tok.prefill { outline: 1.5px dashed currentColor; outline-offset: -1.5px; }
.tok.accepted { box-shadow: 0 0 0 .5px rgb(128 128 128 / .35), inset 0 -3px #009e73; }
.tok.replaced { box-shadow: 0 0 0 .5px rgb(128 128 128 / .35), inset 0 3px #d55e00; }
.tok.empty { padding: .1em .25em; }
.tok .s::before, .tok .n::before, .tok .t::before { position: absolute; opacity: .45; text-decoration: none; }
.tok .s::before { content: "\\b7"; } .tok .t::before { content: "\\2192"; } .tok .n::before { content: "\\21b5"; }
.tok .n { padding-right: .6em; }
.tok .x { opacity: .7; font-size: .8em; }
.tok:hover, .tok:focus { z-index: 2; outline: 2px solid #e69f00; outline-offset: 1px; }
.tok:hover::after, .tok:focus::after { content: attr(data-tip); position: absolute; left: 0; top: 1.7em; z-index: 3;
  font: 12px/1.35 system-ui, sans-serif; white-space: nowrap; background: #111; color: #fff; padding: .25em .5em;
  border-radius: 3px; pointer-events: none; text-decoration: none; }
"""
"""Of an element of class ``tokens`` that holds one of class ``tok`` per token.

What became of drafts: a bar below what full depth accepted, one above what it put in place of a draft."""


_VIRIDIS = (
    "#fde725", "#d8e219", "#addc30", "#84d44b", "#5ec962", "#3fbc73", "#28ae80", "#1fa088", "#21918c", "#26828e",
    "#2c728e", "#33638d", "#3b528b", "#424086", "#472d7b", "#48186a", "#440154",
)  # fmt: skip
"""From its bright end to its dark end, in 16 equal steps."""

Shade = tuple[str, str]
"""A ground and the ink that reads on it, hexadecimal."""


def depth_colour(share: float) -> str:
    """Return the colour of a share of a model's layers, hexadecimal; shares outside 0…1 count as the nearest end."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low, high = list(pairwise(_VIRIDIS))[min(int(place), len(_VIRIDIS) - 2)]
    part = place - min(int(place), len(_VIRIDIS) - 2)
    mixed = (round(a + (b - a) * part) for a, b in zip(_channels(low), _channels(high), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


@lru_cache(maxsize=1024)
def depth_shade(layer: int, num_layers: int) -> Shade:
    """Return ground and ink of a token that ran so many of a model's layers; their contrast is at least 4.5 to 1."""
    share = (layer - 1) / max(1, num_layers - 1)
    return depth_colour(share), "#000000" if share < 0.57 else "#ffffff"  # where both have 4.5 to 1


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
