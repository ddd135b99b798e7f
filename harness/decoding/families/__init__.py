"""One adapter per family of decoder-only models: reads a transformers model into a ``Backbone``.

A new one is one file: it subclasses :class:`Family` and registers itself in the
entry-point group ``harness.families``, under transformers' ``model_type``. No torch at run time: listing the families
imports this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import ModelError
from harness.registry import FAMILIES

if TYPE_CHECKING:
    from harness.decoding.backbone import Backbone, HeadModules

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


def check_family(model_type: str) -> None:
    """Refuse a family that is not registered; import one that is, which may add its architecture to transformers.

    Raises:
        ModelError: the family is not supported.
    """
    _family(model_type)


def check_config(config: Any) -> None:
    """Refuse a transformers config the engine cannot decode exactly.

    Raises:
        ModelError: unknown family, or of a form that it refuses.
    """
    _family(config.model_type).check(config)


def position_limit(config: Any) -> int:
    """Return the longest sequence that full attention covers, tokens."""
    return _family(config.model_type).position_limit(config)


def head_modules(model: Any) -> HeadModules:
    """Return the modules of a transformers causal LM's shared exit head.

    Raises:
        ModelError: the family is not supported.
    """
    return _family(model.config.model_type).head_modules(model)


def read(model: Any) -> Backbone:
    """Read a transformers causal LM, see :meth:`Family.read`.

    Raises:
        ModelError: the family is not supported, or the config of a form that it refuses.
    """
    check_config(model.config)
    return _family(model.config.model_type).read(model.eval())


def _family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ModelError(
            f"model family {model_type!r} is not supported. Supported: {', '.join(FAMILIES.names())}. "
            "A family is one file with an entry point in 'harness.families'."
        )
    made: Family = FAMILIES.load(model_type)()
    return made
