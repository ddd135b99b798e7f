"""Between host and device: uploads that wait for nothing, and one wait for everything that is read at a time.

On an accelerator each read stops the host until the device has done all that was asked of it, and so does an upload
from ordinary memory. ``tests/decoding/test_host_reads.py`` counts both, per token and strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return integers of the host as a tensor of a device, int64; work that uses it is queued behind it."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64)
    # The pinned memory is not used again before it has been copied: torch's allocator sees to that.
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def pick(states: Tensor, places: Sequence[int]) -> Tensor:
    """Return some rows of a tensor, copied."""
    return states[upload(places, states.device)]


def near(*tensors: Tensor) -> list[Tensor]:
    """Return several tensors ``[n]`` on the host, and wait once at most.

    Token ids and activations of any precision are exact in float64, as which they cross.
    """
    far = [one for one in tensors if one.device.type != "cpu"]
    if not far:
        return list(tensors)
    if len(far) < 2:
        return [one.cpu() for one in tensors]
    together = torch.cat([one.double() for one in far]).cpu()
    parts = iter(torch.split(together, [len(one) for one in far]))
    return [one if one.device.type == "cpu" else next(parts).to(one.dtype) for one in tensors]


def read(*tensors: Tensor) -> list[list[Any]]:
    """Return several tensors ``[n]`` as lists of numbers, and wait once at most."""
    return [one.tolist() for one in near(*tensors)]
