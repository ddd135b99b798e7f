"""Takes private paths out of what is published: where somebody's files lay says who they are and helps nobody.

A run directory is never changed; what leaves the machine is a copy. Completions, references and the texts of tokens
stay as they are: they are the data, and public code is full of paths. Doing it twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from harness.records import Manifest
from harness.records.record import Record
from harness.records.summary import Summary
from reports.recorded import RecordedRun

R = TypeVar("R", bound=Record)

PUBLIC = ("/usr/", "/sys/", "/proc/", "/dev/", "/etc/", "/lib/", "/opt/", "/bin/", "/snap/")
"""Folders whose paths say nothing about whoever measured."""

_NAMED = r"[^\s\"'<>|:;,()\[\]{}\\/]"
_DRIVE = r"(?:\\{2,4}[?.]\\{1,2})?[A-Za-z]:"
_SERVER = rf"\\{{2,4}}{_NAMED}+(?=\\)"
_ROOT = rf"(?:{_DRIVE}[\\/]{{1,2}}|{_SERVER}\\{{1,2}}|~?/)"
"""Where an absolute path begins; Windows' separators may be doubled, as in a quoted string."""
_HOME = re.compile(rf"^(?:~|/root|(?:{_DRIVE}|{_SERVER})?[\\/]{{1,2}}(?:home|Users)[\\/]{{1,2}}[^\\/]+)[\\/]*$")
_WHOLE = re.compile(rf"^((?:\w{{2,}}: )?)({_ROOT}[^\\/\s].*)$", re.DOTALL)
_WITHIN = re.compile(rf"(?<![\w/\\.…~<-])(?:file://)?{_ROOT}{_NAMED}(?:{_NAMED}|[\\/])*")
_KEPT = frozenset({"text", "reference", "token_texts"})


@dataclass(frozen=True, slots=True)
class Redacted:
    """A run without private paths."""

    run: RecordedRun
    places: tuple[str, ...]  # what was changed, as dotted names of the files' fields
    merged: tuple[str, ...]  # names that became equal although they were different; such a run cannot be published


def redact(text: str) -> str:
    """Return a text with each private absolute path replaced by ``…/`` and its last part."""
    whole = _WHOLE.match(text)
    if whole and not whole[2].startswith(PUBLIC):
        _, space, rest = whole[2].partition(" ")
        separators = "/" if whole[2].startswith(("/", "~")) else "/\\"
        if not space or any(separator in rest for separator in separators):
            return whole[1] + _shortened(whole[2])
    return _WITHIN.sub(lambda found: _shortened(found[0]), text)


def private_paths(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted place, text) of every text inside a JSON value that :func:`redact` would change."""
    for place, text in _texts(value, ()):
        if redact(text) != text:
            yield ".".join(place), text


def redact_run(run: RecordedRun) -> Redacted:
    """Return a run as it may be published, and what had to be changed for it."""
    places = [f"manifest.{place}" for place, _ in private_paths(run.manifest.model_dump(mode="json"))]
    windows = tuple(_record(window, ("operating_point", "energy_reason", "energy_scope")) for window in run.windows)
    samples = []
    for sample in run.samples:
        found = _record(sample, ("operating_point", "sample_id", "error"))
        answer = found.answer and _record(
            found.answer, ("model",)
        )  # a server may call it by the folder that it lies in
        samples.append(found if answer is found.answer else found.model_copy(update={"answer": answer}))
    places += ["windows"] * (windows != run.windows) + ["samples"] * (tuple(samples) != run.samples)
    if not places:
        return Redacted(run, (), ())
    merged = []
    for names in ({point.name for point in run.manifest.operating_points}, {one.sample_id for one in run.samples}):
        seen: dict[str, str] = {}
        merged += [name for name in sorted(names) if seen.setdefault(redact(name), name) != name]
    manifest = Manifest.model_validate(_redacted(run.manifest.model_dump(mode="json")))
    summary = Summary.model_validate(_redacted(run.summary.model_dump(mode="json")))
    published = replace(run, manifest=manifest, windows=windows, samples=tuple(samples), summary=summary)
    return Redacted(published, tuple(dict.fromkeys(places)), tuple(merged))


def _shortened(path: str) -> str:
    path = path.removeprefix("file://")
    if path.startswith(PUBLIC):
        return path
    last = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return "…" if _HOME.match(path) else f"…/{last}"


def _record(record: R, fields: tuple[str, ...]) -> R:
    texts = {field: text for field in fields if (text := getattr(record, field)) and ("/" in text or "\\" in text)}
    changed = {field: redact(text) for field, text in texts.items() if redact(text) != text}
    return record.model_copy(update=changed) if changed else record


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(key): inner if key in _KEPT else _redacted(inner) for key, inner in value.items()}
    return [_redacted(inner) for inner in value] if isinstance(value, list) else value


def _texts(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, "(name)"), key
            yield from _texts(inner, (*place, str(key))) if key not in _KEPT else ()
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*place, str(index)))
