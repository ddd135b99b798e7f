"""One adapter per family of decoder-only models: reads a transformers model into a ``Backbone``.

A new one is one file: it subclasses :class:`harness.decoding.families.family.Family` and registers itself in the
entry-point group ``harness.families``, under transformers' ``model_type``. No torch at run time: listing the families
imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.decoding.families.family import Family
from harness.errors import ModelError
from harness.registry import FAMILIES

if TYPE_CHECKING:
    from harness.decoding.backbone import Backbone, HeadModules

__all__ = ["Family", "check_config", "check_family", "head_modules", "position_limit", "read"]


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
            f"model family '{model_type}' is not supported. Supported: {', '.join(FAMILIES.names())}. "
            "A family is one file with an entry point in 'harness.families'."
        )
    made: Family = FAMILIES.load(model_type)()
    return made
