"""Which run a run is, wherever its records lie and whatever their folder is called."""

from __future__ import annotations

import hashlib

from reports.recorded import RecordedRun

__all__ = ["identity"]


def identity(run: RecordedRun) -> str:
    """Return a run's permanent identity, 16 hexadecimal digits: of what was measured, and equal for copies of it.

    Names of files are part of it, so that what is published is identified without its private paths.
    """
    digest = hashlib.sha256()
    manifest = run.manifest
    facts: list[object] = [
        manifest.created,
        manifest.model.weights_sha256,
        *(task.fingerprint for task in manifest.tasks),
    ]
    digest.update(repr(facts).encode())
    for window in run.windows:
        facts = [window.window, window.task, window.operating_point, window.block, window.repeat, window.duration_s]
        digest.update(repr(facts).encode())
    for sample in run.samples:
        tokens = [sample.window, sample.sample_id, sample.token_ids, sample.exit_layers, sample.latency_s, sample.text]
        digest.update(repr(tokens).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]
