"""Energy of an NVIDIA GPU board, from NVML's own counter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.zeus_window import ZeusMeter, quiet_zeus

NVML_PERIOD_S = 0.1
"""``nvmlDeviceGetTotalEnergyConsumption`` ticks about every 100 ms on Volta and later."""


class Nvml(ZeusMeter):
    """NVIDIA GPU board, by NVML's energy counter (Volta and later).

    Host CPU and memory are not counted; on a Grace Hopper the counter covers the whole module. The
    GPU is the one that torch calls by the same number (``cuda`` is number 0). Both respect
    ``CUDA_VISIBLE_DEVICES``; where a machine mixes GPU types, set ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, or
    torch and NVML may count them in different orders.

    Args:
        device: ``cuda`` or ``cuda:N``; several joined by commas, whose energy is summed.
        tdp_w: not used.
        clock: what times the windows.

    Raises:
        MeterError: the counter cannot be opened.
    """

    source = "nvml"
    scope = "gpu board"
    period_s = NVML_PERIOD_S

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._indices = [gpu_index(one) for one in device.split(",")]
        super().__init__(device, gpu_indices=self._indices, clock=clock)

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why the counter of this device cannot be read and how to enable it; ``None`` if it can."""
        devices = device.split(",")
        if not all(one.startswith("cuda") for one in devices):
            if len(devices) > 1:
                return f"NVML reads NVIDIA GPUs, and of {device} not all are (use --energy none or other layers)"
            return f"NVML reads NVIDIA GPUs and the device is '{device}' (use --device cuda)"
        quiet_zeus()
        try:
            from zeus.device.gpu.nvidia import nvml_is_available

            available = nvml_is_available()
        except ImportError as error:
            return f"NVML's Python bindings cannot be imported ({error}; run `pip install nvidia-ml-py`)"
        if not available:
            return "no NVIDIA driver answers (install it; in a container, start that with the GPU passed through)"
        return next((reason for one in devices if (reason := _counter_missing(gpu_index(one)))), None)

    @property
    def description(self) -> str:
        """One line: counter, scope, tick."""
        return (
            f"NVML energy {_of(self._indices)}: {self.scope} without the host, "
            f"ticks about every {self.period_s * 1000:g} ms"
        )

    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        return {f"GPU {index}": measurement.gpu_energy.get(index) for index in self._indices}


def _of(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"counter of GPU {indices[0]}"
    return f"counters of GPUs {', '.join(map(str, indices))}, summed"


def gpu_index(device: str) -> int:
    """Return N of ``cuda:N``, and 0 for ``cuda``."""
    _, _, number = device.partition(":")
    return int(number) if number else 0


def _counter_missing(index: int) -> str | None:
    from zeus.device.gpu import get_gpus
    from zeus.exception import ZeusBaseError

    try:
        gpus = get_gpus()
        if index >= len(gpus):
            return f"NVML shows {len(gpus)} GPUs and the device is number {index} (check CUDA_VISIBLE_DEVICES)"
        if not gpus.supports_get_total_energy_consumption(index):
            return f"GPU {index} has no energy counter (it needs Volta or later, and no virtual or MIG slice)"
    except (ZeusBaseError, ValueError) as error:  # ValueError: CUDA_VISIBLE_DEVICES holds no integers
        return f"NVML cannot be used: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None
