"""Several processes that work on one thing, as ``torchrun`` and ``accelerate launch`` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import TrainingError

PATIENCE = timedelta(days=7)
"""A process waits so long for the slowest; a launcher ends them all at once where one fails."""


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Tell whether this is the process that writes files and talks; alone it always is."""
    return rank() == 0


def world_size() -> int:
    """Return how many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str) -> str:
    """Return a torch device's name; of ``cuda`` without a number, the GPU that is this process's own on its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and world_size() > 1 else device


@contextmanager
def together() -> Iterator[None]:
    """Let the processes meet within; one alone has nobody to meet."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # files are what is waited for, not tensors of a GPU
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return once all processes are here, within :func:`together`; raise :class:`TrainingError` where one ended."""
    if world_size() == 1:
        return
    try:
        dist.barrier()
    except RuntimeError:
        raise TrainingError(
            f"another of the {world_size()} processes ended early; its own line says why. Finished shards are kept."
        ) from None


def sum_over_all(values: Tensor, device: torch.device) -> Tensor:
    """Return the sum of every process's values, on the CPU; their group can send from the device."""
    if world_size() == 1:
        return values
    total = values.to(device)
    dist.all_reduce(total)
    return total.cpu()
