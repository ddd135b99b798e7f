"""``harness calibrate``: a live run at several settings, a promise about documents, and whether it is kept.

``docs/calibration.md`` says what is promised, what is not, and how it was checked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np

from harness.config import BASELINE
from harness.errors import ConfigError, DataError, did_you_mean
from harness.models.model import KeptModel
from harness.records import OperatingPointRecord, guarantee
from harness.records.estimate import Estimate
from harness.registry import METRICS, SCORES
from harness.replay.options import CalibrateOptions
from harness.running.plan import shared_fields
from harness.running.resolve import resolve
from harness.running.runner import execute
from harness.running.session import Observer
from harness.running.thresholds import family, observed_thresholds
from reports.metrics.faithfulness import AGREEMENT
from reports.metrics.point import Point
from reports.metrics.vocabulary import AGREEMENTS
from reports.recorded import RecordedRun
from reports.statistics import risk_control
from reports.statistics.intervals import mean_interval
from reports.statistics.risk_control import MOST_DOCUMENTS, P_VALUES, Losses
from reports.tables.table import Column, Line, Part, Table

logger = logging.getLogger(__name__)

ROUNDS = 200
LOSS = "_loss"
NEAREST = 1e-6
"""Distance that a target keeps from 0 and 1: nearer to them nothing, or everything, would do."""

Count = Callable[[Losses], int]
"""Counts the settings, from the strictest on, that losses certify."""


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about the mean over documents; ``risk`` is ε, the largest mean loss allowed."""

    text: str
    name: str
    risk: float
    of_score: bool


def parse_target(text: str) -> Target:
    """Read ``METRIC=SHARE``, a share of full depth's that is kept, or ``SCORE_loss=AMOUNT``, what a score may fall."""
    name, _, value = text.strip().partition("=")
    of_score = name.endswith(LOSS)
    name = name.removesuffix(LOSS)
    try:
        given = float(value)
    except ValueError:
        given = 0.0
    if not NEAREST <= given <= 1 - NEAREST:
        raise ConfigError(
            f"--target '{text}': give a value between 0 and 1, as in agreement=0.95 or "
            f"{name if name in SCORES else 'SCORE'}_loss=0.02, and {NEAREST:g} from either end at least."
        )
    known = list(SCORES.names())
    if not of_score:
        shares = (one for one in METRICS.usable().values() if one.units and one.form == "fraction")
        known = [AGREEMENT.name, *(one.name for one in shares if AGREEMENTS in one.sections)]
    if name not in known:
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        scores = f" A score's fall is {name}_loss." if name in SCORES else ""
        raise ConfigError(f"--target '{text}': no {'score' if of_score else 'agreement'} '{name}'.{scores or hint}")
    if of_score:
        score = SCORES.load(name)()
        if score.unit or score.better != "higher" or not score.scores_samples:
            raise ConfigError(f"--target '{text}': {name} is no score of single documents between 0 and 1.")
    return Target(text.strip(), name, given if of_score else round(1 - given, 12), of_score)


def document_losses(point: Point, target: Target) -> dict[str, float]:
    """Return the loss of every document that has one, 0…1, by sample id, in the order that full depth decoded them.

    A score's is ``max(0, full depth's − its own)`` (CALM, arXiv 2207.07061, section 4). A document whose operating
    point failed, or has no score where full depth has one, lost everything.
    """
    cell, full, name = point.cell, point.full, target.name
    losses: dict[str, float] = {}
    if target.of_score:
        own = {sample.sample_id: sample.scores.get(name) for sample in cell.scored}
        for sample in full.scored:
            theirs, mine = sample.scores.get(name), own.get(sample.sample_id)
            if theirs is not None:
                losses[sample.sample_id] = 1.0 if mine is None else max(0.0, theirs - mine)
    elif name != AGREEMENT.name:
        units = METRICS.load(name).units
        assert units is not None  # a target names no other
        losses = {sample_id: 1 - part / whole for (sample_id,), (part, whole) in units(point).items()}
    else:  # positionwise, of the tokens that are decided: prefill's is full depth's for nothing
        for key in cell.shared(full):
            kept, everything = (cell.decoded(one.samples[key].token_ids) for one in (cell, full))
            if key[1] == 0 and everything:
                losses[key[0]] = 1 - sum(a == b for a, b in zip(kept, everything, strict=False)) / len(everything)
    losses |= {sample_id: 1.0 for sample_id, _ in cell.failed}
    if wrong := [sample_id for sample_id, loss in losses.items() if not -1e-9 <= loss <= 1 + 1e-9]:
        raise DataError(f"{name} of {wrong[0]} is no share ({losses[wrong[0]]:g} lost): it cannot be calibrated.")
    return {one.sample_id: min(max(losses[one.sample_id], 0.0), 1.0) for one in full.scored if one.sample_id in losses}


