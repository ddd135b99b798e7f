"""The contract of an external endpoint: prompts go in as text, completions come out as text.

It is an operating point like any other (:mod:`harness.running.completions`), and a strategy in name alone: it registers
under ``harness.strategies`` and is named by ``--strategy``, but has no exit points, and nothing of the engine asks it
anything. What only the engine knows of a completion, such as its tokens and their layers, is missing in its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from harness.contracts.models import ModelInfo
from harness.contracts.strategies import ExitView, Strategy
from harness.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of an external endpoint to one prompt, as its client saw it."""

    text: str  # all of it
    total_s: float  # seconds from sending the prompt to the end of the answer
    ttft_s: float | None  # to the first text; None where none came
    # stop, the client's rule ended it; eos and length as the black box says; None where it says nothing known
    finish_reason: Literal["stop", "eos", "length"] | None
    tokens: int | None = None  # how many, by its own count and tokenizer; None where it does not say
    model: str = ""  # what it calls its model; empty where it does not say


class Connection(Protocol):
    """A black box that was reached. Several threads may use it at once."""

    def complete(self, prompt: str, max_new_tokens: int, is_over: Callable[[str], bool]) -> Answer:
        """Complete a prompt greedily, within a limit of its own tokens; not beyond a text of which ``is_over`` is true.

        Raises:
            EndpointError: it is down, fails, is too late, or answers what is no completion; one line.
        """

    def close(self) -> None:
        """Let go of it."""


class BlackBox(Strategy):
    """A frozen dataclass whose fields are its options; subclass it and define what follows."""

    @property
    def local(self) -> bool:
        """Whether it runs on this machine, whose energy sensor then sees it."""
        raise NotImplementedError

    def connect(self) -> Connection:
        """Make ready to ask; sends nothing. Raises :class:`OptionError` where an option refers to nothing."""
        raise NotImplementedError

    def remedy(self) -> str:
        """Return what to do where it cannot be reached, a sentence."""
        raise NotImplementedError

    def exit_points(self, model: ModelInfo) -> NoReturn:
        """Refuse: whatever asks this takes it for a strategy of the engine."""
        raise OptionError(
            f"{type(self).__name__.lower()} is no strategy of the engine, but what it is held against: only "
            "`harness run` measures it. Leave it out here."
        )

    def should_exit(self, view: ExitView) -> Tensor:
        """Refuse, likewise; nothing calls it."""
        raise NotImplementedError
