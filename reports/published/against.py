"""GREEN-CODE's numbers and those of runs beside each other, setting by setting: two systems, never ranked together.

Savings are shares of the same system's own full depth *under the same KV policy*: what compares across models and
machines. Beside them every cost stands as a share of full depth *without a cache*, the baseline of the published
savings, so that what early exit saves and what the cache saves share a column. The paper's numbers are single runs
without an interval; ours are paired by block of samples. CodeBLEU is a score of a whole corpus and has no interval.

**Cost of the agent**, without nesting windows: asked at every exit point and never obeyed, less full depth, gives the
price of a check; times the checks of an operating point. **Matched depth**: thresholds are probabilities of two
different agents, so that for each published point there is also ours that skips the most similar share of layers.

**Figures**: published bars are hatched and have no interval, since there is none; colours are of systems, which are not
strategies.
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
from reports.figures.drawing import INK, QUIET, Figure, Width, legend_below, offsets, panels, say_size, slug
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

PAPER_MODELS = {"llama-3.2-3b": "Llama-3.2-3B", "opt-2.7b": "OPT-2.7B"}
"""Catalogue name → the paper's. Any other model stands in for both."""
FULL, UNTUNED, NEVER = "full depth", "full depth, untuned", "asked, never exits"
NEAR = 0.05
"""Share of the layers within which two operating points count as equally deep."""

_SAVED, _UNCACHED = "over full depth under the same KV policy", "over full depth without a KV cache"
COLUMNS = {
    column.name: column
    for column in (
        Column(name="layers_skipped", header="layers skipped", cells=(), form="percent"),
        Column(name="time_saving", header="time saved", cells=(), form="percent", meaning=_SAVED),
        Column(name="time_of_uncached", header="time", unit="of uncached", cells=(), form="percent", meaning=_UNCACHED),
        Column(name="rouge_l_kept", header="ROUGE-L kept", cells=(), form="percent", priority=1),
        Column(name="energy_saving", header="energy saved", cells=(), form="percent", meaning=_SAVED, priority=2),
        Column(name="codebleu_kept", header="CodeBLEU kept", cells=(), form="percent", priority=3),
        Column(name="energy_of_uncached", header="energy", unit="of uncached", cells=(), form="percent",
               meaning=_UNCACHED, priority=4),
        Column(name="agent_time", header="agent's time", unit="of full depth", cells=(), form="percent", priority=5),
        Column(name="agent_energy", header="agent's energy", unit="of full depth", cells=(), form="percent",
               priority=6),
        Column(name="time_s", header="time", unit="s/sample", cells=(), priority=7),
        Column(name="energy_j", header="energy", unit="J/sample", cells=(), priority=7),
    )
}  # fmt: skip
"""Quantities by name. All but the last two are fractions, which compare across machines."""

