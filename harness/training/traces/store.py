"""Traces on disk: what a model's exits said about each token of some documents, run once at full depth.

A trace is a folder: shards of safetensors, and ``index.json`` that lists them together with the documents and with what
the trace belongs to (weights, tokenizer, exit points, exit head). A shard is listed once it is whole, so that a full
disk or a kill leaves a trace of everything before. Reading maps shards into memory. The index bears a seal over its own
bytes (:mod:`harness.store.record_files`) and the hash of every shard, so that nothing is learned from a damaged one.

Columns, one row per token, the rows of a document consecutive (E exit points, D hidden size):

==============  ==================  =============================================================
``hidden``      ``[n, E, D]`` f16   residual stream at each exit point, before the final norm
``last``        ``[n, D]`` f16      the same after the last layer
``top``         ``[n, E]`` i32      token the exit head gives there
``top1``        ``[n, E]`` f16      its probability
``top2``        ``[n, E]`` f16      probability of the second
``entropy``     ``[n, E]`` f16      of the exit head's distribution, nats
``final``       ``[n]`` i32         the last layer's token
``final1``      ``[n]`` f16         its probability
``input``       ``[n]`` i32         token that was read
``position``    ``[n]`` i32         its position, from 0
``document``    ``[n]`` i32         index into the index's documents
==============  ==================  =============================================================

Fields of ``index.json``:

=================================  ====================================================================================
``format``                         2; 1 in older traces, which have no hashes
``model``, ``weights``, ``dtype``  what was traced: its name, ``pretrained``, ``tuned`` or ``random``, its activations
``model_fingerprint``              of its weights
``base_fingerprint``               of its weights before tuning
``tokenizer_fingerprint``          of its tokenizer
``num_layers``, ``hidden_size``    its shape
``exit_points``, ``exit_head``     layers; ``shared``, or ``shortcut:`` and a hash
``split``                          part of each dataset
``length``                         tokens at which a document was cut, at most
``new_tokens``                     generated behind a part of each document; 0 where its own were read
``seed``                           drew the documents
``shards``                         of each ``file``, ``bytes``, ``sha256``, ``tokens``, and ``threads`` of the CPU
``documents``                      of each ``id``, ``stream`` (task and source), ``key`` (hash of its text), ``length``,
                                   ``tokens``; and ``prompt``, token ids, of what was generated
``sha256``                         over all before it
=================================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.appearance.visible_text import shell_command
from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelInfo, WeightsChoice
from harness.errors import ArtefactError
from harness.host.files import DocumentError, open_regular, parse_json, read_bytes, real_path, replace_files
from harness.host.libraries import library_border
from harness.models.artefacts import fault_in, fault_of
from harness.store.record_files import seal_of, sealed_document, split_seal

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 2
FORMAT_WITHOUT_HASHES = 1
SHARD_TOKENS = 8192
_AGAIN = "Trace again with another --out."
LARGEST_INDEX_BYTES = 1 << 30
"""Of an index, which has some 300 bytes a document."""

_SIZES = {"hidden": "ED", "last": "D", **dict.fromkeys(("top", "top1", "top2", "entropy"), "E")}
_WHOLE = frozenset({"top", "final", "input", "position", "document"})
COLUMNS = (*_SIZES, "final", "final1", "input", "position", "document")
"""Of every shard; see the module docstring."""

_OWN = re.compile(r"\..*|parts|shard-\d+\.safetensors")
"""Names that a trace which was stopped may have left where there is no index yet."""

_FACTS = {
    "shards", "documents", "model", "model_fingerprint", "tokenizer_fingerprint", "exit_head", "exit_points",
    "num_layers", "hidden_size", "weights", "dtype", "seed",
}  # fmt: skip


class TraceWriter:
    """Appends documents to a trace folder.

    Args:
        folder: made if missing.
        facts: what the trace belongs to, see :meth:`Traces.check`.
        resume: go on with a trace that is there.
        shard_tokens: a shard is written when it holds so many.

    Raises:
        ArtefactError: there is a trace already and ``resume`` is false, one of something else, or what is none; or
            nothing can be written there.
    """

    def __init__(
        self, folder: Path, facts: Mapping[str, Any], *, resume: bool, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder, self._shard_tokens = folder, shard_tokens
        self._buffer: list[dict[str, Tensor]] = []
        self._waiting: list[dict[str, Any]] = []
        self._tokens = 0
        self._index: dict[str, Any] = {"format": FORMAT, **facts, "shards": [], "documents": []}
        file = folder / "index.json"
        if file.is_file():
            if not resume:
                raise ArtefactError(f"{folder} holds a trace already. Add --resume to go on, or give another --out.")
            found = _read_index(file)
            for key, value in facts.items():
                if found.get(key) != value:
                    raise ArtefactError(
                        f"{folder} is a trace with {key} {found.get(key)!r}, now it is {value!r}. Give another --out."
                    )
            _check_shards(folder, found)
            self._index = found
        try:
            if not file.is_file() and _is_taken(folder):
                raise ArtefactError(f"{folder} is not empty and holds no trace. Give another --out.")
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtefactError(f"cannot make {folder}: {error.strerror}. Give another --out.") from None

    @property
    def documents(self) -> list[str]:
        """Ids of the documents that are on disk."""
        return [document["id"] for document in self._index["documents"]]

    @property
    def tokens(self) -> int:
        """Tokens that are on disk."""
        return sum(int(shard["tokens"]) for shard in self._index["shards"])

    def add(self, document: Mapping[str, Any], columns: Mapping[str, Tensor]) -> None:
        """Append the tokens of one document; ``columns`` as in the module docstring, ``document`` left out.

        Args:
            document: JSON-able facts with an ``id``; ``stream``, ``key`` and ``length`` are expected by readers, and
                of what was generated the ``prompt``, its tokens in one text.
            columns: one row per token.
        """
        import torch

        count = len(columns["final"])
        number = len(self._index["documents"]) + len(self._waiting)
        self._buffer.append({**columns, "document": torch.full((count,), number, dtype=torch.int32)})
        self._waiting.append({**document, "tokens": count})
        self._tokens += count
        if self._tokens >= self._shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a shard.

        Raises:
            ArtefactError: the disk is full; the shards before stay usable.
        """
        if not self._buffer:
            return
        import torch
        from safetensors.torch import save

        name = f"shard-{len(self._index['shards']):05d}.safetensors"
        columns = {key: torch.cat([part[key] for part in self._buffer]).contiguous() for key in self._buffer[0]}
        content = save(columns)
        shard = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "tokens": self._tokens,
            "threads": torch.get_num_threads(),  # of the CPU; one trace may be gone on with by another number
        }
        index = {
            **self._index,
            "shards": [*self._index["shards"], shard],
            "documents": [*self._index["documents"], *self._waiting],
        }
        try:
            replace_files({self.folder / name: content})  # the shard before the index that names it
            replace_files({self.folder / "index.json": sealed_document(f"{json.dumps(index, indent=2)}\n".encode())[0]})
        except OSError as error:
            raise ArtefactError(
                f"cannot write {self.folder / name}: {error.strerror}. The finished shards ({self.tokens} tokens) stay "
                "usable; make room and go on with --resume."
            ) from None
        self._index = index
        self._buffer, self._waiting, self._tokens = [], [], 0


