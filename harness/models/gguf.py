"""GGUF files, in which llama.cpp and Ollama keep models: checked at this door, and read tensor by tensor.

A file that is cut short, one of several parts, or of an architecture, rotary scaling or quantisation that is not known
here is refused before a weight is read. Dequantising is the package gguf's, in float32, of as many rows at a time as
are asked for. Its reader of headers is not used: a vocabulary of 150,000 tokens takes it nine seconds and a gigabyte.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import ModelError
from harness.host.files import open_regular, refusing

if TYPE_CHECKING:
    from torch import Tensor, nn

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # of the data, where the file names no other
_PIECE = 2 << 20  # numbers that are dequantised together
_TOGETHER = 16  # rows that are given as one, since gguf takes time for each

_LLAMA = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_GPT2 = {
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
ARCHITECTURES: Mapping[str, Mapping[str, str]] = {"gpt2": _GPT2, "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
"""Architecture, named as transformers names the family → field of its configuration → key in the file."""

_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_FETCH = "Fetch it again as it was published."
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every Llama 3.1 and 3.2; files hold what follows from it, a factor for each frequency."""


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with suppress(OSError), open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        shape: as torch has it, rows first.
        kind: number of its quantisation, ``GGMLQuantizationType``.
        offset: of its first byte in the file.
        row_bytes: of what its last dimension holds.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """A file's metadata and its tensors.

    Args:
        path: of the file.

    Attributes:
        facts: key → number or text; lists are left out.
        tensors: name → where it is.

    Raises:
        ModelError: it cannot be used; says why in one line, with the remedy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with refusing(path, ModelError, _FETCH), open_regular(path) as file:
            size = file.seek(0, 2)
            if size < len(MAGIC):
                self._refuse("is no GGUF file", _FETCH)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.facts, self.tensors = self._header(_Cursor(data, self), size)
        self.architecture = str(self.facts.get("general.architecture", ""))
        self._check()

    def _header(self, at: _Cursor, size: int) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        if at.bytes(len(MAGIC)) != MAGIC:
            self._refuse("is no GGUF file", _FETCH)
        version = at.number("I")
        if version not in _VERSIONS:
            self._refuse(f"is GGUF of version {version}", f"Versions {_VERSIONS} are read, in little-endian order.")
        count, pairs = at.number("Q"), at.number("Q")
        facts = {}
        for _ in range(pairs):
            key = at.text()
            value = at.value(at.number("I"))
            if value is not None:
                facts[key] = value
        told = []
        for _ in range(count):
            name, dimensions = at.text(), at.number("I")
            if not 1 <= dimensions <= 4:
                self._refuse(f"says that {name} has {dimensions} dimensions", _FETCH)
            shape = tuple(reversed([at.number("Q") for _ in range(dimensions)]))
            told.append((name, shape, at.number("I"), at.number("Q")))
        alignment = facts.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            self._refuse(f"aligns its data to {alignment}", _FETCH)
        start = at.place + -at.place % alignment
        tensors = {}
        for name, shape, kind, offset in told:
            block, block_bytes = GGML_QUANT_SIZES.get(kind, (0, 0)) if kind in list(GGMLQuantizationType) else (0, 0)
            if not block or not _is_known(kind):
                known = GGMLQuantizationType(kind).name if block else f"type {kind}"
                remedy = "Q4_0 to Q8_0, K-quants, F16, BF16 and F32 are: make one of them (llama-quantize)."
                self._refuse(f"stores {name} as {known}, which is not read", remedy)
            if shape[-1] % block or not math.prod(shape):
                self._refuse(f"says that {name} is {shape}, which is no whole number of blocks of {block}", _FETCH)
            tensors[name] = StoredTensor(shape, kind, start + offset, shape[-1] // block * block_bytes)
        end = max((one.offset + one.nbytes for one in tensors.values()), default=0)
        if end > size:
            self._refuse(f"is cut short: it has {size:,} bytes of {end:,}", _FETCH)
        return facts, tensors

    def _check(self) -> None:
        parts = self.facts.get("split.count", 1)
        if parts != 1:
            number = self.facts.get("split.no", 0)
            self._refuse(
                f"is part {number + 1 if type(number) is int else '?'} of {parts}",
                "Join them: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf",
            )
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            self._refuse(
                f"is of architecture '{self.architecture}', which is not read from GGUF ({known} are)",
                "Give a folder with its safetensors.",
            )
        if "token_embd.weight" not in self.tensors:
            self._refuse("holds no weights (token_embd.weight)", "Give the file with the model's weights.")

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise ModelError(f"{self.path} {what}. {remedy}")

    def _number(self, key: str, default: float | None = None) -> int | float:
        value = self.facts.get(f"{self.architecture}.{key}", default)
        if type(value) not in (int, float):
            self._refuse(f"gives no number for {self.architecture}.{key}", _FETCH)
        return value  # type: ignore[return-value]

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """The configuration as transformers has it in ``config.json``; what the file does not say is left out."""
        found: dict[str, Any] = {"model_type": self.architecture}
        found |= {field: self._number(key) for field, key in ARCHITECTURES[self.architecture].items()}
        found |= {"vocab_size": self.tensors["token_embd.weight"].shape[0]}
        found |= {"tie_word_embeddings": "output.weight" not in self.tensors}
        ends = list(dict.fromkeys(self.facts[key] for key in _ENDS if key in self.facts))
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
        found["bos_token_id"] = self.facts.get("tokenizer.ggml.bos_token_id")
        found["pad_token_id"] = self.facts.get("tokenizer.ggml.padding_token_id")
        return found if self.architecture == "gpt2" else found | self._llama_like(found)

    def _llama_like(self, found: Mapping[str, Any]) -> dict[str, Any]:
        heads = found["num_attention_heads"]
        head_dim = self._number("attention.key_length", found["hidden_size"] // max(heads, 1))
        turned = self._number("rope.dimension_count", head_dim)
        if turned != head_dim:
            self._refuse(f"turns {turned} of {head_dim} dimensions of a head, which is not read", _GIVE_FOLDER)
        more = {
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rope_parameters": self._rope(head_dim),
        }
        if window := self._number("attention.sliding_window", 0):  # within which all attention is full
            more["max_position_embeddings"] = min(found["max_position_embeddings"], window)
        if self.architecture != "qwen2":
            more["attention_bias"] = "blk.0.attn_q.bias" in self.tensors
        return more

    def _rope(self, head_dim: float) -> dict[str, Any]:
        """Return what transformers calls ``rope_parameters``."""
        base = float(self._number("rope.freq_base", 10000.0))
        kind = self.facts.get(f"{self.architecture}.rope.scaling.type", "none")
        plain = {"rope_type": "default", "rope_theta": base}
        if "rope_freqs.weight" in self.tensors:
            factors = self.rows("rope_freqs.weight").flatten().tolist()
            factor = max(1.0, round(max(factors), 3))
            expected = _llama_3_factors(max(base, 1.0), len(factors), factor)
            if 2 * len(factors) != head_dim or not all(map(_near, factors, expected)):
                self._refuse("scales rotary positions by factors that are not Llama 3's", _GIVE_FOLDER)
            return plain | {"rope_type": "llama3", "factor": factor} | _LLAMA_3
        if kind in ("none", ""):
            return plain
        if kind not in ("linear", "yarn"):
            self._refuse(f"scales rotary positions as '{kind}', which is not read", _GIVE_FOLDER)
        scaled = plain | {"rope_type": kind, "factor": float(self._number("rope.scaling.factor"))}
        if kind == "yarn":
            scaled["original_max_position_embeddings"] = self._number("rope.scaling.original_context_length")
        return scaled

    def rows(self, name: str, first: int = 0, last: int | None = None, dtype: Any = None) -> Tensor:
        """Return some rows of a tensor of the file, dequantised in float32 a piece at a time.

        Args:
            name: in the file.
            first: row.
            last: row behind the last one; the tensor's end by default.
            dtype: torch dtype of the result, float32 by default.
        """
        import numpy as np
        import torch
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        stored = self.tensors[name]
        height, width = math.prod(stored.shape[:-1]), stored.shape[-1]
        last = height if last is None else min(last, height)
        out = torch.empty((max(last - first, 0), width), dtype=dtype or torch.float32)
        step = max(_TOGETHER, _PIECE // width // _TOGETHER * _TOGETHER)
        with refusing(self.path, ModelError, _FETCH), open_regular(self.path) as file:
            for start in range(first, last, step):
                count = min(step, last - start)
                file.seek(stored.offset + start * stored.row_bytes)
                data = np.fromfile(file, dtype=np.uint8, count=count * stored.row_bytes)
                if data.nbytes != count * stored.row_bytes:
                    self._refuse("is shorter than it was", _FETCH)
                joined = data.reshape(count // math.gcd(count, _TOGETHER), -1)  # blocks do not depend on rows
                numbers = dequantize(joined, GGMLQuantizationType(stored.kind))
                out[start - first : start - first + count] = torch.from_numpy(numbers.reshape(count, width))
        return out.view(stored.shape) if out.numel() == math.prod(stored.shape) else out

    def names_of(self, module: nn.Module) -> dict[str, str]:
        """Return a transformers model's parameter → the tensor of the file that it is.

        Raises:
            ModelError: a tensor is missing, of another shape, or none of the model's.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
        layers = int(self._number("block_count"))
        known = get_tensor_name_map(numbers[self.architecture], layers)
        found = {}
        for parameter, tensor in module.named_parameters():
            name = known.get_name(parameter, (".weight", ".bias")) or parameter
            if name == "output.weight" and name not in self.tensors:
                name = "token_embd.weight"
            if name not in self.tensors:
                self._refuse(f"lacks {name}", _FETCH)
            shape = self.tensors[name].shape
            if (shape[::-1] if self._is_transposed(name) else shape) != tuple(tensor.shape):
                self._refuse(f"has {name} in {shape}, where its sizes want {tuple(tensor.shape)}", _FETCH)
            found[parameter] = name
        strange = sorted(set(self.tensors) - set(found.values()) - {"rope_freqs.weight"})
        if strange:
            self._refuse(
                f"has {strange[0]}, which no {self.architecture} model of {layers} layers has in transformers",
                _GIVE_FOLDER,
            )
        return found

    def parameter(self, name: str, dtype: Any = None) -> Tensor:
        """Return a tensor of the file as transformers has it: llama.cpp reorders heads of Llama, and rows of GPT-2."""
        found = self.rows(name, dtype=dtype)
        if self._is_transposed(name):
            return found.t().contiguous()
        if self.architecture != "llama" or not name.startswith("blk.") or ".attn_q." not in name.replace("_k.", "_q."):
            return found
        configuration = self.configuration
        heads = configuration["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        halves = found.view(heads, -1, 2, *found.shape[1:])  # llama.cpp turns neighbours, transformers halves
        return halves.transpose(1, 2).reshape(found.shape)

    def _is_transposed(self, name: str) -> bool:
        return self.architecture == "gpt2" and name.startswith("blk.") and len(self.tensors[name].shape) > 1


_GIVE_FOLDER = "Give a folder with its safetensors."


class _Cursor:
    """Reads a header's values one after the other."""

    def __init__(self, data: mmap.mmap, file: GgufFile) -> None:
        self._data, self._file, self.place = data, file, 0

    def bytes(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self._data):
            self._file._refuse(f"is cut short: it ends in its header, at {len(self._data):,} bytes", _FETCH)
        found, self.place = self._data[self.place : end], end
        return found

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        """Return a value; ``None`` for a list, which is passed over."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            self._file._refuse(f"has metadata of type {kind}", _FETCH)
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            self.bytes(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return None
        for _ in range(count):
            if inner != _STRING:
                self._file._refuse(f"has a list of type {inner}", _FETCH)
            self.bytes(self.number("Q"))
        return None


def _is_known(kind: int) -> bool:
    """Whether numbers of a quantisation can be made of it."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    _, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    try:
        return bool(dequantize(np.zeros((1, size), dtype=np.uint8), GGMLQuantizationType(kind)).size)
    except NotImplementedError:
        return False


def _llama_3_factors(base: float, count: int, factor: float) -> list[float]:
    """Return by what Llama 3.1 divides each frequency (Llama 3 herd of models, 2024, arXiv 2407.21783)."""
    low, high, original = _LLAMA_3.values()
    found = []
    for pair in range(count):
        waves = original / (2 * math.pi * base ** (pair / count))
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4)
