"""Everything that two runs were made with and that differs.

What for that reason must not be compared :mod:`harness.records.conditions` says. Versions of packages and of this
harness may differ: that is what one wants to compare, so they are named, not refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.records import Manifest, OperatingPointRecord, TaskRecord
from harness.records.conditions import layers_of

_ENVIRONMENT = (
    *("cpu", "architecture", "logical_cores", "usable_cores", "gpus", "torch_threads", "memory_bytes", "os", "python"),
    *("governor", "gpu_driver", "cuda"),
)

_WRITTEN_ELSEWHERE = frozenset(
    {
        *("out", "strategies", "model", "tasks", "source", "artefacts", "weights", "dtype", "weights_format", "kv"),
        *("protocol", "exit_head"),
    }
)
"""Configuration that another line of the list says better, or that is a folder's name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that was not the same.

    Attributes:
        what: in words.
        a, b: values, short.
    """

    what: str
    a: str
    b: str


def differences(a: Manifest, b: Manifest) -> tuple[Difference, ...]:
    """Return everything that differs between two manifests and can matter; time of day and folders left out."""
    found = []
    for (what, before), (_, after) in zip(_facts(a), _facts(b), strict=True):
        if before != after:
            found.append(Difference(what, _short(before), _short(after)))
    for what, one, other in (
        ("option", a.config, b.config),
        ("package", _packages(a), _packages(b)),
        ("code of", a.code, b.code),
    ):
        keys = sorted((one.keys() | other.keys()) - (_WRITTEN_ELSEWHERE if what == "option" else set()))
        if what != "package":  # a run of before an option existed had its default, which is not known here
            keys = [key for key in keys if key in one and key in other]
        found.extend(
            Difference(f"{what} {key}", _short(one.get(key)), _short(other.get(key)))
            for key in keys
            if one.get(key) != other.get(key)
        )
    for task in a.tasks:
        twin = next((one for one in b.tasks if one.name == task.name), None)
        found.extend(_of_task(task, twin) if twin is not None else ())
    for point in a.operating_points:
        same = next((one for one in b.operating_points if one.name == point.name), None)
        found.extend(_of_point(point, same) if same is not None and not point.never_exits else ())
    return tuple(found)


def _facts(manifest: Manifest) -> Iterator[tuple[str, object]]:
    model, environment = manifest.model, manifest.environment
    yield "model", model.name
    yield "weights", model.weights
    yield "weights hash", model.weights_sha256
    yield "model fingerprint", model.fingerprint
    yield "exit head", model.exit_head
    yield "tokenizer", model.tokenizer_source
    yield "exit points", ",".join(map(str, model.exit_points))
    yield "number format", model.numbers
    yield "kv", manifest.config.get("kv")
    yield "block size", manifest.block_size
    yield "placement", layers_of(manifest)
    yield "energy from", manifest.meter.source
    for key in _ENVIRONMENT:
        yield key.replace("_", " "), environment.get(key)
    commit = environment.get("git") or {}
    yield (
        "harness commit",
        commit.get("commit") and f"{commit['commit'][:12]}{'+changes' if commit.get('dirty') else ''}",
    )


def _packages(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest.environment.get("packages") or {})


def _of_task(a: TaskRecord, b: TaskRecord) -> Iterator[Difference]:
    for what, one, other in (
        ("protocol", a.protocol, b.protocol),
        ("data", a.source, b.source),
        ("samples", a.samples, b.samples),
        ("data hash", a.fingerprint, b.fingerprint),
    ):
        if one != other:
            yield Difference(f"{a.name}: {what}", _short(one), _short(other))


def _of_point(a: OperatingPointRecord, b: OperatingPointRecord) -> Iterator[Difference]:
    for name in sorted(a.artefacts.keys() | b.artefacts.keys()):
        if a.artefacts.get(name) != b.artefacts.get(name):
            one, other = _short(a.artefacts.get(name)), _short(b.artefacts.get(name))
            yield Difference(f"{a.name}: artefact {name}", one, other)
    for key in sorted(a.options.keys() | b.options.keys()):
        if a.options.get(key) != b.options.get(key):
            yield Difference(f"{a.name}: option {key}", _short(a.options.get(key)), _short(b.options.get(key)))


def _short(value: object) -> str:
    """A value in a few characters: hashes by their beginning, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    text = str(value)
    is_hash = len(text) >= 40 and all(character in "0123456789abcdef" for character in text)
    return text[:12] if is_hash else text if len(text) <= 60 else f"{text[:57]}…"
