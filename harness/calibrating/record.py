"""Decodes the calibration documents: an ordinary run with one operating point per setting, resumed like any other."""

from __future__ import annotations

from pathlib import Path

from harness.calibrating.options import CalibrateOptions
from harness.calibrating.promise import least_documents
from harness.calibrating.targets import Target
from harness.errors import ConfigError, DataError
from harness.running.observing import observe
from harness.running.runner import execute
from harness.running.session import Observer
from harness.running.thresholds import family, percentiles
from harness.store.run_directory import refuse_occupied
from reports.statistics.risk_control import MOST_DOCUMENTS


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
    if options.strategies[0].startswith("@"):
        raise ConfigError(
            f"--strategy {options.strategies[0]} is calibrated: `harness run` takes it. Give NAME or "
            "NAME:option=value,value, or another question of the same run: --resume DIR --target TARGET."
        )
    one = family(options.strategies[0], options.points)
    refuse_too_few(options.limit, options, target)
    if options.out is not None and options.out.exists():
        refuse_occupied(options.out)  # before scores are observed
    if one.observed:
        shares, _ = observe(one, options.as_run(()), options.observe, observer.stage)
        one = one.with_values(percentiles(one, shares))
    return execute(options.as_run(one.texts), observer=observer).directory


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
