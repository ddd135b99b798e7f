"""Tree-sitter's grammars of the languages that are scored and parsed, read once."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from importlib import import_module
from typing import Any

from harness.errors import ConfigError

__all__ = ["grammar", "parser"]

_CAPSULE_NAME = b"tree_sitter.Language"
"""The name that tree-sitter asks for; a capsule keeps a pointer to it, so it must live as long as the process."""


@lru_cache(maxsize=8)
def grammar(language: str) -> Any:
    """Return the grammar of a language.

    Raises:
        ConfigError: it is not installed, or the installed tree-sitter does not fit it.
    """
    from tree_sitter import Language

    package = f"tree-sitter-{language.replace('_', '-')}"
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError:
        raise ConfigError(f"the grammar of {language} is not installed. Run `pip install {package}`.") from None
    found = getattr(module, "language", None) or getattr(module, f"language_{language}")  # PHP's has two
    address = found()
    try:
        return Language(_capsule(address) if isinstance(address, int) else address)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the grammar {package} cannot be read: the installed tree-sitter does not fit it ({error}). "
            "Run `pip install 'tree-sitter>=0.25'`."
        ) from None


@lru_cache(maxsize=8)
def parser(language: str) -> Any:
    """Return the parser of a language; raises as :func:`grammar`."""
    from tree_sitter import Parser

    return Parser(grammar(language))


def _capsule(address: int) -> Any:
    """Wrap the address of a grammar as later grammars do themselves; tree-sitter deprecates bare numbers."""
    wrap = ctypes.pythonapi.PyCapsule_New
    wrap.restype, wrap.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return wrap(address, _CAPSULE_NAME, None)
