"""Rows of a dataset on the Hugging Face hub.

One short question finds out whether the hub answers at all, because ``datasets`` itself retries for minutes
before it gives up. With ``HF_HUB_OFFLINE`` set the question is left out and a cached copy is used.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping

from harness.errors import DataError
from tasks.rows import RecordRows
from tasks.sources import HubDataset

__all__ = ["PATIENCE_S", "open_hub"]

PATIENCE_S = 5.0
"""How long the hub may take to answer before it counts as out of reach, seconds."""

_REMEDY = "Use --source PATH (a local copy or your own rows) or --source embedded (code that is on this machine)."


def open_hub(dataset: HubDataset) -> RecordRows:
    """Return the rows of a hub dataset's split, downloading it when it is not cached. Runs no remote code.

    Raises:
        DataError: the hub is out of reach, or it has no such dataset.
    """
    import datasets  # late: half a second
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if not constants.HF_HUB_OFFLINE:
        _ask(constants.ENDPOINT, dataset)
    # The base of the hub's own error is the root error of its HTTP client, whichever client that is.
    refusals = (OSError, ValueError, datasets.exceptions.DatasetsError, *HfHubHTTPError.__bases__)
    try:
        split = datasets.load_dataset(dataset.repository, dataset.config, split=dataset.split)
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


def _ask(endpoint: str, dataset: HubDataset) -> None:
    try:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/{dataset.repository}", timeout=PATIENCE_S):
            return
    except urllib.error.HTTPError:
        return  # it answered; what it thinks of the dataset is told by loading it
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # it answered; the hub's own client brings its certificates
        said = (reason.strerror if isinstance(reason, OSError) else None) or reason
        raise DataError(f"cannot reach the hub at {endpoint} for {dataset.repository}: {said}. {_REMEDY}") from None
