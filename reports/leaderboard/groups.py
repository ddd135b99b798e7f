"""Groups: the operating points that may stand in one ranking. Whatever could move a number besides strategy is in it.

Strategy, options, exit points, KV policy and decoding are what a ranking compares; all else must be the same: machine,
data down to the fingerprint, weights down to their hash, number format, batch, arrival of requests, source of energy,
and the full depth that ratios are counted against. Package versions are not part of it and are shown with each run.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from reports.leaderboard.entries import PointEntry, RunEntry
from reports.summary.devices import hardware_class

__all__ = ["Group", "group_of"]


@dataclass(frozen=True, slots=True)
class Group:
    """What all operating points of one ranking share.

    Attributes:
        hardware: class (:mod:`reports.summary.devices`).
        task, protocol, source, fingerprint: the data; a task that was not drawn from its published set says so, and the
            fingerprint is over the drawn rows.
        model, weights, weights_id, exit_head, dtype: the model. ``weights_id`` is the hash of the weights and
            the fingerprint of the model, or the seed of random ones.
        batch_size, arrivals, max_new_tokens: how requests came, in words, and how long completions may be.
        energy_source: ``nvml``, ``rapl``, ``estimate`` …: never two in one ranking. energy_measured: it is a sensor.
        baseline: the full depth that ratios are counted against, by its KV policy, and the one that tokens and scores
            are compared with where that is in another weights format.
    """

    hardware: str
    task: str
    protocol: str
    source: str
    fingerprint: str
    model: str
    weights: str
    weights_id: str
    exit_head: str
    dtype: str
    batch_size: int
    arrivals: str
    max_new_tokens: str
    energy_source: str
    energy_measured: bool
    baseline: str

    @property
    def id(self) -> str:
        """Ten hexadecimal digits, permanent: made of the facts."""
        return hashlib.sha256(repr(tuple(asdict(self).values())).encode()).hexdigest()[:10]


def group_of(run: RunEntry, point: PointEntry) -> Group:
    """Return the group that an operating point belongs to."""
    manifest, row = run.manifest, point.row
    record = next(task for task in manifest.tasks if task.name == row.task)
    config, model = manifest.config, manifest.model
    rate, limit = config.get("arrival_rate"), config.get("max_new_tokens")
    if model.weights_sha256:
        weights_id = f"{model.weights_sha256} {model.fingerprint}".rstrip()  # of a run of before fingerprints
    else:
        weights_id = f"seed {config.get('seed')}" if model.weights == "random" else f"no hash, run {run.id}"
    baseline = f"full depth, KV {point.baseline_kv}"
    if row.baseline_format != row.weights_format:
        baseline += f", in {row.weights_format}; scores against full depth in {row.baseline_format}"
    return Group(
        hardware=hardware_class(manifest, run.id),
        task=row.task if record.source_kind == "hub" else f"{row.task} ({record.source_kind})",
        protocol=row.protocol,
        source=row.source,
        fingerprint=record.fingerprint,
        model=row.model,
        weights=row.weights,
        weights_id=weights_id,
        exit_head=model.exit_head,
        dtype=row.numbers,
        batch_size=row.batch_size,
        arrivals=f"{rate:g} requests per second" if rate else "one after the other",
        max_new_tokens=str(limit) if limit else "the protocol's",
        energy_source=row.energy_source,
        energy_measured=row.energy_measured,
        baseline=baseline,
    )
