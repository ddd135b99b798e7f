"""A model's files: checked before a library opens what lies there, and hashed to tell what a model computes.

A fingerprint is over everything that decides, and over nothing else: not when a file was written, by which version of a
library, or how its JSON is laid out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.host.cache import keep_document, kept_document
from harness.host.files import open_regular, parse_json, read_bytes, real_path, refusing, require_regular


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, advice and complaints off the user's screen while loading."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


LARGEST_TEXT_BYTES = 256 << 20
"""Of a file that is read whole and is no weights: tokenizers of 250,000 words have 40 MB."""
DIGITS = 40
"""Digits of an integer: tokenizers write 10³⁰ for "no limit"."""

_READ_WHOLE = {".json", ".txt", ".jinja", ".model"}
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("chat_template.json", "processor_config.json", "tekken.json"),
)
_REMEDY = "Fetch it again as it was published."


def check_files(folder: Path) -> None:
    """Refuse a model's folder with something in it that is no file, or a text too large to be one of a model's."""
    with refusing(folder, ModelError, _REMEDY):
        found = sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*")))
    for path in found:
        if path.exists() and not path.is_dir():
            with refusing(path, ModelError, _REMEDY):
                require_regular(path)
                if path.suffix in _READ_WHOLE and path.stat().st_size > LARGEST_TEXT_BYTES:
                    raise OSError(errno.EFBIG, f"it is larger than {LARGEST_TEXT_BYTES >> 20} MiB")


def model_file(location: str, name: str, *, local_files_only: bool) -> Path | None:
    """Return where a model's file lies: in its folder, or in the hub's cache; ``None`` where it has none."""
    if os.path.isdir(location):
        path = Path(location) / name
        return path if path.exists() else None
    from transformers.utils import cached_file

    with quiet():
        found = cached_file(
            location, name, local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    return None if found is None else Path(found)


def commit_of(location: str) -> str | None:
    """Return the hub's commit that a model's configuration is of; ``None`` for a folder, or if none is told."""
    if os.path.isdir(location):
        return None
    from transformers.utils.hub import extract_commit_hash

    with suppress(OSError):
        file = model_file(location, "config.json", local_files_only=True)
        return None if file is None else extract_commit_hash(str(file), None)
    return None


def read_object(path: Path) -> Mapping[str, Any]:
    """Return what one of a model's JSON files says."""
    with refusing(path, ModelError, _REMEDY):
        data = read_bytes(path, LARGEST_TEXT_BYTES)
        found = parse_json(data, digits=DIGITS)
    if data.startswith(BOM_UTF8):  # which parse_json takes
        raise ModelError(f"{path} begins with a byte order mark, which transformers refuses. Save it without the mark.")
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: it holds a {type(found).__name__}, not an object. {_REMEDY}")
    return found


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder whose tokenizer's JSON a library may not be able to read."""
    check_files(folder)
    for name in _TOKENIZER:
        if (folder / name).exists():
            read_object(folder / name)


def check_index(location: str, *, local_files_only: bool) -> None:
    """Refuse an index that leads away from a model's own safetensors, and an adapter that would be read with them."""
    if model_file(location, "adapter_config.json", local_files_only=local_files_only) is not None:
        raise ModelError(
            f"{location} has an adapter of peft beside its weights (adapter_config.json), which would be read with "
            "them. Merge it into the weights (peft's merge_and_unload), or remove it."
        )
    path = model_file(location, "model.safetensors.index.json", local_files_only=local_files_only)
    if path is None:
        return
    shards = read_object(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{path} has no weight_map. {_REMEDY}")
    for tensor, name in shards.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(f"{path}: {tensor} is said to be in {name!r}, which is no safetensors file beside it.")
        if os.path.isdir(location) and not (path.parent / name).is_file():
            raise ModelError(f"{path}: {tensor} is said to be in {name}, which is not there. {_REMEDY}")


_BOUNDS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), (1, 1000)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), (1, 1 << 14)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim"), (1, 1 << 17)),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "vocab_size"), (1, 1 << 24)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), (1, 1 << 28)),
    **dict.fromkeys(("sliding_window", "original_max_position_embeddings", "max_window_layers"), (0, 1 << 28)),
    "num_labels": (0, 1 << 20),  # transformers spells a name for each
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), (0.0, 1.0)),
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), (1.0, 1e12)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (0.0, 1.0)),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "attention_factor"), (1e-6, 1e6)),
}
"""Field → least and greatest number, several times those of published models; a whole one where the least is."""

