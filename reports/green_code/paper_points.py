"""The paper's numbers of one setting, in the same terms as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.green_code.numbers import Estimate, Numbers
from reports.green_code.published_details import overhead_of
from reports.green_code.published_runs import PublishedRun, full_depth, green_code, saving

__all__ = ["cache_savings", "published_numbers", "published_points"]


def published_points(
    stands_for: Sequence[str], language: str, is_this: Callable[[PublishedRun], bool]
) -> dict[str, Numbers]:
    """Return the uncached published runs of one setting, by model, relative to the authors' own full depth.

    Args:
        stands_for: the paper's models.
        language: of the data.
        is_this: picks the setting.
    """
    return {
        run.model: published_numbers(run)
        for run in green_code()
        if run.kv == "none" and run.language == language and run.model in stands_for and is_this(run)
    }


def published_numbers(run: PublishedRun) -> Numbers:
    """Return a published run relative to the authors' own full depth.

    The untuned Python runs have other references than the tuned ones, so there is no score to keep.
    """
    full = full_depth(run)
    same_references = not (run.weights == "base" and run.language == "python")
    check = None if run.threshold is None else overhead_of(run.model, run.language, run.threshold)

    def kept(mine: float | None, theirs: float | None) -> Estimate | None:
        return Estimate(mine / theirs) if mine is not None and theirs and same_references else None

    def share(value: float | None) -> Estimate | None:
        return None if value is None else Estimate(value)

    return Numbers(
        operating_point="published",
        samples=run.samples,
        energy_source="nvml",
        layers_skipped=Estimate(run.layers_skipped),
        time_saving=Estimate(saving(run, "time_s")),
        energy_saving=Estimate(saving(run, "energy_j")),
        rouge_l_kept=kept(run.rouge_l, full.rouge_l),
        codebleu_kept=kept(run.codebleu, full.codebleu),
        overhead_time=share(check.time_of_run if check else None),
        overhead_energy=share(check.energy_of_run if check else None),
        overhead_time_of_full=share(check.time_of_full if check else None),
        overhead_energy_of_full=share(check.energy_of_full if check else None),
        time_s=run.time_s,
        time_std_s=run.time_std_s,
        energy_j=run.energy_j,
        energy_std_j=run.energy_std_j,
        rouge_l=run.rouge_l,
        codebleu=run.codebleu,
    )


def cache_savings(model: str, language: str) -> tuple[float, float]:
    """Return the shares of time and energy that the authors' cached full depth saves over their uncached one."""
    whole = {
        run.kv: run
        for run in green_code()
        if (run.model, run.language, run.weights, run.strategy) == (model, language, "tuned", "full")
    }
    cached, uncached = whole["propagate"], whole["none"]
    return 1 - cached.time_s / uncached.time_s, 1 - cached.energy_j / uncached.energy_j
