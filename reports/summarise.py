"""From raw records to ``summary.json``: one row per task × operating point.

The definitions live where they are computed: what counts and how it pairs in :mod:`reports.measured`, scores in
:mod:`reports.quality`, time and energy in :mod:`reports.cost`, layers and rooflines in :mod:`reports.depth`, the
front in :mod:`reports.pareto`. Accuracy comes from the first repeat, everything else from all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import SCHEMA_VERSION, Manifest, SampleRecord, Summary, SummaryRow, WindowRecord
from reports.cost import energy, speedups, timing
from reports.depth import depth, oracle_fraction, roofline, work
from reports.equal_depth import over_fixed
from reports.measured import Measured, select
from reports.notes import notes
from reports.pareto import mark_front
from reports.quality import CorpusScorer, agreement, quality

__all__ = ["summarise"]


def summarise(
    manifest: Manifest,
    windows: Iterable[WindowRecord],
    samples: Iterable[SampleRecord],
    score_corpus: CorpusScorer,
    *,
    machine: str | None = None,
) -> Summary:
    """Summarise a run directory's records; a run that is not finished is summarised as far as it got.

    Args:
        manifest: full depth is its first operating point and the baseline of every ratio.
        windows: measured windows; warm-up is left out.
        samples: sample records; those of uncommitted windows are left out.
        score_corpus: ``(task name, texts, references) -> scores``, called once per row that has samples.
        machine: one line that describes where it was measured (``harness.environment.machine_line``);
            by default what the manifest's environment calls the processor.

    Returns:
        Rows in the manifest's order (tasks, then operating points), also for operating points that have no
        measurement yet: those have ``n`` 0 and ``None`` everywhere.

    Raises:
        StoreError: the manifest's configuration cannot be understood.
    """
    windows = tuple(windows)
    cells = select(manifest, windows, samples)
    rows = tuple(_row(cell, cells, manifest, score_corpus) for cell in cells.values())
    summary = Summary(
        schema_version=SCHEMA_VERSION,
        machine=machine or str(manifest.environment.get("cpu") or "machine not recorded"),
        notes=notes(manifest, tuple(cells.values()), rows, windows),
        rows=rows,
    )
    return mark_front(summary)


def _row(
    cell: Measured, cells: dict[tuple[str, str], Measured], manifest: Manifest, score_corpus: CorpusScorer
) -> SummaryRow:
    model = manifest.model
    full = cells[cell.task.name, manifest.operating_points[0].name]
    oracles = [point.name for point in manifest.operating_points if point.rehearsed]
    oracle = cells[cell.task.name, oracles[0]] if oracles else None
    return SummaryRow.model_validate(
        {
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
            "agreement": agreement(cell, full),
            **over_fixed(cell, [c for (task, _), c in cells.items() if task == cell.task.name], model.num_layers),
            "oracle_fraction": oracle_fraction(cell, oracle, model.num_layers),
            **quality(cell, score_corpus),
            **depth(cell, model.num_layers),
            **work(cell),
            **roofline(cell, full, model, manifest.bandwidth_bytes_per_s),
            **timing(cell),
            **speedups(cell, full),
            **energy(cell),
        }
    )
