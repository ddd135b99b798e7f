"""The contract of a strategy: its rule, the view that this is shown, and two kinds of rule that need not be asked.

Checks that are numbers (:class:`StateTest`) can be made inside layers that are compiled into one call; a rule that
knows before a token's first layer where it leaves (:class:`PlannedRule`) is asked nowhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from harness.contracts.heads import HeadChoice, Reading
from harness.contracts.models import ModelInfo
from harness.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12
"""Added to mean squares, which may be zero."""


@dataclass(frozen=True, slots=True, eq=False)
class StateScore:
    """A small network's score of the state at one exit point.

    Of a state ``x`` its first layer makes ``r · (weight x) + c change + bias``, where ``r`` is the inverse root mean
    square of ``x``, or 1, and ``c`` are three numbers: the logarithm of the root mean square, the cosine with the state
    at the exit point before, and the change of that logarithm since then; the latter two are 0 at the first.

    Attributes:
        bias: ``[k]`` float32, as all its tensors.
        weight: ``[k, hidden_size]``; ``None`` for zeros.
        change: ``[3, k]``; ``None`` for zeros.
        normalise: whether ``r`` is not 1.
        later: weight ``[out, in]`` and bias ``[out]`` of the layers behind; an activation stands before each. None may
            be wider than the first, nor that wider than the model's own layers.
        activation: which.
        offsets: ``[m]``, of a network with m outputs, whose score is the greatest of log softmax(outputs) + offsets: -∞
            leaves an output out. ``None``: it has one output, which is the score.
    """

    bias: Tensor
    weight: Tensor | None = None
    change: Tensor | None = None
    normalise: bool = False
    later: tuple[tuple[Tensor, Tensor], ...] = ()
    activation: Literal["tanh", "relu"] = "tanh"
    offsets: Tensor | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class StateTest:
    """Exit where the score of a row's state reaches a threshold; a score of NaN decides nothing, and the row fails.

    Or, where the test says so, ask the rule there and nowhere else.

    Attributes:
        scores: of the exit points at which the rule is asked, in their order.
        threshold: score from which a token exits, as float32 rounds it; NaN lets none go.
        state: ``hidden``, the residual stream; or ``exit``, that through the exit's shortcut.
        asks: whether a token whose score reaches the threshold exits only if the rule, asked about it there, says so.

    Raises:
        OptionError: a score holds something else than tensors, or there is no such state.
    """

    scores: tuple[StateScore, ...]
    threshold: float
    state: Literal["hidden", "exit"] = "hidden"
    asks: bool = False

    def __post_init__(self) -> None:
        for one in self.scores:
            pairs = all(isinstance(layer, tuple) and len(layer) == 2 for layer in one.later)
            held = [each for each in (one.bias, one.weight, one.change, one.offsets) if each is not None]
            held += [each for layer in one.later for each in layer] if pairs else []
            if not pairs or one.bias is None or not all(hasattr(each, "data_ptr") for each in held):
                raise OptionError("a StateScore holds tensors, and in later pairs of them: weight and bias.")
        if self.state not in ("hidden", "exit"):
            raise OptionError(f"a StateTest reads the state 'hidden' or 'exit', not {self.state!r}.")


def state_test_of(rule: object, points: Sequence[int]) -> StateTest | None:
    """Return the test of a rule that is asked at some exit points; ``None`` where it has to be asked.

    A class that overrides ``should_exit`` alone has none: the test that it inherits is of something else.
    """
    for kind in type(rule).__mro__:
        if "state_test" in vars(kind):
            found: StateTest | None = rule.state_test(points)  # type: ignore[attr-defined]
            return found
        if "should_exit" in vars(kind):
            return None
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts about a batch before its first token."""

    # one seed per row, derived from the run's seed and the sample, so that a random strategy decides alike whatever the
    # batch size and after a resume
    seeds: tuple[int, ...]
    device: str  # torch device of the tensors it will see
    # what the engine has read and decoded lately for the same owner, tokens, the newest text last; empty where requests
    # share nothing
    known: Sequence[Sequence[int]] = ()

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.seeds)


