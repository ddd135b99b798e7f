"""What the exits of a model are worth on documents, by a trace: shared by the scripts that compare trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.contracts.recipes import Silent
from harness.host.files import replace_files
from harness.records.estimate import Estimate
from harness.training.options import TraceCommand
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces
from harness.training.traces.training_set import exit_places
from reports.statistics.intervals import mean_interval


def traced(out: Path, **options: Any) -> Traces:
    """Trace documents into a folder, unless that was done; ``options`` are those of ``harness trace``."""
    if (out / "index.json").is_file():
        return Traces.open(out)
    return trace(TraceCommand.build({**options, "out": out}), Silent())


def measured(found: Traces) -> dict[str, Any]:
    """Return what the exits of a trace are worth.

    ``agreement`` with the last layer by exit, an ``oracle``'s mean depth in layers and the share of next tokens that
    the ``last_layer`` gets right, each an :class:`Estimate` with its interval over documents; ``tokens`` in number.
    """
    columns = found.columns("top", "final", "input", "document")
    document, right = columns["document"], columns["top"] == columns["final"].unsqueeze(1)
    layers = torch.tensor([*found.exit_points, found.index["num_layers"]], dtype=torch.float32)
    follows = document[1:] == document[:-1]
    last = (columns["final"][:-1] == columns["input"][1:])[follows]
    agreement = [over_documents(exits, document) for exits in right.unbind(1)]
    return {
        "agreement": dict(zip(map(str, found.exit_points), agreement, strict=True)),
        "oracle": over_documents(layers[exit_places(right)], document),
        "last_layer": over_documents(last, document[1:][follows]),
        "tokens": found.tokens,
    }


def over_documents(values: Tensor, document: Tensor) -> Estimate:
    """Return the mean of the tokens' values ``[n]`` with its interval over their documents ``[n]``."""
    units = [values[document == number].tolist() for number in torch.unique(document)]
    return Estimate.of(values.float().mean().item(), mean_interval(units))


def write(file: Path, rows: Any) -> None:
    """Write what was measured as JSON."""
    replace_files({file: f"{json.dumps(rows, indent=1, default=asdict)}\n".encode()})


def table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Return the rows as Markdown, what they say under ``labels`` before what was measured."""
    points = list(rows[0]["agreement"])
    head = [*labels, *points, "oracle's layers", "last layer"]
    lines = [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(labels)}{'--:|' * (len(points) + 2)}",
    ]
    for row in rows:
        said = [str(row.get(label, "–")) for label in labels]
        shares = [estimate.text("{:.3f}") for estimate in (*row["agreement"].values(), row["last_layer"])]
        lines.append(f"| {' | '.join([*said, *shares[:-1], row['oracle'].text('{:.2f}'), shares[-1]])} |")
    return "\n".join(lines)
