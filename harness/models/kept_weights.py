"""Packed weights that are kept in the user's cache, so that a model is read as it is decoded with, in seconds.

A safetensors file for each model, adapter, shortcuts and weights format: nothing to merge, to check or to pack again.
Tensors are named by the hash of their bytes: what a file holds is verified when it is read, and what two formats or two
parts of a model have alike is in memory once. They are copied into memory rather than mapped: a file has no pages of
two megabytes, from which decoding gains a quarter.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.contracts import ModelInfo, WeightsFormat
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.decoding.families import read
from harness.decoding.kernels import moved
from harness.decoding.packing import Packed, filled, tensors_of, usable
from harness.errors import ModelError, reason
from harness.host.cache import being_written, cache_folder, drop_old
from harness.host.files import real_path, require_regular
from harness.host.libraries import library_border
from harness.models.folder import quiet
from harness.models.heads import head_tensors
from harness.registry import WEIGHTS_FORMATS

_LAYOUT = 2  # of the files; a format's own code is part of the key
_SPARE = 4  # times a file's size that must be free before it is written


class _Slot(BaseModel):
    """Where a tensor is: the name of its bytes, and what they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str
    dtype: str
    shape: tuple[int, ...]
    kind: str = ""


class _Header(BaseModel):
    """The header of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    slots: dict[str, _Slot]


def without_weights(folder: Path, dtype: str) -> Any:
    """Return the transformers model of a local folder with parameters on the meta device: they hold nothing.

    Word embeddings are numbers that stand for all of theirs, and position tables are computed, so that a family reads
    it as any other.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet():
        config = AutoConfig.from_pretrained(  # nosec B615  # a local folder
            folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    for part in module.modules():
        if getattr(part, "inv_freq", None) is not None:
            for name, buffer in type(part)(part.config).named_buffers(recurse=False):
                setattr(part, name, buffer)
    embeddings = module.get_input_embeddings()
    one = torch.zeros((1, 1), dtype=embeddings.weight.dtype).expand(embeddings.weight.shape)
    embeddings.weight = torch.nn.Parameter(one, requires_grad=False)
    return module.requires_grad_(requires_grad=False).eval()


def key_of(info: ModelInfo, folder: Path, shortcut: str, weights_format: str) -> str:
    """Return what tells packed weights apart, hex: fingerprint, shortcuts, format with its code, and files' times."""
    total = hashlib.sha256()
    points = info.exit_points if shortcut else ()
    total.update(f"{_LAYOUT} {info.fingerprint} {info.dtype} {shortcut} {points} {weights_format}".encode())
    for file in sorted(folder.glob("*.safetensors")):
        facts = file.stat()
        total.update(f"{real_path(file)} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}".encode())
    made: WeightsFormat = WEIGHTS_FORMATS.load(weights_format)()
    for kind in (type(made), type(made.head)):
        total.update(Path(inspect.getfile(kind)).read_bytes())
    return total.hexdigest()[:32]


@dataclass(frozen=True)
class KeptWeights:
    """The files of one model; ``note`` is told what is wrong with one, and why one cannot be written."""

    info: ModelInfo
    source: Path
    source_name: str
    shortcut: str  # SHA-256 of its tensors; empty for the shared head
    note: Callable[[str], None]
    folder: Path = field(default_factory=lambda: cache_folder() / "packed")

    def file(self, name: str) -> Path:
        """Return where a format's weights are, if they are kept."""
        return self.folder / f"{key_of(self.info, self.source, self.shortcut, name)}.safetensors"

    def has(self, name: str) -> bool:
        """Whether there is a file of a format; reading it tells whether it is right."""
        return self.file(name).is_file()

    def skeleton(self) -> Backbone | None:
        """Return the model without weights, as its family reads it; ``None`` with a note where that cannot be."""
        info, points = self.info, self.info.exit_points if self.shortcut else ()
        try:
            with library_border(f"{info.name} cannot be read without its weights"):
                found = read(without_weights(self.source, info.dtype))
        except ModelError as error:
            self.note(f"packing {info.name} again: {error}")
            return None
        size = info.hidden_size
        empty = Linear(torch.empty((size, size), device="meta"), torch.empty(size, device="meta"))
        return replace(  # what a family does not read: shortcuts, and what finds artefacts
            found,
            like=torch.empty(0, dtype=getattr(torch, info.dtype)),
            shortcuts=dict.fromkeys(points, empty),
            trained=partial(head_tensors, info, "cpu"),
        )

    def read(self, skeleton: Backbone, name: str, contents: dict[str, Tensor]) -> tuple[Backbone, str] | None:
        """Return a packed model and the hash of its float32 weights; ``None`` without a file or with a wrong one.

        ``contents`` holds by the hash of their bytes what was read before and may be shared.
        """
        file = self.file(name)
        if not file.is_file():
            return None
        try:
            require_regular(file)
            with safe_open(file, "pt") as opened:
                header = _Header.model_validate_json((opened.metadata() or {}).get("harness", ""))
                if header.key != file.stem:
                    raise ValueError(f"it is of {header.key}")
                tensors = {slot: _read(opened, said, contents) for slot, said in header.slots.items()}
            backbone = filled(skeleton, usable(name, "cpu"), tensors)
        except (OSError, ValueError, SafetensorError) as error:
            self.note(f"packing {self.info.name} again, since {file} is not what it was ({reason(error)})")
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):
            os.utime(file)
        return backbone, header.weights_sha256

    def write(self, backbone: Backbone, name: str, weights_sha256: str) -> None:
        """Keep a packed model, where its format can be kept and the disk has room; drop what is not used any more."""
        tensors = tensors_of(backbone)
        if tensors is None:
            return
        file = self.file(name)
        contents: dict[str, Tensor] = {}
        slots = {slot: _described(packed, contents) for slot, packed in tensors.items()}
        header = _Header(key=file.stem, weights_sha256=weights_sha256, slots=slots)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < _SPARE * sum(content.nbytes for content in contents.values()):
                return
            with being_written(file) as unfinished:
                save_file(contents, unfinished, {"harness": header.model_dump_json()})
            drop_old("packed")
        except (OSError, SafetensorError) as error:
            self.note(f"packed weights of {self.info.name} are not kept ({reason(error)})")


