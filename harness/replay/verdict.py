"""A suitability as people read it: exits and families in tables, and in words whether early exit can pay."""

from __future__ import annotations

from collections.abc import Iterator

from harness.records.estimate import MISSING
from harness.replay.records import Setting, Suitability
from reports.tables.table import Column, Line, Part, Table

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
    unit, kept = "time" if found.times is not None else "bytes read", f"with {found.keep:.0%} of the tokens kept"
    oracle = max((one for one in found.chances if one.family == "oracle"), key=lambda one: one.speedup)
    yield (
        f"Upper bound of lossy exits that keep every token: leaving at the first exit that is right, found at no cost, "
        f"is {_times(oracle)} in {unit} ({oracle.head})."
    )
    best = found.best(lossless=False)
    bounds = [one for one in found.chances if not one.lossless and one.bound and one.family != "oracle"]
    bound = max(bounds, key=lambda one: one.speedup, default=best)
    if best.speedup >= PAYS:
        yield f"Lossy, {kept}: can pay. {_best(best)}, {_times(best)} in {unit}. Try {TRY[best.family]}."
        if bound.speedup >= best.speedup * PAYS:
            yield f"A cheaper check could do more: {_best(bound)}, at most {_times(bound)}: {TRY[bound.family]}."
    elif bound.speedup >= PAYS:
        yield (
            f"Lossy, {kept}: only if checks cost next to nothing. With the LM head, which costs as much as "
            f"{found.head_in_layers:.1f} layers, at most {_times(best)}; {_best(bound)}, at most {_times(bound)}: "
            f"{TRY[bound.family]}."
        )
    else:
        yield f"Lossy, {kept}: cannot pay. No setting is above {_times(bound)}, even where checks are free."
    best, bound = found.best(lossless=True), found.best(lossless=True, bounds=True)
    rows = "" if found.row_share is None else f" (a further row of a pass costs {found.row_share:.0%} of the first)"
    if best.speedup >= PAYS:
        yield f"Lossless: can pay. {_best(best)}, {_times(best)} in {unit}{rows}. Try {TRY[best.family]}."
    elif bound.speedup >= PAYS:
        yield (
            f"Lossless: only with a head that drafts cheaply. {_best(bound)}, at most {_times(bound)}; read by the LM "
            f"head {_times(best)}{rows}. Try {TRY[bound.family]}."
        )
    else:
        yield f"Lossless: exits that draft cannot pay, {_times(bound)} at most{rows}; `lookup`, which needs none, may."
    own = next(one for one in found.heads if one.own)
    head = max(found.heads, key=lambda one: one.oracle_skip)
    if head.oracle_skip - own.oracle_skip >= 0.05:
        makes = (
            "`harness train shortcut` makes them" if head.name == "closed-form maps" else "`--exit-head shared` has it"
        )
        yield (
            f"Exits know more than this model's head reads: {head.name} would let {head.oracle_skip:.0%} of layers be "
            f"skipped, {own.name} {own.oracle_skip:.0%}; {makes}, and `harness train lite` may do better."
        )


def _best(one: Setting) -> str:
    return f"best {one.family}, {one.head} ({one.setting})"


def _times(one: Setting) -> str:
    return f"{one.speedup:.2f}×"


def suitability_tables(found: Suitability) -> Iterator[Part]:
    """Yield what exits know, the fastest setting of each family with its best head, behind the verdict."""
    for sentence in found.verdict:
        yield Line(sentence, "strong" if sentence.startswith(("Lossy", "Lossless")) else "")
    columns = [Column(header="layer", cells=found.exit_points, form="count")]
    for head in found.heads:
        name = head.name.partition(" ")[0].removesuffix("-form")
        columns += [
            Column(header=f"{name} agrees", cells=tuple(one.agreement for one in head.exits), form=".1%"),
            Column(header=f"{name} entropy", cells=tuple(one.entropy for one in head.exits), form=".2f"),
            Column(header=f"{name} rank", cells=tuple(one.rank_median for one in head.exits), form="count"),
        ]
    skips = "; ".join(f"{head.name}{' (its own)' if head.own else ''} {head.oracle_skip:.1%}" for head in found.heads)
    yield Table(
        title=f"{found.model} ({found.weights}, {found.weights_format}), {found.tokens:,} tokens of "
        f"{found.documents} documents: {'; '.join(found.streams)}",
        columns=tuple(columns),
        notes=(
            f"An oracle would skip, of {found.num_layers} layers: {skips}.",
            "agrees: share of tokens at which the exit's best token is the last layer's; entropy: of the exit's "
            "distribution, in nats; rank: median of the last layer's token in it. Teacher-forced. trained, closed: "
            "behind such linear maps. Closed-form maps are fitted on other documents than those they are judged on.",
        ),
    )
    fastest: dict[str, Setting] = {}
    for one in found.chances:
        fastest.setdefault(one.family, one)
    lossy = sum(not one.lossless for one in fastest.values())
    yield Table.of_rows(
        f"The fastest setting of each family, with its best head, that keeps {found.keep:.0%} of full depth's tokens",
        (
            Column(header="family", kind="text"),
            Column(header="exits read by", kind="text"),
            Column(header="kept", form=".1%"),
            Column(header="layers", form=".1f"),
            *("bytes", "time"),
        ),
        [
            (
                one.family,
                one.head,
                "all" if one.lossless else one.agreement,
                one.layers,
                _at_most(one, one.bytes_speedup),
                Line(_at_most(one, one.time_speedup), "strong" if one.speedup >= PAYS and not one.bound else ""),
            )
            for one in fastest.values()
        ],
        notes=(
            "Exact keys and values, batch 1. ≤: an upper bound, not deployable, in which something is free that would "
            "cost: the answer (oracle), a check (learned check), or a head of 4,096 rows that decides as the whole one "
            "does (short head). bytes: speed-up by weights and cache read; time: by the times of parts measured here.",
        ),
        groups=tuple((place, name) for place, name in ((0, "lossy"), (lossy, "lossless")) if place < len(fastest)),
    )


def _at_most(one: Setting, speedup: float | None) -> str:
    return MISSING if speedup is None else f"{'≤ ' if one.bound else ''}{speedup:.2f}×"
