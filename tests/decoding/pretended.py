"""A device that computes on the CPU and behaves like an accelerator to whoever drives it.

Its tensors say that they are elsewhere: mixing them with the host's is refused, and every value that crosses is
counted with the line that asked for it. A *read* makes the host wait for the device; so does an *upload*, unless it is
made without blocking. What a CUDA device does in time is not imitated.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Rotary
from harness.decoding.engine import Engine

__all__ = ["DEVICE", "Crossings", "Tape", "crossings", "moved"]

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:
    pytest.skip(f"torch {torch.__version__} has no devices that are written in Python", allow_module_level=True)
_setup_privateuseone_for_python_backend("pretended")
# What torch asks any accelerator in the process when it computes activations again, whoever tests that.
torch.pretended.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # type: ignore[attr-defined]
torch.accelerator.empty_cache = lambda: None  # which accelerate 1.16 calls; this device's memory is the host's
DEVICE = torch.device("pretended:0")

_READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique"}
_HOSTS = ("harness/", "strategies/")


class Far(Tensor):
    """A tensor of the device."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        with torch.inference_mode(mode=False):  # assigning to parts of inference tensors is unknown to subclasses
            made = torch.Tensor._make_wrapper_subclass(
                cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
                device=DEVICE,
            )  # fmt: skip
        made.near = near
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@dataclass
class Crossings(TorchDispatchMode):
    """Counts what crosses while it is entered.

    Attributes:
        reads: where the host waited for values of the device → how often.
        uploads: where it waited for values to get there.
    """

    reads: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __enter__(self) -> Crossings:
        _watching.append(self)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        _watching.remove(self)


_watching: list[Crossings] = []
_tapes: list[list[tuple[Any, Any, dict[str, Any], Any]]] = []


@dataclass
class Tape:
    """Records work as a graph does: kernels and the memory they work on, and nothing that Python decides.

    Attributes:
        recorded: how often work was recorded.
        replayed: how often it was done again.
    """

    recorded: int = 0
    replayed: int = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        _tapes.append([])
        try:
            work()
        finally:
            tape = _tapes.pop()
        return lambda: self._again(tape)

    def _again(self, tape: list[tuple[Any, Any, dict[str, Any], Any]]) -> None:
        self.replayed += 1
        with torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, out in tape:
                before = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if _is(one)}
                for kept, made in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if _is(kept) and kept.untyped_storage().data_ptr() not in before:
                        kept.copy_(made)


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _note(kind: str) -> None:
    assert not _tapes, f"{kind} of the host while a graph is recorded"
    for one in _watching:
        frame: FrameType | None = sys._getframe()
        while frame is not None and not any(f"/{host}" in frame.f_code.co_filename for host in _HOSTS):
            frame = frame.f_back
        code = None if frame is None else frame.f_code
        name = "elsewhere" if code is None else f"{'/'.join(code.co_filename.split('/')[-2:])}:{code.co_name}"
        getattr(one, kind)[name] += 1


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.__name__.partition(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = any(isinstance(one, Far) for one in tensors)
    target = kwargs.get("device")
    to_far = far if target is None else torch.device(target).type == DEVICE.type
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    _check(name, tensors, far=far, moves=target is not None)
    repeats = func is _REPEATS and "output_size" not in kwargs
    if far and (name in _READS or repeats or (name == "index" and _by_mask(args))):
        _note("reads")
    if target is not None and tensors:
        blocking = not (kwargs.get("non_blocking") or True in args[1:])
        if far and not to_far:
            _note("reads")
        elif to_far and not far and blocking:
            _note("uploads")
    if name == "copy_" and isinstance(args[0], Far) != isinstance(args[1], Far):
        if not isinstance(args[0], Far):
            _note("reads")
        elif not (kwargs.get("non_blocking") or True in args[2:]):
            _note("uploads")
    with torch.utils._python_dispatch._disable_current_modes():
        near = tree_map(_near, args), tree_map(_near, kwargs)
        out = func(*near[0], **near[1])
    if _tapes:
        assert far or not tensors, f"{name} on the host, or an upload, while a graph is recorded"
        _tapes[-1].append((func, *near, out))
    if target is not None and to_far and not far:  # `to` may return what it was given
        out = tree_map(lambda one: one.clone() if any(one is other for other in tensors) else one, out)
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda one: Far(one) if to_far and isinstance(one, Tensor) else one, out)


_REPEATS = torch.ops.aten.repeat_interleave.Tensor


def _by_mask(args: Any) -> bool:
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])


def _check(name: str, tensors: list[Tensor], *, far: bool, moves: bool) -> None:
    """Refuse what CUDA refuses: operands on two devices, numbers and indices apart."""
    if far and not moves and name not in ("copy_", "index", "index_put_", "index_put"):
        assert all(isinstance(one, Far) or one.dim() == 0 for one in tensors), f"{name} mixes host and device"


def _empty(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Far(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``torch.tensor(…, device=…)`` and lists as indices come to, unseen by modes."""
    if not non_blocking:
        _note("reads" if isinstance(source, Far) else "uploads")
    _near(target).copy_(_near(source))
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty_strided", _empty, "PrivateUse1")
_library.impl("_copy_from", _copy, "PrivateUse1")


def moved(engine: Engine, **arguments: Any) -> Engine:
    """Return an engine on the device, with the same weights."""
    here: Backbone = engine.backbone
    make = here.rotary

    def rotary(positions: int) -> Rotary:
        assert make is not None
        table = make(positions)
        table._cos, table._sin = Far(table._cos), Far(table._sin)
        return table

    there = _moved(replace(here, rotary=None, trained=dict))
    there = replace(there, rotary=None if make is None else rotary)
    return Engine(there, engine.info, **arguments)


def _moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Far(value.detach())
    if is_dataclass(value) and not isinstance(value, type):
        changes = {one.name: _moved(getattr(value, one.name)) for one in fields(value) if one.init}
        return type(value)(**changes)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_moved, value))
    return value


def crossings(work: Callable[[], Any]) -> Crossings:
    """Return what crossed during some work."""
    with Crossings() as found:
        work()
    return found
