"""What a family of decoder-only models must tell the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import ModelError

if TYPE_CHECKING:
    from harness.decoding.backbone import Backbone, HeadModules

__all__ = ["Family"]

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


class Family(ABC):
    """Reads the transformers models of one ``model_type``. Subclass it and register it under that name in
    ``harness.families``.

    Attributes:
        slides: attention slides over a window in every layer, where the configuration does not say which layers do.
    """

    slides: ClassVar[bool] = False

    @abstractmethod
    def read(self, model: Any) -> Backbone:
        """Read a ``PreTrainedModel`` with an LM head, in the dtype and on the device to decode with.

        Fused projections should become the storage of the modules they came from, so that weights are held once and
        the transformers model stays usable.
        """

    @abstractmethod
    def head_modules(self, model: Any) -> HeadModules:
        """Return the modules of the shared exit head."""

    def check(self, config: Any) -> None:
        """Refuse a configuration that cannot be decoded exactly.

        Raises:
            ModelError: a position scaling that changes while decoding.
        """
        rope = getattr(config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        if kind not in _STATIC_ROPE:
            raise ModelError(
                f"rotary scaling '{kind}' changes with the sequence length and is not supported. "
                f"Supported: {', '.join(sorted(_STATIC_ROPE))}."
            )

    def position_limit(self, config: Any) -> int:
        """Return the longest sequence that full attention covers, tokens.

        A sliding window counts as the limit: inside it, sliding and full attention are the same.
        """
        limit = int(config.max_position_embeddings)
        layers = getattr(config, "layer_types", None)
        slides = "sliding_attention" in layers if layers else self.slides
        window = getattr(config, "sliding_window", None)
        return min(limit, int(window)) if slides and window else limit
