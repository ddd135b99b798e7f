"""``harness train excess``: heads that tell where a function ends, so that what follows is excess (CodeFast).

Labels are the documents' own syntax and nobody's judgement. A state is that of a token that was read; it is labelled 1
where the innermost function ends with that token, white space apart, 0 inside a function, and not at all elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.contracts import Tokenizer
from harness.contracts.recipes import Trained, TrainingRun
from harness.decoding.generation import Transcript
from harness.errors import TrainingError
from harness.models.artefacts import write_artefact
from harness.models.controllers import Network
from harness.registry import TASKS
from harness.training.identity import exit_head_note, identity, own_file, provenance
from harness.training.options import ExcessOptions
from harness.training.traces.reading import held_out_rows, index_of, keys_of, matches, open_traces, rows_of_tasks
from harness.training.traces.store import Traces
from tasks.stops.excess import SEES
from tasks.stops.syntax import function_ends

FEWEST = 8
"""Ends of functions, learned from and held out, without which nothing can be told."""
NEVER = 30.0
"""Subtracted from a head's logit where no threshold is precise enough."""


def train_excess(options: ExcessOptions, run: TrainingRun) -> Trained:
    """Train heads on a trace of documents and write them.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    path = own_file(options, run, resolved.info)
    if traces.index.get("new_tokens"):
        raise TrainingError(f"{traces.folder} has what the model generates, and no whole functions. Trace documents.")
    run.progress.stage(f"reading where functions end in {len(traces.documents)} documents")
    document = traces.columns("document")["document"]
    labels = _all_labels(traces, resolved.tokenizer)
    wanted = rows_of_tasks(traces, document, options.tasks) & ~labels.isnan()
    held = held_out_rows(traces, document, seed=options.seed, tasks=options.tasks)
    learned, checked = wanted & ~held, wanted & held
    for rows, what in ((learned, "to learn from"), (checked, "held out")):
        if (ends := int(labels[rows].sum())) < FEWEST:
            raise TrainingError(f"{traces.folder} has {ends} ends of functions {what}. Trace more --documents.")
    layers = (*traces.exit_points, resolved.info.num_layers)
    run.progress.begin("training", len(layers))
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for number, layer in enumerate(layers):
        states = _states(traces, layer, wanted)
        head = fit(SEES.build(states[learned[wanted]], None, 0, 1), labels[learned], options.l2)
        logits = head(SEES.build(states[checked[wanted]], None, 0, 1)).squeeze(1)
        head, facts = calibrated(head, logits, labels[checked], options.precision)
        told.append({"layer": layer, **facts})
        tensors |= head.to(torch.float16).tensors(str(layer))
        run.progress.step(number + 1)
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise TrainingError("training left weights that are no numbers. Raise --l2.")
    facts = {
        **identity(resolved.info, traces.index["tokenizer_fingerprint"]),
        "threshold": 0.5,
        "recipe": {"l2": options.l2, "precision": options.precision},
        "seed": options.seed,
        "trained_on": {
            "streams": sorted({d["stream"] for d in traces.documents if matches(d, options.tasks)}),
            "tokens": int(learned.sum()),
            "ends": int(labels[learned].sum()),
        },
        "documents": sorted({d["key"] for d in traces.documents if matches(d, options.tasks)}),
        "held_out_documents": keys_of(traces, document, held),
        "ngrams": index_of(traces, options.folder),
        "replayed": {"held_out_tokens": int(checked.sum()), "ends": int(labels[checked].sum()), "rows": told},
        "made": provenance(run.command),
    }
    artefact = write_artefact(path, run.recipe, tensors, facts)
    lines = [f"| {row['layer']} | {_share(row['found'])} | {_share(row['precision'])} |" for row in told]
    report = "\n".join(["| layers | ends found | stops that are ends |", "|--:|--:|--:|", *lines])
    note = (
        f"{int(labels[checked].sum())} ends among {int(checked.sum())} held-out tokens, on which the thresholds were "
        f"chosen. The result is {artefact.path}. {exit_head_note(artefact.facts['exit_head'])}"
    )
    return Trained(report, note)


def labels_of(token_ids: Sequence[int], tokenizer: Tokenizer, language: str) -> list[float]:
    """Return for each token of a document whether a function ends with it: 1, inside a function 0, elsewhere NaN."""
    spelled = Transcript(tokenizer, ())
    ends = []
    for count in range(1, len(token_ids) + 1):
        spelled.follow(token_ids[:count])
        ends.append(len(spelled.text.encode(errors="replace")))
    source = spelled.finish()
    return function_ends(source, ends, language)


def fit(x: Tensor, labels: Tensor, l2: float) -> Network:
    """Return the logistic regression of labels ``[n]`` on inputs ``[n, width]``.

    Minimises the mean cross-entropy plus ``l2`` times the squared weights, which has one minimum.
    """
    weight, bias = nn.Parameter(torch.zeros(1, x.shape[1])), nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = nn.functional.binary_cross_entropy_with_logits((x @ weight.T + bias).squeeze(1), labels)
        found = found + l2 * weight.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Network(((weight.detach(), bias.detach()),))


def calibrated(head: Network, logits: Tensor, labels: Tensor, precision: float) -> tuple[Network, dict[str, Any]]:
    """Return a head shifted so that from 0.5 on its stops are precise, and what it then finds.

    Args:
        head: of one layer.
        logits: of held-out tokens, ``[n]``.
        labels: of these, ``[n]``.
        precision: share of stops that must be ends.
    """
    least = precise_threshold(logits, labels, precision)
    ((weight, bias),) = head.layers
    stops = logits >= (math.inf if least is None else least)
    right = float(labels[stops].sum())
    facts = {
        "found": right / float(labels.sum()),
        "precision": right / int(stops.sum()) if stops.any() else None,
    }
    return Network(((weight, bias - (NEVER if least is None else least)),), head.activation), facts


def precise_threshold(logits: Tensor, labels: Tensor, precision: float) -> float | None:
    """Return the least logit from which on so many stops are ends; ``None`` where there is none."""
    order = logits.sort(descending=True)
    counts = torch.arange(1, len(labels) + 1)
    enough = (labels[order.indices].cumsum(0) / counts >= precision).nonzero().flatten()
    return float(order.values[int(enough[-1])]) if len(enough) else None


def _all_labels(traces: Traces, tokenizer: Tokenizer) -> Tensor:
    columns = traces.columns("input", "document")
    borders = columns["document"].diff().nonzero().flatten() + 1
    numbers = columns["document"][torch.cat((torch.zeros(1, dtype=torch.long), borders))].tolist()
    found: list[float] = []
    for number, ids in zip(numbers, columns["input"].tensor_split(borders), strict=True):
        task = str(traces.documents[number]["stream"]).partition(",")[0]
        found += labels_of(ids.tolist(), tokenizer, TASKS.load(task)().language)
    return torch.tensor(found)


def _states(traces: Traces, layer: int, rows: Tensor) -> Tensor:
    """Return the states after a layer, ``[rows, hidden_size]`` float32."""
    parts, start = [], 0
    name = "hidden" if layer in traces.exit_points else "last"
    for shard in traces.shards(name):
        whole = shard[name] if name == "last" else shard[name][:, traces.exit_points.index(layer)]
        parts.append(whole[rows[start : start + len(whole)]].float())
        start += len(whole)
    return torch.cat(parts)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
