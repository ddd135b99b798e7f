"""The API keys that a request bears, and whose it is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = ["keys_of", "owner_of"]


def keys_of(scope: Scope) -> list[bytes]:
    """Return the keys that a request bears, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""
    keys = [value.strip() for name, value in scope["headers"] if name == b"x-api-key"]
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            keys.append(token.strip())
    return keys


def owner_of(scope: Scope) -> str:
    """Return what requests with the same keys have in common, and no others; those without a key are one owner's.

    Whether a key is right is up to the guards: a proxy in front may know keys that this server does not ask for.
    """
    return hashlib.sha256(b"\n".join(sorted(set(keys_of(scope))))).hexdigest()
