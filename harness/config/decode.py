"""How a completion is decoded, as written: ``lossy``, ``lossless``, or ``lossless+SOURCE[:option=value]…``.

Lossy takes what exits say. Lossless lets exits draft, and a draft source before them where one is named, and yields
full depth's tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.config.options import build
from harness.contracts import Lossless
from harness.errors import ConfigError, OptionError, did_you_mean
from harness.registry import DRAFTS

__all__ = ["DRAFT_MAX", "LOSSY", "DecodeSpec", "build_decode", "parse_decode", "parse_decodes"]

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


def parse_decodes(value: object) -> object:
    """Take ``lossy,lossless`` apart: ways to decode in canonical form, each once; what is no such list is left alone.

    A comma before an option of a source belongs to the source.

    Raises:
        ConfigError: one cannot be read.
        ValueError: there is none.
    """
    if isinstance(value, str):
        value = re.split(r",\s*(?=los)", value)
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return value
    if not value:
        raise ValueError("names nothing")
    once = tuple(dict.fromkeys(str(parse_decode(each.replace(",", ":"))) for each in value))
    return once[0] if len(once) == 1 else once


def build_decode(spec: DecodeSpec, draft_max: int = DRAFT_MAX) -> Lossless | None:
    """Return how to decode losslessly; ``None`` for lossy decoding.

    Args:
        spec: as written.
        draft_max: tokens of a draft at most.

    Raises:
        UnknownNameError: no such draft source.
        OptionError: it has no such option, or a value is out of range; or ``draft_max`` is not positive.
    """
    if not spec.lossless:
        return None
    if draft_max < 1:
        raise OptionError(f"draft_max = {draft_max}: give 1 or more.")
    return Lossless(draft_max, None if spec.source is None else build(DRAFTS, spec.source, spec.options))
