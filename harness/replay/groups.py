"""Where exits pay, by token: of what kind it is, where in the file it stands, and whether tuning knew its project.

Kind and place are those of the text that is read: the document's own, or what the model generated. Groups of tokens
differ in more than the one thing that they are named by, so that a difference between two is no effect of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from harness.contracts import CONTEXT, Tokenizer
from harness.models.model import ResolvedModel, resolve
from harness.records.calibration import ALL, KIND, POSITION, PROJECT, GroupDrafts, TokenGroup
from harness.registry import TASKS
from harness.replay.replay import Outcome
from harness.running.completions import token_texts
from harness.training.traces.store import Traces
from harness.training.traces.training_set import exit_places
from reports.completions.token_kinds import KINDS, kinds_of
from reports.statistics.calibration import share_intervals

BANDS = (0, 30, 110, 360)
"""First positions of the bands around 15, 60 and 200, whose bounds are geometric means, and of what lies behind."""
PROJECTS = ("file read in tuning", "project read in tuning", "project not read")
SPELLED = 64
"""Tokens that are spelled at a time, since each costs the length of what is spelled with it."""

Grouping = tuple[Sequence[str], Tensor]
"""Names of groups, and the group of each token by its place among them, -1 for none, ``[n]`` int64."""


def describe_groups(
    traces: Traces, resolved: ResolvedModel, wanted: Tensor, drafting: Mapping[str, Outcome]
) -> Iterator[TokenGroup]:
    """Yield every group that has tokens, of the ``wanted`` ones (``[tokens]`` bool) of a trace.

    ``drafting`` is what lossless operating points did with them.
    """
    whole = traces.columns("top", "final", "input", "position", "document")
    columns = {name: column[wanted] for name, column in whole.items()}
    right = columns["top"] == columns["final"].unsqueeze(1)
    num_layers = resolved.info.num_layers
    layers = torch.tensor([*traces.exit_points, num_layers])[exit_places(right)]
    documents, number = torch.unique(columns["document"], return_inverse=True)
    bands = torch.bucketize(columns["position"], torch.tensor(BANDS), right=True) - 1
    spans = [f"{first} to {last - 1}" for first, last in pairwise(BANDS)]
    groupings: dict[str, Grouping] = {
        ALL: (("all tokens",), torch.zeros(len(layers), dtype=torch.int64)),
        KIND: (KINDS, _kinds(traces, resolved.tokenizer, whole)[wanted]),
        POSITION: ((*spans, f"{BANDS[-1]} and later"), bands),
        PROJECT: (PROJECTS, _familiarity(traces, resolved)[columns["document"].long()]),
    }
    for by, (names, places) in groupings.items():
        for place, name in enumerate(names):
            rows = (places == place).nonzero().squeeze(1)
            if len(rows):
                yield _group(by, name, rows, number, len(documents), right, layers, num_layers, drafting)


def _group(
    by: str, name: str, rows: Tensor, number: Tensor, documents: int, right: Tensor, layers: Tensor,
    num_layers: int, drafting: Mapping[str, Outcome],
) -> TokenGroup:  # fmt: skip
    """Return some tokens, of documents ``number``, as a group."""

    def by_document(counts: Tensor) -> Tensor:
        """``[n, columns]`` → ``[documents, columns]`` of the group."""
        summed = torch.zeros(documents, counts.shape[1], dtype=torch.int64)
        return summed.index_add(0, number[rows], counts[rows].long())

    tokens = by_document(torch.ones_like(right))
    (bounds,) = share_intervals(by_document(layers.unsqueeze(1)).numpy(), num_layers * tokens[:, :1].numpy())
    drafts = []
    for point, outcome in drafting.items():
        drafted, stood = (by_document(column.unsqueeze(1)) for column in (outcome.drafted, outcome.stood))
        (interval,) = share_intervals(stood.numpy(), drafted.numpy())
        drafts.append(
            GroupDrafts(
                operating_point=point, drafted=int(drafted.sum()), accepted=int(stood.sum()), accepted_ci=interval
            )
        )
    return TokenGroup(
        by=by,
        name=name,
        tokens=len(rows),
        documents=len(torch.unique(number[rows])),
        sufficient_layer=layers[rows].double().mean().item(),
        sufficient_layer_ci=bounds and (num_layers * bounds[0], num_layers * bounds[1]),
        agreement=tuple(right[rows].double().mean(0).tolist()),
        agreement_ci=tuple(share_intervals(by_document(right).numpy(), tokens.numpy())),
        drafts=tuple(drafts),
    )


def _kinds(traces: Traces, tokenizer: Tokenizer, columns: Mapping[str, Tensor]) -> Tensor:
    """Return the place of each token's kind among :data:`KINDS`, -1 where it has none, ``[n]`` int64.

    A row's token is what the text has behind the one that was read; that of a document's last row is the last layer's.
    """
    numbers, lengths = torch.unique_consecutive(columns["document"], return_counts=True)
    read, said = (torch.split(columns[name], lengths.tolist()) for name in ("input", "final"))
    found: list[int] = []
    for number, tokens, finals in zip(numbers.tolist(), read, said, strict=True):
        facts = traces.documents[number]
        language = TASKS.load(str(facts["stream"]).partition(",")[0])().language
        before = [int(token) for token in str(facts.get("prompt", "")).split()][:-1]  # the first that has a row is last
        text = [*before, *tokens.tolist(), int(finals[-1])]
        pieces = list[str]()
        for start in range(0, len(text), SPELLED):
            pieces += token_texts(tokenizer, text[start : start + SPELLED], text[max(0, start - CONTEXT) : start])
        kinds = kinds_of(pieces, language)[-len(tokens) :]
        found += [-1 if kind is None else KINDS.index(kind) for kind in kinds]
    return torch.tensor(found)


def _familiarity(traces: Traces, resolved: ResolvedModel) -> Tensor:
    """Return each document's place among :data:`PROJECTS`, -1 where nothing says it, ``[documents]`` int64.

    Base weights, which nothing has tuned, are asked about what tuning has read that there is of the same model, so that
    one can tell how easy its projects are.
    """
    if resolved.tuning is None and resolved.info.weights != "random":
        resolved = resolve(replace(resolved.info.asked, weights="auto", exit_head="auto"))
    tuning = resolved.tuning or {}
    learned = {*tuning.get("documents", ())} - {*tuning.get("held_out", ())}
    projects = {*tuning.get("projects", ())}

    def place(document: Mapping[str, object]) -> int:
        if document["key"] in learned:
            return 0
        if not projects or "project" not in document:
            return -1
        return 1 if document["project"] in projects else 2

    return torch.tensor([place(document) for document in traces.documents])
