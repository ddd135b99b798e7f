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
from harness.models.artefacts import read_artefact
from harness.models.exit_modules import read_shortcuts
from harness.records.estimate import Estimate
from harness.training.options import TraceCommand
from harness.training.shortcut import best_tokens
from harness.training.traces.reading import exit_states, open_traces
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces
from harness.training.traces.training_set import exit_places
from reports.statistics.intervals import mean_interval

READ = 4096  # tokens of a trace that are read through another artefact, at most: every n-th


def traced(out: Path, **options: Any) -> Traces:
    """Trace documents into a folder, unless that was done; ``options`` are those of ``harness trace``."""
    if (out / "index.json").is_file():
        return Traces.open(out)
    return trace(TraceCommand.build({**options, "out": out}), Silent())


def measured(found: Traces, model: str = "", shortcut: Path | None = None) -> dict[str, Any]:
    """Return what the exits of a trace are worth; or those of a model's other shortcut, read from the kept states.

    ``agreement`` with the last layer by exit, an ``oracle``'s mean depth in layers, over all and by kind of text
    (``kinds``), and the share of next tokens that the ``last_layer`` gets right, each an :class:`Estimate` with its
    interval over documents; ``tokens`` in number.
    """
    columns = found.columns("top", "final", "input", "document")
    follows = columns["document"][1:] == columns["document"][:-1]
    right = columns["final"][:-1] == columns["input"][1:]
    last = over_documents(right[follows], columns["document"][1:][follows])
    every = 1 if shortcut is None else -(-found.tokens // READ)
    rows = torch.arange(found.tokens) % every == 0
    top = columns["top"] if shortcut is None else _read(found, model, shortcut, rows)
    document, right = columns["document"][rows], top == columns["final"][rows].unsqueeze(1)
    layers = torch.tensor([*found.exit_points, found.index["num_layers"]], dtype=torch.float32)[exit_places(right)]
    streams = [facts["stream"] for facts in found.documents]
    kind = torch.tensor([streams.index(stream) for stream in streams])[document.long()]
    agreement = [over_documents(exits, document) for exits in right.unbind(1)]
    return {
        "agreement": dict(zip(map(str, found.exit_points), agreement, strict=True)),
        "oracle": over_documents(layers, document),
        "kinds": {streams[number]: over_documents(layers[kind == number], document[kind == number])
                  for number in dict.fromkeys(map(streams.index, streams))},
        "last_layer": last,
        "tokens": len(right),
    }  # fmt: skip


def _read(found: Traces, model: str, shortcut: Path, rows: Tensor) -> Tensor:
    """Return the tokens that a shortcut's exits say of some rows ``[tokens]`` bool, ``[rows, exits]``."""
    resolved = open_traces(model, found.folder, artefacts=None)[1]
    artefact, width = read_artefact(shortcut, "shortcut"), resolved.info.hidden_size
    modules = read_shortcuts(artefact, found.exit_points, torch.float32, "cpu", hidden_size=width)
    backbone, hidden = resolved.load("cpu").backbone, exit_states(found, {}, rows)
    said = [best_tokens(backbone, one(hidden[:, e].float())) for e, one in enumerate(modules.values())]
    return torch.stack(said, dim=1)


def over_documents(values: Tensor, document: Tensor) -> Estimate:
    """Return the mean of the tokens' values ``[n]`` with its interval over their documents ``[n]``."""
    units = [values[document == number].tolist() for number in torch.unique(document)]
    return Estimate.of(values.float().mean().item(), mean_interval(units))


def write(file: Path, rows: Any) -> None:
    """Write what was measured as JSON."""
    replace_files({file: f"{json.dumps(rows, indent=1, default=asdict)}\n".encode()})


def table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Return the rows as Markdown, what they say under ``labels`` before what was measured."""
    points, kinds = list(rows[0]["agreement"]), list(rows[0]["kinds"])
    more = kinds if len(kinds) > 1 else []
    head = [*labels, *points, "oracle's layers", *more, "last layer"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(labels)}{'--:|' * (len(head) - len(labels))}"]
    for row in rows:
        said = [str(row.get(label, "–")) for label in labels]
        said += [one.text("{:.3f}") for one in row["agreement"].values()]
        said += [one.text("{:.2f}") for one in (row["oracle"], *(row["kinds"][kind] for kind in more))]
        lines.append(f"| {' | '.join([*said, row['last_layer'].text('{:.3f}')])} |")
    return "\n".join(lines)
