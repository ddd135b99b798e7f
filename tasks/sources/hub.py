"""Rows of a dataset on the Hugging Face hub.

One short question finds out whether the hub answers at all, because ``datasets`` itself retries for minutes
before it gives up. With ``HF_HUB_OFFLINE`` set the question is left out and a cached copy is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import DataError
from harness.host.hub import hub_offline, hub_trouble
from harness.host.libraries import require
from tasks.rows import RecordRows
from tasks.sources import HubDataset

_REMEDY = "Use --source PATH (a local copy or your own rows) or --source embedded (code that is on this machine)."


def open_hub(dataset: HubDataset) -> RecordRows:
    """Return the rows of a hub dataset's split, downloading it when it is not cached. Runs no remote code.

    Raises:
        DataError: the hub is out of reach, or it has no such dataset.
        ConfigError: the extra ``hub`` is not installed.
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
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"the hub dataset {dataset.repository} cannot be loaded: {reason}. {_REMEDY}") from None
    if not len(split):
        raise DataError(f"the hub dataset {dataset.repository} has no rows in split '{dataset.split}'. {_REMEDY}")

    def record(index: int) -> Mapping[str, object]:
        found: dict[str, object] = split[index]
        return found

    label = f"hub: {dataset.repository} ({dataset.config}, {dataset.split})"
    detail = {"repository": dataset.repository, "config": dataset.config, "split": dataset.split}
    return RecordRows("hub", label, len(split), record, {**detail, "datasets_fingerprint": split._fingerprint})
