"""llama.cpp through ctypes: a model of a GGUF file, evaluated token by token with nothing in between.

The structures are those of ``include/llama.h`` and ``ggml/include/ggml.h`` in :data:`RELEASE`, handed over by value:
they belong to exactly that release, and its defaults are compared before anything is loaded. Everything stays as
llama.cpp has it by default (memory-mapped file, matrices repacked where its kernels want that, flash attention where
it can, keys and values in float16, physical batches of 512 tokens, ``poll = 50``), but for the number of threads, and
for one pool of them for all passes, as its server has it, in place of new ones for each.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint16, c_uint32, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

RELEASE = "v0.5.0"
QUANTISATIONS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # enum llama_ftype
CPU, FLOAT16 = 0, 1  # of enum ggml_backend_dev_type, ggml_type


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class ModelParameters(ctypes.Structure):
    _fields_: ClassVar = [
        *_fields(c_void_p, "devices tensor_buft_overrides"),
        *_fields(c_int32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        *_fields(c_void_p, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
        *_fields(c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    ]


class ContextParameters(ctypes.Structure):
    _fields_: ClassVar = [
        *_fields(c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        *_fields(c_int32, "n_threads n_threads_batch"),
        *_fields(c_int32, "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
        *_fields(c_float, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor"),
        *_fields(c_float, "yarn_beta_fast yarn_beta_slow"),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *_fields(c_void_p, "cb_eval cb_eval_user_data"),
        *_fields(c_int32, "type_k type_v"),
        *_fields(c_void_p, "abort_callback abort_callback_data"),
        *_fields(c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class QuantiseParameters(ctypes.Structure):
    _fields_: ClassVar = [
        *_fields(c_int32, "nthread ftype output_tensor_type token_embedding_type"),
        *_fields(c_bool, "allow_requantize quantize_output_tensor only_copy pure keep_split dry_run"),
        *_fields(c_void_p, "imatrix kv_overrides tt_overrides prune_layers"),
        ("max_buf_size", c_size_t),
    ]


class Tokens(ctypes.Structure):
    """``llama_batch``: without positions and sequences they follow those before; logits of the last, unless named."""

    _fields_: ClassVar = [("n_tokens", c_int32), *_fields(c_void_p, "token embd pos n_seq_id seq_id logits")]


class PoolParameters(ctypes.Structure):
    _fields_: ClassVar = [
        ("cpumask", c_bool * 512),
        *_fields(c_int32, "n_threads prio"),
        ("poll", c_uint32),
        *_fields(c_bool, "strict_cpu paused"),
    ]


class Vector(ctypes.Structure):
    """``std::vector<int>`` as libstdc++ has it."""

    _fields_: ClassVar = _fields(c_void_p, "start end capacity")


_DRAFT = "_Z25common_ngram_simple_draftRK26common_ngram_simple_configRKSt6vectorIiSaIiEEi"
_DELETE = "_ZdlPv"

_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class Library:
    """The libraries of one folder, loaded into this process.

    Args:
        folder: what :func:`tests.peers.llama_cpp.libraries` returns.

    Raises:
        RuntimeError: they are not of :data:`RELEASE`.
    """

    def __init__(self, folder: Path) -> None:
        self._base, self._ggml, self._llama = (
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            for name in ("libggml-base.so", f"libggml.{RELEASE}.so", f"libllama.{RELEASE}.so")
        )
        self._log = _Log(self._heard)  # kept: llama.cpp calls it as long as it is loaded
        self.complaints: list[str] = []
        self.call("llama_log_set", None, _Log, c_void_p)(self._log, None)
        self._ggml.ggml_backend_load_all_from_path(str(folder).encode())  # the best of the processor's builds
        self.call("llama_backend_init", None)()
        common = ctypes.CDLL(str(folder / "libllama-common.so"))
        self._draft = _typed(common, _DRAFT, None, POINTER(Vector), c_void_p, POINTER(Vector), c_int32)
        self._delete = _typed(common, _DELETE, None, c_void_p)
        self.model_defaults = self.call("llama_model_default_params", ModelParameters)()
        self.context_defaults = self.call("llama_context_default_params", ContextParameters)()
        self.quantise_defaults = self.call("llama_model_quantize_default_params", QuantiseParameters)()
        self._check()
        (self.build,) = {
            Path(line.split()[-1])
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "libggml-cpu-" in line
        }

    def _heard(self, level: int, text: bytes, _: object) -> None:
        if level >= 3:  # warnings and errors
            self.complaints.append(text.decode(errors="replace").strip())

    def _check(self) -> None:
        """Refuse another release: its structures would have their values elsewhere."""
        model, context, quantise = self.model_defaults, self.context_defaults, self.quantise_defaults
        version = self.call("llama_version", c_char_p)().decode()
        found = (
            (version, model.n_gpu_layers, model.use_extra_bufts, model.load_mtp),
            (context.n_ctx, context.n_batch, context.n_ubatch, context.type_k, context.type_v, context.swa_full),
            (context.n_samplers, context.ctx_other, quantise.ftype, quantise.quantize_output_tensor),
        )
        known = (
            (version, -1, True, False),
            (512, 2048, 512, FLOAT16, FLOAT16, True),
            (0, None, QUANTISATIONS["Q8_0"], True),
        )
        if found != known or RELEASE.removeprefix("v") not in version:
            raise RuntimeError(f"llama.cpp {version} is not {RELEASE}: {found}")

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return a function of llama.cpp's with the types given."""
        return _typed(self._llama, name, result, *arguments)

    def facts(self) -> dict[str, str]:
        """What it was built for, and what it uses of this processor."""
        said = self.call("llama_print_system_info", c_char_p)().decode()
        return {
            "llama.cpp": RELEASE,
            "build": self.build.stem.removeprefix("libggml-cpu-"),
            "features": " ".join(part.split()[-3] for part in said.split("|") if part.strip().endswith("= 1")),
        }

    def look_up(self, token_ids: Sequence[int], size: int, length: int) -> list[int]:
        """Return what its look-up ``ngram-simple`` drafts behind tokens.

        Args:
            token_ids: of prompt and completion.
            size: tokens that have to be the same (``size_ngram``).
            length: tokens of a draft at most (``size_mgram``).
        """
        held = (c_int32 * len(token_ids))(*token_ids)
        start = ctypes.addressof(held)
        before = start + 4 * (len(token_ids) - 1)  # the last token is given by itself
        drafted, sizes = Vector(), (c_uint16 * 2)(size, length)
        self._draft(drafted, sizes, Vector(start, before, before), token_ids[-1])
        found = ctypes.string_at(drafted.start, drafted.end - drafted.start) if drafted.start else b""
        self._delete(drafted.start)
        return np.frombuffer(found, np.int32).tolist()

    def quantise(self, source: Path, target: Path, quantisation: str) -> None:
        """Write a GGUF file with the matrices of another one in another quantisation.

        Raises:
            RuntimeError: llama.cpp refuses.
        """
        parameters = self.quantise_defaults
        parameters.ftype, parameters.allow_requantize, parameters.nthread = QUANTISATIONS[quantisation], True, 2
        made = self.call("llama_model_quantize", c_uint32, c_char_p, c_char_p, POINTER(QuantiseParameters))
        if made(str(source).encode(), str(target).encode(), parameters) != 0:
            raise RuntimeError("; ".join(self.complaints[-3:]) or "no reason given")

    def pool(self, threads: int) -> tuple[Any, Any]:
        """Return threads for every pass, and what lets them sleep: they would poll a while for the next one."""
        kernels = ctypes.CDLL(str(self.build))
        parameters = PoolParameters()
        filled = _typed(self._base, "ggml_threadpool_params_init", None, POINTER(PoolParameters), c_int)
        filled(parameters, threads)
        made = _typed(kernels, "ggml_threadpool_new", c_void_p, POINTER(PoolParameters))(parameters)
        return made, _typed(kernels, "ggml_threadpool_pause", None, c_void_p)