class ExitView(Reading, Protocol):
    """A strategy's view of one exit point: the rows of the batch that are still running.

    ``n`` is the number of those rows. Everything lazy is computed at most once, and logits that were
    asked for are reused as the output if the row exits here; every LM-head evaluation is counted and
    charged to the strategy.
    """

    @property
    def exit_layer(self) -> int:
        """Decoder layers executed so far for this token."""

    @property
    def rows(self) -> Tensor:
        """Indices of these rows in the batch, ``[n]`` int64."""

    @property
    def position(self) -> Tensor:
        """Position of the token being processed, 0-based, ``[n]`` int64."""

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """Tokens generated so far by each of these rows."""

    @property
    def hidden_state(self) -> Tensor:
        """Residual stream before the final norm, ``[n, hidden_size]``."""

    @property
    def exit_state(self) -> Tensor:
        """Input of the final norm at this exit, ``[n, hidden_size]``: the hidden state through the exit's shortcut,
        or the hidden state itself with the shared head. Computed when first asked for; the LM head is not run.
        """

    @property
    def logits(self) -> Tensor:
        """Exit head's logits, ``[n, vocab_size]``; computed when first asked for."""

    @property
    def top_token(self) -> Tensor:
        """Arg-max of ``logits``, ``[n]`` int64; costs what ``logits`` costs."""

    @property
    def vocab_size(self) -> int:
        """Columns of ``logits``; nothing is computed."""

    @property
    def top_probability(self) -> Tensor:
        """Probability of the best token, ``[n]`` float32; costs what ``logits`` costs. A trace holds it, and not the
        logits: a strategy that asks for this and its neighbours can be replayed (``harness sweep``).
        """

    def read(self, head: HeadChoice) -> Reading:
        """Return what a head says of these rows: a cheap one at its own cost, counted apart; ``full`` is this view.

        A row that exits takes its token from the LM head all the same, unless :meth:`answer_by` says otherwise.

        Raises:
            UnknownNameError: no such head.
            ArtefactError: the artefact it is made from is missing, or not of this model.
        """

    def answer_by(self, head: HeadChoice) -> None:
        """Let rows that exit here take their tokens from a head that was read; tokens are then its own, and a loss."""

    def logits_of(self, token_ids: Tensor) -> Tensor:
        """Return the LM head's logits of some tokens of each row, ``[n, k]`` int64 → ``[n, k]`` float32.

        Only their rows of the head are read; charged as a cheap head is.
        """

    def answer_with(self, token_ids: Tensor, probabilities: Tensor) -> None:
        """Let rows that exit here take these tokens, ``[n]`` int64, of these probabilities, ``[n]``; a loss, too."""

    def stop(self, rows: Tensor) -> None:
        """End the completions of some of these rows, ``[n]`` bool, without a token for this place.

        Nothing in lossless decoding, whose completions are full depth's, nor before a row's first token; there the
        answer of the rule counts, as of other rows.
        """

    def part(self, places: list[int]) -> ExitView:
        """Return a view of some of these rows, so that what it reads is charged to them alone, and serves the output.

        It has no :attr:`previous`.
        """

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return ``compute()``, ``[n, …]``, computed at most once for a key.

        For what options do not change, such as the score that a threshold is compared with: where many operating
        points are replayed together, all share the result. The key must say whose it is: ``"saturation: dots"``.
        Where it is NaN the row fails, whatever the rule answers: a comparison with NaN decides nothing.
        """

    @property
    def full_depth_token(self) -> Tensor:
        """Token the last layer would give from here, ``[n]`` int64. Runs the remaining layers: only
        for an upper bound (the oracle), whose cost lies outside the measured window.
        """

    @property
    def previous(self) -> ExitView | None:
        """The view of the previous exit point asked for this token, same rows; ``None`` at the first."""


class ExitRule(Protocol):
    """Per-batch decision maker, made by :meth:`Strategy.start`.

    One that has a method :meth:`Strategy.state_test` need not be asked where compiled layers can make its test, and a
    :class:`harness.contracts.PlannedRule` nowhere.
    """

    def should_exit(self, view: ExitView) -> Tensor:
        """Return which rows stop here, ``[n]`` bool. On an accelerator nobody waits for an answer on the CPU."""


class Strategy(Protocol):
    """A frozen dataclass whose fields are its options; subclass it and add ``should_exit``.

    Field annotations carry the range: ``threshold: Annotated[float, Field(ge=0, le=1, description=…)]``.
    A stateless strategy is its own rule. One that is an ``upper_bound`` (the oracle) is not deployable: it decides
    outside the measured window, inside which its exits are replayed at no cost. It bounds nothing where keys and values
    drift, so that it decodes under exact ones, whatever a run names. ``probabilistic`` ones have a
    ``threshold`` that is the least probability, by their own estimate, that the exit's token is right: whether that
    estimate holds can be checked (``harness sweep --out`` writes calibration). ``default_kv`` names the KV policy it
    runs under unless a run names one: exact keys and values for everything whose depths mix. One whose
    ``default_decode`` is lossless only drafts: what its exits say is never an answer, and no run takes it for one.
    """

    default_kv: ClassVar[str] = "recompute"
    default_decode: ClassVar[str] = "lossy"
    upper_bound: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False

    def state_test(self, points: Sequence[int]) -> StateTest | None:
        """Return its checks as numbers, if it is its own rule; ``None``: it has to be asked.

        On a CPU, compiled layers then make the checks and come back only where a row leaves, unless a row beside it has
        to be asked. Nothing else may come of a check than its answer, and :meth:`should_exit` must answer as the test
        does, up to rounding; of a test that asks, it must let no row go whose score is below the threshold. A subclass
        that overrides :meth:`should_exit` alone is asked.

        Args:
            points: exit points at which it is asked.
        """
        return None

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Return the layers at which this strategy wants to be asked, sorted, a subset of the model's.

        Raises:
            OptionError: an option does not fit the model. Called before weights are loaded.
        """
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """Return the trained parts it runs on for this model: name → SHA-256, for the record.

        All that decides what a part does belongs there: :meth:`harness.models.artefacts.Artefact.hashes`.
        """
        return {}

    def cheap_heads(self) -> tuple[HeadChoice, ...]:
        """Return the cheap heads that it reads, for the record."""
        return ()

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """Return what options that were left out (``None``) take from a trained part: name → value."""
        return {}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Return the decision maker of one batch; state that lives across tokens lives there."""
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        """Return which rows stop here, ``[n]`` bool."""


class PlannedRule(ABC):
    """A rule that goes by the tokens before, and by no state: rows run straight to their exits, and nobody is asked.

    Subclass it in place of writing ``should_exit``; a strategy that is its own rule is ``(PlannedRule, Strategy)``.
    A check is counted at each exit point on the way all the same, as of a rule that is asked.
    """

    @abstractmethod
    def planned_layer(self, token_ids: Sequence[int]) -> int | None:
        """Return how many layers the next token takes at least; ``None`` for all. It leaves at the next exit point.

        ``token_ids`` is what the row has generated so far, drafts included; it may be empty.
        """

    def should_exit(self, view: ExitView) -> Tensor:
        """Answer by the plan, for whoever asks."""
        import torch

        planned = [self.planned_layer(tokens) for tokens in view.token_ids]
        return torch.tensor([layer is not None and view.exit_layer >= layer for layer in planned])


def plan_of(rule: object) -> PlannedRule | None:
    """Return a rule that need not be asked; ``None`` for every other, and for one whose class answers anew."""
    planned = isinstance(rule, PlannedRule) and type(rule).should_exit is PlannedRule.should_exit
    return rule if planned else None  # type: ignore[return-value]
