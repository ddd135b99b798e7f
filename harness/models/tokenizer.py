"""A model's tokenizer: where it is found, and the few calls of it that tasks and the runner need."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelInfo
from harness.errors import ModelError, reason
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.folder import check_tokenizer_files, model_file, quiet, read_object
from harness.models.source import ALTERNATIVES, ModelSpec, find_spec, snapshot_tokenizer, text_back

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("tekken.json",))
"""Files that make a tokenizer, each group enough by itself."""
PROBE = "def f(x): return x"
"""Every tokenizer of a code model makes some tokens of it."""


class TransformersTokenizer:
    """Implements :class:`harness.contracts.Tokenizer`."""

    def __init__(
        self, wrapped: Any, eos_token_ids: frozenset[int], source: str = "", *, stand_in: bool = False
    ) -> None:
        self.wrapped = wrapped
        self.source, self.stand_in = source, stand_in
        self._eos = eos_token_ids

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._eos

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """Ids that it puts before a text by itself: the beginning of a text of Llama, OPT, Mistral."""
        with self._border("a text of one line"):
            found: list[int] = self.wrapped.encode(PROBE, verbose=False)
        alone = self.encode(PROBE)
        ends = range(len(found) - len(alone) + 1)
        return next((tuple(found[:at]) for at in ends if found[at : at + len(alone)] == alone), ())

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that add no text to a completion."""
        return frozenset(self.wrapped.all_special_ids) | self._eos

    @property
    def fingerprint(self) -> str:
        """Hash over the vocabulary, and over what a text begins with where there is any, 16 hex digits."""
        words = sorted(self.wrapped.get_vocab().items())
        told = repr(words) if not self.start_ids else repr((words, self.start_ids))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return token ids, no special tokens added; text of any length is encoded whole."""
        with self._border(f"a text of {len(text)} characters"):
            ids: list[int] = self.wrapped.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text exactly as the tokens spell it."""
        with self._border(f"{len(token_ids)} tokens"):
            text: str = self.wrapped.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def _border(self, what: str) -> AbstractContextManager[None]:
        return library_border(f"the tokenizer ({self.source}) fails on {what}", passing=(ValueError, TypeError))


def read_tokenizer(spec: ModelSpec, config: Any, info: ModelInfo) -> TransformersTokenizer:
    """Return a model's tokenizer."""
    ends = config.eos_token_id
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    eos = _ends_of_generation(spec, info) or frozenset(listed)
    if spec.wheel is not None:
        return TransformersTokenizer(snapshot_tokenizer(spec.wheel), eos, f"{spec.wheel.distribution} (GGUF)")
    try:
        wrapped = _own_tokenizer(spec)
        _check_vocabulary(wrapped, info)
        source = spec.location if not Path(spec.location).is_dir() else spec.name
        return TransformersTokenizer(wrapped, eos, source)
    except (OSError, ValueError) as error:
        stand_in = find_spec(DEFAULT_MODEL)
        if info.weights != "random" or stand_in.wheel is None:
            wanted = ", or ".join(" with ".join(names) for names in TOKENIZER_FILES)
            raise ModelError(
                f"no tokenizer for {spec.name} in {spec.location}: {reason(error)}. Copy the model's own into that "
                f"folder, as they were published with its weights: {wanted}."
                if Path(spec.location).is_dir()
                else f"no tokenizer for {spec.name}: {spec.location} is out of reach and not cached. {ALTERNATIVES}"
            ) from error
    wrapped = snapshot_tokenizer(stand_in.wheel)
    _check_vocabulary(wrapped, info)
    source = f"stand-in: {DEFAULT_MODEL}'s tokenizer ({spec.name}'s own is out of reach)"
    return TransformersTokenizer(wrapped, frozenset(), source, stand_in=True)


def _own_tokenizer(spec: ModelSpec) -> Any:
    """Read the tokenizer beside the weights."""
    from transformers import AutoTokenizer

    folder = Path(spec.location)
    if folder.is_dir() and not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise ValueError("files of the tokenizer are missing")
    if folder.is_dir():
        check_tokenizer_files(folder)
    remedy = f"Copy the model's own into its folder, as it was published with the weights. {ALTERNATIVES}"
    with (
        quiet(),
        library_border(f"the tokenizer of {spec.name} cannot be read", remedy, passing=(OSError, ValueError)),
    ):
        wrapped = AutoTokenizer.from_pretrained(  # nosec B615  # the newest of what the user names
            spec.location, local_files_only=not hub_in_reach(), trust_remote_code=False
        )
        if not wrapped.encode(PROBE, add_special_tokens=False):
            raise ValueError(f"it makes no token of {PROBE!r}")
        if found := text_back(wrapped):
            raise ModelError(
                f"the tokenizer of {spec.name} does not give code back as it was, but as {found[:60]!r}: its decoder "
                "or pre-tokenizer may be missing. Copy the one that was published with the weights into the folder, or "
                "use another --model."
            )
    return wrapped


def _check_vocabulary(tokenizer: Any, info: ModelInfo) -> None:
    last = max(len(tokenizer) - 1, *tokenizer.get_vocab().values())
    if last >= info.vocab_size:
        raise ModelError(
            f"the tokenizer has a token of id {last} and {info.name} embeds ids below {info.vocab_size}: "
            "they do not belong together. Copy the model's own tokenizer beside its weights."
        )


def _ends_of_generation(spec: ModelSpec, info: ModelInfo) -> frozenset[int]:
    """Return the end tokens of ``generation_config.json``, at which transformers' ``generate`` stops instead."""
    if spec.wheel is not None or info.weights == "random":
        return frozenset()
    try:
        file = model_file(spec.location, "generation_config.json", local_files_only=not hub_in_reach())
    except OSError:
        return frozenset()
    ends = None if file is None else read_object(file).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if wrong := [end for end in listed if type(end) is not int or not 0 <= end < info.vocab_size]:
        raise ModelError(
            f"{file}: eos_token_id has {str(wrong[0])[:40]!r}, outside {info.name}'s vocabulary. Copy the model's own."
        )
    return frozenset(listed)
