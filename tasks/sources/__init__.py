"""Sources: where rows come from. An explicit path, the hub dataset, or code that is on the machine already."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HubDataset"]


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the Hugging Face hub, and the part of it a task draws from.

    Attributes:
        repository: for example ``google/code_x_glue_cc_code_completion_token``.
        config: configuration, here a programming language.
        split: for example ``test``.
    """

    repository: str
    config: str
    split: str

    @property
    def folder(self) -> str:
        """The repository's own name, which a local copy's folder bears."""
        return self.repository.rpartition("/")[2]
