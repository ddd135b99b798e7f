"""A training whose weights FSDP spreads over processes: what it takes to write them down whole, and to go on from that.

Checkpoints have the same files as those of one process. All functions are collective: every process calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.errors import ConfigError

__all__ = ["check_plugin", "load_optimizer", "load_weights", "save_optimizer", "whole_weights"]


def check_plugin(plugin: Any) -> None:
    """Refuse a configuration of accelerate that this training cannot keep apart from whole weights.

    Args:
        plugin: accelerate's ``FullyShardedDataParallelPlugin``.

    Raises:
        ConfigError: FSDP 1, which wants parameters of one dtype and leaves no whole ones; or weights that the first
            process alone reads; or checkpoints in pieces.
    """
    for wrong, setting in (
        (plugin.fsdp_version != 2, "fsdp_version: 2"),
        (plugin.cpu_ram_efficient_loading, "fsdp_cpu_ram_efficient_loading: false"),
        ("FULL" not in str(plugin.state_dict_type), "fsdp_state_dict_type: FULL_STATE_DICT"),
    ):
        if wrong:
            raise ConfigError(f"accelerate's configuration needs `{setting}` here: see docs/large-models.md.")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights on the CPU, in the first process; in others nothing."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set some weights from whole ones, which every process has read."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True, strict=False))


def save_optimizer(model: nn.Module, optimizer: Any, file: Path, *, write: bool) -> None:
    """Write an optimiser's moments whole.

    Args:
        model: whose weights it moves.
        optimizer: accelerate's wrapping of it.
        file: where to.
        write: whether this process is the one that does.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    state = get_optimizer_state_dict(
        model, optimizer.optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if write:
        torch.save(state, file)


def load_optimizer(model: nn.Module, optimizer: Any, file: Path) -> None:
    """Set an optimiser's moments from whole ones."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(file, map_location="cpu", weights_only=True)
    set_optimizer_state_dict(model, optimizer.optimizer, state, options=StateDictOptions(full_state_dict=True))
