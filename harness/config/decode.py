"""How a completion is decoded, as written: ``lossy``, ``lossless``, or ``lossless+SOURCE[:option=value]…``.

Lossy takes what exits say. Lossless lets exits draft, and a draft source before them where one is named, and yields
full depth's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from harness.config.options import build, option_value
from harness.contracts import KVPolicy, Lossless
from harness.errors import ConfigError, OptionError, did_you_mean
from harness.registry import DRAFTS, KV_POLICIES

__all__ = [
    "DRAFT_MAX",
    "LONGEST_DRAFT",
    "LOSSY",
    "DecodeSpec",
    "DecodeText",
    "DraftHead",
    "DraftMax",
    "build_decode",
    "check_defers",
    "draft_limit",
    "parse_decode",
]

FORM = "Write lossy, lossless, or lossless+SOURCE[:option=value]…, as lossless+lookup:n=3."


@dataclass(frozen=True, slots=True)
class DecodeSpec:
    """How to decode, as written; as text it is read back as the same.

    Attributes:
        lossless: whether full depth verifies what exits and sources draft.
        source: name of the draft source, ``None`` where only exits draft.
        options: those given for the source, still text.
    """

    lossless: bool = False
    source: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.source is None:
            return "lossless" if self.lossless else "lossy"
        return ":".join([f"lossless+{self.source}", *(f"{name}={value}" for name, value in self.options)])


LOSSY = DecodeSpec()

LONGEST_DRAFT = 256
"""Tokens of a draft, whatever is asked for."""

DRAFT_MAX = Lossless().most
"""Tokens of a draft at most, unless something else is asked for."""


def parse_decode(text: str) -> DecodeSpec:
    """Read ``lossy``, ``lossless`` or ``lossless+SOURCE[:option=value]…``.

    Raises:
        ConfigError: the text does not have that form.
    """
    mode, plus, drafts = (part.strip() for part in text.partition("+"))
    if mode not in ("lossy", "lossless"):
        raise ConfigError(f"decode = '{text}' cannot be read.{did_you_mean(mode, ('lossy', 'lossless'))} {FORM}")
    if not plus:
        return DecodeSpec(mode == "lossless")
    if mode == "lossy":
        raise ConfigError(
            f"decode = '{text}': what is drafted needs to be verified. Write lossless+{drafts or 'SOURCE'}."
        )
    source, *given = (part.strip() for part in drafts.split(":"))
    if not source:
        raise ConfigError(f"decode = '{text}' names no draft source. {FORM}")
    options: dict[str, str] = {}
    for item in given:
        name, _, value = (part.strip() for part in item.partition("="))
        if not name or not value:
            raise ConfigError(f"decode = '{text}' cannot be read at '{item}'. {FORM}")
        if name in options:
            raise ConfigError(f"decode = '{text}' gives option '{name}' twice.")
        options[name] = value
    return DecodeSpec(True, source, tuple(options.items()))


def build_decode(spec: DecodeSpec, draft_max: int = DRAFT_MAX) -> Lossless | None:
    """Return how to decode losslessly; ``None`` for lossy decoding.

    Args:
        spec: as written.
        draft_max: tokens of a draft at most.

    Raises:
        UnknownNameError: no such draft source.
        OptionError: it has no such option, or a value is out of range; or ``draft_max`` is.
    """
    if not spec.lossless:
        return None
    return Lossless(draft_limit(draft_max), None if spec.source is None else build(DRAFTS, spec.source, spec.options))


def draft_limit(value: object) -> int:
    """Return the longest draft as an integer.

    Raises:
        OptionError: it is none, or out of range.
    """
    try:
        limit: int = option_value(DraftMax, value)
    except ValueError as error:
        raise OptionError(f"draft_max = {str(value)[:60]} is not allowed: {error}.") from None
    return limit


def check_defers(kv: str) -> None:
    """Check that lossless decoding can run under a KV policy: that it keeps what is to be verified.

    Raises:
        OptionError: it does not, with the remedy.
        UnknownNameError: it is not registered.
    """
    policy: type[KVPolicy] = KV_POLICIES.load(kv)
    if not policy.facts.defers:
        raise OptionError(
            f"lossless decoding verifies the tokens that wait for a pass that goes deep, and under --kv {kv} none "
            "do. Use --kv recompute, or --decode lossy."
        )


def _buildable(text: str) -> str:
    build_decode(parse_decode(text))
    return text


DecodeText: TypeAlias = Annotated[str, AfterValidator(_buildable)]
"""A decode spec in a configuration, checked."""

DraftHead: TypeAlias = Annotated[
    str,
    Field(
        description="What reads the tokens that exits draft: full, NAME or NAME/SIZE of `harness list heads`, or auto, "
        "a trained one if the model has it. Verification reads the LM head."
    ),
]

DraftMax: TypeAlias = Annotated[int, Field(ge=1, le=LONGEST_DRAFT)]
"""Tokens of a draft at most."""