def record(options: CalibrateOptions, target: Target, observer: Observer) -> Path:
    """Decode the documents at every setting, and return the run directory."""
    if not options.strategies:
        raise ConfigError(
            "there is nothing to calibrate. Give --strategy NAME, or --resume DIR of a run at several values."
        )
    one = family(options.strategies[0], options.points)
    refuse_too_few(options.limit, options, target)
    model = KeptModel()
    values = one.values
    if one.wanted:
        plan = resolve(options.as_run((str(one.anywhere),)))
        values = tuple(observed_thresholds(one, plan, plan.tasks, options.observe, model, observer.stage))
    run = options.as_run(tuple(str(one.at(value)) for value in values))
    return execute(run, observer=observer, model=model).directory


def refuse_too_few(documents: int | None, options: CalibrateOptions, target: Target) -> None:
    """Raise where no losses of so many documents could certify the target."""
    least = least_documents(options, target.risk)
    if documents is not None and (least is None or documents < least):
        how = "" if options.method == "conformal" else f" with confidence {options.confidence:g}"
        takes = f"more than {MOST_DOCUMENTS:,}" if least is None else str(least)
        more = f"Use --limit {least} or more" if options.unit == "document" else "Decode more projects"
        remedy = "Make a weaker promise" if least is None else f"{more}, or make a weaker promise"
        raise DataError(
            f"{documents} {options.unit}s cannot certify {target.text}{how}: it takes {takes} even if none of them "
            f"loses anything. {remedy}."
        )


def least_documents(options: CalibrateOptions, risk: float) -> int | None:
    """Return how many documents a promise takes if none of them loses anything; ``None``: more than a million."""
    if options.method == "conformal":
        return risk_control.fewest_in_expectation(risk)
    return risk_control.fewest_documents(risk, options.delta, P_VALUES[options.p_value])


# ------------------------------------------------------------------------- settings and the promise


@dataclass(frozen=True)
class Settings:
    """One strategy at several values of one option, on the documents of a run.

    Attributes:
        points: operating points, from strict to lax.
        documents: of those that have a loss, in the order drawn: id → hash of the text.
        losses: ``[points, units]``: of each document, or mean of each project.
        projects: how many of the documents are of each project that is known.
        left_out: documents without one, see :class:`~harness.records.guarantee.Guarantee`.
    """

    run: RecordedRun
    option: str
    points: tuple[OperatingPointRecord, ...]
    documents: Mapping[str, str]
    losses: Losses
    projects: Mapping[str, int]
    unit: guarantee.Unit
    left_out: int

    def known_in(self, other: Settings) -> Set[str]:
        """Return ids of another run's documents that are this one's as well."""
        same = guarantee.is_same_source(self.run.manifest.tasks[0], other.run.manifest.tasks[0])
        return guarantee.known_documents(other.documents, self.documents, same_source=same)

    def depth(self, point: OperatingPointRecord) -> float | None:
        """Return the mean decoder layers of a decided token."""
        cell = self.run.cells[self.run.manifest.tasks[0].name, point.name]
        layers = list(chain.from_iterable(map(cell.decoded_layers, cell.samples.values())))
        return fmean(layers) if layers else None


def settings_of(run: RecordedRun, target: Target, strategy: str = "", unit: guarantee.Unit = "document") -> Settings:
    """Sort a finished run's settings of one strategy by the value of their option, from the deeper mean exit on.

    Points that verify, look at the answer, have a stop rule or are no strategy of the engine are passed over, and where
    some read their prompts whole, those that do not.
    """
    directory, (task, *others) = run.directory, run.manifest.tasks
    if others:
        raise ConfigError(f"{directory} has {len(run.manifest.tasks)} tasks, and a calibration is of one.")
    points = [
        point
        for point in run.manifest.operating_points
        if point.strategy != BASELINE
        and not (point.never_exits or point.lossless or point.rehearsed or point.stop or point.black_box)
    ]
    points = [point for point in points if not point.prompt_exit] or points
    names = list(dict.fromkeys(point.strategy for point in points))
    if strategy:
        points = [point for point in points if point.strategy == strategy]
    if not points or (not strategy and len(names) > 1):
        raise ConfigError(
            f"{directory} decodes {', '.join(names) or 'nothing'} lossily and without a stop rule. Name one with "
            f"--strategy{f', not {strategy}' if strategy else ''}."
        )
    option = _varied(run, points)
    points.sort(key=lambda point: float(point.options[option]))
    losses = [document_losses(run.point(task.name, point.name), target) for point in points]
    drawn = {sample.sample_id: sample for sample in run.point(task.name, points[0].name).full.scored}
    documents = [name for name in losses[0] if all(name in each for each in losses)]
    if not documents:
        raise DataError(f"no document of {directory} has a value of {target.name}: nothing can be calibrated.")
    known = [name for name in documents if drawn[name].project is not None]
    projects = [str(drawn[name].project) for name in known]
    if unit == "project" and not known:
        raise DataError(
            f"no document of {directory} says which project it is of, and --unit project needs that. Give rows "
            "with a field 'project', or use --unit document."
        )
    documents = known if unit == "project" else documents
    table = np.array([[each[name] for name in documents] for each in losses])
    found = Settings(
        run,
        option,
        tuple(points),
        {name: drawn[name].document for name in documents},
        by_project(table, projects) if unit == "project" else table,
        Counter(projects),
        unit,
        task.samples - len(documents),
    )
    first, last = (found.depth(point) or 0.0 for point in (points[0], points[-1]))
    if first == last and len(points) > 1:
        logger.warning(
            "%s: %s and %s are equally deep (%.1f layers), so that which is strict is not known, and what is chosen "
            "may be either. List values further apart",
            directory,
            points[0].name,
            points[-1].name,
            first,
        )
    return found if first >= last else replace(found, points=found.points[::-1], losses=found.losses[::-1])


