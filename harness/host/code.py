"""Which code this is: hashes over source files, since one version may have many codes while it is worked on."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from harness.host.foreign_files import real_path

__all__ = ["DECIDING", "hash_of_code", "hash_of_package"]

DECIDING = ("harness", "strategies", "tasks")
"""Packages of this project that decide what a run measures; reports are made of what was measured."""

_ROOT = Path(__file__).parents[2]
_SOURCES = frozenset({".py", ".so", ".pyd"})


def hash_of_code(*folders: str) -> str:
    """Return a hash over this project's source files in folders, such as ``harness/decoding``, 64 hex digits."""
    return hashlib.sha256("".join(map(_hash_of_folder, folders)).encode()).hexdigest()


@cache
def hash_of_package(module: str, distribution: str = "") -> str:
    """Return a hash over the code that a module belongs to, 16 hex digits; empty where it is in no file.

    That is all of its top-level package, wherever an editable installation has it, and all else that the distribution
    has installed. Nothing is imported.

    Args:
        module: dotted name.
        distribution: that brings it; empty where none is known.
    """
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except ValueError:  # what is typed at a prompt
        found = None
    files = [Path(str(file.locate())) for file in (distribution and metadata.files(distribution)) or ()]
    for folder in (found and found.submodule_search_locations) or ():
        files += Path(folder).rglob("*")
    if found is not None and found.origin:
        files.append(Path(found.origin))
    sources = {real_path(file) for file in files if file.suffix in _SOURCES and file.is_file()}
    return _hash_of(sources)[:16] if sources else ""


@cache
def _hash_of_folder(folder: str) -> str:
    return _hash_of((_ROOT / folder).rglob("*.py"))


def _hash_of(files: Iterable[Path]) -> str:
    """Return a hash over names and contents, the same wherever they lie."""
    digest = hashlib.sha256()
    for name, content in sorted((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files):
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()
