"""GREEN-CODE's numbers and those of runs beside each other, setting by setting: two systems, never ranked together.

Savings are shares of the same system's own full depth *under the same KV policy*: what compares across models and
machines. Beside them every cost stands as a share of full depth *without a cache*, the baseline of the published
savings. The paper's numbers are single runs without an interval; ours are paired by block of samples.

**Cost of the agent**, without nesting windows: asked at every exit point and never obeyed, less full depth, gives the
price of a check; times the checks of an operating point. **Matched depth**: thresholds are probabilities of two
different agents, so that for each published point there is also ours that skips the most similar share of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import StoreError
from harness.records import TaskRecord, WindowRecord
from harness.records.estimate import Estimate, NoInterval
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.metrics.depth import LAYERS_SKIPPED
from reports.metrics.energy import ENERGY_PER_REQUEST
from reports.published.numbers import LAYERS, THRESHOLDS, PublishedRun, agent_costs, full_depth, green_code, saving
from reports.recorded import RecordedRun
from reports.statistics.intervals import (
    MINIMUM_PAIRS,
    Pair,
    paired_ratio,
    pooled,
    ratio_interval,
    replicate_interval,
    resampled,
    score_interval,
)
from reports.summary.attribution import price_per_check
from reports.summary.measured import Measured, energy_origin, has_energy
from reports.tables.table import Column, Table
from reports.tables.writers import to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PAPER_MODELS = {"llama-3.2-3b": "Llama-3.2-3B", "opt-2.7b": "OPT-2.7B"}
"""Catalogue name → the paper's. Any other model stands in for both."""
FULL, UNTUNED, NEVER = "full depth", "full depth, untuned", "asked, never exits"
NEAR = 0.05  # share of the layers within which two operating points count as equally deep

_SAVED, _UNCACHED = "over full depth under the same KV policy", "over full depth without a KV cache"
COLUMNS = {
    name: Column(name=name, header=header, unit=unit, meaning=meaning, form=form, priority=priority)
    for name, header, unit, meaning, form, priority in (
        ("layers_skipped", "layers skipped", "", "", "percent", 0),
        ("time_saving", "time saved", "", _SAVED, "percent", 0),
        ("time_of_uncached", "time", "of uncached", _UNCACHED, "percent", 0),
        ("rouge_l_kept", "ROUGE-L kept", "", "", "percent", 1),
        ("energy_saving", "energy saved", "", _SAVED, "percent", 2),
        ("codebleu_kept", "CodeBLEU kept", "", "", "percent", 3),
        ("energy_of_uncached", "energy", "of uncached", _UNCACHED, "percent", 4),
        ("agent_time", "agent's time", "of full depth", "", "percent", 5),
        ("agent_energy", "agent's energy", "of full depth", "", "percent", 6),
        ("time_s", "time", "s/sample", "", "digits", 7),
        ("energy_j", "energy", "J/sample", "", "digits", 7),
    )
}
"""Quantities by name. All but the last two are fractions, which compare across machines."""

CAVEATS = (
    "the paper's: single runs on a Quadro RTX 8000; those with a cache (files) are from its authors' repository, with "
    "longer prompts (30 % of a file, not 20 %), which counts against them; agent's time by nested sensor windows "
    "(Table IV; "
    f"JavaCorpus from the result files); '{NEVER}' is threshold 0.94 on JavaCorpus; its CodeBLEU counts missing data "
    "flow as 1, and its untuned Python runs have other references, so that no score of theirs is kept",
    "savings are over the same system's own full depth under the same KV policy, 'of uncached' over its full depth "
    "without a cache; our untuned full depth is a run of its own, so that its costs are not paired",
    "~ energy that no sensor measured; – not measured, not published, or not defined",
)