def by_project(losses: Losses, projects: Sequence[str]) -> Losses:
    """Return mean losses, ``[points, documents]`` to ``[points, projects]``, in the order of each's first document."""
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
    if (
        len(varied) != 1
        or not all(isinstance(point.options.get(varied[0]), int | float) for point in points)
        or len({(point.kv, point.weights_format, point.prompt_exit) for point in points}) > 1
        or len(points) != len({str(point.options) for point in points})
    ):
        listed = ", ".join(point.name for point in points)
        raise ConfigError(f"{run.directory}: {listed} are no values of one numeric option. Run such values alone.")
    return varied[0]


def certified(options: CalibrateOptions, risk: float) -> Count:
    """Return what counts the settings that losses certify."""
    if options.method == "conformal":
        return lambda losses: risk_control.certified_in_expectation(losses, risk)
    tests = risk, options.delta, P_VALUES[options.p_value]
    return lambda losses: sum(p <= options.delta for p in risk_control.certified_by_tests(losses, *tests))


def calibrated(settings: Settings, target: Target, options: CalibrateOptions) -> guarantee.CalibratedPoint:
    """Choose the laxest setting that is certified.

    Raises:
        DataError: these documents certify none; says how many it would take.
    """
    count, losses, manifest = certified(options, target.risk), settings.losses, settings.run.manifest
    passed, conformal = count(losses), options.method == "conformal"
    if not passed:
        needed = risk_control.documents_needed(losses[0], target.risk, lambda row: count(row[None]) > 0)
        raise DataError(
            f"{losses.shape[1]} {settings.unit}s do not certify {target.text} of any setting: the strictest, "
            f"{settings.points[0].name}, loses {losses[0].mean():.3f}"
            + (
                f", and at most {target.risk:g} may be lost. Try stricter settings or a weaker target."
                if needed is None
                else f" of {target.risk:g} allowed. It would take about {needed} that lose alike, or stricter settings."
            )
        )
    if conformal:
        numbers = [min(1.0, bound) for bound in risk_control.expectation_bounds(losses)]
    else:
        numbers = risk_control.certified_by_tests(losses, target.risk, options.delta, P_VALUES[options.p_value])
    tested = tuple(
        guarantee.TestedSetting(
            value=float(point.options[settings.option]),
            risk=float(row.mean()),
            p_value=None if conformal or place >= len(numbers) else numbers[place],
            bound=numbers[place] if conformal else None,
            passed=place < passed,
            exit_layer_mean=settings.depth(point),
        )
        for place, (point, row) in enumerate(zip(settings.points, losses, strict=True))
    )
    chosen = settings.points[passed - 1]
    conditions = settings.run.cells[manifest.tasks[0].name, chosen.name].conditions
    facts = shared_fields(manifest.model, guarantee.Guarantee) | shared_fields(chosen, guarantee.Guarantee)
    promised = guarantee.Guarantee(
        target=target.text,
        risk=target.risk,
        confidence=None if conformal else options.confidence,
        method=options.method,
        p_value=None if conformal else options.p_value,
        option=settings.option,
        tested=tested,
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
        batch_size=conditions.batch_size,
        kv_input=manifest.config.get("kv_input"),
        plugins=manifest.plugin_code,
        **facts | {"kv": conditions.kv},
    )
    return guarantee.CalibratedPoint(strategy=chosen.name.partition("@")[0], guarantee=promised)


# -------------------------------------------------------------------------------------- is it kept?


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """The promise held against random halves.

    Attributes:
        documents: documents, or projects where they are the unit, calibrated on in each round.
        certified: rounds in which some setting was.
        violated: of those, rounds in which the other documents lost more than allowed.
        risk: what they lost, mean over the certified rounds; ``None`` without any.
    """

    documents: int
    certified: int
    violated: int
    risk: float | None


