"""Sources: where rows come from. An explicit path, the hub dataset, or code that is on the machine already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.errors import DataError
from harness.host.files import open_regular

__all__ = ["HubDataset", "content_of"]


def content_of(files: Iterable[Path]) -> str:
    """Return what tells the rows of files from other rows under the same names: 16 hex digits over all their bytes.

    Raises:
        DataError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with open_regular(file) as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}.") from None
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the Hugging Face hub, and the part of it a task draws from.

    Attributes:
        repository: for example ``google/code_x_glue_cc_code_completion_token``.
        config: configuration, here a programming language.
        split: for example ``test``.
        single_split: whether that is all there is.
    """

    repository: str
    config: str
    split: str
    single_split: bool = False

    @property
    def folder(self) -> str:
        """The repository's own name, which a local copy's folder bears."""
        return self.repository.rpartition("/")[2]

    def at(self, split: str) -> Self:
        """Return another split of the same dataset; one with a single split stays as it is."""
        return self if self.single_split else replace(self, split=split)
