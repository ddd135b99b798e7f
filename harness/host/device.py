"""Which torch device a name means on this machine."""

from __future__ import annotations

from harness.errors import ConfigError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> str:
    """Return a torch device name: ``auto`` takes CUDA when there is one.

    Raises:
        ConfigError: torch does not know the device, or it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is unknown to torch. Use cpu, cuda or cuda:N.") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device '{name}' is not supported. Use cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise ConfigError(f"device '{name}' is not here: torch sees {seen} CUDA device(s). Use --device cpu.")
    return name
