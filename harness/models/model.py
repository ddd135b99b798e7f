"""The door to a model: :func:`resolve` finds its facts without its weights, so that a run is refused in a second.

:meth:`ResolvedModel.load` then reads them. Never remote code, never pickled weights: safetensors or GGUF only.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.contracts import OWN_FORMAT, ModelInfo, ModelRequest
from harness.decoding import packing
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import KEPT, choose
from harness.decoding.families import read
from harness.decoding.packing import FormatChoice, fastest, near_exact, pack_all, prepare
from harness.errors import OutOfMemoryError
from harness.host.libraries import library_border
from harness.models.artefacts import Artefact, look_into
from harness.models.configuration import Shape, read_config, read_shape
from harness.models.exit_modules import module_of, read_shortcuts
from harness.models.facts import MERGED, PARTS, Exported, base_facts, in_format, read_exported
from harness.models.heads import head_tensors
from harness.models.kept_weights import KeptWeights
from harness.models.ngrams import SeenDocuments, find_seen
from harness.models.placement import check_map, devices_of, in_words, layer_devices, read_placed
from harness.models.source import ModelSpec, find_spec, local_folder
from harness.models.tokenizer import TransformersTokenizer, read_tokenizer
from harness.models.trained import SCALE, Missing, find, require, tuned_fingerprint
from harness.models.weights import (
    StoredWeights,
    checked,
    digest,
    merge,
    parameters_of,
    random_weights,
    read_weights,
)
from harness.registry import ran_out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedModel:
    """A model before its weights are read: where it is, its facts, what was trained for it and what that has read."""

    spec: ModelSpec
    shape: Shape
    info: ModelInfo
    adapter: Artefact | None = None
    shortcut: Artefact | None = None
    seen: SeenDocuments = field(default_factory=SeenDocuments)
    exported: Exported | None = None

    @cached_property
    def tokenizer(self) -> TransformersTokenizer:
        """The model's tokenizer, read when first asked for."""
        return read_tokenizer(self.spec, self.shape, self.info)

    def devices(self, device: str) -> str:
        """Return all devices that multiply, the model's own first, joined by commas, as a meter takes them."""
        return devices_of(device, layer_devices(self.info, device))

    def placement(self, device: str) -> dict[str, str]:
        """Return which layers are where, in words, under ``layers``; nothing where all are on one device."""
        elsewhere = layer_devices(self.info, device)
        return {"layers": in_words(device, elsewhere)} if any(elsewhere) else {}

    @property
    def tuning(self) -> Mapping[str, Any] | None:
        """What is known of the tuning of its weights; ``None`` for base and random ones."""
        if self.info.weights != "tuned":
            return None
        return (
            look_into(Path(self.spec.location) / PARTS / f"{MERGED}.json")
            if self.adapter is None
            else self.adapter.facts
        )

    @property
    def tuned_on(self) -> frozenset[str] | None:
        """Keys of the documents that the weights were tuned on; ``None`` for base and random weights."""
        return None if self.tuning is None else frozenset(self.tuning.get("documents", ()))

    def module(self, note: Callable[[str], None] = lambda text: None) -> tuple[Any, str]:
        """Read or draw the weights as a transformers model on the CPU; say where they came from."""
        if self.info.weights == "random":
            module, source = random_weights(read_config(self.spec, "random"), self.info.dtype, self.info.asked.seed)
        else:
            module, source = read_weights(self.spec, self.info.dtype)
            started = time.perf_counter()
            for _ in checked(module.named_parameters(), self.spec):
                pass
            note(f"preparing {self.info.name}, its weights checked in {time.perf_counter() - started:.2f} s")
        if self.adapter is not None:
            merge(module, self.adapter)
        return module, self._made_of(source)

    def _made_of(self, source: str) -> str:
        source += "" if self.exported is None else f", {self.exported.made_of}"
        return source if self.adapter is None else f"{source}, tuned with the LITE adapter {self.adapter.sha256[:12]}"

    def load(self, device: str, note: Callable[[str], None] = lambda text: None) -> LoadedModel:
        """Read or draw the weights and move them to a torch device, packed and ready to decode."""
        return self.load_all(device, note)[0]

    def load_all(
        self, device: str, note: Callable[[str], None] = lambda text: None, formats: Sequence[str | None] = (None,)
    ) -> tuple[LoadedModel, ...]:
        """Read or draw the weights once and pack them in several formats, each of which is in memory once."""
        info = self.info
        needed = info.num_layers * info.layer_bytes + info.lm_head_bytes
        there = psutil.virtual_memory().total
        if needed > there:
            raise OutOfMemoryError(
                f"the weights of {info.name} take {needed / 2**30:,.0f} GiB in {info.dtype}, and this machine "
                f"has {there / 2**30:,.0f} GiB. Use --dtype bfloat16 or a smaller --model."
            )
        try:
            return self._load(device, note, formats)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            several = len(formats) > 1
            raise OutOfMemoryError(
                f"out of memory loading {self.info.name} in "
                f"{' and '.join(map(str, formats)) if several else self.info.dtype}. "
                f"Use {'fewer names in --weights-format' if several else '--dtype bfloat16'} or a smaller --model."
            ) from error
        finally:
            with suppress(OSError, AttributeError):
                _settle_memory(ctypes.CDLL("libc.so.6"))

    def _load(self, device: str, note: Callable[[str], None], formats: Sequence[str | None]) -> tuple[LoadedModel, ...]:
        elsewhere = layer_devices(self.info, device)
        spread = any(elsewhere)
        prepare(() if spread else formats, self.info.num_layers * self.info.layer_bytes, device)
        kept = None if spread else self._kept(device, note)
        timed: list[FormatChoice] = []

        def best(backbone: Backbone) -> FormatChoice:
            """Return the fastest format that keeps float32's tokens, timed once unless an earlier process has."""
            if not timed and kept is not None and (known := kept.choice()) is not None:
                note(f"taking {known.name}, which was the fastest on {known.measured}")
                timed.append(known)
            if not timed:
                timed.append(fastest(backbone, device))
                if kept is not None:
                    kept.keep_choice(timed[0])
            return timed[0]

        if kept is not None and (found := self._load_kept(kept, formats, best)):
            return found
        own = OWN_FORMAT[self.info.dtype]
        stored = None if spread else self._stored(device, formats)
        parts = None if stored is None else stored.backbone()
        sha256: str | None
        if stored is not None and parts is not None and own not in self._choices(lambda: best(parts), formats):
            module, backbone, source = None, parts, self._made_of(stored.source)
            sha256 = stored.sha256()
            note(f"packing {self.info.name} as its layers are dequantised")
        else:
            module, source = self.module(note)
            sha256 = None if self.info.weights == "random" else digest(parameters_of(module))
            with library_border(f"{self.info.name} cannot be decoded with"):
                if spread:
                    backbone, module = read_placed(module, device, elsewhere), None
                else:
                    module = module.to(device).eval().requires_grad_(requires_grad=False)
                    backbone = read(module)
        if self.shortcut is not None:
            points, size = self.info.exit_points, self.info.hidden_size
            shortcuts = read_shortcuts(self.shortcut, points, backbone.dtype, device, hidden_size=size)
            backbone = replace(backbone, shortcuts=shortcuts)
        backbone = replace(backbone, trained=partial(head_tensors, self.info, device))
        choices = self._choices(lambda: best(backbone), formats)
        still = module if own in choices else None
        packed = pack_all(backbone, [name for name in choices if name != own], device)
        loaded = []
        for name, choice in choices.items():
            ready = packed.get(name, backbone)
            choose(ready.matrices())
            if kept is not None and sha256 is not None and name in packed and not kept.has(name):
                kept.write(ready, name, sha256)
            resolved = replace(self, info=in_format(self.info, self.shape, name))
            loaded.append(LoadedModel(resolved, ready, still if name == own else None, source, sha256, choice))
        return tuple(loaded)

    def _stored(self, device: str, formats: Sequence[str | None]) -> StoredWeights | None:
        """Return the weights of a GGUF file that are packed as they are read, so that they are never whole in float32.

        ``None`` for weights of another source, tuned, on another device, or not packed.
        """
        here = self.info.weights == "pretrained" and device == "cpu" and self.info.dtype == "float32"
        packed = {given or self.info.asked.weights_format or "float32" for given in formats} - {"float32"}
        return StoredWeights(self.spec, "float32") if here and packed and self.spec.gguf is not None else None

    def _kept(self, device: str, note: Callable[[str], None]) -> KeptWeights | None:
        """Return where packed weights are kept: those of local files that a CPU takes a while to read and to pack."""
        small = self.info.num_layers * self.info.layer_bytes < packing.ENOUGH
        if self.info.weights == "random" or device != "cpu" or small or (there := local_folder(self.spec)) is None:
            return None
        return KeptWeights(self.info, *there, self.shortcut, note)

    def _load_kept(
        self, kept: KeptWeights, formats: Sequence[str | None], best: Callable[[Backbone], FormatChoice]
    ) -> tuple[LoadedModel, ...]:
        """Read a model whose packed weights are kept in every one of several formats; nothing where some are not."""
        own = OWN_FORMAT[self.info.dtype]
        asked = {given or self.info.asked.weights_format or own for given in formats}
        known = kept.choice() if "auto" in asked else None
        among = set(near_exact()) - {own} if known is None else {known.name}
        needed = asked - {"auto"} | (among if "auto" in asked else set())
        if own in needed or not all(kept.has(name) for name in needed) or (skeleton := kept.skeleton()) is None:
            return ()
        contents: dict[str, torch.Tensor] = {}
        loaded = []
        for name, choice in self._choices(lambda: best(skeleton), formats).items():
            found = None if name == own else kept.read(skeleton, name, contents)
            if found is None:
                return ()
            resolved = replace(self, info=in_format(self.info, self.shape, name))
            loaded.append(LoadedModel(resolved, found[0], None, self._made_of(kept.source_name), found[1], choice))
        return tuple(loaded)

    def _choices(self, best: Callable[[], FormatChoice], formats: Sequence[str | None]) -> dict[str, FormatChoice]:
        """Return the formats that are meant, and why those; ``best`` finds the one for ``auto``."""
        choices: dict[str, FormatChoice] = {}
        for given in formats:
            asked = given or self.info.asked.weights_format
            if asked == "auto" and not self.info.asked.device_map:
                choice = best()
            else:
                choice = FormatChoice(OWN_FORMAT[self.info.dtype] if asked in (None, "auto") else asked)
            choices.setdefault(choice.name, choice)
        return choices


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode."""

    resolved: ResolvedModel
    backbone: Backbone
    module: Any
    weights_source: str
    weights_sha256: str | None
    format_choice: FormatChoice

    @property
    def info(self) -> ModelInfo:
        """Facts of the model."""
        return self.resolved.info

    @property
    def tokenizer(self) -> TransformersTokenizer:
        """Its tokenizer."""
        return self.resolved.tokenizer

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each part came from, in words: ``weights``, ``tokenizer``, ``exits``."""
        shortcut = self.resolved.shortcut
        exits = "the model's own head" if shortcut is None else f"shortcuts {shortcut.sha256[:12]} in {shortcut.path}"
        return {"weights": self.weights_source, "tokenizer": self.tokenizer.source, "exits": exits}


