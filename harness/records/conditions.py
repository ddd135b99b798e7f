"""The conditions that an operating point was measured under, which say what may be compared with what.

One ranking (:meth:`Conditions.group`) shares all of them but the KV policy, the stop rule and how deep the prompt is
read; two runs (:meth:`Conditions.why_not_comparable`) only what would make the answer meaningless; a table of a report
what :data:`in_one_table` says; the history of benchmarks :attr:`Conditions.label`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Literal

from harness.contracts import KVFacts, numbers
from harness.errors import StoreError, UnknownNameError
from harness.host.environment import plain_processor
from harness.records.manifest import Manifest, ModelRecord, OperatingPointRecord, TaskRecord
from harness.registry import KV_POLICIES

MIXED, REPLAY = "mixed", "replay"
"""Energy sources that no sensor of the run is: of several in one row, and of a file."""

HARDWARE_RULE = (
    "CPU: processor model, threads, cores they had. GPU: GPU model and host processor, since at batch size 1 the host "
    "issues every operation. Layers on several devices, and CUDA graphs of something else than segments, are named. "
    "A run that does not name its processor is a class of its own."
)
"""Clock, memory, hypervisor and load are shown with a run and are not part of its class: speed-ups are ratios within
one run, which they hardly move."""

_ABSENT = {
    "GPU": "none",
    "processor": "",
    "threads": "not counted",
    "cores": "not counted",
    "placement": "all layers on one device",
    "use of CUDA graphs": "segments",
}
"""Facts that make a hardware class, and what it means where a run has none."""

Compared = Literal["costs", "energy", "scores"]

Group = Mapping[str, str | int | bool]
"""The facts that all operating points of one ranking share, by label in reading order."""

in_one_table = attrgetter("task", "protocol", "source", "model", "weights", "exit_head", "dtype", "batch_size")
"""Returns what rows of one table share, of a row of a summary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Everything but strategy, options and drafts that an operating point on one task was measured under.

    Attributes:
        run: which run it is of; points of one run were measured to be compared, whatever they differ in.
        task, model: the data, and the model in all formats of the run. seed: of random weights.
        weights_format: how the matrices are stored; of a black box, those of the full depth that it is held against.
        kv: the policy for keys and values of skipped layers; empty for a black box.
        batch_size, arrival_rate, max_new_tokens: samples decoded together, requests per second if they arrive at a
            fixed rate, and the longest completion if it is not the protocol's.
        stop: the stop rule beside the protocol's own end; empty for none.
        prompt_exit: how deep the prompt is read; empty for full depth.
        prefetch: what is computed while the user of an editor session types; empty for nothing.
        keep: which keys and values a request of an editor session leaves to the next; empty for requests that share
            nothing. Of a black box, that of the full depth that it is held against.
        hardware: what makes the hardware class, by name; empty where a run must say it and does not.
        baseline: the full depth that ratios are counted against, in words.
        energy_source, energy_measured: of the operating point; ``none`` where nobody asked.
    """

    run: str
    task: TaskRecord
    model: ModelRecord
    seed: object
    weights_format: str
    kv: str
    kv_facts: KVFacts
    batch_size: int
    arrival_rate: float | None
    max_new_tokens: int | None
    stop: str
    prompt_exit: str
    prefetch: str
    keep: str
    hardware: tuple[tuple[str, str], ...]
    baseline: str
    energy_source: str = "none"
    energy_measured: bool = False

    @classmethod
    def of(cls, manifest: Manifest, task: TaskRecord, point: OperatingPointRecord) -> Conditions:
        """Read them from a manifest."""
        config = manifest.config
        try:
            batch_size = int(config["batch_size"])
            kv, facts, stored = _decoding(manifest, point)
            first_kv, _, first_stored = _decoding(manifest, manifest.operating_points[0])
        except (KeyError, ValueError, TypeError, UnknownNameError) as error:
            raise StoreError(
                f"the manifest's config has no usable 'kv' and 'batch_size' ({error}). "
                "The run directory is damaged or foreign; start a new run with `harness run`."
            ) from None
        first_keep = manifest.operating_points[0].keep
        keep = first_keep if point.black_box else point.keep
        baseline = f"full depth, KV {first_kv}"
        own, first = [], []
        if first_stored != stored:
            own, first = [f"in {stored}"], [f"in {first_stored}"]
        if first_keep != keep:
            own, first = [*own, f"keep {keep}"], [*first, f"keep {first_keep}"]
        if own:
            baseline += f", {', '.join(own)}; scores against full depth {', '.join(first)}"
        return cls(
            run=manifest.run or manifest.created,
            task=task,
            model=manifest.model,
            seed=config.get("seed"),
            weights_format=stored,
            kv=kv,
            kv_facts=facts,
            batch_size=batch_size,
            arrival_rate=config.get("arrival_rate"),
            max_new_tokens=config.get("max_new_tokens"),
            stop="" if point.black_box else point.stop,
            prompt_exit=point.prompt_exit,
            prefetch=point.prefetch,
            keep=keep,
            hardware=tuple(_hardware(manifest).items()),
            baseline=baseline,
        )

    @property
    def cached(self) -> bool:
        """Whether a KV cache is kept: prefill then yields the first token, at full depth."""
        return self.kv_facts.keeps_cache

    @property
    def numbers(self) -> str:
        """The numbers that weights and activations are, in words."""
        return numbers(self.weights_format, self.model.dtype)

    @property
    def model_label(self) -> str:
        """Model, weights and dtype, the same wherever it is measured: of a local folder its name alone."""
        path = Path(self.model.name)
        return f"{path.name if path.is_absolute() else self.model.name}-{self.model.weights}-{self.model.dtype}"

    @property
    def label(self) -> str:
        """Task, protocol and how it decoded; neither machine nor folder, so that like is found beside like."""
        rate = f"-rate{self.arrival_rate:g}" if self.arrival_rate else ""
        packed = f"-{self.weights_format}" if self.kv and self.numbers != self.model.dtype else ""
        head = "" if self.model.exit_head == "shared" else f"-{self.model.exit_head.partition(':')[0]}"
        longest = f"-max{self.max_new_tokens}" if self.max_new_tokens else ""
        kept = f"-keep-{self.keep}" if self.keep else ""
        decoded = f"{self.kv}-batch{self.batch_size}{rate}{kept}"
        return f"{self.task.name}-{self.task.protocol}-{decoded}{packed}{head}{longest}"

    def same_but_for_kv(self, other: Conditions) -> bool:
        """Whether two differ in nothing but their KV policy, if in that."""
        return replace(self, kv=other.kv, kv_facts=other.kv_facts) == other

    def why_not_comparable(self, other: Conditions, of: Compared) -> str:
        """Say why numbers of A, this one, and of B, of another run, must not be compared; empty where they may be."""
        return next(self._obstacles(other, of), "")

    def _obstacles(self, other: Conditions, of: Compared) -> Iterator[str]:
        if of == "scores":
            random = [name for name, one in (("A", self), ("B", other)) if one.model.weights == "random"]
            if random:
                yield f"random weights in {' and '.join(random)}: scores mean nothing"
            return
        if of == "energy":
            source = self.energy_source
            if source != other.energy_source:
                yield f"energy comes from {source} in A and from {other.energy_source} in B"
            if source in ("none", MIXED, REPLAY):
                yield "no energy was measured" if source == "none" else f"energy is {source}"
            return
        if self.run == other.run:
            return
        mine, theirs = dict(self.hardware), dict(other.hardware)
        for name, absent in _ABSENT.items():
            before, after = (facts.get(name, absent) for facts in (mine, theirs))
            if before != after or mine.get(name) == "":
                unknown = "not recorded"
                yield f"another hardware class: {name} is {before or unknown} in A, {after or unknown} in B"
        for what, before, after in (
            ("number format", self.numbers, other.numbers),
            ("arrival rate", str(self.arrival_rate or "–"), str(other.arrival_rate or "–")),
            ("--keep in editor sessions", self.keep or "–", other.keep or "–"),
        ):
            if before != after:
                yield f"another {what}: {before} in A, {after} in B"

    @property
    def _requests(self) -> str:
        if self.keep:
            return f"in editor sessions, keep {self.keep}"
        return f"{self.arrival_rate:g} requests per second" if self.arrival_rate else "one after the other"

    def group(self, run: str) -> Group:
        """Return what all operating points of one ranking share."""
        task, model = self.task, self.model
        weights = f"seed {self.seed}" if model.weights == "random" else f"no hash, run {run}"
        if model.weights_sha256:
            weights = f"{model.weights_sha256} {model.fingerprint}".rstrip()
        return {
            "Hardware class": _class(dict(self.hardware), run),
            "Task": task.name if task.source_kind == "hub" else f"{task.name} ({task.source_kind})",
            "Protocol": task.protocol,
            "Data": task.source,
            "Data fingerprint": task.fingerprint,
            "Model": model.name,
            "Weights": model.weights,
            "Weights’ hash, model’s fingerprint": weights,
            "Exit head": model.exit_head,
            "Number format": self.numbers,
            "Batch size": self.batch_size,
            "Requests come": self._requests,
            "Longest completion": str(self.max_new_tokens) if self.max_new_tokens else "the protocol's",
            "Energy source": self.energy_source,
            "Energy measured by a sensor": self.energy_measured,
            "Compared with": self.baseline,
        }


def group_id(group: Group) -> str:
    """Return the ten hexadecimal digits of a ranking, permanent: made of its facts."""
    return hashlib.sha256(repr(tuple(group.values())).encode()).hexdigest()[:10]


def hardware_class(manifest: Manifest, run: str) -> str:
    """Return the class of hardware that a run belongs to (:data:`HARDWARE_RULE`), in words equal for equal classes."""
    return _class(_hardware(manifest), run)


def layers_of(manifest: Manifest) -> str:
    """Return which layers lay where, ``layers 1–16 on cuda:0, 17–32 on cpu``; empty where all were on one device."""
    return manifest.placement.get("layers", "")


def graphs_of(manifest: Manifest) -> str:
    """Return what ``--graphs`` was; empty where it was ``segments``, and where no CUDA device decoded."""
    asked = str(manifest.config.get("graphs") or "segments")
    return asked if asked != "segments" and _device(manifest).startswith("cuda") else ""


def _decoding(manifest: Manifest, point: OperatingPointRecord) -> tuple[str, KVFacts, str]:
    if point.black_box is not None:
        return "", KVFacts(keeps_cache=False), manifest.model.stored_in
    kv = point.kv or str(manifest.config["kv"])
    facts = point.kv_facts or KV_POLICIES.load(kv).facts
    return kv, facts, point.weights_format or manifest.model.stored_in


def _device(manifest: Manifest) -> str:
    """The device that decoded, or in runs that do not say, what they asked for."""
    if manifest.machine is not None:
        return manifest.machine.device
    asked = str(manifest.config.get("device") or "auto")
    found = "cuda" if manifest.environment.get("gpus") else "cpu"
    return found if asked == "auto" else asked


def _hardware(manifest: Manifest) -> dict[str, str]:
    """Return the facts that make a run's class, by name; empty where a run must say one and does not."""
    environment, machine, device = manifest.environment, manifest.machine, _device(manifest)
    listed = environment.get("gpus")
    gpus = [str(gpu) for gpu in listed] if isinstance(listed, list | tuple) else []

    def gpu(number: int) -> str:
        return gpus[number] if number < len(gpus) else ""

    found = {"processor": plain_processor(str(environment.get("cpu") or ""))}
    if device.startswith("cuda"):
        number = device.partition(":")[2]
        found["GPU"] = gpu(int(number) if number.isdigit() else 0)
    else:
        threads = (machine and machine.threads) or environment.get("torch_threads")
        found["threads"] = _count(threads, "thread")
        found["cores"] = _count((machine and machine.room) or environment.get("usable_cores"), "core")
    if layers := layers_of(manifest):
        found["placement"] = re.sub(r"cuda:(\d+)", lambda one: f"{one[0]} ({gpu(int(one[1])) or 'unnamed'})", layers)
    if graphs := graphs_of(manifest):
        found["use of CUDA graphs"] = graphs
    return found


def _class(facts: Mapping[str, str], run: str) -> str:
    facts = {name: value or f"unnamed {name} of run {run[:6]}" for name, value in facts.items()}
    if "GPU" in facts:
        words = [f"{facts['GPU']}, host {facts['processor']}"]
    else:
        words = [f"{facts['processor']}, {facts['threads']} on {facts['cores']}"]
    words += [facts["placement"]] if "placement" in facts else []
    words += [f"CUDA graphs: {facts[graphs]}" for graphs in ("use of CUDA graphs",) if graphs in facts]
    return "; ".join(words)


def _count(number: object, noun: str) -> str:
    if not isinstance(number, int | float):
        return f"unknown {noun}s"
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