_NESTED = ("rope_parameters", "rope_scaling")  # whose parts may be of types of layers

_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_NEEDED = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings")
REMEDY = "Fetch the file again as it was published with the weights."
"""The remedy for a configuration that cannot be used."""


def check_facts(facts: Mapping[str, Any], file: str) -> None:
    """Refuse a configuration with a number out of bounds, or one that asks for foreign code."""
    for name, value in facts.items():
        if value is None:
            continue
        if name in _BOUNDS:
            least, most = _BOUNDS[name]
            kinds, kind = ((int,), "a whole number") if type(least) is int else ((int, float), "a number")
            if type(value) not in kinds or not least <= value <= most:
                raise ModelError(
                    f"{file}: {name} = {_short(value)} is not allowed: it must be {kind} from {least:,} to {most:,}. "
                    f"{REMEDY}"
                )
        elif name in _NESTED and isinstance(value, dict):
            for inner in (value, *(part for part in value.values() if isinstance(part, dict))):
                check_facts(inner, file)
        elif name in _IMPLEMENTATIONS and not (isinstance(value, str) and re.fullmatch(r"\w+", value)):
            raise ModelError(f"{file}: {name} = {_short(value)} may be code of the hub, which is never run. {REMEDY}")
        elif name == "per_layer_config":
            raise ModelError(f"{file}: layers of different shapes ({name}) are not supported.")


def check_configuration(config: Any, file: str) -> None:
    """Refuse a transformers configuration whose sizes are missing, out of bounds, or do not fit together."""
    check_facts(
        {name: value for name in (*_BOUNDS, *_NESTED) if (value := getattr(config, name, None)) is not None}, file
    )
    for name in _NEEDED:
        if getattr(config, name, None) is None:
            raise ModelError(f"{file} lacks {name}. {REMEDY}")
    ends = getattr(config, "eos_token_id", None)
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if ends is not None):
        raise ModelError(f"{file}: eos_token_id = {_short(ends)} is no token and no list of them. {REMEDY}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


LENGTH = 16
_WORTH_KEEPING = 1 << 24  # bytes that take longer to hash than a kept hash takes to be found

_UNREAD = frozenset(
    {
        *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
        *("name_or_path", "special_tokens_map_file", "tokenizer_file", "is_local", "chat_template"),
    }
)
"""Keys of a configuration that change no token: names, versions, what the command line decides, foreign code."""

_TOKENIZER_PARTS = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def fingerprint_of_folder(folder: Path) -> str:
    """Return a hash over weights, configuration, tokenizer and end tokens of a folder, 16 hex digits."""
    ends = _facts_of(folder / "generation_config.json").get("eos_token_id")
    shards = _facts_of(folder / "model.safetensors.index.json").get("weight_map")
    config = {key: value for key, value in _facts_of(folder / "config.json").items() if key not in _UNREAD}
    told = {"config": config, "ends": ends, "shards": shards, "tokenizer": tokenizer_in(folder)}
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:  # before hours of hashing what holds no weights
        with open_regular(file) as content:
            header = int.from_bytes(content.read(8), "little")
        if not 0 < header <= file.stat().st_size - 8:
            raise ModelError(f"{file} is damaged: it does not begin with a safetensors header. Fetch it again.")
    return hash_of(told, fingerprint_of_files(weights))


def tokenizer_in(folder: Path) -> dict[str, Any]:
    """Return what decides what a folder's tokenizer does: its files by their hash, its configuration in full."""
    found: dict[str, Any] = {name: sha256_of(folder / name) for name in _TOKENIZER_PARTS if (folder / name).is_file()}
    config = _facts_of(folder / "tokenizer_config.json")
    return found | {"config": {key: value for key, value in config.items() if key not in _UNREAD}}


def _facts_of(file: Path) -> Mapping[str, Any]:
    """Return what a JSON file says; nothing where there is none."""
    return read_object(file) if file.exists() else {}


def fingerprint_of_files(files: Sequence[Path]) -> str:
    """Return a hash over names and contents of weight files, 16 hex digits."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {sha256_of(file)}".encode())
    return digest.hexdigest()[:LENGTH]


def sha256_of(file: Path) -> str:
    """Return the hash of a file, hex; of a long one once, as long as its size and times stay."""
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


def hash_of(facts: Mapping[str, Any], *remarks: str) -> str:
    """Return a hash over a configuration and remarks (a commit, a seed), for weights that are in no local file."""
    text = json.dumps(facts, sort_keys=True, default=str) + "\0" + "\0".join(remarks)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
