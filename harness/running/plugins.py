"""What of a run comes from other projects' packages, and what of it is not installed where the run is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.errors import StoreError
from harness.host.code import hash_of_package
from harness.records import Manifest, OperatingPointRecord, PluginRecord
from harness.registry import (
    HEADS,
    KV_POLICIES,
    METERS,
    PROTOCOLS,
    SCORES,
    STOPS,
    STRATEGIES,
    TASKS,
    WEIGHTS_FORMATS,
    Registry,
)

__all__ = ["absent_plugins", "absent_scores", "code_of_objects", "refuse_absent_plugins", "used_plugins"]

Used = tuple[Registry[object], str]


def used_plugins(manifest: Manifest, scores: Iterable[str]) -> tuple[PluginRecord, ...]:
    """Return what a run uses that other projects registered, with the packages they come from.

    Args:
        manifest: of a run that is made here.
        scores: names of the scores it records.
    """
    entries = [(registry.noun, registry.entry(name)) for registry, name in _used(manifest, scores)]
    return tuple(
        PluginRecord(
            kind=noun,
            name=entry.name,
            distribution=entry.distribution,
            version=entry.version,
            code=hash_of_package(entry.target.partition(":")[0], entry.distribution),
        )
        for noun, entry in entries
        if entry.is_plugin
    )


def code_of_objects(points: Iterable[OperatingPointRecord]) -> dict[str, str]:
    """Return package → hash of its code, of strategies given as objects, which no package registered."""
    modules = {point.strategy.partition(":")[0] for point in points if ":" in point.strategy}
    return {module.partition(".")[0]: code for module in sorted(modules) if (code := hash_of_package(module))}


def absent_scores(manifest: Manifest, scores: Iterable[str]) -> set[str]:
    """Return which scores of a run are not registered here.

    Args:
        manifest: of the run.
        scores: names that its samples have.
    """
    recorded = {plugin.name for plugin in manifest.plugins if plugin.kind == SCORES.noun}
    return {name for name in recorded.union(scores) if name not in SCORES}


def absent_plugins(manifest: Manifest, scores: Iterable[str]) -> tuple[str, ...]:
    """Return one sentence per package that a run used and that is not installed here, with the command that helps.

    Arguments as :func:`absent_scores`.
    """
    return tuple(_sentence(*package, names) for package, names in _absent(manifest, scores).items())


def refuse_absent_plugins(path: Path, manifest: Manifest) -> None:
    """Refuse to go on with a run whose packages are not all installed here.

    Raises:
        StoreError: names them, with the commands that install them.
    """
    absent = _absent(manifest, ())
    if absent:
        commands = [f"pip install {name}=={version}" for name, version in absent if name]
        lead = ". Install what it needs and continue:" if commands else "."
        raise StoreError(
            f"{path} was measured with what is not installed here: {'; '.join(absent.values())}{lead}", commands
        )


def _absent(manifest: Manifest, scores: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return package and version → what of it a run used, in words; empty texts where the package is not known."""
    known = {(plugin.kind, plugin.name): plugin for plugin in manifest.plugins}
    packages: dict[tuple[str, str], list[str]] = {}
    scores = {*scores, *absent_scores(manifest, scores)}
    for registry, name in _used(manifest, sorted(scores)):
        if name not in registry:
            plugin = known.get((registry.noun, name))
            package = (plugin.distribution, plugin.version) if plugin else ("", "")
            packages.setdefault(package, []).append(f"{registry.noun} '{name}'")
    return {package: ", ".join(names) for package, names in packages.items()}


def _sentence(distribution: str, version: str, names: str) -> str:
    if not distribution:
        return f"no package that is installed here has the {names}: what was recorded is shown."
    return (
        f"{distribution} {version} is not installed here ({names}): what was recorded is shown. "
        f"Run `pip install {distribution}=={version}`."
    )


def _used(manifest: Manifest, scores: Iterable[str]) -> Iterator[Used]:
    """Every registered name that a run stands on, once.

    A strategy given as an object, ``module:class``, has none, nor what another package defines.
    """
    meter = str(manifest.config.get("energy", "auto")).partition(":")[0]
    tasks = [task for task in manifest.tasks if not task.defined_by]
    elsewhere = tuple(f"{task.defined_by}_" for task in manifest.tasks if task.defined_by)
    used = [
        *((STRATEGIES, point.strategy) for point in manifest.operating_points if ":" not in point.strategy),
        *((KV_POLICIES, point.kv) for point in manifest.operating_points if point.kv),
        *((WEIGHTS_FORMATS, name) for name in manifest.model.formats),
        *((HEADS, head.partition("/")[0]) for point in manifest.operating_points for head in point.heads),
        *((STOPS, point.stop.partition(":")[0]) for point in manifest.operating_points if point.stop),
        *((TASKS, task.name) for task in tasks),
        *((PROTOCOLS, task.protocol) for task in tasks),
        *((SCORES, name) for name in scores if not name.startswith(elsewhere)),
        *([(METERS, meter)] if meter != "auto" else []),
    ]
    yield from dict.fromkeys(used)
