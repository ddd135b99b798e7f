"""From a run directory to a promise: losses by document, the settings tested in order, and the one that is chosen.

Settings are ordered by the value of their option, from the deeper mean exit to the shallower: which end is strict is a
fact about the strategy's rule, and all that is taken from the documents beside their losses. Where both ends are
equally deep nothing tells which is strict, and a warning says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean

import numpy as np

from harness.calibrating.options import CalibrateOptions
from harness.calibrating.targets import Target, document_losses
from harness.config import BASELINE
from harness.errors import ConfigError, DataError
from harness.records import OperatingPointRecord
from harness.records.guarantee import (
    CalibratedPoint,
    Guarantee,
    TestedSetting,
    Unit,
    is_same_source,
    known_documents,
)
from reports.recorded import RecordedRun
from reports.statistics.risk_control import (
    P_VALUES,
    Losses,
    certified_by_tests,
    certified_in_expectation,
    documents_needed,
    expectation_bounds,
    fewest_documents,
    fewest_in_expectation,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """One strategy at several values of one option, on the documents of a run.

    Attributes:
        run: where they were decoded.
        option: the option that varies.
        points: operating points, from strict to lax.
        documents: of those that have a loss, in the order drawn: id → hash of the text.
        losses: ``[points, units]``: of each document, or mean of each project.
        projects: how many of the documents are of each project that is known.
        unit: what a column of losses is.
        left_out: documents without one, see :class:`~harness.records.guarantee.Guarantee`.
    """

    run: RecordedRun
    option: str
    points: tuple[OperatingPointRecord, ...]
    documents: Mapping[str, str]
    losses: Losses
    projects: Mapping[str, int]
    unit: Unit = "document"
    left_out: int = 0

    @property
    def task(self) -> str:
        """The run's task."""
        return self.run.manifest.tasks[0].name

    def known_in(self, other: Settings) -> Set[str]:
        """Return ids of another run's documents that are this one's as well."""
        same = is_same_source(self.run.manifest.tasks[0], other.run.manifest.tasks[0])
        return known_documents(other.documents, self.documents, same_source=same)

    def depth(self, point: OperatingPointRecord) -> float | None:
        """Return the mean decoder layers of a decided token."""
        cell = self.run.cells[self.task, point.name]
        layers = list(chain.from_iterable(map(cell.decoded_layers, cell.samples.values())))
        return fmean(layers) if layers else None


def settings_of(run: RecordedRun, target: Target, strategy: str = "", unit: Unit = "document") -> Settings:
    """Sort the operating points of a run.

    Args:
        run: finished.
        target: whose losses.
        strategy: name of the one that is calibrated; may be left out where the run has no other.
        unit: what has a loss.

    Raises:
        ConfigError: the run is of several tasks, or its operating points are no settings of one strategy. Those that
            verify, look at the answer, have a stop rule or are no strategy of the engine are passed over.
        DataError: no document has a loss, or none a project where that is the unit.
    """
    if len(run.manifest.tasks) > 1:
        raise ConfigError(f"{run.directory} has {len(run.manifest.tasks)} tasks, and a calibration is of one.")
    points = [
        point
        for point in run.manifest.operating_points
        if point.strategy != BASELINE
        and not (point.never_exits or point.lossless or point.rehearsed or point.stop or point.black_box)
    ]
    names = list(dict.fromkeys(point.strategy for point in points))
    if strategy:
        points = [point for point in points if point.strategy == strategy]
    if not points or (not strategy and len(names) > 1):
        raise ConfigError(
            f"{run.directory} decodes {', '.join(names) or 'nothing'} lossily and without a stop rule. Name one with "
            f"--strategy{f', not {strategy}' if strategy else ''}."
        )
    option = _varied(run, points)
    ordered = sorted(points, key=lambda point: float(point.options[option]))
    losses = [document_losses(run.point(run.manifest.tasks[0].name, point.name), target) for point in ordered]
    full = run.point(run.manifest.tasks[0].name, ordered[0].name).full
    drawn = {sample.sample_id: sample for sample in full.scored}
    documents = [name for name in losses[0] if all(name in each for each in losses)]
    if not documents:
        raise DataError(f"no document of {run.directory} has a value of {target.name}: nothing can be calibrated.")
    projects = [drawn[name].project for name in documents]
    known = [project for project in projects if project is not None]
    if unit == "project":
        documents = [name for name, project in zip(documents, projects, strict=True) if project is not None]
        if not documents:
            raise DataError(
                f"no document of {run.directory} says which project it is of, and --unit project needs that. Give rows "
                "with a field 'project', or use --unit document. Older runs recorded none."
            )
    table = np.array([[each[name] for name in documents] for each in losses])
    if unit == "project":
        table = by_project(table, known)
    found = Settings(
        run,
        option,
        tuple(ordered),
        {name: drawn[name].document for name in documents},
        table,
        Counter(known),
        unit,
        run.manifest.tasks[0].samples - len(documents),
    )
    deep = [found.depth(point) or 0.0 for point in (ordered[0], ordered[-1])]
    if deep[0] == deep[-1] and len(ordered) > 1:
        logger.warning(
            "%s: %s and %s are equally deep (%.1f layers), so that which is strict is not known, and what is chosen "
            "may be either. List values further apart",
            run.directory,
            ordered[0].name,
            ordered[-1].name,
            deep[0],
        )
    return found if deep[0] >= deep[-1] else replace(found, points=found.points[::-1], losses=table[::-1])


