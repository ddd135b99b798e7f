"""Differences between a run and its continuation or its reader: settings, code, machine, packages of other projects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import OtherMachineError, StoreError
from harness.host.environment import hash_of_package
from harness.records import Manifest, OperatingPointRecord, PluginRecord
from harness.registry import (
    DRAFTS,
    EXIT_MODULES,
    FAMILIES,
    HEADS,
    KV_POLICIES,
    METERS,
    PROMPT_RULES,
    PROTOCOLS,
    SCORES,
    STOPS,
    STRATEGIES,
    TASKS,
    WEIGHTS_FORMATS,
    Registry,
)

DECIDING = ("operating_points", "model", "tasks", "block_size", "meter", "plugins", "environment")
"""Parts of a manifest that decide results beside configuration and code, in the order of looking for a difference."""

NOT_DECIDING = {
    "config": {"out", "protocol"},  # the tasks' own decides: a run may name none
    "operating_points": {"kv_facts"},  # the name decides
    "model": {"weights_source", "tokenizer_source"},  # words; hashes and fingerprints decide
    "tasks": {"source", "detail", "duplicates", "unindexed"},  # the fingerprint decides
    "meter": {"unavailable"},
    "plugins": {"code"},  # compared by package, where both runs say
}

SAME_MACHINE = (
    *("cpu", "logical_cores", "usable_cores", "quota_cores", "gpus", "gpu_driver"),
    *("torch_threads", "instructions", "arithmetic", "compiled", "python", "packages"),
)
"""Parts of the environment that must not change within a run: neither times of two machines nor
scores of two package versions can be compared. Load, governor and git commit may change; ``products`` are kept."""

_DESCRIPTIONS = {"model.fingerprint": "the model's fingerprint (weights, config.json, tokenizer, end tokens)"}
"""Parts of a manifest in words, where their name does not say what to look at."""


def refuse_other_run(path: Path, before: Manifest, now: Manifest) -> None:
    """Compare a run directory's manifest with that of the run to be continued."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    refuse_other_configuration(path, before, new["config"])
    _refuse_other_code(path, before, now)  # what else differs may come of it
    for part in DECIDING:
        for document in (old, new):
            document[part] = _deciding(part, document[part])
        difference = _first_difference(part, old[part], new[part])
        if difference is None:
            continue
        key, was, is_now = difference
        if part == "environment":
            raise OtherMachineError(
                f"{path} was measured in another environment: {key} was {was}, now {is_now}. Numbers of two machines "
                "or package versions must not be mixed in one run; start a new one with another --out."
            )
        raise _other_configuration(path, key, was, is_now)


def _refuse_other_code(path: Path, before: Manifest, now: Manifest) -> None:
    pairs = [(name, code, now.code.get(name, code)) for name, code in before.code.items()]
    changed = [f"{name} was {then}, now {today}" for name, then, today in pairs if then != today]
    if changed:
        raise OtherMachineError(
            f"{path} was measured with other code: {'; '.join(changed)}. Numbers of two codes must not be mixed in one "
            "run: restore that code, or start a new run with another --out."
        )


def refuse_other_configuration(path: Path, before: Manifest, config: Mapping[str, Any]) -> None:
    """Compare configurations alone, before anything is loaded; raises as :func:`refuse_other_run`."""
    difference = _first_difference("config", _deciding("config", before.config), _deciding("config", dict(config)))
    if difference is not None:
        raise _other_configuration(path, *difference)


def refuse_other_placement(path: Path, before: Manifest, placement: Mapping[str, str]) -> None:
    """Compare where layers lie, before weights are read: ``auto`` plans by the memory that is free at the time."""
    was, is_now = (one.get("layers", "all layers on one device") for one in (before.placement, placement))
    if was != is_now:
        raise OtherMachineError(
            f"{path} was measured with {was}; by the memory that is free now it would go on with {is_now}. Free memory "
            "of those devices, or start a new run with another --out and the layers named in --device-map."
        )


def _other_configuration(path: Path, key: str, was: str, is_now: str) -> StoreError:
    key = _DESCRIPTIONS.get(key, key)
    return StoreError(
        f"{path} is a run of another configuration: {key} was {was}, now {is_now}. "
        "Resume with the same configuration, or start a new run with another --out."
    )


def _deciding(part: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_deciding(part, item) for item in value]
    if part == "environment":
        return {key: value.get(key) for key in SAME_MACHINE}
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if key not in NOT_DECIDING.get(part, set())}