def resolve(request: ModelRequest) -> ResolvedModel:
    """Find a model and its facts; reads no weights."""
    spec = find_spec(request.model)
    shape = read_shape(spec, request.weights)
    exported = read_exported(spec, request)
    info = base_facts(spec, shape, request, exported)
    seen = find_seen(info.base_fingerprint, map(Path, info.artefacts))
    adapter = shortcut = None
    if info.weights != "tuned" and request.weights in ("auto", "tuned"):  # else merged already, or not asked for
        adapter = _part("adapter", info, needed=request.weights == "tuned")
    if adapter is not None:
        tuned = tuned_fingerprint(info.base_fingerprint, adapter.sha256, adapter.facts.get("scale", SCALE))
        info = replace(info, weights="tuned", fingerprint=tuned)
    if info.exit_points and request.exit_head != "shared":
        shortcut = _part("shortcut", info, needed=request.exit_head == "shortcut")
        if shortcut is None and adapter is not None and adapter.facts.get("exit_head") == "shortcut":
            _warn_of_lost_shortcuts(adapter.path, info.exit_points)
    if shortcut is not None:
        info = replace(info, exit_head=f"shortcut:{shortcut.sha256[:16]}", exit_module=module_of(shortcut))
        info = in_format(info, shape, info.weights_format)
    check_map(info)
    return ResolvedModel(spec, shape, info, adapter, shortcut, seen, exported)


