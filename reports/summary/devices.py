"""What decoded a run, and its hardware class: times of two classes are never compared and never ranked together.

On a CPU the class is the processor's model, how many threads decoded, and how many cores they had (the quota of a
container where that is less). On a GPU it is the GPU's model and the host's processor: at batch size 1 the host issues
every operation, so that it decides part of the time. Where layers lie on several devices, or CUDA graphs hold something
else than segments, the class says so. What cannot be known is part of the name; a run that does not say its processor
is a class of its own. Clock, memory, hypervisor and load are shown with a run and are not part of its class: speed-ups
are ratios within one run, which they hardly move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.records import Manifest

__all__ = ["RULE", "device_of", "graphs_of", "hardware_class", "hardware_difference", "layers_of"]

RULE = (
    "CPU: processor model, threads, cores they had. GPU: GPU model and host processor, since at batch size 1 the host "
    "issues every operation. Layers on several devices, and CUDA graphs of something else than segments, are named. "
    "A run that does not name its processor is a class of its own."
)

_ABSENT = {
    "GPU": "none",
    "processor": "",
    "threads": "not counted",
    "cores": "not counted",
    "placement": "all layers on one device",
    "use of CUDA graphs": "segments",
}
"""Facts that make a class, and what it means where a run has none."""


def device_of(manifest: Manifest) -> str:
    """Return the device that decoded, or in runs that do not say, what they asked for."""
    if manifest.machine is not None:
        return manifest.machine.device
    asked = str(manifest.config.get("device") or "auto")
    found = "cuda" if manifest.environment.get("gpus") else "cpu"
    return found if asked == "auto" else asked


def layers_of(manifest: Manifest) -> str:
    """Return which layers lay where, ``layers 1–16 on cuda:0, 17–32 on cpu``; empty where all were on one device."""
    return manifest.placement.get("layers", "")


def graphs_of(manifest: Manifest) -> str:
    """Return what ``--graphs`` was; empty where it was ``segments``, in older runs and where no CUDA device decoded."""
    asked = str(manifest.config.get("graphs") or "segments")
    return asked if asked != "segments" and device_of(manifest).startswith("cuda") else ""


def hardware_class(manifest: Manifest, run_id: str) -> str:
    """Return the class that a run belongs to, in words that are equal exactly for equal classes."""
    facts = {name: value or f"unnamed {name} of run {run_id[:6]}" for name, value in _facts(manifest).items()}
    if "GPU" in facts:
        words = [f"{facts['GPU']}, host {facts['processor']}"]
    else:
        words = [f"{facts['processor']}, {facts['threads']} on {facts['cores']}"]
    words += [facts["placement"]] if "placement" in facts else []
    words += [f"CUDA graphs: {graphs}" for graphs in (facts.get("use of CUDA graphs"),) if graphs]
    return "; ".join(words)


def hardware_difference(a: Manifest, b: Manifest) -> tuple[str, str, str] | None:
    """Return what puts two runs into different hardware classes and what it is in each; ``None`` for one class."""
    one, other = _facts(a), _facts(b)
    for name, absent in _ABSENT.items():
        if one.get(name) != other.get(name) or one.get(name) == "":
            before, after = (facts.get(name, absent) or "not recorded" for facts in (one, other))
            return name, before, after
    return None


def _facts(manifest: Manifest) -> Mapping[str, str]:
    """What makes a run's class, by name; empty where a run must say it and does not."""
    gpus = [str(gpu) for gpu in manifest.environment.get("gpus") or []]

    def gpu(number: int) -> str:
        return gpus[number] if number < len(gpus) else ""

    environment, machine, device = manifest.environment, manifest.machine, device_of(manifest)
    found = {"processor": _plain(str(environment.get("cpu") or ""))}
    if device.startswith("cuda"):
        number = device.partition(":")[2]
        found["GPU"] = gpu(int(number) if number.isdigit() else 0)
    else:
        threads = (machine.threads if machine is not None else None) or environment.get("torch_threads")
        cores: float | int | None = machine.room if machine is not None else None
        found["threads"] = _count(threads, "thread")
        found["cores"] = _count(cores or environment.get("usable_cores"), "core")
    layers, graphs = layers_of(manifest), graphs_of(manifest)
    if layers:
        found["placement"] = re.sub(r"cuda:(\d+)", lambda said: f"{said[0]} ({gpu(int(said[1])) or 'unnamed'})", layers)
    if graphs:
        found["use of CUDA graphs"] = graphs
    return found


def _count(number: float | int | None, noun: str) -> str:
    if number is None:
        return f"unknown {noun}s"
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _plain(cpu: str) -> str:
    """Drop trademarks and filler but keep the stated clock: ``Intel(R) Xeon(R) Processor`` → ``Intel Xeon``."""
    return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\b(\d+-Core )?Processor\b", " ", cpu).split())
