"""A hook of MkDocs: the site works without a network. One that would load something from another host is not built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

_ADDRESS = r"""["']?((?:https?:)?//[^\s"'>)]+)"""
_LOADS = re.compile(
    rf"<(?:script|img|iframe|source|video|audio|embed|object|track|input)\b[^>]*\s(?:src|srcset|poster|data)={_ADDRESS}"
    r"|<link\b(?=[^>]*\srel=[\"']?[^\"'>]*(?:stylesheet|icon|preload|prefetch|preconnect|manifest))"
    rf"[^>]*\shref={_ADDRESS}"
    rf"|(?:\burl\(|@import)\s*{_ADDRESS}",
    re.IGNORECASE,
)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads something from elsewhere; links may lead there."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    files = (file for file in sorted(site.rglob("*")) if file.suffix in (".html", ".css"))
    found = [
        f"{file.relative_to(site)}: {address}"
        for file in files
        for address in loaded_from_elsewhere(file.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("\n".join(["these files need another host:", *found]))


def loaded_from_elsewhere(text: str) -> list[str]:
    """Return the addresses of scripts, styles, fonts and images on other hosts that a page or a style sheet loads."""
    return [next(filter(None, addresses)) for addresses in _LOADS.findall(text)]
