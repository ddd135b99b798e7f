"""What decoded a run, and two things that move every cost there: where layers lay, and another use of CUDA graphs."""

from __future__ import annotations

from harness.records import Manifest

__all__ = ["device_of", "graphs_of", "layers_of"]


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