GRID = ("layers_skipped", "time_saving", "energy_saving", "rouge_l_kept", "codebleu_kept", "agent_time")
CACHE = ("time_of_uncached", "energy_of_uncached")
LOOKS = {
    "paper": (("#9ecae1", "///"), ("#fdd0a2", "\\\\\\"), ("#c7e9c0", "..."), ("#dadaeb", "xxx")),
    "here": (("#0072b2", ""), ("#d55e00", ""), ("#009e73", ""), ("#cc79a7", ""), ("#e69f00", "")),
}
"""Whose → colours and hatches of its systems, in the order of the rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One system at one setting."""

    setting: str  # such as "full depth" and "threshold 0.6"
    paper_model: str  # whose published numbers these are; empty for ours
    kv: str
    values: Mapping[str, Estimate]  # of :data:`COLUMNS`, those that were measured or published and are defined
    threshold: float | None = None  # of the agent
    point: str = ""  # our operating point, without its KV policy
    energy_measured: bool = True

    @property
    def system(self) -> str:
        """Whose numbers, and how it decoded: those with a cache are the authors' result files', not the paper's."""
        source = "paper" if self.kv == "none" else "files"
        return f"{f'{source}, {self.paper_model}' if self.paper_model else 'here'}, KV {self.kv}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run's task beside the paper's runs of the same language."""

    run: RecordedRun
    task: TaskRecord
    rows: tuple[Row, ...]  # by setting, the paper's before ours
    matched: tuple[tuple[Row, Row], ...]  # each uncached agent of the paper, and ours that is nearest in depth
    notes: tuple[str, ...]


def against_green_code(runs: Sequence[RecordedRun]) -> tuple[Comparison, ...]:
    """Lay runs with early exits beside the paper's; runs of untuned full depth stand beside those of the same model."""
    exits: list[tuple[RecordedRun, TaskRecord]] = []
    untuned: dict[tuple[str, str], RecordedRun] = {}
    tasks = [(run, task) for run in runs for task in run.manifest.tasks if task.protocol == "green-code"]
    for run, task in tasks:
        if any(strategy != "full" for strategy, *_ in _cells(run, task)):
            exits.append((run, task))
        elif run.manifest.model.weights == "pretrained":
            untuned[run.manifest.model.name, task.name] = run
    if not exits:
        raise StoreError("no run has early exits under the protocol green-code. Make some: `harness study green-code`.")
    return tuple(_compared(run, task, untuned.get((run.manifest.model.name, task.name))) for run, task in exits)


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield what a comparison shows: every setting of both, and the paper's agents at matched depth."""
    where = f"{comparison.task.name}, {comparison.run.manifest.model.name}"
    rows, pairs = comparison.rows, comparison.matched
    first = {row.setting: place for place, row in reversed(list(enumerate(rows)))}
    yield Table(
        title=f"{where}: GREEN-CODE's numbers and those measured here",
        columns=(Column(header="", kind="label", cells=tuple(row.system for row in rows)), *_columns(rows)),
        groups=tuple(sorted((place, setting) for setting, place in first.items())),
        notes=comparison.notes,
    )
    shown = [(replace(COLUMNS[name], unit=unit), side) for name in ("layers_skipped", "time_saving", "rouge_l_kept")
             for side, unit in enumerate(("paper", "here"))]  # fmt: skip
    yield Table.of_rows(
        f"{where}: the paper's agents, and what skips the most similar share of layers here, without a cache",
        [
            Column(header="paper, threshold", kind="text"),
            Column(header="here", kind="label"),
            *(one for one, _ in shown),
        ],
        [
            (
                f"{pair[0].paper_model}, {pair[0].threshold:g}",
                f"{pair[1].point}{' ≠' if _apart(*pair) > NEAR else ''}",
                *(pair[side].values.get(column.name) for column, side in shown),
            )
            for pair in pairs
        ],
        notes=(f"≠ nothing measured here skips as many layers, give or take {NEAR:.0%} of them",),
    )


def comparison_csv(comparison: Comparison) -> str:
    """Return one line per setting and system; relative numbers are fractions."""
    rows = comparison.rows
    facts = ("setting", "threshold", "paper_model", "kv", "point")
    columns = (Column(header=name, cells=tuple(getattr(row, name) for row in rows)) for name in facts)
    return to_csv(Table(title="", columns=(*columns, *_columns(rows))))


def _columns(rows: Sequence[Row]) -> Iterator[Column]:
    estimated = tuple("" if row.energy_measured else "~" for row in rows)
    for name, column in COLUMNS.items():
        cells = tuple(row.values.get(name) for row in rows)
        if any(cells):
            yield replace(column, cells=cells, marks=estimated if "energy" in name else ())


