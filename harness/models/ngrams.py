"""Documents that training read, and an index of their n-grams: whether a text holds a piece of them word for word.

Winnowing (Schleimer, Wilkerson and Aiken, "Winnowing: Local Algorithms for Document Fingerprinting", SIGMOD 2003):
every run of :data:`GRAM` tokens is hashed, and of each :data:`WINDOW` successive hashes the least is kept. A shared run
of :data:`RUN` tokens or more is found wherever it stands, one of fewer than :data:`GRAM` only by chance (n/2³² per
look-up of n hashes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArtefactError
from harness.host.files import replace_files
from harness.host.libraries import library_border
from harness.models.artefacts import look_through, read_verified

GRAM = 18
"""Tokens of a run that is hashed."""
WINDOW = 3
"""Successive hashes of which the least is kept."""
RUN = GRAM + WINDOW - 1
"""Tokens of the shortest shared run that is always found."""

LARGEST_INDEX_BYTES = 4 << 30
"""Two bytes for each of as many hashes as there can be would be 8 GiB; those that ship have 2 MiB."""

_BUCKETS = 1 << 16
_REMEDY = "Restore it, or train again."


@dataclass(frozen=True, eq=False)
class NgramIndex:
    """Hashes of all that was read."""

    hashes: NDArray[np.uint32]

    @classmethod
    def of(cls, texts: Iterable[Sequence[int] | NDArray[np.integer[Any]]]) -> NgramIndex:
        """Index token sequences, each by itself: no run crosses from one into the next."""
        return cls.union(cls(_winnow(np.asarray(text))) for text in texts)

    @classmethod
    def union(cls, indices: Iterable[NgramIndex]) -> NgramIndex:
        """Return the index of everything that some indices are of."""
        return cls(_distinct(np.concatenate([np.empty(0, np.uint32), *(index.hashes for index in indices)])))

    def has_run_of(self, token_ids: Sequence[int]) -> bool:
        """Tell whether one of the runs of :data:`RUN` tokens in a sequence was read; false if it has no such run."""
        kept = _winnow(np.asarray(token_ids))
        if not kept.size or not self.hashes.size:
            return False
        places = np.searchsorted(self.hashes, kept).clip(max=self.hashes.size - 1)
        return bool((self.hashes[places] == kept).any())


def _winnow(token_ids: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """Return the hashes that are kept of a sequence, ascending."""
    if token_ids.size < RUN:
        return np.empty(0, np.uint32)
    tokens = _mixed(token_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    count = tokens.size - GRAM + 1
    rolled = np.zeros(count, np.uint64)
    for place in range(GRAM):
        rolled = rolled * np.uint64(0x100000001B3) + tokens[place : place + count]
    hashes = (_mixed(rolled) >> np.uint64(32)).astype(np.uint32)
    return _distinct(np.minimum.reduce([hashes[place : hashes.size - WINDOW + 1 + place] for place in range(WINDOW)]))


def _distinct(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return values in ascending order, each once; a hundred times as fast as ``np.unique``, which hashes them."""
    values = np.sort(values)
    different: NDArray[np.bool_] = np.diff(values, prepend=values[:1] + np.uint32(1)) != 0
    return values[different]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the 64-bit finaliser of MurmurHash3 (Appleby 2011) of each value."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def write_index(folder: Path, index: NgramIndex, *, complete: bool = True) -> dict[str, Any]:
    """Write an index into a folder and return what an artefact's JSON says of it, as ``ngrams``."""
    from safetensors.numpy import save

    low = (index.hashes & np.uint32(_BUCKETS - 1)).astype(np.uint16)
    counts = np.bincount(index.hashes >> np.uint32(16), minlength=_BUCKETS).astype(np.uint32)
    content = save({"low": low, "counts": counts.astype(np.uint16) if counts.max() < _BUCKETS else counts})
    digest = hashlib.sha256(content).hexdigest()
    file = folder / f"ngrams-{digest[:12]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({file: content}, durable=True)
    except OSError as error:
        raise ArtefactError(f"cannot write {file}: {error.strerror}.") from None
    return {
        "file": file.name, "sha256": digest, "gram": GRAM, "window": WINDOW, "hashes": low.size, "complete": complete
    }  # fmt: skip


def read_index(folder: Path, facts: Mapping[str, Any]) -> NgramIndex:
    """Read the index that an artefact's JSON describes."""
    from safetensors.numpy import load

    file = folder / Path(str(facts.get("file"))).name
    if (facts.get("gram"), facts.get("window")) != (GRAM, WINDOW):
        raise ArtefactError(f"{file} has other runs than those of {GRAM} tokens that this version compares. {_REMEDY}")
    content = read_verified(file, str(facts.get("sha256")), LARGEST_INDEX_BYTES, _REMEDY)
    with library_border(f"{file} is damaged", _REMEDY, ArtefactError):
        tensors = load(content)
        low, counts = tensors["low"], tensors["counts"]
        if low.dtype != np.uint16 or counts.shape != (_BUCKETS,) or not np.issubdtype(counts.dtype, np.unsignedinteger):
            raise ValueError("low or counts is of another type or shape")
        if low.shape != (int(counts.sum(dtype=np.uint64)),):  # before as many are made
            raise ValueError(f"it counts {counts.sum(dtype=np.uint64)} hashes and holds {low.shape}")
        high = np.repeat(np.arange(_BUCKETS, dtype=np.uint32), counts)
        return NgramIndex(high << np.uint32(16) | low)


@dataclass(frozen=True)
class SeenDocuments:
    """Documents that artefacts have read, by key, and the projects that they are of, as far as they say so."""

    documents: frozenset[str] = frozenset()
    projects: frozenset[str] = frozenset()
    indices: Mapping[Path, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)
    unindexed: tuple[Path, ...] = ()

    def ngrams(self) -> NgramIndex | None:
        """Read all indices as one; ``None`` without any."""
        if not self.indices:
            return None
        return NgramIndex.union(read_index(folder, facts) for folder, facts in self.indices.values())


def find_seen(base: str, folders: Iterable[Path]) -> SeenDocuments:
    """Return what all artefacts of these base weights have read."""
    keys: set[str] = set()
    projects: set[str] = set()
    indices: dict[Path, tuple[Path, Mapping[str, Any]]] = {}
    unindexed: list[Path] = []
    for file, facts in look_through(folders):
        if base not in (facts.get("base_fingerprint"), facts.get("model_fingerprint")):
            continue
        documents, index = facts.get("documents", ()), facts.get("ngrams")
        keys.update(documents)
        projects.update(facts.get("projects", ()))
        if isinstance(index, dict):
            indices[file.parent / str(index.get("file"))] = (file.parent, index)
        if documents and facts.get("order", True) and not (isinstance(index, dict) and index.get("complete")):
            unindexed.append(file)
    return SeenDocuments(frozenset(keys), frozenset(projects), indices, tuple(unindexed))
