"""``--strategy @FILE``: operating points that ``harness calibrate`` wrote, and where their promise ends."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from harness.appearance.visible_text import one_line
from harness.config import RunConfig
from harness.errors import ConfigError, StoreError
from harness.records import OperatingPointRecord
from harness.records.guarantee import CalibratedPoint, Guarantee, is_same_source, known_documents
from harness.running.plan import Plan, PlannedTask
from harness.store.record_files import ACCESS, REMEDY, read_document

__all__ = ["CalibratedText", "departures", "with_calibrated_points"]


class CalibratedText(str):
    """An operating point as text that came with a certificate.

    Attributes:
        file: where it was read.
        guarantee: what is promised of it.
    """

    file: Path
    guarantee: Guarantee


def with_calibrated_points(config: RunConfig) -> RunConfig:
    """Return a configuration with every ``@FILE`` replaced by the operating point in it, which the manifest then names.

    Raises:
        ConfigError: a file that cannot be used.
        StoreError: one that is no calibrated operating point, or was changed.
    """
    strategies = tuple(
        _read(Path(given[1:])) if isinstance(given, str) and given.startswith("@") else given
        for given in config.strategies
    )
    return config.model_copy(update={"strategies": strategies}) if strategies != config.strategies else config


def _read(file: Path) -> CalibratedText:
    if not os.path.lexists(file):
        raise ConfigError(f"--strategy @{file}: there is no such file. Make it with `harness calibrate`.")
    try:
        point, _ = read_document(CalibratedPoint, file)
    except StoreError as error:
        said = str(error).removesuffix(REMEDY).removesuffix(ACCESS)
        raise StoreError(f"{said}Make it again with `harness calibrate`.") from None
    text = CalibratedText(point.strategy)
    text.file, text.guarantee = file, point.guarantee
    return text


def departures(plan: Plan) -> Iterator[str]:
    """Yield a line for everything in which a run is not what a certificate speaks of.

    Args:
        plan: of the run, its model loaded.
    """
    for given in plan.config.strategies:
        if isinstance(given, CalibratedText):
            own = [point.record for point in plan.points if point.name.partition("@")[0] == given]
            said = [*_of_decoding(given.guarantee, plan, own), *_of_documents(given.guarantee, plan.tasks)]
            yield from (one_line(f"the certificate of {given.file} {each}") for each in said)


def _of_decoding(promised: Guarantee, plan: Plan, points: Iterable[OperatingPointRecord]) -> Iterator[str]:
    model, config = plan.model.info, plan.config
    pairs = [
        ("model", promised.fingerprint, model.fingerprint),
        ("exit head", promised.exit_head, model.exit_head),
        ("dtype", promised.dtype, model.dtype),
        ("batch size", promised.batch_size, config.batch_size),
        ("limit of new tokens", promised.max_new_tokens, config.max_new_tokens),
    ]
    if promised.kv_input is not None:
        pairs.append(("input of filled-in keys and values", promised.kv_input, config.kv_input))
    for point in points:
        pairs += [
            ("KV policy", promised.kv, point.kv),
            ("weights format", promised.weights_format, point.weights_format),
            ("stop rule", "none", point.stop or "none"),
            ("trained parts", promised.artefacts, point.artefacts),
        ]
        if promised.exit_points is not None:
            pairs.append(("choice of exit points", list(promised.exit_points), list(point.exit_points)))
    for what, theirs, ours in dict.fromkeys((what, str(a), str(b)) for what, a, b in pairs):
        if theirs != ours:
            yield f"is of another {what} ({theirs} there, {ours} here): nothing is promised of this run."


def _of_documents(promised: Guarantee, tasks: Iterable[PlannedTask]) -> Iterator[str]:
    calibrated = dict(zip_longest(promised.documents, promised.hashes, fillvalue=""))
    for task in tasks:
        ours, theirs = (f"{one.name}, {one.protocol}, {one.source}" for one in (task.record, promised.task))
        same, drawn = is_same_source(task.record, promised.task), {s.sample_id: s.document for s in task.data.samples}
        if not same:
            ours = "these, whose rows are others under the same name" if ours == theirs else ours
            yield f"is of other documents ({theirs}): nothing is promised of {ours}."
        if known := len(known_documents(drawn, calibrated, same_source=same)):
            yield (
                f"was made on {known} of these {len(drawn)} documents: what is measured on them is no test of it. "
                "Draw others with --skip or --seed."
            )
