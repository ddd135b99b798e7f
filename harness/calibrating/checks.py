"""Is the promise kept? Random halves of the same documents, and held-out documents, as measured; and how it is shown.

On one half a setting is calibrated, on the other its mean loss is compared with the one allowed. The second half is a
sample as well, so that a promise that holds is sometimes seen broken there; it is the harder test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.calibrating.promise import Settings
from harness.errors import ConfigError
from harness.records.estimate import Estimate
from harness.records.guarantee import CalibratedPoint, Guarantee, TestedSetting
from reports.statistics.intervals import mean_interval
from reports.statistics.risk_control import Losses
from reports.tables.table import Column, Line, Part, Table

ROUNDS = 200


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """The promise held against random halves.

    Attributes:
        rounds: how many. documents: documents, or projects where they are the unit, calibrated on in each.
        certified: rounds in which some setting was.
        violated: of those, rounds in which the other documents lost more than allowed.
        risk: what they lost, mean over the certified rounds; ``None`` without any.
    """

    rounds: int
    documents: int
    certified: int
    violated: int
    risk: float | None


@dataclass(frozen=True, slots=True)
class HeldOutCheck:
    """The calibrated setting on held-out documents.

    Attributes:
        where: what they are.
        documents: how many, or how many projects where they are the unit.
        risk: their mean loss, with a 95 % interval or why there is none.
        halves: calibrated on halves here and tested on all of them there.
    """

    where: str
    documents: int
    risk: Estimate
    halves: SplitCheck


def split_check(
    losses: Losses, risk: float, count: Callable[[Losses], int], *, tested: Losses | None = None, seed: int = 0
) -> SplitCheck:
    """Calibrate on random halves.

    Args:
        losses: ``[settings, documents]``, from strict to lax.
        risk: ε.
        count: how many settings, from the strictest on, losses certify.
        tested: losses of other documents to test on instead of the other half.
        seed: draws the halves.
    """
    generator = np.random.default_rng(seed)
    half = losses.shape[1] // 2
    lost = []
    for _ in range(ROUNDS):
        order = generator.permutation(losses.shape[1])
        passed = count(losses[:, order[:half]])
        if passed:
            others = losses[:, order[half:]] if tested is None else tested
            lost.append(float(others[passed - 1].mean()))
    return SplitCheck(
        ROUNDS, half, len(lost), sum(each > risk for each in lost), float(np.mean(lost)) if lost else None
    )


def held_out_check(
    here: Settings, there: Settings, chosen: int, risk: float, count: Callable[[Losses], int]
) -> HeldOutCheck:
    """Hold a calibrated setting against other documents.

    Args:
        here: calibrated.
        there: the same settings on other documents.
        chosen: place of the calibrated setting.
        risk: ε.
        count: as for :func:`split_check`.

    Raises:
        ConfigError: they are not the same settings.
    """
    rows = {point.name: place for place, point in enumerate(there.points)}
    missing = [point.name for point in here.points if point.name not in rows]
    if missing:
        raise ConfigError(
            f"--against {there.run.directory}: it lacks {', '.join(missing)}. Run the same settings there."
        )
    losses = there.losses[[rows[point.name] for point in here.points]]
    task = there.run.manifest.tasks[0]
    lost = losses[chosen]
    return HeldOutCheck(
        where=f"{task.name}, {task.source}",
        documents=len(lost),
        risk=Estimate.of(float(lost.mean()), mean_interval([[float(each)] for each in lost])),
        halves=split_check(here.losses, risk, count, tested=losses),
    )


def tables(point: CalibratedPoint, here: SplitCheck, others: Sequence[HeldOutCheck]) -> Iterator[Part]:
    """Yield the settings in the order tested, the promise, and whether it is kept."""
    promised = point.guarantee
    left_out = f", {promised.left_out} left out" if promised.left_out else ""
    how = promised.method if promised.p_value is None else f"{promised.method}, {promised.p_value}"
    of_projects = f" of {len(promised.projects)} projects" if promised.unit == "project" else ""
    tested = promised.confidence is not None
    yield Table.of_rows(
        f"{promised.target} on {len(promised.documents)} documents{of_projects}{left_out}: {promised.task.name}, "
        f"{promised.task.source}; {promised.model}, {promised.weights_format}, kv {promised.kv}; {how}",
        (
            Column(header=promised.option, form="g"),
            Column(header="layers", form=".1f"),
            Column(header="lost", form=".4f"),
            Column(header="p-value" if tested else "bound", form=".2g"),
            Column(header="", kind="text"),
        ),
        [
            (one.value, one.exit_layer_mean, one.risk, one.p_value if tested else one.bound, _outcome(one, promised))
            for one in promised.tested
        ],
    )
    yield Line("")
    yield Line(f"{point.strategy}: {promised.promise}.", "good")
    yield Line("")
    yield Line(_in_words(here, promised, "on the other half"), "faint")
    for other in others:
        kept = other.risk.value <= promised.risk
        lost = f"{other.risk.text('{:.4f}')} lost of {promised.risk:g} allowed"
        where = f"On {other.where}, {other.documents} {promised.unit}s"
        yield Line("")
        yield Line(f"{where}: {'kept' if kept else 'broken'}, {lost}.", "good" if kept else "bad")
        yield Line(_in_words(other.halves, promised, "there"), "faint")


def _outcome(one: TestedSetting, promised: Guarantee) -> Line:
    if one.passed:
        last = [each for each in promised.tested if each.passed][-1]
        return Line("chosen", "strong") if one == last else Line("passed", "good")
    tested = one.p_value is not None or one.bound is not None
    return Line("failed", "bad") if tested else Line("not tested", "faint")


def _in_words(found: SplitCheck, promised: Guarantee, where: str) -> str:
    certified = f"{found.certified} of {found.rounds} random halves of {found.documents} {promised.unit}s"
    if found.risk is None:
        return f"{certified} certify a setting."
    broken = f"{found.violated} of them lose more than {promised.risk:g} {where}"
    return f"{certified} certify a setting; {broken} (mean {found.risk:.4f})."
