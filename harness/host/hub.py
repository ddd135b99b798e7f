"""Whether the hub is reachable: asked once, by one short request, since libraries retry for half a minute per file."""

from __future__ import annotations

import functools
import os
import ssl
import urllib.error
import urllib.request

PATIENCE_S = 5.0
"""How long the hub may take to answer before it counts as unreachable, seconds."""


def hub_offline() -> bool:
    """Return whether the user switched the hub off with ``HF_HUB_OFFLINE``."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def hub_in_reach() -> bool:
    """Return whether files may be fetched from the hub; false in offline mode."""
    return not hub_offline() and hub_trouble(hub_endpoint()) is None


def hub_endpoint() -> str:
    """Return the hub's address, which ``HF_ENDPOINT`` may set."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@functools.cache
def hub_trouble(endpoint: str) -> str | None:
    """Return why the hub does not answer, in a few words, or ``None`` when it does. Proxies are honoured."""
    try:
        with urllib.request.urlopen(  # nosec B310  # the user's own HF_ENDPOINT; the answer is thrown away
            f"{endpoint}/api/models?limit=1", timeout=PATIENCE_S
        ):
            return None
    except urllib.error.HTTPError:
        return None  # it answered
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return None  # it answered; the hub's own client brings its certificates
        return str((reason.strerror if isinstance(reason, OSError) else None) or reason)
