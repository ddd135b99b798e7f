"""The verdict in words: whether early exit can pay, and which family of strategies."""

from __future__ import annotations

from collections.abc import Iterator

from harness.suitability.record import Chance, Suitability

__all__ = ["PAYS", "verdict"]

PAYS = 1.1
"""Speed-up from which on a family is said to pay: a replay is not a run, and less would be lost on the way."""

TRY = {
    "fixed depth": "`fixed` or `pruned`, which ask nothing",
    "check by the LM head": "`confidence`, `margin` or `entropy`",
    "one check by the LM head": "`free`, or `confidence` with that layer alone as --exit-points",
    "check by a short head": "`confidence:head=shortlist` (`harness train shortlist`), `shortlist` or `predictor`",
    "learned check": "`classifier`, `lte`, `rl` or `consistent` (`harness train`)",
    "drafts of fixed length": "`layerskip`, or `del`, which chooses layer and length",
    "drafts by a short head": "`layerskip` or `del` with a trained shortlist, which then reads the drafts",
    "drafts while sure": "`confidence@lossless`, or a learned strategy that decodes so",
}
"""Family → strategies of it."""


def verdict(found: Suitability) -> Iterator[str]:
    """Yield sentences."""
    unit = "time" if found.times is not None else "bytes read"
    oracle = max((one for one in found.chances if one.family == "oracle"), key=lambda one: one.speedup)
    yield (
        f"Ceiling of lossy exits that keep every token: leaving at the first exit that is right, told for nothing, is "
        f"{_times(oracle)} in {unit} ({oracle.head})."
    )
    yield from _lossy(found, unit)
    yield from _lossless(found, unit)
    yield from _heads(found)


def _lossy(found: Suitability, unit: str) -> Iterator[str]:
    best = found.best(lossless=False)
    granted = max(
        (one for one in found.chances if not one.lossless and one.bound and one.family != "oracle"),
        key=lambda one: one.speedup,
        default=best,
    )
    kept = f"with {found.keep:.0%} of the tokens kept"
    if best.speedup >= PAYS:
        yield f"Lossy, {kept}: can pay. {_named(best)}, {_times(best)} in {unit}. Try {TRY[best.family]}."
        if granted.speedup >= best.speedup * PAYS:
            yield f"A cheaper check could do more: {_named(granted)}, at most {_times(granted)}: {TRY[granted.family]}."
    elif granted.speedup >= PAYS:
        yield (
            f"Lossy, {kept}: only if checks cost next to nothing. By the LM head, {found.head_in_layers:.1f} layers an "
            f"evaluation, at most {_times(best)}; {_named(granted)}, at most {_times(granted)}: {TRY[granted.family]}."
        )
    else:
        yield f"Lossy, {kept}: cannot pay. No setting is above {_times(granted)}, checks for nothing included."


def _lossless(found: Suitability, unit: str) -> Iterator[str]:
    best, bound = found.best(lossless=True), found.best(lossless=True, bounds=True)
    rows = "" if found.row_share is None else f" (a further row of a pass costs {found.row_share:.0%} of the first)"
    if best.speedup >= PAYS:
        yield f"Lossless: can pay. {_named(best)}, {_times(best)} in {unit}{rows}. Try {TRY[best.family]}."
    elif bound.speedup >= PAYS:
        yield (
            f"Lossless: only with a head that drafts cheaply. {_named(bound)}, at most {_times(bound)}; read by the LM "
            f"head {_times(best)}{rows}. Try {TRY[bound.family]}."
        )
    else:
        yield f"Lossless: exits that draft cannot pay, {_times(bound)} at most{rows}; `lookup`, which needs none, may."


def _heads(found: Suitability) -> Iterator[str]:
    own = next(one for one in found.heads if one.own)
    best = max(found.heads, key=lambda one: one.oracle_skip)
    if best.oracle_skip - own.oracle_skip >= 0.05 and not best.own:
        how = (
            "`harness train shortcut` makes them" if best.name == "closed-form maps" else "`--exit-head shared` has it"
        )
        yield (
            f"Exits know more than this model's head reads: {best.name} would let {best.oracle_skip:.0%} of layers be "
            f"skipped, {own.name} {own.oracle_skip:.0%}; {how}, and `harness train lite` may do better."
        )


def _named(one: Chance) -> str:
    return f"best {one.family}, {one.head} ({one.setting})"


def _times(one: Chance) -> str:
    return f"{one.speedup:.2f}×"
