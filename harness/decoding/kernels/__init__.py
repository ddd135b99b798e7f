"""Compiled arithmetic of packed weights on a CPU: one matrix times a few rows, and whole layers for a few tokens.

torch multiplies packed matrices well, but each of its operators costs some ten microseconds and empties the caches for
the next; a layer has thirty. What is here runs the layers between two exits in one call, on torch's own threads.
Numba (Lam 2015, doi 10.1145/2833157.2833162) compiles it for the processor at hand, once, so that nobody needs a
compiler (:func:`address_of`): :mod:`.panels` the products, :mod:`.arithmetic` the layers. Nothing else imports these.

Beside what compiles, here are torch's threads and memory in large pages. torch's CPU wheels bring GNU's OpenMP, whose
threads wait by spinning. A second pool beside it would fight for the same cores, so compiled functions run in a
parallel region of the same library (:func:`team`). A token reads all weights once; in pages of four kilobytes the
processor looks up an address for each, which took a quarter of a token's time on a virtual machine
(:func:`in_large_pages`).
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.host.cache import keep_document, kept_document

COLUMNS = 32
"""Outputs of a panel."""

GROUP = 32
"""Inputs are padded to a multiple."""

ROOM = 1 << 16
"""Floats that a thread has room for: widened weights, or activations in 8 bits."""


QUERIES = 24
"""Queries that share the keys and values that are read, at most: their scores stand in a thread's room."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How the weights of a panel are stored: those of one input side by side, input after input.

    Attributes:
        name: of the class in :mod:`.panels` that reads them.
        input_bytes: of the weights of one input.
        group_header_bytes: before the first of :data:`GROUP` inputs.
        header_bytes: of a panel, before the first group.
    """

    name: str
    input_bytes: int
    group_header_bytes: int = 0
    header_bytes: int = 0

    @property
    def group_bytes(self) -> int:
        """Of :data:`GROUP` inputs."""
        return self.group_header_bytes + GROUP * self.input_bytes

    def panel_bytes(self, inputs: int) -> int:
        """Of so many inputs, padded to a multiple of :data:`GROUP`."""
        return self.header_bytes + -(-inputs // GROUP) * self.group_bytes


FLOAT32 = Kind("Float32", 4 * COLUMNS)
FP16 = Kind("Fp16", 2 * COLUMNS)
INT8 = Kind("Int8", COLUMNS, header_bytes=4 * COLUMNS)  # a float32 scale of each output
INT4 = Kind("Int4", COLUMNS // 2, group_header_bytes=4 * COLUMNS)  # scales, then least weights, in half precision
W8A8 = Kind("W8A8", COLUMNS, header_bytes=4 * COLUMNS)  # as Int8, of 4 inputs together
W4A8 = Kind("W4A8", COLUMNS // 2, group_header_bytes=4 * COLUMNS)  # as Int4, of 4 inputs together
KINDS = {kind.name: kind for kind in (FP16, INT8, INT4, W8A8, W4A8)}
"""Of packed matrices."""


@cache
def obstacle() -> str | None:
    """Return why nothing can be compiled on this machine, as a clause; ``None`` where it can."""
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        return f"Numba, which compiles its products, cannot be imported ({error})"
    if find_spec("numba") is None:
        return "Numba, which compiles its products, is not installed"
    features = llvm.get_host_cpu_features()
    if llvm.get_process_triple().startswith("x86_64") and not (features.get("f16c") and features.get("fma")):
        return "this processor has no fused multiply-adds, or does not widen half precision"
    return None


def identity() -> str | None:
    """Return what tells the compiled functions of this processor apart; ``None`` where nothing can be compiled."""
    return key_of("")[:16] if obstacle() is None else None


def prepare(kind: Kind) -> None:
    """Find what a kind of weights is multiplied with, in a thread: reading a model waits for the disk."""

    def finding() -> None:
        for name in (kind.name, "layers"):
            address_of(name)

    threading.Thread(target=finding, name=f"compiling {kind.name}").start()


_addresses: dict[str, int] = {}
_engines: list[Any] = []  # hold the machine code
_compiling = threading.RLock()


def address_of(name: str) -> int:
    """Return the address of a compiled function, by a kind's name for its product, ``layers`` or ``threads``.

    Compiling takes seconds. So machine code is kept in the user's cache, under a hash of the processor and its
    features, the source of these modules, and the versions of what compiles it; its bytes are verified when it is read.
    """
    with _compiling:
        if name not in _addresses:
            kept = kept_document("compiled", key := key_of(name))
            _addresses[name] = _compile(name, key) if kept is None else _load(kept)
        return _addresses[name]


def key_of(name: str) -> str:
    """Return what tells apart whatever depends on this processor, these modules and what compiles them, hex."""
    import llvmlite.binding as llvm

    total = hashlib.sha256(f"{name} {sys.version} {version('llvmlite')} {version('numba')}".encode())
    total.update(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())
    total.update(str(sorted(item for item in os.environ.items() if item[0].startswith("NUMBA"))).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()


def _compile(name: str, key: str) -> int:
    from harness.decoding.kernels import arithmetic, integers, panels

    products = panels if hasattr(panels, name) else integers
    found = getattr(products, name)().product() if name in KINDS else getattr(arithmetic, name)()
    library = found._library  # Numba's own cache unpickles what it reads
    code = library.serialize_using_object_code()[2][0]
    keep_document("compiled", key, {"symbol": found.native_name, "code": b64encode(code).decode()})
    address: int = found.address
    return address


def _load(kept: dict[str, str]) -> int:
    """Link machine code into this process, without Numba, whose import alone takes half a second."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    end = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for symbol in _UNREACHABLE:
        if llvm.address_of_symbol(symbol) is None:
            llvm.add_symbol(symbol, end)
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(b64decode(kept["code"])))
    engine.finalize_object()
    _engines.append(engine)
    address: int = engine.get_function_address(kept["symbol"])
    return address


