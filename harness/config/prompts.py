"""Exits for the prompt as written: ``none``, or ``NAME[:option=value]…`` of ``harness list prompts``.

Without a name the rule is ``tail``: ``layer=18:tail=64``. A comma list compares. What is done in idle time has to do
with them, or with drafts, and is checked here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from harness.config.model import comma_list, parse_named
from harness.config.options import build
from harness.contracts import PromptRule
from harness.registry import PROMPT_RULES

FORM = "Write none, layer=18:tail=64 or NAME[:option=value]… (harness list prompts)."

NO_EXIT = "none"
"""The word for prompts that are read by all layers."""


@dataclass(frozen=True, slots=True)
class BuiltPromptRule:
    """A prompt rule, built, and as it was written in canonical form."""

    rule: PromptRule
    written: str


def build_prompt_rule(text: str) -> BuiltPromptRule | None:
    """Return a prompt rule; ``None`` for ``none``."""
    full = f"tail:{text}" if "=" in text.partition(":")[0] else text
    named = parse_named(full, f"prompt_exit = '{text}'", "prompt rule", FORM)
    if str(named) == NO_EXIT:
        return None
    return BuiltPromptRule(build(PROMPT_RULES, named.name, named.options), str(named))


def parse_prompt_exits(value: object) -> object:
    """Take a comma list apart: rules in canonical form, each once; what is no such list is left alone."""
    return comma_list(value, _canonical)


def _canonical(text: object) -> str:
    built = build_prompt_rule(str(text))
    return NO_EXIT if built is None else built.written


PromptExitText: TypeAlias = Annotated[str, AfterValidator(_canonical)]
"""One exit for the prompt in a configuration, checked."""


def idle_prefetches(prefetches: Collection[str], *, shallow: bool, proposing: bool) -> Iterator[str]:
    """Yield why a prefetch has nothing to do: whether some prompts have exits, and some requests a draft source."""
    if "deepen" in prefetches and not shallow:
        yield "--prefetch deepen makes exact what prompt exits left. Add --prompt-exit."
    if "draft" in prefetches and not proposing:
        yield "--prefetch draft is for lossless decoding with a draft source. Add --decode lossless+lookup."
    if "all" in prefetches and not (shallow or proposing):
        yield "--prefetch all has nothing to do. Add --prompt-exit or --decode lossless+lookup."