def by_project(losses: Losses, projects: Sequence[str]) -> Losses:
    """Return mean losses of projects, ``[points, projects]``, in the order in which a document of each was drawn first.

    Args:
        losses: ``[points, documents]``.
        projects: of each document.
    """
    places = {project: place for place, project in enumerate(dict.fromkeys(projects))}
    members = np.zeros((len(projects), len(places)))
    members[range(len(projects)), [places[project] for project in projects]] = 1
    means: Losses = losses @ members / members.sum(axis=0)
    return means


def _varied(run: RecordedRun, points: list[OperatingPointRecord]) -> str:
    """Return the one option in which operating points differ; of a single one, its threshold or first number."""
    first = points[0]
    numbers = [name for name, value in first.options.items() if isinstance(value, int | float)]
    varied = [name for name in first.options if len({str(point.options.get(name)) for point in points}) > 1]
    varied = varied or (["threshold"] if "threshold" in numbers else numbers[:1])
    ways = {(point.kv, point.weights_format) for point in points}
    if (
        len(varied) != 1
        or not all(isinstance(point.options.get(varied[0]), int | float) for point in points)
        or len(ways) > 1
        or len(points) != len({str(p.options) for p in points})
    ):
        listed = ", ".join(point.name for point in points)
        raise ConfigError(f"{run.directory}: {listed} are no values of one numeric option. Run such values alone.")
    return varied[0]


def least_documents(options: CalibrateOptions, risk: float) -> int | None:
    """Return how many documents a promise takes if none of them loses anything; ``None``: more than a million."""
    if options.method == "conformal":
        return fewest_in_expectation(risk)
    return fewest_documents(risk, options.delta, P_VALUES[options.p_value])


def certified(options: CalibrateOptions, risk: float) -> Callable[[Losses], int]:
    """Return what counts the settings, from the strictest on, that losses certify."""
    if options.method == "conformal":
        return lambda losses: certified_in_expectation(losses, risk)
    test = P_VALUES[options.p_value]
    return lambda losses: sum(p <= options.delta for p in certified_by_tests(losses, risk, options.delta, test))


def calibrated(settings: Settings, target: Target, options: CalibrateOptions) -> CalibratedPoint:
    """Choose the laxest setting that is certified.

    Raises:
        DataError: these documents certify none; says how many it would take.
    """
    count = certified(options, target.risk)
    passed = count(settings.losses)
    if not passed:
        raise DataError(_refusal(settings, target, count))
    manifest, chosen = settings.run.manifest, settings.points[passed - 1]
    conformal = options.method == "conformal"
    guarantee = Guarantee(
        target=target.text,
        risk=target.risk,
        confidence=None if conformal else options.confidence,
        method=options.method,
        p_value=None if conformal else options.p_value,
        option=settings.option,
        tested=_tested(settings, target, options, passed),
        unit=settings.unit,
        documents=tuple(settings.documents),
        hashes=tuple(settings.documents.values()) if all(settings.documents.values()) else (),
        projects=dict(settings.projects),
        left_out=settings.left_out,
        task=manifest.tasks[0],
        max_new_tokens=manifest.config.get("max_new_tokens"),
        run=manifest.run,
        records=settings.run.summary.records,
        model=manifest.model.name,
        weights=manifest.model.weights,
        dtype=manifest.model.dtype,
        exit_head=manifest.model.exit_head,
        fingerprint=manifest.model.fingerprint,
        weights_format=chosen.weights_format,
        kv=settings.run.cells[settings.task, chosen.name].conditions.kv,
        batch_size=settings.run.cells[settings.task, chosen.name].conditions.batch_size,
        artefacts=chosen.artefacts,
        exit_points=tuple(chosen.exit_points),
        kv_input=manifest.config.get("kv_input"),
    )
    return CalibratedPoint(strategy=chosen.name.partition("@")[0], guarantee=guarantee)


def _tested(settings: Settings, target: Target, options: CalibrateOptions, passed: int) -> tuple[TestedSetting, ...]:
    conformal = options.method == "conformal"
    bounds = expectation_bounds(settings.losses) if conformal else []
    p_values = (
        [] if conformal else certified_by_tests(settings.losses, target.risk, options.delta, P_VALUES[options.p_value])
    )
    return tuple(
        TestedSetting(
            value=float(point.options[settings.option]),
            risk=float(row.mean()),
            p_value=p_values[place] if place < len(p_values) else None,
            bound=min(1.0, bounds[place]) if conformal else None,
            passed=place < passed,
            exit_layer_mean=settings.depth(point),
        )
        for place, (point, row) in enumerate(zip(settings.points, settings.losses, strict=True))
    )


def _refusal(settings: Settings, target: Target, count: Callable[[Losses], int]) -> str:
    """Say why nothing is promised, and how many documents it would take."""
    strictest, risk, n = settings.points[0], float(settings.losses[0].mean()), settings.losses.shape[1]
    head = (
        f"{n} {settings.unit}s do not certify {target.text} of any setting: the strictest, {strictest.name}, loses "
        f"{risk:.3f}"
    )
    needed = documents_needed(settings.losses[0], target.risk, lambda row: count(row[None]) > 0)
    if needed is None:
        return f"{head}, and at most {target.risk:g} may be lost. Try stricter settings or a weaker target."
    return f"{head} of {target.risk:g} allowed. It would take about {needed} that lose alike, or stricter settings."