def _hash(data: Tensor) -> str:
    numbers: Any = data.numpy()  # a buffer, which its types do not say
    return hashlib.sha256(numbers).hexdigest()


def _described(packed: Packed, contents: dict[str, Tensor]) -> _Slot:
    """Return what a header says of a tensor, and add its bytes to the contents unless they are there."""
    data = packed.tensor.contiguous().flatten().view(torch.uint8)
    content = _hash(data)
    contents.setdefault(content, data)
    dtype = str(packed.tensor.dtype).removeprefix("torch.")
    return _Slot(content=content, dtype=dtype, shape=tuple(packed.tensor.shape), kind=packed.kind)


def _read(opened: Any, said: _Slot, contents: dict[str, Tensor]) -> Packed:
    """Return a tensor of a file, whose bytes are read unless they are there."""
    dtype = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}.get(said.dtype)
    if dtype is None or min(said.shape, default=1) < 0:
        raise ValueError(f"it says {said.dtype} {said.shape}")
    data = contents.get(said.content)
    if data is None:
        data = opened.get_tensor(said.content)
        if data.dtype is not torch.uint8 or _hash(data) != said.content:
            raise ValueError(f"the bytes of {said.content[:12]} are not those that were written")
        data = contents[said.content] = moved(data)
    if data.nbytes != math.prod(said.shape) * dtype.itemsize:
        raise ValueError(f"{said.content[:12]} has {data.nbytes} bytes, not {said.dtype} {said.shape}")
    return Packed(data.view(dtype).view(said.shape), said.kind)