def _compared(run: RecordedRun, task: TaskRecord, untuned: RecordedRun | None) -> Comparison:
    ours = [*_measured(run, task), *(_measured(untuned, task, beside=run) if untuned else ())]
    paper = PAPER_MODELS.get(run.manifest.model.name)
    theirs = [
        _published(one)
        for one in green_code()
        if one.language == task.language and paper in (None, one.model) and one.strategy != "fixed"
    ]
    shown = [UNTUNED, FULL, *(f"threshold {one:g}" for one in THRESHOLDS), *(row.setting for row in ours)]
    rows = [row for setting in dict.fromkeys(shown) for row in (*theirs, *ours) if row.setting == setting]
    early = [
        row for row in ours if row.kv == "none" and row.setting not in (FULL, NEVER) and "layers_skipped" in row.values
    ]
    matched = tuple(
        (agent, min(early, key=lambda row: (_apart(agent, row), row.threshold is None)))  # our agent wins a tie
        for agent in (rows if early else ())
        if agent.paper_model and agent.threshold in THRESHOLDS
    )
    return Comparison(run, task, tuple(rows), matched, tuple(_notes(run, task, paper, rows, untuned)))


def _setting(strategy: str, threshold: float | None, untuned: bool, otherwise: str) -> str:
    if strategy == "full":
        return UNTUNED if untuned else FULL
    if strategy != "rl" or threshold is None:
        return otherwise
    return NEVER if threshold >= 1 else f"threshold {threshold:g}"


def _published(run: PublishedRun) -> Row:
    full, uncached = full_depth(run), full_depth(run, "none")
    agent = agent_costs(run.model, run.language, run.threshold) if run.threshold is not None else {}
    same_references = run.weights == "tuned" or run.language != "python"
    values = {
        "layers_skipped": run.layers_skipped,
        "time_saving": saving(run, "time_s"),
        "energy_saving": saving(run, "energy_j"),
        "time_of_uncached": run.time_s / uncached.time_s,
        "energy_of_uncached": run.energy_j / uncached.energy_j,
        "rouge_l_kept": run.rouge_l / full.rouge_l if same_references and run.rouge_l and full.rouge_l else None,
        "codebleu_kept": run.codebleu / full.codebleu if same_references and run.codebleu and full.codebleu else None,
        "agent_time": agent.get("time_of_full"),
        "agent_energy": agent.get("energy_of_full"),
        "time_s": run.time_s,
        "energy_j": run.energy_j,
    }
    never = run.strategy == "rl" and run.layers_skipped == 0
    return Row(
        setting=_setting(run.strategy, 1 if never else run.threshold, run.weights == "base", ""),
        paper_model=run.model,
        kv=run.kv,
        values={name: Estimate(value=value) for name, value in values.items() if value is not None},
        threshold=run.threshold,
    )


def _measured(run: RecordedRun, task: TaskRecord, beside: RecordedRun | None = None) -> Iterator[Row]:
    """Yield the operating points of a run, over the full depth of the run ``beside``, if any, which pairs nothing."""
    cells, baselines = _cells(run, task), _cells(beside or run, task)
    rows, others = (
        {row.operating_point: row for row in one.summary.rows if row.task == task.name} for one in (run, beside or run)
    )
    for (_, kv, threshold), cell in cells.items():
        full, uncached = baselines.get(("full", kv, None)), baselines.get(("full", "none", None))
        if full is None or not (cell.samples and full.samples):
            continue
        row, baseline = rows[cell.point.name], others[full.point.name]
        scored = "random" not in (row.weights, baseline.weights)
        codebleu, of = row.value("codebleu"), baseline.value("codebleu")
        spent = [seconds for window in cell.whole_windows if (seconds := cell.request_s(window)) is not None]
        values = {
            "layers_skipped": row.estimate(LAYERS_SKIPPED),
            "rouge_l_kept": _kept(cell, full) if scored else None,
            "codebleu_kept": Estimate(value=codebleu / of) if scored and codebleu is not None and of else None,
            "time_s": Estimate(value=sum(spent) / sum(map(len, cell.whole.values()))) if spent else None,
            "energy_j": row.estimate(ENERGY_PER_REQUEST),
        }
        for quantity in ("time", "energy"):
            left = _left(cell, full, quantity, paired=beside is None)
            if left is not None:
                ends = (1 - left.interval[1], 1 - left.interval[0]) if left.interval else left.no_interval
                values[f"{quantity}_saving"] = Estimate.of(1 - left.value, ends)
            values[f"{quantity}_of_uncached"] = _left(cell, uncached, quantity, paired=beside is None)
            never = cells.get(("rl", kv, 1)) if cell.point.strategy == "rl" else None
            values[f"agent_{quantity}"] = _agent_cost(cell, full, never, quantity)
        label = cell.point.name.partition("@")[0]
        found = {name: value for name, value in values.items() if value is not None}
        setting = _setting(cell.point.strategy, threshold, beside is not None, label)
        yield Row(setting, "", kv, found, threshold, label, row.energy_measured)


