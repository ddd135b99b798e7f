"""Hardware classes: numbers of two classes never meet in one ranking.

On a CPU the class is the processor's model, how many threads decoded, and how many cores they had (the quota of a
container where that is less). On a GPU it is the GPU's model and the host's processor: at batch size 1 the host issues
every operation, so that it decides part of the time. What cannot be known is part of the name; a run that does not
say its processor is a class of its own. Clock, memory, hypervisor and load are shown with a run and are not part of
its class: speed-ups are ratios within one run, which they hardly move.
"""

from __future__ import annotations

import re

from harness.records import Manifest

__all__ = ["RULE", "hardware_class"]

RULE = (
    "CPU: processor model, threads, cores they had. GPU: GPU model and host processor, since at batch size 1 the host "
    "issues every operation. A run that does not name its processor is a class of its own."
)


def hardware_class(manifest: Manifest, run_id: str) -> str:
    """Return the class that a run belongs to, in words that are equal exactly for equal classes."""
    facts, machine = manifest.environment, manifest.machine
    name = _plain(str(facts.get("cpu") or ""))
    processor = name or f"unnamed processor of run {run_id[:6]}"
    device = machine.device if machine is not None else str(manifest.config.get("device") or "auto")
    gpus = [str(gpu) for gpu in facts.get("gpus") or []]
    if device.startswith("cuda") or (device == "auto" and gpus):
        number = int(device.partition(":")[2]) if device.partition(":")[2].isdigit() else 0
        gpu = gpus[number] if number < len(gpus) else f"unnamed GPU of run {run_id[:6]}"
        return f"{gpu}, host {processor}"
    threads = (machine.threads if machine is not None else None) or facts.get("torch_threads")
    cores: float | int | None = machine.room if machine is not None else None
    cores = cores or facts.get("usable_cores")
    return f"{processor}, {_count(threads, 'thread')} on {_count(cores, 'core')}"


def _count(number: float | int | None, noun: str) -> str:
    if number is None:
        return f"unknown {noun}s"
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _plain(cpu: str) -> str:
    """Drop trademarks and filler but keep the stated clock: ``Intel(R) Xeon(R) Processor`` → ``Intel Xeon``."""
    return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\b(\d+-Core )?Processor\b", " ", cpu).split())
