"""How a completion is decoded, as written: ``lossy``, ``lossless``, or ``lossless+DRAFTS``, several joined by ``+``.

Lossy takes what exits say. Lossless lets exits draft and yields full depth's tokens. Draft sources, where some are
named, propose before exits do, in order; draft rules end drafts. Both are registered in ``harness.drafts`` and written
alike, ``NAME[:option=value]…``: ``lossless+lookup:n=3+product:bound=0.3``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from harness.config.model import Named, comma_list, parse_named
from harness.config.options import build, option_value
from harness.contracts import FULL_HEAD, HeadChoice, KVPolicy, Lossless
from harness.errors import ConfigError, OptionError, UnknownNameError, did_you_mean
from harness.registry import DRAFTS, HEADS, KV_POLICIES

FORM = "Write lossy, lossless, or lossless+NAME[:option=value]…[+NAME…]…, as lossless+lookup:n=3 (harness list drafts)."


@dataclass(frozen=True, slots=True)
class DecodeSpec:
    """How to decode, as written: whether full depth verifies what exits and sources draft; reads back as the same."""

    lossless: bool = False
    sources: tuple[Named, ...] = ()

    def __str__(self) -> str:
        return "+".join(["lossless" if self.lossless else "lossy", *map(str, self.sources)])

    @property
    def proposing(self) -> tuple[str, ...]:
        """Names of what drafts even where a strategy never exits."""
        return tuple(one.name for one in self.sources if DRAFTS.load(one.name).proposes)

    @property
    def recalls(self) -> bool:
        """Whether some source draws on what was decoded before for the same owner."""
        return any(DRAFTS.load(one.name).recalls for one in self.sources)


LOSSY = DecodeSpec()

LONGEST_DRAFT = 256
"""Tokens of a draft, whatever is asked for."""

DRAFT_MAX = Lossless().draft_max
"""Tokens of a draft at most, unless something else is asked for."""


def parse_decode(text: str) -> DecodeSpec:
    """Read ``lossy``, ``lossless`` or ``lossless+NAME[:option=value]…[+NAME…]…``."""
    mode, plus, drafts = (part.strip() for part in text.partition("+"))
    if mode not in ("lossy", "lossless"):
        raise ConfigError(f"decode = '{text}' cannot be read.{did_you_mean(mode, ('lossy', 'lossless'))} {FORM}")
    if not plus:
        return DecodeSpec(mode == "lossless")
    if mode == "lossy":
        raise ConfigError(
            f"decode = '{text}': what is drafted needs to be verified. Write lossless+{drafts or 'SOURCE'}."
        )
    named = (parse_named(part, f"decode = '{text}'", "draft source", FORM) for part in drafts.split("+"))
    return DecodeSpec(True, tuple(named))


def parse_decodes(value: object) -> object:
    """Take ``lossy,lossless`` apart: ways to decode in canonical form, each once; what is no such list is left alone.

    A comma before an option of a source belongs to the source.
    """
    return comma_list(value, lambda each: str(parse_decode(str(each).replace(",", ":"))), r",\s*(?=los)")


def build_decode(spec: DecodeSpec, draft_max: int = DRAFT_MAX) -> Lossless | None:
    """Return how to decode losslessly; ``None`` for lossy decoding."""
    if not spec.lossless:
        return None
    return Lossless(draft_limit(draft_max), tuple(build(DRAFTS, one.name, one.options) for one in spec.sources))


def draft_limit(value: object) -> int:
    """Return the longest draft as an integer."""
    try:
        limit: int = option_value(DraftMax, value)
    except ValueError as error:
        raise OptionError(f"draft_max = {str(value)[:60] or repr('')} is not allowed: {error}.") from None
    return limit


def draft_limits(value: object) -> object:
    """Take ``4,8`` apart: longest drafts, each once; what is no such list is left alone."""
    return value if isinstance(value, str) and "," not in value else comma_list(value, draft_limit)


def check_defers(kv: str) -> None:
    """Check that lossless decoding can run under a KV policy: that it keeps what is to be verified."""
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


def _known_head(text: str) -> str:
    name = HeadChoice.of(text).name
    if text != "auto" and name != FULL_HEAD and name not in HEADS:
        raise UnknownNameError("head", text, ["auto", FULL_HEAD, *HEADS.names()])
    return text


DraftHead: TypeAlias = Annotated[
    str,
    AfterValidator(_known_head),
    Field(
        description="What reads the tokens that exits draft: full, NAME or NAME/SIZE of `harness list heads`, or auto, "
        "a trained one if the model has it. Verification reads the LM head."
    ),
]

DraftMax: TypeAlias = Annotated[int, Field(ge=1, le=LONGEST_DRAFT)]
"""Tokens of a draft at most."""
