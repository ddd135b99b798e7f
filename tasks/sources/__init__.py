"""Sources: where rows come from. An explicit path, a dataset of the hub, or code that is on the machine already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.errors import DataError, reason
from harness.host.files import open_regular
from harness.host.hub import hub_offline, hub_trouble
from harness.host.libraries import require
from tasks.rows import RecordRows


def content_of(files: Iterable[Path]) -> str:
    """Return what tells the rows of files from other rows under the same names: 16 hex digits over all their bytes."""
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


_REMEDY = "Use --source PATH (a local copy or your own rows) or --source embedded (code that is on this machine)."


def open_hub(dataset: HubDataset) -> RecordRows:
    """Return the rows of a hub dataset's split, downloading it when it is not cached. Runs no remote code.

    One short question finds out whether the hub answers at all, because ``datasets`` itself retries for minutes before
    it gives up. With ``HF_HUB_OFFLINE`` set the question is left out and a cached copy is used.
    """
    require("hub", "datasets")
    import datasets  # late: half a second
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if not hub_offline():
        trouble = hub_trouble(constants.ENDPOINT)
        if trouble is not None:
            raise DataError(
                f"cannot reach the hub at {constants.ENDPOINT} for {dataset.repository}: {trouble}. {_REMEDY}"
            )
    # The base of the hub's own error is the root error of its HTTP client, whichever client that is.
    refusals = (OSError, ValueError, datasets.exceptions.DatasetsError, *HfHubHTTPError.__bases__)
    try:
        split = datasets.load_dataset(  # nosec B615  # rows alone, no code; runs record their fingerprint
            dataset.repository, dataset.config, split=dataset.split
        )
    except refusals as error:
        raise DataError(f"the hub dataset {dataset.repository} cannot be loaded: {reason(error)}. {_REMEDY}") from None
    if not len(split):
        raise DataError(f"the hub dataset {dataset.repository} has no rows in split '{dataset.split}'. {_REMEDY}")

    def record(index: int) -> Mapping[str, object]:
        found: dict[str, object] = split[index]
        return found

    label = f"hub: {dataset.repository} ({dataset.config}, {dataset.split})"
    detail = {"repository": dataset.repository, "config": dataset.config, "split": dataset.split}
    return RecordRows("hub", label, len(split), record, {**detail, "datasets_fingerprint": split._fingerprint})