class Context:
    """A model with room for one sequence.

    Args:
        library: llama.cpp.
        file: GGUF.
        threads: for prompts and for tokens.
        positions: of prompt and completion together.

    Raises:
        RuntimeError: llama.cpp refuses the file or the room.
    """

    def __init__(self, library: Library, file: Path, threads: int, positions: int) -> None:
        load = library.call("llama_model_load_from_file", c_void_p, c_char_p, ModelParameters)
        model = load(str(file).encode(), library.model_defaults)
        parameters = library.context_defaults
        parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = positions, threads, threads
        context = model and library.call("llama_init_from_model", c_void_p, c_void_p, ContextParameters)(
            model, parameters
        )
        if not context:
            raise RuntimeError(f"llama.cpp refuses {file.name}: {'; '.join(library.complaints[-3:])}")
        self._pool, self._pause = library.pool(threads)
        library.call("llama_attach_threadpool", None, c_void_p, c_void_p, c_void_p)(context, self._pool, self._pool)
        self._context = context
        self._memory = library.call("llama_get_memory", c_void_p, c_void_p)(context)
        self._clear = library.call("llama_memory_clear", None, c_void_p, c_bool)
        self._remove = library.call("llama_memory_seq_rm", c_bool, c_void_p, c_int32, c_int32, c_int32)
        self._decode = library.call("llama_decode", c_int32, c_void_p, Tokens)
        self._logits = library.call("llama_get_logits_ith", POINTER(c_float), c_void_p, c_int32)
        self._vocabulary = vocabulary = library.call("llama_model_get_vocab", c_void_p, c_void_p)(model)
        self._words = library.call("llama_vocab_n_tokens", c_int32, c_void_p)(vocabulary)
        self._tokenize = library.call(
            "llama_tokenize", c_int32, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool
        )
        self._spell = library.call(
            "llama_token_to_piece", c_int32, c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool
        )
        self._ends = library.call("llama_vocab_is_eog", c_bool, c_void_p, c_int32)

    def clear(self) -> None:
        """Forget the sequence."""
        self._clear(self._memory, False)

    def forget(self, length: int) -> None:
        """Leave so many tokens of the sequence."""
        self._remove(self._memory, 0, length, -1)

    def choose(self, token_ids: Sequence[int]) -> int:
        """Append tokens to the sequence; return the most probable next one.

        Raises:
            RuntimeError: llama.cpp refuses them.
        """
        self._append(token_ids, None)
        return self._most_probable(-1)

    def choices(self, token_ids: Sequence[int]) -> list[int]:
        """Append tokens to the sequence; return the most probable next one behind each of them.

        Raises:
            RuntimeError: llama.cpp refuses them.
        """
        self._append(token_ids, (c_int8 * len(token_ids))(*[1] * len(token_ids)))
        return [self._most_probable(place) for place in range(len(token_ids))]

    def _append(self, token_ids: Sequence[int], wanted: Any) -> None:
        held = (c_int32 * len(token_ids))(*token_ids)
        given = Tokens(len(token_ids), ctypes.cast(held, c_void_p), logits=wanted and ctypes.cast(wanted, c_void_p))
        refused = self._decode(self._context, given)
        if refused:
            raise RuntimeError(f"llama.cpp refuses {len(token_ids)} tokens (code {refused})")

    def _most_probable(self, place: int) -> int:
        return int(np.ctypeslib.as_array(self._logits(self._context, place), (self._words,)).argmax())

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text as llama.cpp's server reads a prompt: with those that the model wants around it.

        Raises:
            RuntimeError: llama.cpp refuses it.
        """
        spelled = text.encode()
        held = (c_int32 * (len(spelled) + 2))()
        count = self._tokenize(self._vocabulary, spelled, len(spelled), held, len(held), True, True)
        if count < 0:
            raise RuntimeError(f"llama.cpp makes no tokens of {len(text)} characters")
        return list(held[:count])

    def spell(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, with U+FFFD where it ends inside a character."""
        held = ctypes.create_string_buffer(256)
        spelled = b""
        for token in token_ids:
            count = self._spell(self._vocabulary, token, held, len(held), 0, False)
            spelled += held.raw[: max(count, 0)]
        return spelled.decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends a completion."""
        return bool(self._ends(self._vocabulary, token))

    def rest(self) -> None:
        """Let its threads sleep until the next tokens come."""
        self._pause(self._pool)


def _typed(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


if __name__ == "__main__":  # in a process of its own, so that llama.cpp's buffers are nobody else's memory
    Library(Path(sys.argv[1])).quantise(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
