"""Files the page loads: style, scripts and an icon, all from this server.

They are files of this package but for ``depth.css``, which is made from the colours and the token style of the reports,
so that a token looks the same here and there.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from harness.appearance.depth_colours import depth_shade
from harness.appearance.token_style import TOKEN_CSS

__all__ = ["ASSETS", "asset"]

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
