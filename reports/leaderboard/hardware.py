"""Hardware classes: numbers of two classes never meet in one ranking.

On a CPU the class is the processor's model, how many threads decoded, and how many cores they had (the quota of a
container where that is less). On a GPU it is the GPU's model and the host's processor: at batch size 1 the host issues
every operation, so that it decides part of the time. Where layers lie on several devices, or CUDA graphs hold something
else than segments, the class says so. What cannot be known is part of the name; a run that does not say its processor
is a class of its own. Clock, memory, hypervisor and load are shown with a run and are not part of its class: speed-ups
are ratios within one run, which they hardly move.
"""

from __future__ import annotations

import re

from harness.records import Manifest
from reports.summary.devices import device_of, graphs_of, layers_of

__all__ = ["RULE", "hardware_class"]

RULE = (
    "CPU: processor model, threads, cores they had. GPU: GPU model and host processor, since at batch size 1 the host "
    "issues every operation. Layers on several devices, and CUDA graphs of something else than segments, are named. "
    "A run that does not name its processor is a class of its own."
)


def hardware_class(manifest: Manifest, run_id: str) -> str:
    """Return the class that a run belongs to, in words that are equal exactly for equal classes."""
    gpus = [str(gpu) for gpu in manifest.environment.get("gpus") or []]

    def gpu(number: int) -> str:
        return gpus[number] if number < len(gpus) else f"unnamed GPU of run {run_id[:6]}"

    facts, machine, device = manifest.environment, manifest.machine, device_of(manifest)
    name = _plain(str(facts.get("cpu") or ""))
    processor = name or f"unnamed processor of run {run_id[:6]}"
    if device.startswith("cuda"):
        number = device.partition(":")[2]
        found = f"{gpu(int(number) if number.isdigit() else 0)}, host {processor}"
    else:
        threads = (machine.threads if machine is not None else None) or facts.get("torch_threads")
        cores: float | int | None = machine.room if machine is not None else None
        cores = cores or facts.get("usable_cores")
        found = f"{processor}, {_count(threads, 'thread')} on {_count(cores, 'core')}"
    layers = re.sub(r"cuda:(\d+)", lambda named: f"{named[0]} ({gpu(int(named[1]))})", layers_of(manifest))
    graphs = graphs_of(manifest)
    return "; ".join(filter(None, (found, layers, graphs and f"CUDA graphs: {graphs}")))


def _count(number: float | int | None, noun: str) -> str:
    if number is None:
        return f"unknown {noun}s"
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _plain(cpu: str) -> str:
    """Drop trademarks and filler but keep the stated clock: ``Intel(R) Xeon(R) Processor`` → ``Intel Xeon``."""
    return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\b(\d+-Core )?Processor\b", " ", cpu).split())