@lru_cache(maxsize=64)
def _warn_of_lost_shortcuts(adapter: Path, points: Sequence[int]) -> None:
    logger.warning(
        "%s was tuned along with shortcuts, and none here lead from exit points %s: exits are read by the shared head",
        *(adapter, ", ".join(map(str, points))),
    )


def _part(kind: str, info: ModelInfo, *, needed: bool) -> Artefact | None:
    found = find(kind, info)
    return require(found) if needed else None if isinstance(found, Missing) else found


class KeptModel:
    """Holds one model; another takes its place, and is loaded when nothing holds the first any more."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._loaded: tuple[LoadedModel, ...] = ()

    def load(
        self,
        model: ResolvedModel,
        device: str,
        formats: Sequence[str | None],
        threads: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> tuple[LoadedModel, ...]:
        """Return a model in several weights formats; read unless it is the one that is kept."""
        if threads is not None:
            torch.set_num_threads(threads)
        trained = tuple(None if part is None else part.sha256 for part in (model.adapter, model.shortcut))
        seed = model.info.asked.seed if model.info.weights == "random" else None
        key = (model.info, trained, seed, model.devices(device), threads, tuple(formats))
        if key != self._key:
            self._key, self._loaded = None, ()
            note(f"loading {model.info.name}")
            self._loaded = model.load_all(device, note, formats)
            self._key = key
        asked = model.info.asked
        return tuple(
            replace(one, resolved=replace(one.resolved, info=replace(one.info, asked=asked))) for one in self._loaded
        )


KEPT_FREE = 256 << 20
"""Bytes of freed memory that the process keeps: the states of a long prompt take as much, in each layer again."""


def _settle_memory(libc: ctypes.CDLL) -> None:
    """Give back what was packed and dropped, and from now on keep what layers free, where the C library is glibc.

    As it comes, glibc gives large pieces back at once, so that a prompt of 400 tokens met its memory anew in 74,000
    pages: a tenth of its time, a fifth of that of a thousand tokens.
    """
    libc.malloc_trim(0)
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc.mallopt(trim_threshold, KEPT_FREE)
    libc.mallopt(mmap_threshold, KEPT)
