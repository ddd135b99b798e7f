"""Thresholds as percentiles of observed scores: ``--strategy confidence:threshold=q10,q50,q90``.

Full depth decodes a few documents that the run does not, the strategy is asked at each of its exit points, and its
thresholds become numbers before anything else is planned. The numbers stand in the configuration, the percentiles
beside them in the manifest. What was observed is kept in the user's cache, for the same percentiles of the same
strategy on the same tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.appearance.visible_text import shell_word
from harness.config import RunConfig, StrategySpec, parse_all
from harness.config.options import build_strategy
from harness.contracts import Batch, Sample, Strategy
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.host.cache import keep_document, kept_document
from harness.host.code import hash_of_code
from harness.records import ObservedThreshold
from harness.running.plan import Plan, make_plan
from harness.running.thresholds import (
    THRESHOLD,
    Family,
    Shares,
    SharesOfExits,
    family,
    finer,
    is_percentile,
    learns,
    percentiles,
)

__all__ = ["OBSERVED", "ObservedText", "observe", "with_observed_thresholds"]

logger = logging.getLogger(__name__)

OBSERVED = 8
"""Further documents of each task that scores are observed on, where there are so many."""
PASSES = 3
"""Over them at most, each with thresholds between those of the one before, where scores crowd at a percentile."""
_CODE = ("harness/decoding", "harness/models", "harness/running", "strategies", "tasks")
"""Folders of what observes; a strategy of another project is hashed beside them."""


class ObservedText(str):
    """An operating point as text whose threshold was a percentile.

    Attributes:
        observed: what the manifest says of it.
    """

    observed: ObservedThreshold


def with_observed_thresholds(config: RunConfig, stage: Callable[[str], None]) -> RunConfig:
    """Return a configuration with a number for every percentile.

    Args:
        config: as it was given.
        stage: is told what takes time.

    Raises:
        HarnessError: an option is no score, nothing is to be observed, or no document is left.
    """
    strategies: list[str | Strategy] = []
    for given in config.strategies:
        specs = parse_all([given], in_run=True)
        if any(is_percentile(value) for spec in specs for _, value in spec.options):
            strategies += _numbers(specs, config, stage)
        else:
            strategies.append(given)
    return config.model_copy(update={"strategies": tuple(dict.fromkeys(strategies))})


def _numbers(specs: Sequence[StrategySpec], config: RunConfig, stage: Callable[[str], None]) -> list[ObservedText]:
    """Return operating points with numbers for their percentiles, in order."""
    found: list[ObservedText] = []
    for one, decode in dict.fromkeys((_family(spec, specs), spec.decode) for spec in specs):
        shares, documents = observe(one, config, OBSERVED, stage)
        for value, (wanted, reached) in percentiles(one, shares).items():
            point, what = str(one.at(value)), "%s, for q%g: %g %% of its scores on %d further documents lie below"
            logger.info(what, point, wanted, reached, documents)
            text = ObservedText(point if decode is None else f"{point}@{decode}")
            text.observed = ObservedThreshold(
                strategy=point, threshold=float(value), percentile=wanted, reached=reached, documents=documents
            )
            found.append(text)
    return found


def _family(spec: StrategySpec, specs: Sequence[StrategySpec]) -> Family:
    """Return the family of an operating point: those that differ from it in their threshold alone."""
    rest = [option for option in spec.options if option[0] != THRESHOLD]
    values = [
        value
        for each in specs
        for name, value in each.options
        if name == THRESHOLD and [option for option in each.options if option[0] != THRESHOLD] == rest
    ]
    given = [f"{name}={value}" for name, value in rest] + [f"{THRESHOLD}={','.join(values)}"] * bool(values)
    return family(":".join([spec.name, *given]), points=1)


def observe(one: Family, config: RunConfig, count: int, stage: Callable[[str], None]) -> tuple[Shares, int]:
    """Let full depth decode further documents, and ask the strategy at many thresholds.

    Args:
        one: whose threshold is observed.
        config: of the run that decodes other documents.
        count: documents of each task, at most.
        stage: is told what takes time.

    Returns:
        The shares, and how many documents they are of.

    Raises:
        ConfigError: the model has no exit points, or the strategy no score.
        DataError: no document is left, or no token of one was decided.
    """
    asked = SharesOfExits(one)
    plan = make_plan(config.model_copy(update={"strategies": (str(asked.anywhere),)}))
    if not plan.model.info.exit_points:
        name = plan.model.info.name
        raise ConfigError(f"{name} has no exit points, where scores could be observed. Give --exit-points.")
    if learns(build_strategy(asked.anywhere).start(plan.model.info, Batch((0,), "cpu"))):
        raise ConfigError(
            f"{one.spec} learns from its own tokens while it decodes, so no {THRESHOLD} of it is a percentile. List "
            f"values: --strategy '{one.at('VALUE,VALUE')}'."
        )
    samples = _further(plan, one, config, count)
    documents = sum(map(len, samples))
    key = _key(asked, plan, samples)
    kept = _shares(kept_document("observed", key))
    if kept is not None:
        return kept, documents
    stage(f"observing the scores of {one.spec} on {documents} further documents")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    loaded = plan.model.load_all(plan.device, stage, plan.config.weights_formats)[0]
    engine = Engine(loaded.backbone, loaded.info, plan.config.kv_input)
    shares: dict[float, float] = {}
    for _ in range(PASSES):
        for task, drawn in zip(plan.tasks, samples, strict=True):
            for sample in drawn:
                engine.decode(
                    [sample.prompt_ids],
                    asked,
                    kv=asked.default_kv,
                    max_new_tokens=[sample.max_new_tokens],
                    stop=task.stop,
                    eos_token_ids=plan.model.tokenizer.eos_token_ids,
                )
        if not asked.asked:
            raise DataError(f"no token of {documents} documents was decided. Use a larger --max-new-tokens.")
        shares |= asked.shares
        asked = SharesOfExits(one, finer(one, shares))
        if not asked.at:
            break
    keep_document("observed", key, {repr(at): share for at, share in shares.items()})
    return shares, documents


def _further(plan: Plan, one: Family, config: RunConfig, count: int) -> list[list[Sample]]:
    """Draw documents of each task that are not among those of the run."""
    limit = 0 if config.limit is None else config.limit + count
    other = plan.config.model_copy(update={"seed": (config.seed + 1) % 2**32, "limit": limit or None, "skip": 0})
    found = []
    for own, drawn in zip(plan.tasks, make_plan(other).tasks, strict=True):
        taken = {sample.sample_id for sample in own.data.samples}
        further = [sample for sample in drawn.data.samples if sample.sample_id not in taken][:count]
        if not further:
            raise DataError(
                f"all {len(taken)} documents of {shell_word(config.source)} are in use, and percentiles are of others. "
                f"Use a --limit below {len(taken)}, or list values: --strategy '{one.at('VALUE,VALUE')}'."
            )
        found.append(further)
    return found


def _key(asked: SharesOfExits, plan: Plan, samples: Sequence[Sequence[Sample]]) -> str:
    """Return what tells observations from others: strategy, percentiles, all code that decodes, model, tokens."""
    (*_, point), info = plan.points, plan.model.info
    own = inspect.getsourcefile(type(build_strategy(asked.anywhere)))
    code = [hash_of_code(*_CODE), None if own is None else hashlib.sha256(Path(own).read_bytes()).hexdigest()]
    facts = [
        str(asked.one.spec), asked.one.wanted, *code, torch.__version__, plan.device, plan.config.kv_input,
        point.record.exit_points, point.record.artefacts, info.fingerprint, info.exit_head, info.dtype,
        plan.config.weights_formats, [(task.record.name, task.record.protocol) for task in plan.tasks],
        [(sample.sample_id, list(sample.prompt_ids), sample.max_new_tokens) for each in samples for sample in each],
    ]  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _shares(found: Any) -> Shares | None:
    """Return what was observed before; ``None`` where nothing was."""
    return None if found is None else {float(at): float(share) for at, share in found.items()}
