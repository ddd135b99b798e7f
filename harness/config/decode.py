"""How a completion is decoded, as written: ``lossy``, ``lossless``, or ``lossless+DRAFTS``, several joined by ``+``.

Lossy takes what exits say. Lossless lets exits draft and yields full depth's tokens. Draft sources, where some are
named, propose before exits do, in order; draft rules end drafts. Both are registered in ``harness.drafts`` and written
alike, ``NAME[:option=value]…``: ``lossless+lookup:n=3+product:bound=0.3``.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.options import build
from harness.contracts import Lossless
from harness.errors import ConfigError, OptionError, did_you_mean
from harness.registry import DRAFTS

__all__ = ["DRAFT_MAX", "LOSSY", "DecodeSpec", "DraftSpec", "build_decode", "parse_decode"]

FORM = "Write lossy, lossless, or lossless+NAME[:option=value]…[+NAME…]…, as lossless+lookup:n=3 (harness list drafts)."


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """A draft source or rule, as written.

    Attributes:
        name: registered name.
        options: those given for it, still text.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True, slots=True)
class DecodeSpec:
    """How to decode, as written; as text it is read back as the same.

    Attributes:
        lossless: whether full depth verifies what exits and sources draft.
        sources: what proposes tokens and ends drafts, none where only exits draft.
    """

    lossless: bool = False
    sources: tuple[DraftSpec, ...] = ()

    def __str__(self) -> str:
        return "+".join(["lossless" if self.lossless else "lossy", *map(str, self.sources)])

    @property
    def proposes(self) -> bool:
        """Whether something drafts, even where a strategy never exits.

        Raises:
            UnknownNameError: a name is not registered.
        """
        return any(DRAFTS.load(one.name).proposes for one in self.sources)


LOSSY = DecodeSpec()

DRAFT_MAX = Lossless().most
"""Tokens of a draft at most, unless something else is asked for."""


def parse_decode(text: str) -> DecodeSpec:
    """Read ``lossy``, ``lossless`` or ``lossless+NAME[:option=value]…[+NAME…]…``.

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
    return DecodeSpec(True, tuple(_parse_draft(part, text) for part in drafts.split("+")))


def _parse_draft(part: str, text: str) -> DraftSpec:
    """Read ``NAME[:option=value]…``, a part of a whole text."""
    source, *given = (piece.strip() for piece in part.split(":"))
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
    return DraftSpec(source, tuple(options.items()))


def build_decode(spec: DecodeSpec, draft_max: int = DRAFT_MAX) -> Lossless | None:
    """Return how to decode losslessly; ``None`` for lossy decoding.

    Args:
        spec: as written.
        draft_max: tokens of a draft at most.

    Raises:
        UnknownNameError: no such draft source or rule.
        OptionError: it has no such option, or a value is out of range; or ``draft_max`` is not positive.
    """
    if not spec.lossless:
        return None
    if draft_max < 1:
        raise OptionError(f"draft_max = {draft_max}: give 1 or more.")
    return Lossless(draft_max, tuple(build(DRAFTS, one.name, one.options) for one in spec.sources))
