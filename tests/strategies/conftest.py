"""Views made by hand: what a strategy is shown, without a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import HeadChoice, ModelInfo, ModelRequest
from harness.decoding.engine import Engine
from harness.decoding.readings import entropy, top_probability, two_best
from harness.models.model import resolve


@dataclass
class View:
    """An exit view; whoever touches what is not there fails."""

    exit_layer: int = 4
    given_logits: Tensor | None = None
    given_state: Tensor | None = None
    previous: View | None = None
    token_ids: Sequence[Sequence[int]] = ()
    rows: Tensor = field(default_factory=lambda: torch.tensor([0]))
    deep: Tensor | None = None
    given: tuple[Tensor, Tensor] | None = None
    stopped: Tensor | None = None
    read_rows: list[int] = field(default_factory=list)
    parts: list[tuple[list[int], View]] = field(default_factory=list)
    _derived: dict[Hashable, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        assert self.given_logits is not None, "logits were not to be computed"
        return self.given_logits

    @property
    def top_token(self) -> Tensor:
        return self.logits.argmax(-1)

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[-1]

    @property
    def top_probability(self) -> Tensor:
        return top_probability(self.logits)

    @property
    def second_probability(self) -> Tensor:
        return two_best(self.logits)[:, 1]

    @property
    def entropy(self) -> Tensor:
        return entropy(self.logits)

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]

    def best_tokens(self, count: int) -> Tensor:
        return self.logits.topk(count, dim=-1).indices

    def read(self, head: HeadChoice) -> View:
        assert head.is_full, "there is no cheap head here"
        return self

    def logits_of(self, token_ids: Tensor) -> Tensor:
        """Of the same logits, without them being computed: the rows that were read are noted."""
        assert self.given_logits is not None
        self.read_rows.append(token_ids.shape[1])
        return self.given_logits.gather(1, token_ids)

    def answer_with(self, token_ids: Tensor, probabilities: Tensor) -> None:
        self.given = token_ids, probabilities

    def stop(self, rows: Tensor) -> None:
        self.stopped = rows

    def part(self, places: list[int]) -> View:
        one = self.of(places)
        self.parts.append((places, one))
        return one

    @property
    def hidden_state(self) -> Tensor:
        assert self.given_state is not None, "the hidden state was not to be read"
        return self.given_state

    @property
    def full_depth_token(self) -> Tensor:
        assert self.deep is not None, "the last layer was not to be run"
        return self.deep

    @property
    def position(self) -> Tensor:
        return torch.tensor([10 + len(tokens) for tokens in self.token_ids])

    def of(self, places: list[int]) -> View:
        """The same view of some rows."""

        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[places]

        return View(
            self.exit_layer,
            some(self.given_logits),
            some(self.given_state),
            None if self.previous is None else self.previous.of(places),
            [self.token_ids[place] for place in places] if self.token_ids else (),
            self.rows[places],
            some(self.deep),
        )


@pytest.fixture(scope="session")
def view() -> Callable[..., View]:
    """``view(logits=…, hidden_state=…, previous=…, generated=…, rows=…, deep=…)``."""

    def make(
        *,
        logits: Any = None,
        hidden_state: Any = None,
        previous: View | None = None,
        generated: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        deep: Any = None,
        exit_layer: int = 4,
    ) -> View:
        def tensor(value: Any) -> Tensor | None:
            return None if value is None else torch.as_tensor(value)

        known = next((len(value) for value in (logits, hidden_state, rows, generated) if value is not None), 1)
        return View(
            exit_layer,
            tensor(logits),
            tensor(hidden_state),
            previous,
            [[0] * count for count in (generated if generated is not None else [0] * known)],
            torch.tensor(list(rows) if rows is not None else range(known)),
            tensor(deep),
        )

    return make


@pytest.fixture(scope="session")
def probabilities() -> Callable[..., Tensor]:
    """Logits whose softmax is what was asked for, one list per row; a shift of all of them changes nothing."""

    def make(*rows: Sequence[float], shift: float = 3.0) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64).log().float() + shift

    return make


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    """Facts of a model whose artefacts are what a test writes."""
    return ModelInfo(
        "model", "llama", 28, 8, 5, (4, 6, 8, 10, 12, 14, 18, 22, 26), 100, "float32", "random", 1, 1, 1, 1,
        fingerprint="5ca1ab1e", artefacts=(str(tmp_path),),
    )  # fmt: skip


@pytest.fixture
def engine(tiny_llama: Path, tmp_path: Path) -> Engine:
    """A tiny model in the engine, whose artefacts are what a test writes."""
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path), exit_head="shared"))
    return Engine(resolved.load("cpu").backbone, resolved.info)


@pytest.fixture(scope="session")
def random_view(view: Callable[..., View]) -> View:
    """Twelve rows at their third exit point."""
    generator = torch.Generator().manual_seed(0)
    made: View | None = None
    for layer in (4, 6, 8):
        logits = torch.randn(12, 4, generator=generator) * 1.5
        made = view(
            logits=logits,
            hidden_state=torch.randn(12, 3, generator=generator),
            previous=made,
            generated=list(range(12)),
            deep=(logits.argmax(-1) + torch.arange(12) % 2) % 4,
            exit_layer=layer,
        )
    assert made is not None
    return made
