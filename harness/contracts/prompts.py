"""The contract of a prompt rule: how deep each token of a prompt is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.contracts.models import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor


class PromptRule:
    """A prompt rule: a frozen dataclass whose fields are its options. Subclass and register it in ``harness.prompts``.

    A token that stops leaves keys and values in the layers above, which linear maps make of its state
    (:class:`harness.decoding.prompt_exits.PromptMaps`); tokens that go deeper, and those that are decoded, attend to
    them.
    """

    def exits(self, model: ModelInfo) -> tuple[int, ...]:
        """Return the layers after which tokens may stop, ascending; maps must have been trained for each.

        Raises:
            OptionError: the model does not have one of them.
        """
        raise NotImplementedError

    def depths(self, prompt: Sequence[int], model: ModelInfo) -> list[int]:
        """Return how many layers each token of a prompt runs: one of the exits, or all of the model's.

        The last token is read by all layers whatever is said of it, since the first new token comes from it. Tokens
        that are reused from an earlier prompt may be deeper than this, never shallower.
        """
        raise NotImplementedError

    def observers(self) -> int:
        """Return how many of the prompt's last tokens say by their attention which others go on, see :meth:`chosen`.

        0, the default, where tokens alone decide.
        """
        return 0

    def chosen(self, attention: Tensor, depths: Sequence[int]) -> Sequence[int]:
        """Return positions that go on through all layers though :meth:`depths` stops them; asked at the first exit.

        Args:
            attention: what each token is paid in the layer behind the exit, ``[tokens]``: mean over heads and those
                observers that are not reused.
            depths: layers that each token is to run, or has run where it is reused.
        """
        raise NotImplementedError