CAVEATS = (
    "the paper's: single runs on a Quadro RTX 8000; those with a cache have longer prompts (30 % of a file, not 20 %), "
    "which counts against them; agent's time by nested sensor windows (Table IV; JavaCorpus from the result files); "
    f"'{NEVER}' is threshold 0.94 on JavaCorpus; its CodeBLEU counts missing data flow as 1, and its untuned Python "
    "runs have other references, so that no score of theirs is kept",
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

    setting: str
    paper_model: str
    kv: str
    values: Mapping[str, Estimate]
    threshold: float | None = None
    point: str = ""
    energy_measured: bool = True

    @property
    def system(self) -> str:
        """Whose numbers, and how it decoded."""
        return f"{f'paper, {self.paper_model}' if self.paper_model else 'here'}, KV {self.kv}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run's task beside the paper's runs of the same language."""

    run: RecordedRun
    task: TaskRecord
    rows: tuple[Row, ...]
    matched: tuple[tuple[Row, Row], ...]
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
    compared = [(COLUMNS[name], side) for name in ("layers_skipped", "time_saving", "rouge_l_kept") for side in (0, 1)]
    nearest = tuple(f"{ours.point}{' ≠' if _apart(agent, ours) > NEAR else ''}" for agent, ours in pairs)
    yield Table(
        title=f"{where}: the paper's agents, and what skips the most similar share of layers here, without a cache",
        columns=(
            Column(header="paper, threshold", kind="text",
                   cells=tuple(f"{one.paper_model}, {one.threshold:g}" for one, _ in pairs)),
            Column(header="here", kind="label", cells=nearest),
            *(
                replace(column, unit=("paper", "here")[side],
                        cells=tuple(pair[side].values.get(column.name) for pair in pairs))
                for column, side in compared
            ),
        ),
        notes=(f"≠ nothing measured here skips as many layers, give or take {NEAR:.0%} of them",),
    )  # fmt: skip


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
    return [
        Figure(f"green-code-{kind}-{slug(where)}", title := f"GREEN-CODE, published and measured: {what} ({where})",
               caption, partial(_draw, comparison, title, quantities, cache=kind == "cache"))
        for kind, what, quantities in (
            ("grid", "the agent's grid", GRID),
            ("cache", "cost over full depth without a KV cache", CACHE),
        )
    ]  # fmt: skip


def _draw(comparison: Comparison, title: str, quantities: Sequence[str], width: Width, *, cache: bool) -> Canvas:
    settings = [*([FULL] if cache else ()), *(f"threshold {threshold:g}" for threshold in THRESHOLDS)]
    beside, height, letters = (3, 2.3, 24) if width == "text" else (1, 1.2, 40)
    canvas, axes = panels(width, len(quantities), height, across=beside, sharex=True)
    for ax, name in zip(axes, quantities, strict=True):
        _panel(ax, comparison, settings, name, cache=cache)
        column = COLUMNS[name]
        ax.set_title(fill(f"{column.header} {column.unit}".strip(), letters))
    for ax in axes[::beside]:
        ax.set_ylabel("%")
    for ax in axes[-beside:]:
        ax.set_xlabel("agent's threshold")
    samples = max(row.n for row in comparison.run.summary.rows if row.task == comparison.task.name)
    say_size(axes[min(beside // 2, len(axes) - 1)], f"n = {samples} samples")
    said = "n: measured here. Black lines: 95 % intervals; published numbers have none."
    legend_below(canvas, *axes[0].get_legend_handles_labels(), title=said)
    canvas.suptitle(fill(title, 44 if width == "column" else 90), x=0.01, ha="left", fontweight="bold", fontsize=8)
    return canvas


def _panel(ax: Axes, comparison: Comparison, settings: Sequence[str], name: str, *, cache: bool) -> None:
    rows = [
        row for row in comparison.rows if row.setting in settings and (cache or not row.paper_model or row.kv == "none")
    ]
    looks = {whose: iter(some) for whose, some in LOOKS.items()}
    systems = list(dict.fromkeys(row.system for row in rows))
    wide = 0.8 / len(systems)
    for offset, system in zip(offsets(len(systems)), systems, strict=True):
        colour, hatch = next(looks[system.partition(",")[0]])
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "#555555", "linewidth": 0.4 * bool(hatch)}
        ax.bar(0, 0, 0, label=system, **look)  # the legend has every system, whatever is missing
        for row in rows:
            value = row.values.get(name) if row.system == system else None
            if value is None:
                continue
            x = settings.index(row.setting) + offset
            ax.bar(x, 100 * value.value, wide * 0.92, **look)
            if value.interval is not None:
                ax.vlines(x, 100 * value.interval[0], 100 * value.interval[1], color=INK, linewidth=0.9)
    labels = [setting.removeprefix("threshold ").removesuffix(" depth") for setting in settings]
    ax.set_xticks(range(len(settings)), labels)
    ax.axhline(0, color=QUIET, linewidth=0.8)
    ax.grid(axis="x", visible=False)
    if name.endswith("_kept"):
        ax.axhline(100, color=QUIET, linewidth=0.8, linestyle=":")
        ax.set_ylim(bottom=0)
    if not any(name in row.values for row in rows):
        ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", color=QUIET)
