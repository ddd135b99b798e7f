"""Traces on disk: what a model's exits said about each token of some documents, run once at full depth.

A trace is a folder: shards of safetensors, and ``index.json``. A shard is listed once it is whole, so that a full disk
or a kill leaves a trace of everything before. The index bears a seal over its own bytes
(:mod:`harness.store.record_files`) and the hash of every shard, so that nothing is learned from a damaged one.

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
``format``                         2
``model``, ``weights``, ``dtype``  what was traced: its name, ``pretrained``, ``tuned`` or ``random``, its activations
``model_fingerprint``              of its weights
``base_fingerprint``               of its weights before tuning
``tokenizer_fingerprint``          of its tokenizer
``num_layers``, ``hidden_size``    its shape
``exit_points``, ``exit_head``     layers; ``shared``, or ``shortcut:`` and a hash
``exit_module``                    of shortcuts; empty with the shared head
``split``                          part of each dataset
``length``                         tokens at which a document was cut, at most
``new_tokens``                     generated behind a part of each document; 0 where its own were read
``seed``                           drew the documents
``shards``                         of each ``file``, ``bytes``, ``sha256``, ``tokens``, and ``threads`` of the CPU
``documents``                      of each ``id``, ``stream`` (task and source), ``key`` (hash of its text), ``length``,
                                   ``tokens``; ``project`` where its text says it; and ``prompt``, token ids, of what
                                   was generated
``sha256``                         over all before it
=================================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from harness.appearance.visible_text import shell_command
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ResumeError
from harness.host.files import open_regular, parse_json, read_bytes, real_path, refusing, replace_files
from harness.host.libraries import library_border
from harness.models.artefacts import fault_of
from harness.store.record_files import seal_of, sealed_document, split_seal

FORMAT = 2
SHARD_TOKENS = 8192
_AGAIN = "Trace again with another --out."
LARGEST_INDEX_BYTES = 1 << 30
"""Of an index, which has some 300 bytes a document."""

COLUMNS = (
    *("hidden", "last", "top", "top1", "top2", "entropy"),
    *("final", "final1", "input", "position", "document"),
)
"""Of every shard; see the module docstring."""

_OWN = re.compile(r"\..*|parts|shard-\d+\.safetensors")
"""Names that a trace which was stopped may have left where there is no index yet."""

_FACTS = {
    "shards", "documents", "model", "model_fingerprint", "tokenizer_fingerprint", "exit_head", "exit_points",
    "num_layers", "hidden_size", "weights", "dtype", "seed",
}  # fmt: skip


class TraceWriter:
    """Appends documents to a trace folder; a shard is written when it holds ``shard_tokens``."""

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
            try:
                self._index = _read_index(file)
            except ArtefactError as error:
                raise ResumeError(error.message, error.commands) from error
            for key, value in facts.items():
                if self._index.get(key, value) != value:  # a trace of before December 2026 has no exit_module
                    raise ResumeError(
                        f"{folder} is a trace with {key} {self._index[key]!r}, now it is {value!r}. Give another --out."
                    )
        elif _is_taken(folder):
            raise ResumeError(f"{folder} is not empty and holds no trace. Give another --out.")
        try:
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

    @property
    def traced(self) -> int:
        """Tokens so far: on disk, or waiting to be a shard."""
        return self.tokens + self._tokens

    def add(self, document: Mapping[str, Any], columns: Mapping[str, Tensor]) -> None:
        """Append one document: its facts but ``tokens``, and its columns but ``document``; see the module docstring."""
        tokens = len(columns["final"])
        number = len(self._index["documents"]) + len(self._waiting)
        self._buffer.append({**columns, "document": torch.full((tokens,), number, dtype=torch.int32)})
        self._waiting.append({**document, "tokens": tokens})
        self._tokens += tokens
        if self._tokens >= self._shard_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a shard."""
        if not self._buffer:
            return
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
    """A trace folder to read from; ``index`` is everything ``index.json`` says."""

    folder: Path
    index: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, model: str = "") -> Traces:
        """Open a folder, or its ``index.json``; ``model``, as it was typed, is for the command that makes a trace."""
        if folder.name == "index.json":
            folder = folder.parent
        index = _read_index(folder / "index.json", model)
        if not index["shards"]:
            raise ArtefactError(f"the trace {folder} holds no token. Go on with `harness trace … --resume`.")
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
        """Raise :class:`ArtefactError`, with both values, for a trace of another model or tokenizer (fingerprint)."""
        index, same_base = self.index, self.index.get("base_fingerprint") == model.base_fingerprint
        for what, theirs, ours in (
            ("tokenizer", index["tokenizer_fingerprint"], tokenizer),
            ("model fingerprint", index["model_fingerprint"], model.fingerprint),
            ("exit points", list(self.exit_points), list(model.exit_points)),
            ("exit head", index["exit_head"], model.exit_head),
            ("exit module", index.get("exit_module", model.exit_module), model.exit_module),
        ):
            if theirs == ours:
                continue
            cure = "Trace again:"
            if what == "exit head" and theirs != "shared":
                cure = "Its shortcuts are gone: restore them, give --artefacts FOLDER, or trace again:"
            elif what == "model fingerprint" and index["weights"] == "tuned" and same_base:
                cure = "Its adapter is gone: restore it, give --artefacts FOLDER, or trace again:"
            raise ArtefactError(
                f"{self.folder} is a trace with {what} {theirs} ({index['model']}); {model.name} has {ours} now. "
                f"{cure}",
                [trace_command(model.asked.model or model.name, beside(self.folder))],
            )

    def shards(self, *names: str, rows: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield some columns shard by shard, mapped into memory; ``rows``: which tokens, ``[tokens]`` bool."""
        start = 0
        for shard in self.index["shards"]:
            file, end = self.folder / shard["file"], start + shard["tokens"]
            with library_border(f"cannot read {file}", _AGAIN, ArtefactError), safe_open(file, "pt") as content:
                found = {name: content.get_tensor(name) for name in names}
            for name in found.keys() & {"hidden", "last"}:
                if fault_of(found[name]):
                    raise ArtefactError(f"{self.folder} holds states beyond float16. Trace other --exit-points.")
            yield found if rows is None else {name: column[rows[start:end]] for name, column in found.items()}
            start = end

    def columns(self, *names: str) -> dict[str, Tensor]:
        """Return whole columns in memory."""
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
    """Return an index whose seal, fields and shards are whole."""
    with refusing(file, ArtefactError, _AGAIN):
        try:
            content = read_bytes(file, LARGEST_INDEX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            out = file.parent
            command = trace_command(model, beside(out) if out.is_file() or _is_taken(out) else out)
            raise ArtefactError(f"there is no trace {out}. Make one with:", [command]) from None
        found = parse_json(content)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not found.keys() >= _FACTS:
        raise ArtefactError(f"{file} is no trace index of format {FORMAT}. {_AGAIN}")
    body, seal = split_seal(content)
    if seal != seal_of("", [body]):
        raise ArtefactError(f"{file} was changed, or is damaged: it does not fit its seal. {_AGAIN}")
    for shard in found["shards"]:
        part = file.parent / shard["file"]
        facts = part.stat() if part.is_file() else None
        size = facts.st_size if facts else None
        if facts is None or size != shard["bytes"]:
            raise ArtefactError(f"{part} has {size} bytes and should have {shard['bytes']}. {_AGAIN}")
        if _hash_of(part, facts.st_size, facts.st_mtime_ns) != shard["sha256"]:
            raise ArtefactError(f"{part} was changed, or is damaged: its hash is not the index's. {_AGAIN}")
    return {name: value for name, value in found.items() if name != "sha256"}


@cache
def _hash_of(file: Path, size: int, modified_ns: int) -> str:
    """Return the SHA-256 of a shard, read once a process as long as it has this size and time."""
    with refusing(file, ArtefactError, _AGAIN), open_regular(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
