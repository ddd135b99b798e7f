"""One page that shows what operating points wrote: every token on the colour of its depth, beside full depth's.

The page stands alone: no network, no script but that for arrow keys, light and dark as the reader's system is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.appearance.depth_colours import depth_shade
from harness.appearance.pages import escape_html, templates
from harness.appearance.token_style import TOKEN_CSS
from harness.records import OperatingPointRecord, SampleRecord
from harness.records.estimate import MISSING
from reports.completions.coloured_tokens import OLD_RUN, coloured_tokens, follows
from reports.metrics.scores import scores_of_sample
from reports.recorded import RecordedRun
from reports.statistics.plausible import is_plausible
from reports.summary.measured import Measured

__all__ = ["Shown", "choose_samples", "coloured_tokens", "completion_page"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample that is shown.

    Attributes:
        task, sample_id: which.
        followed: mean over the operating points of the share of full depth's tokens they kept; ``None`` without any.
        why: how it was chosen, in words.
    """

    task: str
    sample_id: str
    followed: float | None
    why: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One completion, ready for the template."""

    name: str
    note: str
    tokens: str  # HTML, escaped
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Card:
    shown: Shown
    number: int
    reference: str
    rows: tuple[_Row, ...]


def completion_page(run: RecordedRun, samples: int = 12) -> str:
    """Return an HTML page of a run's completions.

    Args:
        run: as read; of a run of several repeats the first is shown.
        samples: at most so many, over all tasks: the least and the most faithful ones, and others in the run's order.
    """
    layers = run.manifest.model.num_layers
    chosen = choose_samples(run, samples)
    total = len({(task, sample.sample_id) for (task, _), cell in run.cells.items() for sample in cell.scored})
    old = not any(sample.token_texts for cell in run.cells.values() for sample in cell.scored)
    return (
        templates("reports.completions")
        .get_template("completions.html")
        .render(
            run=run.name,
            model=run.manifest.model,
            layers=layers,
            state=run.state,
            old=OLD_RUN if old else "",
            cards=[_card(run, number, shown) for number, shown in enumerate(chosen, 1)],
            total=total,
            scale=[(layer, *depth_shade(layer, layers)) for layer in _scale(run)],
            lossless=any(point.lossless for point in run.manifest.operating_points),
            cached=any(cell.conditions.cached for cell in run.cells.values()),
            token_css=TOKEN_CSS,
        )
    )


def choose_samples(run: RecordedRun, samples: int) -> list[Shown]:
    """Return samples to show, in the run's order: a third the least faithful, a third the most, the first others.

    Faithful is the mean, over the operating points that decide, of the share of full depth's tokens kept.
    """
    found: dict[tuple[str, str], float | None] = {}
    for task in run.manifest.tasks:
        cells = _cells(run, task.name)
        full = cells[0] if cells else None
        for sample_id in dict.fromkeys(sample.sample_id for cell in cells for sample in cell.scored):
            found[task.name, sample_id] = _followed(cells, full, sample_id)
    each = max(1, samples // 3) if samples < len(found) else 0
    ranked = sorted((key for key, followed in found.items() if followed is not None), key=lambda key: found[key] or 0)
    why: dict[tuple[str, str], str] = {}
    for keys, words in ((ranked[:each], "among the least faithful"), (ranked[::-1][:each], "among the most faithful")):
        for key in keys:
            if len(why) < samples:
                why.setdefault(key, words)
    for key in found:
        if len(why) >= samples:
            break
        why.setdefault(key, "in the run's order")
    return [Shown(*key, found[key], why[key]) for key in found if key in why]


def _cells(run: RecordedRun, task: str) -> list[Measured]:
    return [cell for (name, _), cell in run.cells.items() if name == task and not cell.point.never_exits]


def _followed(cells: Sequence[Measured], full: Measured | None, sample_id: str) -> float | None:
    base = None if full is None else full.samples.get((sample_id, 0))
    if base is None:
        return None
    shares = [
        share
        for cell in cells
        if cell.point.strategy != "full" and not cell.point.rehearsed
        for sample in [cell.samples.get((sample_id, 0))]
        if sample is not None and (share := follows(sample, base)) is not None
    ]
    return fmean(shares) if shares else None


def _card(run: RecordedRun, number: int, shown: Shown) -> _Card:
    cells = _cells(run, shown.task)
    key = (shown.sample_id, 0)
    reference = next((cell.samples[key].reference for cell in cells if key in cell.samples), "")
    return _Card(shown, number, reference, tuple(_rows(run, cells, key)))


def _rows(run: RecordedRun, cells: Sequence[Measured], key: tuple[str, int]) -> Iterator[_Row]:
    """One row per operating point, held against the first: full depth, of which a run may have others beside it."""
    layers, formats, full = run.manifest.model.num_layers, run.manifest.model.formats, cells[0].samples.get(key)
    for cell in cells:
        sample = cell.samples.get(key) or cell.failed.get(key)
        if sample is None:
            continue
        beside = None if cell is cells[0] else full
        if (
            sample.error is None and sample.text and not sample.token_texts and not sample.answer
        ):  # an old run; said once, above
            tokens = f'<div class="tokens missing">{escape_html(sample.text)}</div>'
        else:
            tokens = coloured_tokens(sample, layers, beside, cached=cell.conditions.cached)
        stored = cell.conditions.weights_format if len(formats) > 1 else ""
        yield _Row(cell.point.name, _note(cell.point, stored), tokens, tuple(_facts(cell, sample, beside)))


def _note(point: OperatingPointRecord, stored: str) -> str:
    if point.strategy == "full":
        drafts = f"{' or '.join(point.draft_sources)} drafts" if point.draft_sources else ""
        return "; ".join(filter(None, ("never exits", stored and f"matrices in {stored}", drafts)))
    if point.black_box is not None:
        return "a black box: no tokens, no layers"
    return "a bound: it looked at the answer" if point.rehearsed else ""


def _facts(cell: Measured, sample: SampleRecord, full: SampleRecord | None) -> Iterator[tuple[str, str]]:
    decided = cell.decoded_layers(sample)
    if decided:
        yield "mean layer", f"{fmean(decided):.1f}"
    if full is not None and (share := follows(sample, full)) is not None:
        yield "agreement", f"{share:.2f}"
    for metric, score in scores_of_sample(sample):
        if metric.change is not None:
            yield metric.title or metric.term, f"{score:.2f}"
    if sample.latency_s is not None:
        yield "latency", _time(sample.latency_s)
    if len(sample.token_times_s) > 1:
        later = (sample.token_times_s[-1] - sample.token_times_s[0]) / (len(sample.token_times_s) - 1)
        yield "per later token", _time(later)


def _time(seconds: float) -> str:
    if not is_plausible(seconds):
        return MISSING
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _scale(run: RecordedRun) -> list[int]:
    """Layers of the legend: those at which the model can be left, and the last."""
    model = run.manifest.model
    return sorted({*model.exit_points, model.num_layers})