@dataclass(frozen=True)
class Traces:
    """A trace folder to read from.

    Attributes:
        folder: where it lies.
        index: everything ``index.json`` says.
    """

    folder: Path
    index: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, model: str = "") -> Traces:
        """Open a trace.

        Args:
            folder: or its ``index.json``.
            model: as the user typed it, for the command that makes a trace where there is none.

        Raises:
            ArtefactError: missing, damaged, or without a token.
        """
        if folder.name == "index.json":
            folder = folder.parent
        index = _read_index(folder / "index.json", model)
        _check_shards(folder, index)
        if not index["shards"]:
            raise ArtefactError(f"the trace {folder} holds no token. Go on with `harness trace … --resume`.")
        if index["format"] == FORMAT_WITHOUT_HASHES:
            logger.warning(
                "%s is of an older version, which kept no hashes: damage may go unnoticed. Trace again", folder
            )
        return cls(folder, index)

    @property
    def exit_points(self) -> tuple[int, ...]:
        """Layers it was taken at."""
        return tuple(self.index["exit_points"])

    @property
    def documents(self) -> Sequence[Mapping[str, Any]]:
        """Facts of the documents, in the order of their numbers."""
        found: Sequence[Mapping[str, Any]] = self.index["documents"]
        return found

    @property
    def tokens(self) -> int:
        """Number of rows."""
        return sum(int(shard["tokens"]) for shard in self.index["shards"])

    def check(self, model: ModelInfo, tokenizer: str) -> None:
        """Refuse a trace of another model.

        Raises:
            ArtefactError: tokenizer, fingerprint, exit points or exit head are not the model's; gives both values.
        """
        for what, theirs, ours in (
            ("tokenizer", self.index["tokenizer_fingerprint"], tokenizer),
            ("model fingerprint", self.index["model_fingerprint"], model.fingerprint),
            ("exit points", list(self.exit_points), list(model.exit_points)),
            ("exit head", self.index["exit_head"], model.exit_head),
        ):
            if theirs != ours:
                raise ArtefactError(
                    f"{self.folder} is a trace with {what} {theirs} ({self.index['model']}); {model.name} has {ours} "
                    f"now. {self._cure(what, model)}",
                    [trace_command(model.asked.model or model.name, beside(self.folder))],
                )

    def _cure(self, what: str, model: ModelInfo) -> str:
        """Return what to do where the model differs from the trace's in something, before the command."""
        index, same_base = self.index, self.index.get("base_fingerprint") == model.base_fingerprint
        if what == "exit head" and index["exit_head"] != "shared":
            lost = "The shortcuts that it was read through are gone: restore them"
        elif what == "model fingerprint" and index["weights"] == "tuned" and same_base:
            lost = "The adapter that it was made with is gone: restore it"
        else:
            return "Trace again:"
        return f"{lost}, give --artefacts FOLDER, or trace again:"

    def shards(self, *names: str, rows: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield some columns shard by shard, mapped into memory.

        Args:
            names: of the columns.
            rows: which are wanted, bool, one for each of the trace; ``None`` for all.
        """
        from safetensors import safe_open

        start = 0
        for shard in self.index["shards"]:
            file = self.folder / shard["file"]
            with library_border(f"cannot read {file}", _AGAIN, ArtefactError):
                with safe_open(file, framework="pt") as content:
                    found = {name: content.get_tensor(name) for name in names}
                for name, column in found.items():
                    self._check(name, column, int(shard["tokens"]))
            end = start + int(shard["tokens"])
            yield found if rows is None else {name: column[rows[start:end]] for name, column in found.items()}
            start = end

    def _check(self, name: str, column: Tensor, tokens: int) -> None:
        """Refuse a column that is not what a writer makes."""
        sizes = {"E": len(self.exit_points), "D": int(self.index["hidden_size"])}
        shape = (tokens, *(sizes[size] for size in _SIZES.get(name, "")))
        if tuple(column.shape) != shape or column.is_floating_point() == (name in _WHOLE):
            raise ValueError(f"{name} is {column.dtype} of shape {tuple(column.shape)}, where {shape} is needed")
        if name in _WHOLE:
            last = len(self.documents) if name == "document" else math.inf
            if column.numel() and not 0 <= int(column.min()) <= int(column.max()) < last:
                raise ValueError(f"{name} holds {int(column.min())} to {int(column.max())}")
        elif fault := fault_of(column):
            if name in ("hidden", "last"):
                raise ArtefactError(f"{self.folder} holds states beyond float16. Trace other layers: --exit-points.")
            raise ValueError(f"{name} {fault}")

    def columns(self, *names: str) -> dict[str, Tensor]:
        """Return whole columns in memory."""
        import torch

        parts = list(self.shards(*names))
        return {name: torch.cat([part[name] for part in parts]) for name in names}


def trace_command(model: str, out: Path) -> str:
    """Return the command that traces a model, given as the user typed it; empty for the default one."""
    return shell_command(["harness", "trace", *(["--model", model] if model else []), "--out", str(out)])


def _is_taken(folder: Path) -> bool:
    """Tell whether a folder holds what no trace leaves."""
    return folder.is_dir() and any(not _OWN.fullmatch(entry.name) for entry in folder.iterdir())


def beside(folder: Path) -> Path:
    """Return a folder that is not there yet, named after one that is kept."""
    return next(path for n in count(2) if not (path := folder.with_name(f"{real_path(folder).name}-{n}")).exists())


def _read_index(file: Path, model: str = "") -> dict[str, Any]:
    try:
        content = read_bytes(file, LARGEST_INDEX_BYTES)
        found = parse_json(content)
    except (FileNotFoundError, NotADirectoryError):
        out = file.parent
        if out.is_file() or _is_taken(out):
            out = Path("traces") / real_path(Path(model or DEFAULT_MODEL)).name
            out = beside(out) if out.exists() else out
        raise ArtefactError(f"there is no trace {file.parent}. Make one with:", [trace_command(model, out)]) from None
    except OSError as error:
        raise ArtefactError(f"cannot read the trace {file}: {error.strerror}. {_AGAIN}") from None
    except DocumentError as error:
        raise ArtefactError(f"cannot read the trace {file}: {error}. {_AGAIN}") from None
    formats = (FORMAT, FORMAT_WITHOUT_HASHES)
    known = isinstance(found, dict) and found.get("format") in formats and found.keys() >= _FACTS
    if known and (found["format"] == FORMAT or "sha256" in found):
        body, seal = split_seal(content)
        if seal != seal_of("", [body]):
            raise ArtefactError(f"{file} was changed, or is damaged: it does not fit its seal. {_AGAIN}")
    if not known or not _lists(found) or not _facts(found):
        raise ArtefactError(f"{file} is no trace index of format {FORMAT}. {_AGAIN}")
    return {name: value for name, value in found.items() if name != "sha256"}


def _lists(index: Mapping[str, Any]) -> bool:
    """Tell whether shards and documents are what a writer makes of them."""
    hashed = index["format"] != FORMAT_WITHOUT_HASHES
    return all(
        isinstance(index[name], list) and all(_has(entry, keys) for entry in index[name])
        for name, keys in (
            ("shards", {"file": str, "bytes": int, "tokens": int, **({"sha256": str} if hashed else {})}),
            ("documents", {"id": str, "stream": str, "key": str, "tokens": int}),
        )
    ) and all(Path(shard["file"]).name == shard["file"] for shard in index["shards"])


def _has(entry: object, keys: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in keys.items())


def _facts(index: Mapping[str, Any]) -> bool:
    """Tell whether the facts by which a trace is opened can be what they must be."""
    return (
        not fault_in({name: value for name, value in index.items() if name != "documents"})
        and index["weights"] in get_args(WeightsChoice)
        and index["dtype"] in ("float32", "bfloat16", "float16")
        and 0 <= index["seed"] < 2**32
        and all(type(index.get(name, 0)) is int for name in ("length", "new_tokens"))
    )


def _check_shards(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a trace whose shards are not those that were written."""
    for shard in index["shards"]:
        file = folder / shard["file"]
        facts = file.stat() if file.is_file() else None
        size = facts.st_size if facts else None
        if facts is None or size != shard["bytes"]:
            raise ArtefactError(f"{file} has {size} bytes and should have {shard['bytes']}. {_AGAIN}")
        if "sha256" in shard and _hash_of(file, facts.st_size, facts.st_mtime_ns) != shard["sha256"]:
            raise ArtefactError(f"{file} was changed, or is damaged: its hash is not the index's. {_AGAIN}")


@cache
def _hash_of(file: Path, size: int, modified_ns: int) -> str:
    """Return the SHA-256 of a shard, read once a process as long as it has this size and time."""
    try:
        with open_regular(file) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"cannot read {file}: {error.strerror}. {_AGAIN}") from None