def _first_difference(key: str, old: Any, new: Any) -> tuple[str, str, str] | None:
    """Return (key, old value, new value) of the first leaf that differs, values as JSON."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        pairs = [(f"{key}.{name}", old.get(name), new.get(name)) for name in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{key}[{index}]", *items) for index, items in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else (key, json.dumps(old), json.dumps(new))
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), None)


def used_plugins(manifest: Manifest, scores: Iterable[str]) -> tuple[PluginRecord, ...]:
    """Return what a run uses that other projects registered, with the packages they come from."""
    theirs = [(registry, name) for registry, name in _used(manifest, scores) if registry.plugin(name)]
    entries = [(registry.noun, registry.entry(name)) for registry, name in theirs]
    return tuple(
        PluginRecord(
            kind=noun,
            name=entry.name,
            distribution=entry.distribution,
            version=entry.version,
            code=hash_of_package(entry.target.partition(":")[0], entry.distribution),
        )
        for noun, entry in entries
    )


def code_of_objects(points: Iterable[OperatingPointRecord]) -> dict[str, str]:
    """Return package → hash of its code, of strategies given as objects, which no package registered."""
    modules = {point.strategy.partition(":")[0] for point in points if ":" in point.strategy}
    return {module.partition(".")[0]: code for module in sorted(modules) if (code := hash_of_package(module))}


def absent_plugins(manifest: Manifest, scores: Iterable[str]) -> tuple[str, ...]:
    """Return one sentence per package that a run used and that is not installed here, with the command that helps."""
    return tuple(
        f"{package} is not installed here ({names}): what was recorded is shown. Run `pip install {package}`."
        if package
        else f"no package that is installed here has the {names}: what was recorded is shown."
        for package, names in _absent(manifest, scores).items()
    )


def refuse_absent_plugins(path: Path, manifest: Manifest) -> None:
    """Refuse to go on with a run whose packages are not all installed here."""
    absent = _absent(manifest, ())
    if absent:
        commands = [f"pip install {package}" for package in absent if package]
        lead = ". Install what it needs and continue:" if commands else "."
        raise StoreError(
            f"{path} was measured with what is not installed here: {'; '.join(absent.values())}{lead}", commands
        )


def _absent(manifest: Manifest, scores: Iterable[str]) -> dict[str, str]:
    """Return package and version, as pip takes them, → what of it a run used; empty where the package is not known."""
    known = {(plugin.kind, plugin.name): f"{plugin.distribution}=={plugin.version}" for plugin in manifest.plugins}
    packages: dict[str, list[str]] = {}
    recorded = {plugin.name for plugin in manifest.plugins if plugin.kind == SCORES.noun}
    for registry, name in _used(manifest, sorted(recorded.union(scores))):
        if name not in registry:
            packages.setdefault(known.get((registry.noun, name), ""), []).append(f"{registry.noun} '{name}'")
    return {package: ", ".join(names) for package, names in packages.items()}


def _used(manifest: Manifest, scores: Iterable[str]) -> Iterator[tuple[Registry[object], str]]:
    """Every registered name that a run stands on, once."""
    meter = str(manifest.config.get("energy", "auto")).partition(":")[0]
    tasks = [task for task in manifest.tasks if not task.defined_by]
    elsewhere = tuple(f"{task.defined_by}_" for task in manifest.tasks if task.defined_by)
    used = [
        *((STRATEGIES, point.strategy) for point in manifest.operating_points if ":" not in point.strategy),
        *((STRATEGIES, rule) for point in manifest.operating_points for rule in _asked_by(point)),
        *((DRAFTS, name) for point in manifest.operating_points for name in _drafts_of(point)),
        *([(FAMILIES, manifest.model.family)] if manifest.model.family in FAMILIES else []),
        *((KV_POLICIES, point.kv) for point in manifest.operating_points if point.kv),
        *((WEIGHTS_FORMATS, name) for name in manifest.model.formats),
        *([(EXIT_MODULES, manifest.model.exit_module.partition("/")[0])] if manifest.model.exit_module else []),
        *((HEADS, head.partition("/")[0]) for point in manifest.operating_points for head in point.heads),
        *((STOPS, point.stop.partition(":")[0]) for point in manifest.operating_points if point.stop),
        *(
            (PROMPT_RULES, point.prompt_exit.partition(":")[0])
            for point in manifest.operating_points
            if point.prompt_exit
        ),
        *((TASKS, task.name) for task in tasks),
        *((PROTOCOLS, task.protocol) for task in tasks),
        *((SCORES, name) for name in scores if not name.startswith(elsewhere)),
        *([(METERS, meter)] if meter != "auto" else []),
    ]
    yield from dict.fromkeys(used)


def _drafts_of(point: OperatingPointRecord) -> Iterator[str]:
    return (draft.partition(":")[0] for draft in point.decode.split("+")[1:])


def _asked_by(point: OperatingPointRecord) -> Iterator[str]:
    """Yield the strategies that an operating point's own asks, as its options name them."""
    return (value for value in point.options.values() if isinstance(value, str) and value in STRATEGIES)