@dataclass(frozen=True, slots=True)
class HeldOutCheck:
    """The mean loss of the calibrated setting on other documents, and of settings calibrated on halves of the own."""

    where: str
    documents: int
    risk: Estimate
    halves: SplitCheck


def split_check(
    losses: Losses, risk: float, count: Count, *, tested: Losses | None = None, seed: int = 0
) -> SplitCheck:
    """Calibrate on random halves, test on the other half or on ``tested``; losses are ``[settings, documents]``."""
    generator = np.random.default_rng(seed)
    half = losses.shape[1] // 2
    lost = []
    for _ in range(ROUNDS):
        order = generator.permutation(losses.shape[1])
        passed = count(losses[:, order[:half]])
        if passed:
            others = losses[:, order[half:]] if tested is None else tested
            lost.append(float(others[passed - 1].mean()))
    return SplitCheck(half, len(lost), sum(each > risk for each in lost), float(np.mean(lost)) if lost else None)


def held_out_check(here: Settings, there: Settings, chosen: int, risk: float, count: Count) -> HeldOutCheck:
    """Hold a calibrated setting, by its place, against the same settings on other documents."""
    rows = {point.name: place for place, point in enumerate(there.points)}
    missing = [point.name for point in here.points if point.name not in rows]
    if missing:
        raise ConfigError(
            f"--against {there.run.directory}: it lacks {', '.join(missing)}. Run the same settings there."
        )
    losses = there.losses[[rows[point.name] for point in here.points]]
    task, lost = there.run.manifest.tasks[0], losses[chosen]
    return HeldOutCheck(
        where=f"{task.name}, {task.source}",
        documents=len(lost),
        risk=Estimate.of(float(lost.mean()), mean_interval([[float(each)] for each in lost])),
        halves=split_check(here.losses, risk, count, tested=losses),
    )


def calibration_tables(
    point: guarantee.CalibratedPoint, here: SplitCheck, others: Sequence[HeldOutCheck]
) -> Iterator[Part]:
    """Yield the promise, the settings in the order tested, and whether it is kept."""
    promised = point.guarantee
    left_out = f", {promised.left_out} left out" if promised.left_out else ""
    how = promised.method if promised.p_value is None else f"{promised.method}, {promised.p_value}"
    of_projects = f" of {len(promised.projects)} projects" if promised.unit == "project" else ""
    tested = promised.confidence is not None
    numbers = [one.p_value if tested else one.bound for one in promised.tested]
    passed = sum(one.passed for one in promised.tested)
    layers = promised.tested[passed - 1].exit_layer_mean
    yield Line(f"Use {point.strategy}, which runs {layers:.1f} layers: {promised.promise}.", "strong")
    yield Line("")
    outcomes = [Line("passed", "good")] * (passed - 1) + [Line("chosen", "strong")]
    outcomes += [
        Line("not tested", "faint") if number is None else Line("failed", "bad") for number in numbers[passed:]
    ]
    yield Table.of_rows(
        f"{promised.target} on {len(promised.documents)} documents{of_projects}{left_out}: {promised.task.name}, "
        f"{promised.task.source}; {promised.model}, {promised.weights_format}, kv {promised.kv}"
        f"{f', prompt {promised.prompt_exit}' if promised.prompt_exit else ''}; {how}",
        (
            Column(header=promised.option, form="g"),
            Column(header="layers", form=".1f"),
            Column(header="lost", form=".4f"),
            Column(header="p-value" if tested else "bound", form=".2g"),
            Column(header="", kind="text"),
        ),
        [
            (one.value, one.exit_layer_mean, one.risk, number, outcome)
            for one, number, outcome in zip(promised.tested, numbers, outcomes, strict=True)
        ],
    )
    yield Line("")
    yield Line(_in_words(here, promised, "on the other half"), "faint")
    for other in others:
        kept = other.risk.value <= promised.risk
        lost = f"{other.risk.text('{:.4f}')} lost of {promised.risk:g} allowed"
        where = f"On {other.where}, {other.documents} {promised.unit}s"
        yield Line("")
        yield Line(f"{where}: {'kept' if kept else 'broken'}, {lost}.", "good" if kept else "bad")
        yield Line(_in_words(other.halves, promised, "there"), "faint")


def _in_words(found: SplitCheck, promised: guarantee.Guarantee, where: str) -> str:
    certified = f"{found.certified} of {ROUNDS} random halves of {found.documents} {promised.unit}s"
    if found.risk is None:
        return f"{certified} certify a setting."
    broken = f"{found.violated} of them lose more than {promised.risk:g} {where}"
    return f"{certified} certify a setting; {broken} (mean {found.risk:.4f})."
