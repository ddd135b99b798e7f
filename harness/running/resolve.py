"""Resolves a configuration: everything that a run needs, found once and checked before the weights are read.

In the order of cost: names and options first, then the model's facts, the tokenizer and the samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from harness.appearance.visible_text import one_line
from harness.config import RunConfig, demo_strategies, parse_all
from harness.contracts import OWN_FORMAT, BlackBox
from harness.decoding import packing
from harness.errors import ConfigError, EndpointError, OutOfReachError, StoreError
from harness.host.libraries import resolve_device
from harness.models.artefacts import FACTS
from harness.models.controllers import TrainedStrategy
from harness.models.model import KeptModel, ResolvedModel
from harness.models.model import resolve as find_model
from harness.models.placement import check_format
from harness.models.trained import unreachable
from harness.records import Manifest, OperatingPointRecord
from harness.records.guarantee import CalibratedPoint, Guarantee, is_same_source, known_documents
from harness.registry import KV_POLICIES
from harness.running.operating_points import Built, black_box, build_all, operating_points, usable, with_baseline
from harness.running.plan import Draw, Plan, PlannedTask, registered_draw
from harness.running.thresholds import OBSERVED, any_number, observed_thresholds, with_numbers
from harness.store.record_files import ACCESS, REMEDY, read_document
from harness.store.same_run import refuse_other_configuration, refuse_other_placement


def resolve(
    config: RunConfig,
    draw: Draw | None = None,
    *,
    begins: bool = True,
    resumed: tuple[Path, Manifest] | None = None,
    model: KeptModel | None = None,
    stage: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Find and check everything that a configuration names; writes nothing.

    Args:
        config: what to run.
        draw: in place of the registered tasks and protocol that it names.
        begins: a black box that is down is refused; later its samples fail, and the run goes on.
        resumed: the run that goes on, and its manifest, which the configuration must not contradict.
        model: loads the model that thresholds given as percentiles are observed on; those are refused without it.
        stage: is called with each slow step.
    """
    config, calibrated = _with_calibrated_points(config)
    if resumed is not None:
        refuse_other_configuration(*resumed, config.model_dump(mode="json"))
    asked = config
    if model is not None:
        config, _ = with_numbers(asked, any_number)
    if (
        config.attribute
        and config.kv_policies
        and not any(KV_POLICIES.load(kv).facts.keeps_cache for kv in config.kv_policies)
    ):
        raise ConfigError("--attribute needs a KV cache: without one every token is a prefill. Use another --kv.")
    specs = build_all(config.specs())
    draws = draw or registered_draw(config)
    device = resolve_device(config.device)
    for spec, strategy in specs:
        if isinstance(strategy, BlackBox):
            black_box(spec, strategy)
            if begins:
                _reach(strategy)
    found = _found(config, specs)
    info = found.info
    _check_weights(config, found, device)
    if not config.strategies:
        specs = usable(build_all(parse_all(demo_strategies(info.exit_points), in_run=True)), info)
    built, infos = with_baseline(specs), [replace(info, weights_format=name) for name in config.weights_formats]
    points, tasks = operating_points(built, config, infos), draws(found)
    for stop in {point.stop.written: point.stop for point in points if point.stop is not None}.values():
        for task in tasks:
            stop.rule.check(info, task.task.language)
    plan = Plan(
        config, device, built, points, found, tasks,
        calibrated=calibrated, before=None if resumed is None else resumed[1],
    )  # fmt: skip
    if resumed is not None:
        refuse_other_placement(*resumed, plan.placement)
    if model is None or config is asked:
        return plan
    own = tasks if draw is None else registered_draw(config)(found)
    observe = partial(observed_thresholds, plan=plan, tasks=own, count=OBSERVED, model=model, stage=stage)
    config, observed = with_numbers(asked, observe)
    built = with_baseline(build_all(config.specs()))
    return replace(plan, config=config, built=built, points=operating_points(built, config, infos), observed=observed)


