"""How much exits know of the last layer's token: read by the model's own head, and by it behind closed-form maps.

Maps are fitted on some documents and judged on the others (cross-fitting, by document), so that no token is judged by a
map that learned from it. All that is read lies in a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts import ModelInfo
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.errors import DataError
from harness.models.model import ResolvedModel
from harness.running.operating_points import operating_point
from harness.suitability.record import ExitFacts, HeadFacts
from harness.sweep.replay_strategy import replay
from harness.sweep.tokens import TracedTokens
from harness.training.shortcut import ShortcutMoments
from harness.training.traces.reading import exit_maps
from harness.training.traces.store import Traces

PLAIN, TRAINED, CLOSED_FORM = "plain", "trained maps", "closed-form maps"
MOST = 16_384
"""Tokens that are read at most: whole documents, some of a large trace."""
RANKED = 1024
"""Tokens whose ranks are found where the trace has the rest, at one LM head an exit each."""
FOLDS = 4
CHUNK = 64

Columns = Mapping[str, Tensor]
OfExit = Callable[[int], Tensor]
"""Exit layer → states that a head reads, ``[n, hidden_size]``."""


@dataclass(frozen=True)
class ReadExits:
    """Some tokens as every exit point reads them.

    Attributes:
        name: of the head.
        own: what a run reads exits with.
        tokens: for replays.
        ranks: of the last layer's token, ``[n, exits]``; of some of the tokens.
    """

    name: str
    own: bool
    tokens: TracedTokens
    ranks: Tensor


def sampled(traces: Traces, *names: str, seed: int = 0) -> dict[str, Tensor]:
    """Return columns of whole documents, :data:`MOST` tokens at most, in the order of the trace.

    Raises:
        DataError: fewer documents than folds.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, count = [], 0
    for number in torch.randperm(len(traces.documents), generator=generator).tolist():
        size = int(traces.documents[number]["tokens"])
        if count + size <= MOST:
            chosen.append(number)
            count += size
    if len(chosen) < FOLDS:
        raise DataError(
            f"{len(chosen)} documents of {traces.folder} can be read, and it takes {FOLDS}, since maps are fitted on "
            "some and judged on others. Use more --documents."
        )
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for shard in traces.shards(*dict.fromkeys((*names, "document"))):
        rows = torch.isin(shard["document"].long(), torch.tensor(chosen))
        for name in names:
            parts[name].append(shard[name][rows])
    return {name: torch.cat(found) for name, found in parts.items()}


def read_all(
    columns: Columns, traces: Traces, resolved: ResolvedModel, backbone: Backbone, step: Callable[[int], None]
) -> Iterator[ReadExits]:
    """Yield the tokens as read by the plain head, by trained maps where the model has some, and by closed-form ones.

    Args:
        columns: of the trace, from :func:`sampled`.
        traces: that they are of.
        resolved: the trace's model.
        backbone: its LM head.
        step: is told how many readings of an exit point are done.
    """
    points = traces.exit_points
    hidden, final = columns["hidden"], columns["final"].long()
    trained: Mapping[int, Linear] = {}
    if resolved.shortcut is not None:
        from harness.models.controllers import Observation

        trained = exit_maps(traces, resolved, Observation(state="exit"))
    done = 0

    def read(states: OfExit, targets: Tensor) -> dict[str, Tensor]:
        nonlocal done
        found: dict[str, list[Tensor]] = {}
        for point in points:
            for name, column in _read(backbone, states(point), targets).items():
                found.setdefault(name, []).append(column)
            done += 1
            step(done)
        return {name: torch.stack(parts, dim=1) for name, parts in found.items()}

    def plain(rows: Tensor) -> OfExit:
        return lambda point: hidden[rows, points.index(point)].float()

    def mapped(maps: Mapping[int, Linear], rows: Tensor) -> OfExit:
        return lambda point: maps[point](plain(rows)(point))

    everything = torch.arange(len(final))
    some = torch.randperm(len(final), generator=torch.Generator().manual_seed(0))[:RANKED].sort().values
    own = mapped(trained, some) if trained else plain(some)
    ranks = read(own, final[some])["rank"]
    if trained:
        found = read(plain(everything), final)
        yield ReadExits(PLAIN, False, _traced(traces, columns, found, {}), found["rank"])
    yield ReadExits(TRAINED if trained else PLAIN, True, _traced(traces, columns, {}, trained), ranks)
    crossed: dict[int, Tensor] = {}
    maps: dict[int, Linear] = {}
    for rows, maps in _cross_fitted(columns, traces):
        for point in points:
            whole = crossed.setdefault(point, torch.empty(len(final), hidden.shape[2]))
            whole[rows] = maps[point](hidden[rows, points.index(point)].float())
    found = read(crossed.__getitem__, final)
    yield ReadExits(CLOSED_FORM, False, _traced(traces, columns, found, maps), found["rank"])


