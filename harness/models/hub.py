"""Is the model hub in reach? Asked once, quickly, so that being offline costs seconds, not minutes.

transformers retries an unreachable hub for about half a minute per file. One connection attempt decides
instead whether files are fetched or only looked up in the local cache.
"""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit

__all__ = ["hub_in_reach"]

_TIMEOUT_S = 3.0


@functools.cache
def hub_in_reach() -> bool:
    """Return whether the hub answers, or is reached through a proxy; false in offline mode."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
