"""Exit where a predictor that looks at a few candidate tokens expects the answer, and the LM head confirms it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, HeadChoice, ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, TrainedStrategy, candidate_features, logit
from harness.models.heads import HeadName, head_artefacts


@dataclass(frozen=True)
class Predictor(TrainedStrategy):
    """Exit when a predictor hits, and the LM head's token is then one of the candidates.

    Rule: k candidates are the best tokens of ``head`` at the first exit point; at exit l the predictor's input is their
    logits z_l, softmax(z_l) among the k, and its change since the exit before (3k numbers). Where
    σ(MLP_l(input)) ≥ threshold the whole LM head is run, and the exit holds only if its arg-max is a candidate. Cost
    per check: k rows of the LM head and a small MLP; per token ``head`` once; per hit an LM head, which is the token's
    own where the exit holds.

    Source: Xu et al., "SpecEE", ISCA 2025, arXiv 2504.08850 (predictor features; one two-layer MLP per
    layer; verification by the full head). What differs: the paper's candidates come from a draft model's tree; here
    from a head, since there is no draft model. The paper schedules which layers are asked by how often they exit; here
    every exit point is. The label that the predictors learn is 1 where the exit's token is the last layer's and a
    candidate. At the first exit point nothing has changed yet, which is 0 here and the softmax itself in the authors'
    code (MathsCode/ISCA25-SpecEE); that has four candidates and 512 hidden units, which are the recipe's options here.
    """

    kind: ClassVar[str] = "predictor"
    option: ClassVar[str] = "predictor"
    needed: ClassVar[tuple[str, ...]] = ("threshold", "candidates", "head", "activation")

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least predicted probability; the predictor's own when left out; 1 never exits"),
    ] = None
    head: Annotated[HeadName, Field(description="what proposes candidates at the first exit point, as in training")] = (
        "shortlist"
    )
    predictor: Annotated[str, Field(description="trained predictor: a path, a name, or empty for the model's own")] = ""

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once the predictor and what its head is made from are found and checked.

        Raises:
            ArtefactError: one is not to be had, or the predictor learned from candidates of another head.
        """
        found = self.artefact(model)
        trained = found.facts["head"]
        if trained != self.head:
            raise ArtefactError(
                f"{found.path} was trained on candidates of head={trained}, and head={self.head} was asked for. Use "
                f"predictor:head={trained}, or train it again with --head {self.head}."
            )
        head_artefacts(HeadChoice.of(self.head), model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The predictor, and what the head is made from."""
        return {**super().artefacts(model), **head_artefacts(HeadChoice.of(self.head), model)}

    def cheap_heads(self) -> tuple[HeadChoice, ...]:
        """The head that proposes, unless it is the LM head."""
        choice = HeadChoice.of(self.head)
        return () if choice.is_full else (choice,)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Read the predictor; read once, however many batches there are."""
        threshold = logit(self.settings(model)["threshold"])
        return _rule(self.artefact(model), HeadChoice.of(self.head), batch.device, threshold)


@lru_cache(maxsize=32)
def _rule(artefact: Artefact, head: HeadChoice, device: str, threshold: float) -> ExitRule:
    facts, tensors = artefact.facts, artefact.tensors(device)
    networks = {}
    for point in facts["exit_points"]:
        network = Network.of(tensors, str(point), facts["activation"])
        widths = [weight.shape for weight, _ in network.layers]
        if not widths or widths[0][1] != 3 * facts["candidates"] or widths[-1][0] != 1:
            raise ArtefactError(f"{artefact.path} holds no predictor for layer {point}. Make the predictor again.")
        networks[point] = network
    return _Predicting(head, facts["candidates"], networks, threshold)


@dataclass(frozen=True, slots=True, eq=False)
class _Predicting:
    head: HeadChoice
    count: int
    networks: Mapping[int, Network]
    threshold: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Predict; where that hits, let the LM head confirm."""
        candidates = self._candidates(view)
        hits = view.once((self, "score"), lambda: self._score(view, candidates)) >= self.threshold
        places = hits.nonzero().squeeze(1)
        if len(places):
            said = view.part(places.tolist()).top_token
            hits[places] = (candidates[places] == said.unsqueeze(1)).any(1)
        return hits

    def _candidates(self, view: ExitView) -> Tensor:
        first = view
        while first.previous is not None:
            first = first.previous
        return first.once((self, "candidates"), lambda: first.read(self.head).best_tokens(self.count))

    def _logits(self, view: ExitView, candidates: Tensor) -> Tensor:
        return view.once((self, "logits"), lambda: view.logits_of(candidates))

    def _score(self, view: ExitView, candidates: Tensor) -> Tensor:
        before = None if view.previous is None else self._logits(view.previous, candidates)
        features = candidate_features(self._logits(view, candidates), before)
        return self.networks[view.exit_layer](features).squeeze(1)