_UNREACHABLE = (
    "NRT_Free", "NRT_MemInfo_call_dtor", "numba_do_raise", "numba_gil_ensure", "numba_gil_release",
    "numba_runtime_build_excinfo_struct", "numba_unpickle",
)  # fmt: skip
"""Numba's, for exceptions and objects, which compiled functions here have none of: they end the process."""


_LARGE = 2 << 20
_ROOM = 64 << 20  # bytes that are taken at once, so that small matrices share pages
_LINE = 64
_taken: list[Tensor] = []
_lock = threading.Lock()


def in_large_pages(tensor: Tensor) -> Tensor:
    """Return a CPU tensor that nobody has written to, after asking for large pages; others as they are."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < 2 * _LARGE:
        return tensor
    start = -(-tensor.data_ptr() // _LARGE) * _LARGE
    size = (tensor.data_ptr() + tensor.nbytes - start) // _LARGE * _LARGE
    if size > 0:  # an answer is not needed: without large pages all is as right
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
    return tensor


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return zeros of a tensor's dtype and device; of a CPU's, pages that nobody has written to take no memory."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not size or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(area, dtype=like.dtype).view(shape)


def moved(data: Tensor) -> Tensor:
    """Return a copy of a CPU tensor of bytes beside those that were moved before it, in large pages."""
    return room(data.shape).copy_(data)


def room(shape: Sequence[int]) -> Tensor:
    """Return bytes of a CPU to be written to, beside those that were asked for before, in large pages."""
    size = math.prod(shape)
    with _lock, torch.inference_mode(mode=False):  # whatever made the first of them
        if not _taken or len(_taken[0]) < size + _LINE:
            _taken[:] = [in_large_pages(torch.empty(max(_ROOM, size + _LINE), dtype=torch.uint8))]
        (free,) = _taken
        free = free[-free.data_ptr() % _LINE :]
        _taken[:] = [free[size:]]
        return free[:size].view(shape)


_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team(NamedTuple):
    """How compiled functions find each other's threads.

    Attributes:
        run: ``run(address of a C function of one pointer, that pointer, threads)`` calls it in so many threads at most.
        size: address of a function that returns how many there are; 0 where a function runs alone.
        member: address of one that returns which of these the caller is.
        barrier: address of one that returns when all have called it.
    """

    run: Callable[[int, int, int], None]
    size: int = 0
    member: int = 0
    barrier: int = 0


def _alone(function: int, parameters: int, _: int) -> None:
    _Body(function)(parameters)


@cache
def team() -> Team:
    """Return torch's threads; where its OpenMP is not GNU's, the calling thread alone."""
    installed = Path(torch.__file__).parent
    path = next((path for folder in ("lib", "../torch.libs") for path in (installed / folder).glob("libgomp*")), None)
    if path is None:
        return Team(_alone)
    library = ctypes.CDLL(str(path))
    parallel = library.GOMP_parallel
    parallel.restype, parallel.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    names = ("omp_get_num_threads", "omp_get_thread_num", "GOMP_barrier")
    addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
    return Team(lambda function, given, threads: parallel(function, given, threads, 0), *addresses)
