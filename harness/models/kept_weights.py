"""Packed weights that are kept in the user's cache, so that a model is read as it is decoded with, in seconds.

A safetensors file for each model, adapter, shortcuts and weights format: nothing to merge, to check or to pack again.
Tensors are named by the hash of their bytes: what a file holds is verified when it is read, and what two formats or two
parts of a model have alike is in memory once. Decoding gains a quarter from pages of two megabytes. Linux gives them to
a mapped file on some file systems (tried: ext4, Linux 6.18) if it is advised before anything of the file is read: such
a file is decoded with where it is mapped, and processes share it. Any other is copied into large pages of our own.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from harness.contracts import ModelInfo, WeightsFormat
from harness.decoding.backbone import Backbone
from harness.decoding.kernels import key_of, moved, obstacle
from harness.decoding.packing import FormatChoice, Packed, filled, near_exact, tensors_of, usable
from harness.errors import ModelError, reason
from harness.host.cache import being_written, cache_folder, drop_old, keep_document, kept_document
from harness.host.files import parse_json, real_path, require_regular
from harness.host.libraries import library_border
from harness.models.artefacts import Artefact
from harness.models.exit_modules import module_from, shapes_of
from harness.models.heads import head_tensors
from harness.models.skeleton import skeleton
from harness.registry import WEIGHTS_FORMATS

_LAYOUT = 4  # of the files; a format's own code is part of the key
_LINE = 64  # bytes at a multiple of which a tensor begins
_LARGE_SHARE = 0.9  # of a file's bytes in large pages, from which it is decoded with where it is mapped
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


def code_of(weights_format: str) -> str:
    """Return a hash of the code of a weights format and its head's, hex."""
    total = hashlib.sha256()
    made: WeightsFormat = WEIGHTS_FORMATS.load(weights_format)()
    for kind in (type(made), type(made.head)):
        total.update(Path(inspect.getfile(kind)).read_bytes())
    return total.hexdigest()


def file_key(info: ModelInfo, folder: Path, shortcut: str, weights_format: str) -> str:
    """Return what tells packed weights apart, hex: fingerprint, shortcuts, format with its code, and files' times."""
    total = hashlib.sha256()
    points = info.exit_points if shortcut else ()
    total.update(f"{_LAYOUT} {info.fingerprint} {info.dtype} {shortcut} {points} {weights_format}".encode())
    for file in sorted(folder.glob("*.safetensors")):
        facts = file.stat()
        total.update(f"{real_path(file)} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}".encode())
    total.update(code_of(weights_format).encode())
    return total.hexdigest()[:32]


class _Place(BaseModel):
    """Where a tensor's bytes are in a file, behind its header."""

    dtype: Literal["U8"]
    shape: tuple[int]
    data_offsets: tuple[int, int]


_NOWHERE = _Place(dtype="U8", shape=(0,), data_offsets=(-1, -1))


