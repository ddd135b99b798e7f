"""Which language a stop rule reads: its own option, or the task's."""

from __future__ import annotations

from collections.abc import Collection

from harness.errors import OptionError, did_you_mean

__all__ = ["language_of"]


def language_of(rule: str, option: str, language: str, known: Collection[str]) -> str:
    """Return the language of the code.

    Args:
        rule: name of the rule.
        option: what its option says; empty where it is left out.
        language: of the task; empty where there is none.
        known: what the rule can read.

    Raises:
        OptionError: it is not known.
    """
    found = option or language
    names = ", ".join(sorted(known))
    if not found:
        raise OptionError(
            f"the stop rule '{rule}' must know the language of the code. Write {rule}:language=NAME, one of: {names}."
        )
    if found not in known:
        raise OptionError(
            f"the stop rule '{rule}' has no grammar of {found}.{did_you_mean(found, known)} It reads: {names}. "
            "Use another rule (harness list stops)."
        )
    return found