def _cells(run: RecordedRun, task: TaskRecord) -> dict[tuple[str, str, float | None], Measured]:
    """Return name, KV policy and agent's threshold → lossy operating points in the run's first weights format.

    The name is the strategy's for full depth and agents at a threshold, for all others the operating point's.
    """
    found: dict[tuple[str, str, float | None], Measured] = {}
    for (name, _), cell in run.cells.items():
        point, first = cell.point, cell.conditions.weights_format == run.manifest.model.stored_in
        if name == task.name and first and not (point.lossless or point.rehearsed or point.never_exits):
            threshold = point.options.get("threshold") if point.strategy == "rl" else None
            known = point.strategy == "full" or threshold is not None
            found.setdefault((point.strategy if known else point.name, cell.conditions.kv, threshold), cell)
    return found


def _pairs(cell: Measured, full: Measured, quantity: str) -> dict[int, Pair]:
    if quantity == "time":
        return cell.block_pairs(full, Measured.request_s)
    return cell.block_pairs(full, lambda _, window: window.energy_j) if has_energy(cell, full) else {}


def _left(cell: Measured, full: Measured | None, quantity: str, *, paired: bool) -> Estimate | None:
    """Return what is left of full depth's cost; without an interval where windows were not interleaved."""
    pairs = list(_pairs(cell, full, quantity).values()) if full else []
    ratio = paired_ratio(pairs)
    if not ratio or cell is full:
        return Estimate(value=1.0) if ratio else None
    bounds = ratio_interval(pairs) if paired else None
    return Estimate.of(1 / ratio, (1 / bounds[1], 1 / bounds[0]) if isinstance(bounds, tuple) else bounds)


def _kept(cell: Measured, full: Measured) -> Estimate | None:
    """Return mean ROUGE-L over full depth's on the samples both finished; no interval where too few of them differ."""
    mine, theirs = ({one.sample_id: one.scores.get("rouge_l") for one in each.scored} for each in (cell, full))
    both = {
        key: Pair(here, there)
        for key, here in mine.items()
        if here is not None and (there := theirs.get(key)) is not None
    }
    pairs = pooled((place, pair) for place, block in enumerate(cell.by_block(both)) for pair in block)
    ratio = paired_ratio(pairs)
    if ratio is None or cell is full:
        return None if ratio is None else Estimate(value=1.0)
    told = score_interval(cell.by_block({key: pair.baseline - pair.other for key, pair in both.items()}))
    return Estimate.of(ratio, ratio_interval(pairs) if isinstance(told, tuple) else told)


def _agent_cost(cell: Measured, full: Measured, never: Measured | None, quantity: str) -> Estimate | None:
    """Return what asking cost over full depth's cost: the price of a check times the checks, on blocks all finished."""
    if never is None:
        return None

    def asked_in(cell: Measured, window: WindowRecord) -> float:
        return float(sum(sample.exit_checks for sample in cell.whole[window.window]))

    asked, own = (_pairs(each, full, quantity) for each in (never, cell))
    checks = [each.block_pairs(full, asked_in) for each in (never, cell)]
    blocks = sorted(asked.keys() & own.keys())
    rows = np.array([(asked[one].other, asked[one].baseline, *(each[one].other for each in checks)) for one in blocks])
    if not blocks or not rows[:, 2].sum():
        return None
    draws = [np.ones((1, len(rows))), *(resampled(len(rows), 4_000, 0) if len(rows) >= MINIMUM_PAIRS else ())]
    spent, whole, of_never, of_cell = (np.vstack(draws) @ rows).T  # of all blocks, then of each resampling of them
    shares = price_per_check(spent, whole, of_never) * of_cell / whole
    return Estimate.of(float(shares[0]), replicate_interval(shares[1:], len(rows)) or NoInterval.FEW_PAIRS)


def _apart(one: Row, other: Row) -> float:
    """Return the share of the layers by which two depths differ."""
    return abs(one.values["layers_skipped"].value - other.values["layers_skipped"].value)


