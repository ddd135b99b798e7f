"""What everything trained for some base weights has read: whole documents by key, and its n-grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models.artefacts import look_into

if TYPE_CHECKING:
    from harness.models.ngrams import NgramIndex

__all__ = ["Seen", "find_seen"]


@dataclass(frozen=True)
class Seen:
    """What artefacts have read.

    Attributes:
        documents: keys (:func:`harness.contracts.document_key`) of whole documents.
        indices: file → folder of its artefact, and what its JSON says of the index.
        unindexed: artefacts that were trained on documents and have no index of all of it: near-duplicates of what
            they read cannot be told. Those that say that they kept no ``order`` (counts of tokens) need none: nothing
            that was read can be told from them, word for word.
    """

    documents: frozenset[str] = frozenset()
    indices: Mapping[Path, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)
    unindexed: tuple[Path, ...] = ()

    def ngrams(self) -> NgramIndex | None:
        """Read all indices as one; ``None`` without any.

        Raises:
            ArtefactError: one is missing, damaged or not the one that was written.
        """
        if not self.indices:
            return None
        from harness.models.ngrams import NgramIndex, read_index  # here, since they bring numpy

        return NgramIndex.union(read_index(folder, facts) for folder, facts in self.indices.values())


def find_seen(base: str, folders: Sequence[Path]) -> Seen:
    """Return what all artefacts of these base weights have read.

    Tuned or not, no run draws it: base and tuned rows are of the same samples, and none of those was seen.
    """
    keys: set[str] = set()
    indices: dict[Path, tuple[Path, Mapping[str, Any]]] = {}
    unindexed: list[Path] = []
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            facts = look_into(file)
            if base not in (facts.get("base_fingerprint"), facts.get("model_fingerprint")):
                continue
            documents, index = facts.get("documents", ()), facts.get("ngrams")
            keys.update(documents)
            if isinstance(index, dict):
                indices[folder / str(index.get("file"))] = (folder, index)
            if documents and facts.get("order", True) and not (isinstance(index, dict) and index.get("complete")):
                unindexed.append(file)
    return Seen(frozenset(keys), indices, tuple(unindexed))
