"""A model's files, looked at before a library reads them: regular, of bounded size, JSON an object.

Libraries open what is there: a named pipe hangs them, an index of weights leads them out of the folder or to a pickle,
and deep or huge JSON ends in whatever error comes first.
"""

from __future__ import annotations

import errno
import os
import stat
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.host.foreign_files import DocumentError, parse_json, read_bytes, require_regular
from harness.models.quiet import quiet

__all__ = ["check_files", "check_index", "check_tokenizer_files", "commit_of", "model_file", "read_object"]

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
    """Refuse a model's folder with something in it that is no file, or a text too large to be one of a model's.

    Raises:
        ModelError: names the file.
    """
    for path in _entries(folder):
        try:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                continue
            require_regular(path)
            if path.suffix in _READ_WHOLE and found.st_size > LARGEST_TEXT_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {LARGEST_TEXT_BYTES >> 20} MiB")
        except FileNotFoundError:
            continue  # a link to nothing
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}. {_REMEDY}") from None


def _entries(folder: Path) -> Iterator[Path]:
    for where in (folder, folder / "additional_chat_templates"):
        try:
            names = sorted(os.listdir(where))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModelError(f"cannot look into {where}: {error.strerror}.") from None
        yield from (where / name for name in names)


def model_file(location: str, name: str, *, local_files_only: bool) -> Path | None:
    """Return where a model's file lies: in its folder, or in the hub's cache; ``None`` where it has none.

    Raises:
        OSError: the hub does not give it.
    """
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
    """Return the hub's commit that a model's configuration lies here from; ``None`` for a folder, or if none is told.

    Configurations that are read do not know it any more (transformers 5).
    """
    if os.path.isdir(location):
        return None
    from transformers.utils.hub import extract_commit_hash

    with suppress(OSError):
        file = model_file(location, "config.json", local_files_only=True)
        return None if file is None else extract_commit_hash(str(file), None)
    return None


def read_object(path: Path) -> Mapping[str, Any]:
    """Return what one of a model's JSON files says.

    Raises:
        ModelError: it cannot be read, or is no JSON object within bounds.
    """
    try:
        data = read_bytes(path, LARGEST_TEXT_BYTES)
        found = parse_json(data, digits=DIGITS)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}. {_REMEDY}") from None
    except DocumentError as error:
        raise ModelError(f"cannot read {path}: {error}. {_REMEDY}") from None
    if data.startswith(BOM_UTF8):  # which parse_json takes
        raise ModelError(f"{path} begins with a byte order mark, which transformers refuses. Save it without the mark.")
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: it holds a {type(found).__name__}, not an object. {_REMEDY}")
    return found


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder whose tokenizer's JSON a library may not be able to read.

    Raises:
        ModelError: names the file.
    """
    check_files(folder)
    for name in _TOKENIZER:
        if (folder / name).exists():
            read_object(folder / name)


def check_index(location: str, *, local_files_only: bool) -> None:
    """Refuse an index that leads away from a model's own safetensors, and a model that is to be patched while loading.

    Raises:
        ModelError: names the file.
        OSError: the hub does not give it.
    """
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