def _notes(
    run: RecordedRun, task: TaskRecord, paper: str | None, rows: Sequence[Row], untuned: RecordedRun | None
) -> Iterator[str]:
    model, ours = run.manifest.model, [row for row in run.summary.rows if row.task == task.name]
    instead = "" if paper else f", standing in for {' and '.join(LAYERS)}"
    yield (
        f"here: {model.name} ({model.weights} weights, {model.numbers}, exit head {model.exit_head.partition(':')[0]})"
        f"{instead}; {ours[0].n} samples of {task.source}; {run.summary.machine}"
    )
    if model.weights == "random":
        yield "random weights here, so scores mean nothing and none is kept"
    agents = [
        row for row in rows if row.threshold in THRESHOLDS and row.kv == "none" and "layers_skipped" in row.values
    ]
    apart = [
        _apart(one, other)
        for one in agents
        for other in agents
        if one.paper_model and not other.paper_model and one.threshold == other.threshold
    ]
    if apart and min(apart) > NEAR:
        yield (
            "the same thresholds are not the same settings: our agent's probabilities are calibrated differently, and "
            "at none of them it skips as many layers as the paper's. Compare at matched depth"
        )
    if not ours[0].energy_measured:
        yield f"energy here is {energy_origin(ours[0].energy_source)} and adds no evidence of its own"
    yield from CAVEATS
    yield from dict.fromkeys((*run.summary.notes, *(untuned.summary.notes if untuned else ())))


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """Return the paper's grid, and what exits and the cache leave of full depth's cost without a cache."""
    where = f"{comparison.task.name}, {comparison.run.manifest.model.name}"
    caption = ". ".join(line[0].upper() + line[1:] for line in comparison.notes)
    found = []
    for kind, what in (("grid", "the agent's grid"), ("cache", "cost over full depth without a KV cache")):
        title = f"GREEN-CODE, published and measured: {what} ({where})"
        name, draw = (
            f"green-code-{kind}-{drawing.slug(where)}",
            partial(_draw, comparison, title, cache=kind == "cache"),
        )
        found.append(Figure(name, title, caption, draw))
    return found


def _draw(comparison: Comparison, title: str, width: Width, *, cache: bool) -> Canvas:
    settings = [*([FULL] if cache else ()), *(f"threshold {threshold:g}" for threshold in THRESHOLDS)]
    rows = [row for row in comparison.rows if row.setting in settings]
    rows = [row for row in rows if cache or not row.paper_model or row.kv == "none"]
    systems = list(dict.fromkeys(row.system for row in rows))
    looks = {whose: iter(some) for whose, some in LOOKS.items()}
    looks_of = {system: next(looks["here" if system.startswith("here") else "paper"]) for system in systems}
    quantities = CACHE if cache else GRID
    beside, height, letters = (3, 2.3, 24) if width == "text" else (1, 1.2, 40)
    canvas, grid = drawing.panels(width, len(quantities), height, across=beside, sharex=True)
    for ax, name in zip(grid, quantities, strict=True):
        for offset, system in zip(drawing.offsets(len(systems)), systems, strict=True):
            colour, hatch = looks_of[system]
            known = {
                settings.index(row.setting) + offset: value
                for row in rows
                if row.system == system and (value := row.values.get(name)) is not None
            }
            look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "#555555", "label": system}
            wide = 0.8 / len(systems)  # a system without a value stands in the legend all the same
            drawing.bars(ax, [*known] or [0], [*known.values()] or [Estimate(value=0)], wide, scale=100, **look)
        ax.set_xticks(range(len(settings)), [one.removeprefix("threshold ").removesuffix(" depth") for one in settings])
        ax.axhline(0, color=drawing.QUIET, linewidth=0.8)
        if name.endswith("_kept"):
            ax.axhline(100, color=drawing.QUIET, linewidth=0.8, linestyle=":")
            ax.set_ylim(bottom=0)
        if not any(name in row.values for row in rows):
            ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", color=drawing.QUIET)
        ax.set_title(fill(f"{COLUMNS[name].header} {COLUMNS[name].unit}".strip(), letters))
    for ax in grid[::beside]:
        ax.set_ylabel("%")
    for ax in grid[-beside:]:
        ax.set_xlabel("agent's threshold")
    samples = max(row.n for row in comparison.run.summary.rows if row.task == comparison.task.name)
    drawing.say_size(grid[min(beside // 2, len(grid) - 1)], f"n = {samples} samples")
    said = "n: measured here. Black lines: 95 % intervals; published numbers have none."
    drawing.legend_below(canvas, title=said)
    canvas.suptitle(fill(title, 44 if width == "column" else 90), x=0.01, ha="left", fontweight="bold", fontsize=8)
    return canvas