def _with_calibrated_points(config: RunConfig) -> tuple[RunConfig, tuple[tuple[Path, CalibratedPoint], ...]]:
    """Replace every ``@FILE`` by the operating point in it, which the manifest then names; return what was read."""
    calibrated: list[tuple[Path, CalibratedPoint]] = []
    strategies = list(config.strategies)
    for place, given in enumerate(strategies):
        if not (isinstance(given, str) and given.startswith("@")):
            continue
        file = Path(given[1:])
        if not os.path.lexists(file):
            raise ConfigError(f"--strategy {given}: there is no such file. Make it with `harness calibrate`.")
        try:
            point, _ = read_document(CalibratedPoint, file)
        except StoreError as error:
            fault = str(error).removesuffix(REMEDY).removesuffix(ACCESS)
            raise StoreError(f"{fault}Make it again with `harness calibrate`.") from None
        calibrated.append((file, point))
        strategies[place] = point.strategy
    return config.model_copy(update={"strategies": tuple(strategies)}) if calibrated else config, tuple(calibrated)


def _reach(strategy: BlackBox) -> None:
    """Ask a black box for one token: what is down now would fail on every sample."""
    connection = strategy.connect()
    try:
        connection.complete("def f(x):", 1, lambda _: False)
    except EndpointError as error:
        raise EndpointError(f"{error} {strategy.remedy()}") from None
    finally:
        connection.close()


def _found(config: RunConfig, specs: Built) -> ResolvedModel:
    """Find the model; where it is out of reach, what would have to be learned from it is missing as well."""
    try:
        return find_model(config.request(config.seed))
    except OutOfReachError as error:
        if kinds := dict.fromkeys(each.kind for _, each in specs if isinstance(each, TrainedStrategy)):
            raise unreachable(error, config.model, kinds) from error
        raise


def _check_weights(config: RunConfig, model: ResolvedModel, device: str) -> None:
    """Refuse what the model has not, and formats that it or the device cannot multiply in."""
    if config.kv_input == "shortcut" and model.shortcut is None:
        raise ConfigError(
            "--kv-input shortcut needs the exits' shortcuts, and this run has the shared exit head. Use --exit-head "
            "shortcut, which says how to make them where there are none."
        )
    for name in config.weights_formats:
        check_format(model.info, name)
        if name not in ("auto", OWN_FORMAT[model.info.dtype]):
            packing.usable(name, device)


def guarantee_violations(plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield a line for everything in which a run, its model loaded, is not what a point's certificate speaks of."""
    for file, calibrated in plan.calibrated:
        own = [point.record for point in plan.points if point.name.partition("@")[0] == calibrated.strategy]
        promised = calibrated.guarantee
        for line in (*_of_decoding(promised, plan, own, manifest.code), *_of_documents(promised, plan.tasks)):
            yield one_line(f"the certificate of {file} {line}")


def _of_decoding(
    promised: Guarantee, plan: Plan, points: Iterable[OperatingPointRecord], code: Mapping[str, str]
) -> Iterator[str]:
    model, config = plan.model.info, plan.config
    pairs = [
        ("model", promised.fingerprint, model.fingerprint),
        ("exit head", promised.exit_head, model.exit_head),
        ("dtype", promised.dtype, model.dtype),
        ("batch size", promised.batch_size, config.batch_size),
        ("limit of new tokens", promised.max_new_tokens, config.max_new_tokens),
        ("code of plug-ins", promised.plugins, {name: code.get(name, "none") for name in promised.plugins}),
    ]
    if promised.kv_input is not None:
        pairs.append(("input of filled-in keys and values", promised.kv_input, config.kv_input))
    for point in points:
        pairs += [
            ("KV policy", promised.kv, point.kv),
            ("weights format", promised.weights_format, point.weights_format),
            ("stop rule", "none", point.stop or "none"),
            ("exit for the prompt", promised.prompt_exit or "none", point.prompt_exit or "none"),
            ("trained parts", promised.artefacts, _as_promised(promised, point)),
        ]
        if promised.exit_points is not None:
            pairs.append(("choice of exit points", list(promised.exit_points), list(point.exit_points)))
    for what, theirs, ours in dict.fromkeys((what, str(a), str(b)) for what, a, b in pairs):
        if theirs != ours:
            yield f"is of another {what} ({theirs} there, {ours} here): nothing is promised of this run."


def _as_promised(promised: Guarantee, point: OperatingPointRecord) -> dict[str, str]:
    """Return the trained parts of a point; without the hashes of facts that older certificates do not have."""
    parts = point.artefacts.items()
    return {name: digest for name, digest in parts if name in promised.artefacts or not name.endswith(FACTS)}


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
