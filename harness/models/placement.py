"""Which layer of a model lies where, before its weights are read; and how they are read to there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from harness.config.model import DISK, parse_device_map
from harness.contracts import OWN_FORMAT, ModelInfo
from harness.decoding.backbone import Backbone
from harness.decoding.families import read
from harness.decoding.packing import placed
from harness.errors import ConfigError, ModelError, OutOfMemoryError, reason
from harness.host.cache import cache_folder, own_folder
from harness.host.libraries import resolve_device
from harness.host.processor import available_memory_bytes

KV_POSITIONS = 8192
"""Positions of keys and values that the model's own device has room left for under ``auto``, where it covers more."""
SHARE = 0.9
"""Of the free memory of every device, which weights may take under ``auto``."""

_planned: dict[tuple[str, str, str], list[str | None]] = {}


def check_map(info: ModelInfo) -> None:
    """Refuse a map that does not fit a model, or cannot be combined with what else was asked for."""
    given = info.asked.device_map
    if given is None:
        return
    check_format(info, info.asked.weights_format)
    for _, last, device in parse_device_map(given):
        if last > info.num_layers:
            raise ConfigError(f"--device-map {given}: {info.name} has {info.num_layers} layers, not {last}.")
        if device != DISK:
            resolve_device(device)


def check_format(info: ModelInfo, name: str | None) -> None:
    """Refuse a weights format that a map cannot be combined with."""
    own = OWN_FORMAT[info.dtype]
    if info.asked.device_map is not None and name not in (None, "auto", own):
        raise ConfigError(
            f"--device-map takes matrices as they were read, and --weights-format {name} packs them and compiles "
            f"layers for one device. Leave one of them out, or use --weights-format {own}."
        )


def layer_devices(info: ModelInfo, device: str) -> tuple[str | None, ...]:
    """Return each layer's device, ``None`` where that is the model's own."""
    given = info.asked.device_map
    where: list[str | None] = [None] * info.num_layers
    if given == "auto":
        key = (info.fingerprint, info.dtype, device)
        if key not in _planned:  # once in a process: weights that are loaded would be in the way of a second plan
            _planned[key] = _automatic(info, device)
        where = _planned[key]
    elif given is not None:
        for first, last, there in parse_device_map(given):
            where[first - 1 : last] = [there] * (last - first + 1)
    own = torch.device(device)

    def is_own(one: str) -> bool:
        there = torch.device(one)
        return there.type == own.type and (there.index or 0) == (own.index or 0)

    return tuple(None if one is not None and one != DISK and is_own(one) else one for one in where)


def _automatic(info: ModelInfo, device: str) -> list[str | None]:
    """Return every layer's device: the model's own is filled first, then other GPUs, then the CPU."""
    own = torch.device(device)
    first = "cpu" if own.type == "cpu" else f"cuda:{own.index or 0}"
    others = [] if first == "cpu" else [*(f"cuda:{place}" for place in range(torch.cuda.device_count())), "cpu"]
    positions = min(info.max_positions, KV_POSITIONS)
    kept = 2 * info.lm_head_bytes + info.num_layers * info.kv_entry_bytes * positions  # embeddings are as large
    chosen: list[str | None] = []
    for name in dict.fromkeys((first, *others)):
        free = available_memory_bytes() if name == "cpu" else torch.cuda.mem_get_info(name)[0]
        room = SHARE * free - (kept if name == first else 0)
        chosen += [name] * min(max(0, int(room // info.layer_bytes)), info.num_layers - len(chosen))
    if len(chosen) < info.num_layers:
        left = len(chosen) + 1
        raise OutOfMemoryError(
            f"--device-map auto: layers {left} to {info.num_layers} of {info.name} fit no device here. Use --dtype "
            f"bfloat16, a smaller --model, or keep them in a file: --device-map {left}-{info.num_layers}={DISK}."
        )
    return chosen


def devices_of(device: str, elsewhere: Sequence[str | None]) -> str:
    """Return all devices that multiply, the model's own first, as meters take them: ``cuda:0,cuda:1``."""
    others = ("cpu" if where == DISK else where for where in elsewhere if where is not None)
    return ",".join(dict.fromkeys([device, *others]))


def in_words(device: str, elsewhere: Sequence[str | None]) -> str:
    """Return which layers are where: ``layers 1–16 on cuda:0, 17–32 on cpu``."""
    parts, first = [], 1
    for where, group in groupby(one or device for one in elsewhere):
        last = first + len(list(group)) - 1
        parts.append(f"{first if first == last else f'{first}–{last}'} on {where}")
        first = last + 1
    return f"layers {', '.join(parts)}"


def read_placed(module: Any, device: str, elsewhere: Sequence[str | None]) -> Backbone:
    """Move a transformers model on the CPU to its devices, layer by layer, and read it."""
    kinds = set(module._no_split_modules)
    found = next(
        part
        for part in module.modules()
        if isinstance(part, nn.ModuleList) and len(part) == len(elsewhere) and type(part[0]).__name__ in kinds
    )
    layers = list(found)
    for number, where in enumerate(elsewhere):
        if where is not None:
            found[number] = nn.Identity()
    module.to(device)
    for number, where in enumerate(elsewhere):
        if where is not None:
            found[number] = layers[number].to("cpu" if where == DISK else where)
    backbone = read(module.eval().requires_grad_(requires_grad=False))
    if DISK not in elsewhere:
        return placed(backbone, elsewhere)
    try:
        with own_folder("layers") as folder:
            return placed(backbone, elsewhere, folder)  # a file without a name lasts as long as it is mapped
    except OSError as error:  # numpy's own has no strerror
        raise ModelError(
            f"layers cannot be kept in {cache_folder()}: {reason(error)}. Make room, or keep fewer there."
        ) from None
