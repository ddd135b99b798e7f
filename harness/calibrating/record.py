"""Decodes the calibration documents: an ordinary run with one operating point per setting, resumed like any other."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.appearance.visible_text import shell_word
from harness.calibrating.options import CalibrateOptions
from harness.calibrating.promise import least_documents
from harness.calibrating.targets import Target
from harness.calibrating.thresholds import Family, Shares, SharesOfExits, family, percentiles
from harness.config import RunConfig
from harness.contracts import Sample
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.running.plan import Plan, make_plan
from harness.running.runner import execute
from harness.running.session import Observer
from harness.store.run_directory import refuse_occupied

__all__ = ["record"]


def record(options: CalibrateOptions, target: Target, observer: Observer) -> Path:
    """Decode the documents at every setting, and return the run directory.

    Args:
        options: what to calibrate, and on what.
        target: what is to be promised.
        observer: is told how it goes on.

    Raises:
        HarnessError: it cannot be run; also where so few documents cannot certify the target whatever they lose.
    """
    if not options.strategies:
        raise ConfigError(
            "there is nothing to calibrate. Give --strategy NAME, or --resume DIR of a run at several values."
        )
    one = family(options.strategies[0], options.points)
    refuse_too_few(options.limit, options, target)
    if options.out is not None and options.out.exists():
        refuse_occupied(options.out)  # before scores are observed
    if one.observed:
        one = percentiles(one, _observe(one, options, observer))
    return execute(options.as_run(one.texts), observer=observer).directory


def refuse_too_few(documents: int | None, options: CalibrateOptions, target: Target) -> None:
    """Raise where no losses of so many documents could certify the target."""
    least = least_documents(options, target.risk)
    if documents is not None and documents < least:
        how = "" if options.method == "conformal" else f" with confidence {options.confidence:g}"
        raise DataError(
            f"{documents} documents cannot certify {target.text}{how}: it takes {least} even if none of them loses "
            f"anything. Use --limit {least} or more, or a weaker promise."
        )


def _observe(one: Family, options: CalibrateOptions, observer: Observer) -> Shares:
    """Let full depth decode further documents, and ask the strategy at many thresholds."""
    observer.stage(f"observing the scores of {one.spec} on {options.observe} further documents")
    asked = SharesOfExits(one)
    plan = make_plan(options.as_run((str(asked.anywhere),)))
    samples = _further(plan, one, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    loaded = plan.model.load_all(plan.device, observer.stage, plan.config.weights_formats)[0]
    engine = Engine(loaded.backbone, loaded.info, plan.config.kv_input)
    for sample in samples:
        engine.decode(
            [sample.prompt_ids],
            asked,
            kv=asked.default_kv,
            max_new_tokens=[sample.max_new_tokens],
            stop=plan.tasks[0].stop,
            eos_token_ids=plan.model.tokenizer.eos_token_ids,
        )
    if not asked.asked:
        raise DataError(f"no token of {len(samples)} documents was decided. Use a larger --max-new-tokens.")
    return asked.shares


def _further(plan: Plan, one: Family, options: CalibrateOptions) -> list[Sample]:
    """Draw documents that are not among those to calibrate on."""
    taken = {sample.sample_id for sample in plan.tasks[0].data.samples}
    limit = 0 if options.limit is None else options.limit + options.observe
    other: RunConfig = plan.config.replace(seed=(plan.config.seed + 1) % 2**32, limit=limit)
    drawn = make_plan(other).tasks[0].data.samples
    found = [sample for sample in drawn if sample.sample_id not in taken][: options.observe]
    if not found:
        raise DataError(
            f"all {len(taken)} documents of {shell_word(options.source)} are calibrated on, and percentiles are of "
            f"others. Use a --limit below {len(taken)}, or list values: --strategy '{one.at('VALUE,VALUE')}'."
        )
    return found
