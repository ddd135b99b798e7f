"""Sources: where rows come from. An explicit path, the hub dataset, or code that is on the machine already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

__all__ = ["HubDataset"]


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