def readings(trained: bool, exit_points: int) -> int:
    """Return how many readings of an exit point :func:`read_all` makes."""
    return (3 if trained else 2) * exit_points


def describe(read: ReadExits, model: ModelInfo) -> HeadFacts:
    """Return what the exits know."""
    tokens = read.tokens
    exits = []
    for place, layer in enumerate(tokens.exit_points):
        ranks = read.ranks[:, place].float()
        exits.append(
            ExitFacts(
                layer=layer,
                agreement=(tokens.top(layer) == tokens.final).float().mean().item(),
                entropy=tokens.number("entropy", layer).mean().item(),
                rank_median=ranks.median().item(),
                in_ten=(ranks <= 10).float().mean().item(),
            )
        )
    spec = StrategySpec("oracle")
    bound = replay(operating_point(spec, build_strategy(spec), model), tokens, model)
    return HeadFacts(
        name=read.name,
        own=read.own,
        exits=tuple(exits),
        oracle_skip=1 - bound.layers / (bound.count * model.num_layers),
        ranked=len(read.ranks),
    )


def _traced(traces: Traces, columns: Columns, found: Columns, maps: Mapping[int, Linear]) -> TracedTokens:
    keys = [str(document["key"]) for document in traces.documents]
    shard = {**columns, **{name: column for name, column in found.items() if name != "rank"}}
    return TracedTokens(traces.exit_points, [(shard, torch.arange(len(columns["final"])))], maps, keys, False)


def _cross_fitted(columns: Columns, traces: Traces) -> Iterator[tuple[Tensor, dict[int, Linear]]]:
    """Yield rows of a part of the documents, and maps fitted on the others."""
    _, number = torch.unique(columns["document"], return_inverse=True)
    hidden, last = columns["hidden"], columns["last"]
    for fold in range(FOLDS):
        apart = number % FOLDS == fold
        moments = ShortcutMoments(traces.exit_points, hidden.shape[2])
        learned = ~apart
        moments.add({point: hidden[learned, e] for e, point in enumerate(traces.exit_points)}, last[learned])
        yield apart.nonzero().squeeze(1), {point: Linear(*found) for point, found in moments.solve().items()}


@torch.inference_mode()
def _read(backbone: Backbone, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what the LM head says of states ``[n, hidden_size]``: the columns of a trace, and the targets' ranks."""
    parts = []
    for some, wanted in zip(torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True):
        logits = backbone.logits(some.to(backbone.dtype)).float()
        shares = logits.log_softmax(-1)
        best = shares.topk(2, dim=-1)
        parts.append(
            {
                "top": best.indices[:, 0].int(),
                "top1": best.values[:, 0].exp(),
                "top2": best.values[:, 1].exp(),
                "entropy": -(shares.exp() * shares).nan_to_num(0.0).sum(-1),
                "rank": 1 + (logits > logits.gather(1, wanted.unsqueeze(1))).sum(-1),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
