"""Small real tokenizers, rows in memory, and the official rows where they are at hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import TaskRequest
from harness.models.tokenizer import TransformersTokenizer
from tasks.rows import RecordRows

PROBLEM = {
    "task_id": "test/0",
    "prompt": "def return1():\n",
    "suffix": "1",
    "canonical_solution": "    return ",
    "test": "def check(candidate):\n    assert candidate() == 1",
    "entry_point": "return1",
}
"""Of openai/human-eval-infilling: the example problem."""


class PieceTokenizer:
    """Cuts text by a pattern and numbers the pieces as it meets them; decoding joins them. Loses nothing."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)
        self.ids: dict[str, int] = {}
        self.pieces: list[str] = []
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        found = self.pattern.findall(text)
        assert "".join(found) == text
        for piece in found:
            if piece not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
        return [self.ids[piece] for piece in found]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[token_id] for token_id in token_ids)


class ByteTokenizer:
    """One token per UTF-8 byte, so that every mark longer than one character spans tokens."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": ByteTokenizer,
    "words": lambda: PieceTokenizer(r" ?\w+|\s|[^\w\s]"),
    "threes": lambda: PieceTokenizer(r".{1,3}"),
}


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


@pytest.fixture
def words() -> Any:
    return TOKENIZERS["words"]()


@pytest.fixture
def byte_tokenizer() -> Any:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def marked(tiny_tokenizer: Any) -> TransformersTokenizer:
    """A tokenizer with StarCoder's fill-in-the-middle tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return TransformersTokenizer(tokenizer, frozenset())


@pytest.fixture
def make_rows() -> Callable[..., RecordRows]:
    def make(records: Sequence[Mapping[str, object]], kind: Any = "path") -> RecordRows:
        return RecordRows(kind, "rows in memory", len(records), records.__getitem__)

    return make


@pytest.fixture
def green() -> Callable[..., TaskRequest]:
    return lambda source="embedded", **more: TaskRequest("green-code", str(source), **more)


@pytest.fixture
def line() -> Callable[..., TaskRequest]:
    return lambda source="embedded", **more: TaskRequest("codexglue-line", str(source), **more)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the official CodeXGLUE dev rows are not at hand (../shared/data)")
    return folder
