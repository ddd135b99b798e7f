"""Whether an NVIDIA GPU lowered its clock because of heat or its power supply, from NVML."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["THERMAL_REASONS", "GpuClocks"]

THERMAL_REASONS = 0x08 | 0x20 | 0x40 | 0x80
"""HwSlowdown, SwThermalSlowdown, HwThermalSlowdown and HwPowerBrakeSlowdown of ``nvmlClocksEventReasons``.

SwPowerCap (0x04) is not among them: a busy board runs at its power limit all the time.
"""


class GpuClocks:
    """Asks NVML why one GPU runs at the clock it has; made by :meth:`of`.

    Args:
        nvml: the ``pynvml`` module, initialised.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: str) -> Self | None:
        """Return the clocks of a torch device; ``None`` on a CPU, and where NVML or the GPU does not answer."""
        if not device.startswith("cuda"):
            return None
        try:
            import pynvml
        except ImportError:
            return None
        import torch

        try:
            pynvml.nvmlInit()
            # torch's number and NVML's differ under CUDA_VISIBLE_DEVICES; the UUID is the same
            uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except (pynvml.NVMLError, AttributeError):  # a torch that does not say the UUID
            return None

    def reasons(self) -> int | None:
        """Return the present clock event reasons as a bit mask; ``None`` where this GPU does not say."""
        try:
            return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        except self._nvml.NVMLError:
            return None
