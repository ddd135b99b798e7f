"""From raw records to ``summary.json``: one row per task × operating point.

The definitions live beside this module, where they are computed: what counts in ``admission``, how it pairs in
``measured``, scores in ``quality``, time in ``cost``, energy in ``energy``, layers and rooflines in ``depth``,
comparisons in ``against_full``, the front in ``pareto``. Accuracy comes from the first repeat, everything else from all
of them. Probes that never exit (for the attribution of costs) get no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.errors import StoreError
from harness.records import SCHEMA_VERSION, Manifest, SampleRecord, WindowRecord
from harness.records.summary import Summary, SummaryRow
from reports.summary.admission import idle_windows
from reports.summary.against_full import compare, corrected, verdict
from reports.summary.attribution import attribute
from reports.summary.between_repeats import ranges
from reports.summary.cost import timing
from reports.summary.depth import depth, oracle_fraction, roofline, work
from reports.summary.energy import energy, idle_power_w
from reports.summary.equal_depth import over_fixed
from reports.summary.measured import Measured, select
from reports.summary.notes import notes
from reports.summary.pareto import mark_front
from reports.summary.quality import CorpusScorer, agreement, quality

__all__ = ["candidates", "summarise"]


def summarise(
    manifest: Manifest,
    windows: Iterable[WindowRecord],
    samples: Iterable[SampleRecord],
    score_corpus: CorpusScorer,
    *,
    machine: str | None = None,
    missing_scores: Sequence[str] = (),
) -> Summary:
    """Summarise a run directory's records; a run that is not finished is summarised as far as it got.

    Args:
        manifest: full depth is its first operating point and the baseline of every ratio.
        windows: measured windows; warm-up is left out.
        samples: sample records; those of uncommitted windows are left out.
        score_corpus: ``(language, texts, references) -> scores``, called once per row that has samples.
        machine: one line that describes where it was measured (``harness.host.environment.machine_line``);
            by default what the manifest's environment calls the processor.
        missing_scores: sentences about scores that the scorer cannot make where it runs; they become notes.

    Returns:
        Rows in the manifest's order (tasks, then operating points), also for operating points that have no
        measurement yet: those have ``n`` 0 and ``None`` everywhere.

    Raises:
        StoreError: the manifest's configuration cannot be understood, or it names no operating point.
    """
    windows, samples = tuple(windows), tuple(samples)
    measured = tuple(select(manifest, windows, samples).values())
    cells = _candidates(manifest, measured)
    idle = idle_windows(windows)
    tasks = [[cell for cell in cells if cell.task.name == task.name] for task in manifest.tasks]
    rows = tuple(row for table in tasks for row in _table(table, idle, manifest, score_corpus))
    summary = Summary(
        schema_version=SCHEMA_VERSION,
        machine=machine or str(manifest.environment.get("cpu") or "machine not recorded"),
        notes=notes(manifest, measured, rows, windows, samples, missing_scores),
        rows=rows,
        attributions=tuple(
            attribution
            for task in manifest.tasks
            for attribution in attribute([cell for cell in measured if cell.task.name == task.name])
        ),
    )
    return mark_front(summary)


def candidates(
    manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]
) -> tuple[Measured, ...]:
    """Return what becomes a row, in the manifest's order: every operating point but the probes that never exit.

    Raises:
        StoreError: the manifest's configuration cannot be understood, or it names no operating point.
    """
    return _candidates(manifest, tuple(select(manifest, windows, samples).values()))


def _candidates(manifest: Manifest, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    first = manifest.operating_points[0] if manifest.operating_points else None
    if first is None or first.never_exits or first.strategy != "full":
        raise StoreError(
            "the manifest does not begin with full depth, which everything is compared with. "
            "It is damaged or foreign; start a new run with `harness run`."
        )
    return tuple(cell for cell in measured if not cell.point.never_exits)


def _table(
    cells: Sequence[Measured], idle: Sequence[WindowRecord], manifest: Manifest, score_corpus: CorpusScorer
) -> list[SummaryRow]:
    """The rows of one task, full depth first."""
    full = cells[0]
    compared = corrected([compare(cell, full, idle_power_w(cell, idle)) for cell in cells])
    rows = []
    for cell, comparisons in zip(cells, compared, strict=True):
        joules = energy(cell, idle)
        fields = {
            **_identity(cell, manifest),
            **_measures(cell, cells, manifest, score_corpus),
            **joules,
            **ranges(cell, full),
            "speedup_pairs": comparisons[0].pairs or None,
            **{name: value for one in comparisons for name, value in one.fields.items()},
            "verdict": verdict(cell, full, comparisons, str(joules["energy_source"]), manifest.model.weights),
        }
        row = SummaryRow.model_validate(fields)
        if row.decode_speedup is not None and row.roofline_speedup is not None:
            row = row.model_copy(update={"roofline_achieved": row.decode_speedup / row.roofline_speedup})
        rows.append(row)
    return rows


def _identity(cell: Measured, manifest: Manifest) -> dict[str, object]:
    model = manifest.model
    return {
        "operating_point": cell.point.name,
        "strategy": cell.point.strategy,
        "options": cell.point.options,
        "task": cell.task.name,
        "language": cell.task.language,
        "protocol": cell.task.protocol,
        "source": cell.task.source,
        "model": model.name,
        "weights": model.weights,
        "exit_head": model.exit_head.partition(":")[0],
        "kv": cell.regime.kv,
        "batch_size": cell.regime.batch_size,
        "dtype": model.dtype,
        "n": len(cell.scored),
        "errors": cell.errors,
        "repeats": cell.repeats,
        "rehearsed": cell.point.rehearsed,
    }


def _measures(
    cell: Measured, cells: Sequence[Measured], manifest: Manifest, score_corpus: CorpusScorer
) -> dict[str, object]:
    layers, full = manifest.model.num_layers, cells[0]
    oracle = next((other for other in reversed(cell.alike(cells)) if other.point.rehearsed), None)
    return {
        "agreement": agreement(cell, full),
        "oracle_fraction": oracle_fraction(cell, oracle, layers),
        **over_fixed(cell, cells, layers),
        **quality(cell, score_corpus),
        **depth(cell, layers),
        **work(cell),
        **roofline(cell, full, manifest.model, manifest.bandwidth_bytes_per_s),
        **timing(cell),
    }
