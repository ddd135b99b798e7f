"""Is the promise kept? Random halves of the same documents, and documents of other kinds, as measured.

On one half a setting is calibrated, on the other its mean loss is compared with the one allowed. The second half is a
sample as well, so that a promise that holds is sometimes seen broken there; it is the harder test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.calibrating.promise import Settings
from harness.errors import ConfigError
from harness.records.estimate import Interval, NoInterval
from reports.statistics.intervals import mean_interval
from reports.statistics.risk_control import Losses

__all__ = ["ROUNDS", "Elsewhere", "Halves", "elsewhere", "halves"]

ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Halves:
    """What became of the promise over random halves.

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
class Elsewhere:
    """The calibrated setting on other documents.

    Attributes:
        where: what they are.
        documents: how many, or how many projects where they are the unit.
        risk: their mean loss.
        interval: of it, 95 %, or why there is none.
        halves: calibrated on halves here and tested on all of them there.
    """

    where: str
    documents: int
    risk: float
    interval: Interval | NoInterval
    halves: Halves


def halves(
    losses: Losses, risk: float, count: Callable[[Losses], int], *, tested: Losses | None = None, seed: int = 0
) -> Halves:
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
    return Halves(ROUNDS, half, len(lost), sum(each > risk for each in lost), float(np.mean(lost)) if lost else None)


def elsewhere(here: Settings, there: Settings, chosen: int, risk: float, count: Callable[[Losses], int]) -> Elsewhere:
    """Hold a calibrated setting against other documents.

    Args:
        here: calibrated.
        there: the same settings on other documents.
        chosen: place of the calibrated setting.
        risk: ε.
        count: as for :func:`halves`.

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
    return Elsewhere(
        where=f"{task.name}, {task.source}",
        documents=len(lost),
        risk=float(lost.mean()),
        interval=mean_interval([[float(each)] for each in lost]),
        halves=halves(here.losses, risk, count, tested=losses),
    )
