"""What the exits of a model are worth on documents, by a trace: shared by the scripts that compare trainings.

    .venv/bin/python docs/scripts/exits.py TUNING TUNING … --out FOLDER [--source embedded] [--documents 20]

Traces documents of the test splits by several tunings, folders of ``harness train lite``, unless FOLDER has that trace,
and prints what their exits are worth on those that none of them has learned from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.contracts.recipes import Silent
from harness.errors import HarnessError
from harness.host.files import replace_files
from harness.models.artefacts import read_artefact
from harness.models.exit_modules import read_shortcuts
from harness.records.estimate import Estimate
from harness.training.options import TraceCommand
from harness.training.shortcut import best_tokens
from harness.training.traces.reading import exit_states, open_traces, rows_of
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


def measured(
    found: Traces, model: str = "", shortcut: Path | None = None, learned: Collection[str] = ()
) -> dict[str, Any]:
    """Return what the exits of a trace are worth; or those of a model's other shortcut, read from the kept states.

    Documents whose keys are in ``learned`` do not count.

    ``agreement`` with the last layer by exit, an ``oracle``'s mean depth in layers, over all and by kind of text
    (``kinds``), and the share of next tokens that the ``last_layer`` gets right, each an :class:`Estimate` with its
    interval over documents; ``documents`` and ``tokens`` in number.
    """
    columns = found.columns("top", "final", "input", "document")
    unread = [number for number, facts in enumerate(found.documents) if facts["key"] not in learned]
    counts = rows_of(columns["document"], unread)
    follows = (columns["document"][1:] == columns["document"][:-1]) & counts[1:]
    right = columns["final"][:-1] == columns["input"][1:]
    last = over_documents(right[follows], columns["document"][1:][follows])
    every = 1 if shortcut is None else -(-found.tokens // READ)
    rows = counts & (torch.arange(found.tokens) % every == 0)
    top = columns["top"][rows] if shortcut is None else _read(found, model, shortcut, rows)
    document, right = columns["document"][rows], top == columns["final"][rows].unsqueeze(1)
    layers = torch.tensor([*found.exit_points, found.index["num_layers"]], dtype=torch.float32)[exit_places(right)]
    streams = [facts["stream"] for facts in found.documents]
    kind = torch.tensor([streams.index(stream) for stream in streams])[document.long()]
    agreement = [over_documents(exits, document) for exits in right.unbind(1)]
    return {
        "agreement": dict(zip(map(str, found.exit_points), agreement, strict=True)),
        "oracle": over_documents(layers, document),
        "kinds": {streams[number]: over_documents(layers[kind == number], document[kind == number])
                  for number in dict.fromkeys(kind.tolist())},
        "last_layer": last,
        "documents": len(unread),
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


def main(given: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tunings", type=Path, nargs="+", help="folders of `harness train lite`")
    parser.add_argument("--out", type=Path, required=True, help="folder of their traces")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", nargs="+", default=["py150", "javacorpus"])
    parser.add_argument("--source", nargs="+", default=["embedded"])
    parser.add_argument("--documents", type=int, default=20, help="of each task and source")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args(given)
    facts = [read_artefact(tuning / "adapter.json", "adapter").facts for tuning in asked.tunings]
    learned = {key for one in facts for key in one["documents"]}
    rows = []
    for tuning, one in zip(asked.tunings, facts, strict=True):
        found = traced(
            asked.out / tuning.name, model=asked.model, artefacts=str(tuning), weights="tuned", split="test",
            tasks=asked.task, sources=asked.source, documents=asked.documents, dtype=asked.dtype,
        )  # fmt: skip
        said = {"tuning": tuning.name, "seed": one["seed"], "steps": one["steps"]}
        rows.append(said | measured(found, learned=learned))
    print(table(rows, ("tuning", "seed", "steps", "documents", "tokens")))


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit(str(error))