@dataclass(frozen=True)
class KeptWeights:
    """The files of one model; ``note`` is told what is wrong with one, and why one cannot be written."""

    info: ModelInfo
    source: Path
    source_name: str
    shortcut: Artefact | None  # what reads its exits; None for the shared head
    note: Callable[[str], None]
    folder: Path = field(default_factory=lambda: cache_folder() / "packed")

    def file(self, name: str) -> Path:
        """Return where a format's weights are, if they are kept."""
        shortcut = "" if self.shortcut is None else self.shortcut.sha256
        return self.folder / f"{file_key(self.info, self.source, shortcut, name)}.safetensors"

    def has(self, name: str) -> bool:
        """Whether there is a file of a format; reading it tells whether it is right."""
        return self.file(name).is_file()

    def choice(self) -> FormatChoice | None:
        """Return the fastest format as an earlier process timed it here; ``None`` where none did."""
        said = None if obstacle() is not None else kept_document("choices", self._choice_key())
        if said is None:
            return None
        return FormatChoice(**said | {"seconds": {name: tuple(found) for name, found in said["seconds"].items()}})

    def keep_choice(self, choice: FormatChoice) -> None:
        """Keep which format was found the fastest, where any were timed."""
        if choice.seconds and obstacle() is None:
            today = datetime.now(UTC).date().isoformat()
            keep_document("choices", self._choice_key(), asdict(replace(choice, measured=today)))

    def _choice_key(self) -> str:
        """Return a hash of all that decides which is the fastest: processor, threads, torch, model, formats."""
        told = f"{key_of('choice')} {torch.__version__} {torch.get_num_threads()} {self.info.fingerprint} "
        formats = [f"{name} {code_of(name)}" for name in near_exact()]
        return hashlib.sha256((told + " ".join([self.info.dtype, *formats])).encode()).hexdigest()

    def skeleton(self) -> Backbone | None:
        """Return the model without weights, as its family reads it; ``None`` with a note where that cannot be."""
        info = self.info
        try:
            with library_border(f"{info.name} cannot be read without its weights"):
                found = skeleton(self.source, info.dtype)
        except ModelError as error:
            self.note(f"packing {info.name} again: {error}")
            return None
        modules = {}
        if self.shortcut is not None:
            shapes = shapes_of(info.exit_module, info.hidden_size)
            empty = {part: torch.empty(shape, device="meta") for part, shape in shapes.items()}
            modules = dict.fromkeys(info.exit_points, module_from(info.exit_module, empty))
        return replace(  # what a family does not read: shortcuts, and what finds artefacts
            found,
            like=torch.empty(0, dtype=getattr(torch, info.dtype)),
            shortcuts=modules,
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
            header, stored = _opened(file)
            if header.key != file.stem:
                raise ValueError(f"it is of {header.key}")
            tensors = {slot: _read(stored, said, contents) for slot, said in header.slots.items()}
            backbone = filled(skeleton, usable(name, "cpu"), tensors)
        except (OSError, ValueError) as error:
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
                _save(contents, unfinished, header)
            drop_old("packed")
            self.skeleton()  # kept with them, while transformers is there
        except OSError as error:
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


def _save(contents: Mapping[str, Tensor], file: Path, header: _Header) -> None:
    """Write safetensors each of which begins at a multiple of :data:`_LINE`, so that products can read them there.

    What the kernel has cached of the file is dropped, so that whoever maps it next is given large pages.
    """
    told: dict[str, Any] = {"__metadata__": {"harness": header.model_dump_json()}}
    ordered, end = sorted(contents, key=lambda name: (contents[name].nbytes % _LINE > 0, name)), 0
    for name in ordered:
        start, end = end, end + contents[name].nbytes
        told[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
    text = json.dumps(told).encode()
    text += b" " * (-(len(text) + 8) % _LINE)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            numbers: Any = contents[name].numpy()
            opened.write(numbers)
        opened.flush()
        if hasattr(os, "posix_fadvise"):
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _opened(file: Path) -> tuple[_Header, Callable[[str], Tensor]]:
    """Return what a file says of itself, and what finds its bytes by their name: mapped in large pages, or copied."""
    with file.open("rb") as opened:
        area = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            area.madvise(mmap.MADV_HUGEPAGE)
    begin = 8 + int.from_bytes(area[:8], "little")
    if not 8 < begin <= len(area):
        raise ValueError("it is no safetensors file")
    told: Any = parse_json(area[8:begin])
    if not isinstance(told, dict) or not isinstance(said := told.pop("__metadata__", None), dict):
        raise ValueError("it is not of the harness")
    header = _Header.model_validate_json(said.get("harness", ""))
    places = {name: _Place.model_validate(place) for name, place in told.items()}
    whole = torch.frombuffer(area, dtype=torch.uint8)
    whole[:: mmap.PAGESIZE].sum()
    shared = _in_large_pages(whole)

    def find(name: str) -> Tensor:
        start, end = places.get(name, _NOWHERE).data_offsets
        if not 0 <= start <= end <= len(area) - begin:
            raise ValueError(f"{name[:12]} is not in it")
        found = whole[begin + start : begin + end]
        return found if shared else moved(found)

    return header, find


def _in_large_pages(data: Tensor) -> bool:
    """Whether nearly all of a mapped file is in memory in pages of two megabytes, which Linux alone tells."""
    with suppress(OSError):
        for area in Path("/proc/self/smaps").read_text().split("VmFlags:"):
            if f"\n{data.data_ptr():x}-" in area and (found := re.search(r"FilePmdMapped: +(\d+) kB", area)):
                return int(found[1]) << 10 > _LARGE_SHARE * data.nbytes
    return False


def _read(stored: Callable[[str], Tensor], said: _Slot, contents: dict[str, Tensor]) -> Packed:
    """Return a tensor of a file, whose bytes are read unless they are there."""
    dtype = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}.get(said.dtype)
    if dtype is None or min(said.shape, default=1) < 0:
        raise ValueError(f"it says {said.dtype} {said.shape}")
    data = contents.get(said.content)
    if data is None:
        data = stored(said.content)
        if _hash(data) != said.content:
            raise ValueError(f"the bytes of {said.content[:12]} are not those that were written")
        contents[said.content] = data
    if data.nbytes != math.prod(said.shape) * dtype.itemsize:
        raise ValueError(f"{said.content[:12]} has {data.nbytes} bytes, not {said.dtype} {said.shape}")
    return Packed(data.view(dtype).view(said.shape), said.kind)
