"""HTML: the one way in which text of others enters a page, by hand or through a template."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["escape_html", "templates"]


def escape_html(text: str) -> str:
    """Return HTML that shows a text as it stands; newlines and tabs stay."""
    return html.escape(visible(text))


def templates(package: str) -> Environment:
    """Return the templates of a package; every expression in them is escaped as by :func:`escape_html`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Return an expression's value before jinja2 escapes it; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
