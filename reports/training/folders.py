"""Which folders hold the trainings behind runs: found by what the manifests name, never by a folder's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.host.foreign_files import real_path
from harness.models.artefacts import SHIPPED, look_into
from harness.models.trained import tuned_fingerprint
from harness.records import Manifest
from reports.recorded import RecordedRun
from reports.training.logs import holds_training

__all__ = ["training_folders"]

ARTEFACTS = Path("artefacts")
"""Where `harness train` puts a model's folder, below the working directory."""


def training_folders(
    runs: Iterable[RecordedRun], given: Iterable[Path] = ()
) -> list[tuple[Path, frozenset[str] | None]]:
    """Return the artefact folders that runs used and that hold the log of a training, each once.

    With each comes what the runs name, hashes of their agents among it, or ``None`` where the folder itself was asked
    for, and all that it holds is.

    A folder is a run's when it holds a file of that run: an agent or a head by its SHA-256, shortcuts by theirs, or the
    adapter that makes the run's weights of its base. Looked for in the run's own ``--artefacts``, in ``artefacts/*``
    below the working directory, and among those that ship; a copy of what an earlier folder holds is left out.

    Args:
        runs: as read.
        given: folders that are wanted whatever they belong to, first in the result.
    """
    found = {real_path(folder): folder for folder in given}
    known = {place: _offers(folder) for place, folder in found.items()}
    asked = frozenset(found)
    covered = {name for names in known.values() for name in names}
    named: frozenset[str] = frozenset()
    for run in runs:
        wanted = _named_by(run.manifest)
        named |= wanted
        for folder in _candidates(run.manifest):
            place = real_path(folder)
            if place not in known:
                known[place] = _offers(folder) if holds_training(folder) else frozenset()
            new = (known[place] & wanted) - covered
            if new and place not in found:
                found[place] = folder
                covered |= known[place]
    return [(folder, None if place in asked else named) for place, folder in found.items()]


def _named_by(manifest: Manifest) -> frozenset[str]:
    """Return what a manifest names: hashes of artefacts, and the fingerprint of its weights."""
    shortcut = manifest.model.exit_head.partition("shortcut:")[2]
    named = {digest for point in manifest.operating_points for digest in point.artefacts.values()}
    return frozenset(named | {name for name in (shortcut, manifest.model.fingerprint) if name})


def _candidates(manifest: Manifest) -> list[Path]:
    given = manifest.config.get("artefacts")
    own = [Path(given), SHIPPED / given] if isinstance(given, str) and given else []
    return [folder for folder in (*own, *_below(ARTEFACTS), *_below(SHIPPED)) if folder.is_dir()]


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _offers(folder: Path) -> frozenset[str]:
    """Return the hashes of a folder's artefacts, whole and as an exit head shortens them, and of weights it makes."""
    offers: set[str] = set()
    for file in sorted(folder.glob("*.json")):
        facts = look_into(file)
        digest, base = facts.get("sha256"), facts.get("model_fingerprint")
        if isinstance(digest, str):
            offers |= {digest, digest[:16]}
            if facts.get("kind") == "adapter" and isinstance(base, str):
                offers.add(tuned_fingerprint(base, digest))
    return frozenset(offers)
