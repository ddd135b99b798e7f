"""Packs: whole documents, end-of-text between them, equal shares, and some that training never sees."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Document, SourceInfo, document_key
from harness.errors import DataError
from harness.training.corpus import PackedStreams, Stream, pack, read_streams
from tasks.py150 import Py150

END = 7


class NumberTokenizer:
    """A text of numbers is its tokens."""

    eos_token_ids = frozenset({END, 9})
    start_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))


def document(*numbers: int) -> Document:
    return Document(1, "d", " ".join(map(str, numbers)))


# --------------------------------------------------------------------------------------- packing


def test_end_of_text_stands_between_documents_and_the_rest_is_left_out() -> None:
    sequences = pack([document(1, 2, 3), document(4), document(5, 6)], NumberTokenizer(), 4)
    assert sequences.tolist() == [[1, 2, 3, END], [4, END, 5, 6]]
    assert sequences.dtype == torch.int32
    assert pack([document(1, 2, 3), document(4), document(5, 6)], NumberTokenizer(), 5).tolist() == [[1, 2, 3, END, 4]]
    assert pack([document(*range(10, 20))], NumberTokenizer(), 3).tolist() == [[10, 11, 12], [13, 14, 15], [16, 17, 18]]

    class Endless(NumberTokenizer):
        eos_token_ids = frozenset()

    assert pack([document(1, 2), document(3, 4)], Endless(), 4).tolist() == [[1, 2, 3, 4]]


# --------------------------------------------------------------------------------------- streams


@pytest.fixture
def numbers_file(tmp_path: Path) -> Path:
    """Fifty documents of twenty tokens; the hundreds of a token tell its document."""
    file = tmp_path / "numbers.jsonl"
    rows = [{"id": n, "code": " ".join(str(1000 + 100 * n + k) for k in range(20))} for n in range(50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(
    file: Path, *, length: int = 8, documents: int | None = None, seed: int = 0, known: frozenset[str] = frozenset()
) -> Stream:
    (stream,) = read_streams(
        [Py150()], [str(file)], NumberTokenizer(), split="train", length=length, documents=documents, seed=seed,
        note=lambda text: None, known=known,
    )  # fmt: skip
    return stream


def documents_in(*sequences: torch.Tensor) -> set[int]:
    return {(token - 1000) // 100 for some in sequences for token in some.flatten().tolist() if token != END}


def test_held_out_documents_are_never_learned_from(numbers_file: Path) -> None:
    stream = read(numbers_file)
    learned, held = documents_in(stream.sequences), documents_in(*stream.held_out)
    assert not learned & held
    assert len(held) == 2  # 4 % of 50
    assert len(learned) == 48
    assert set(stream.sequences.flatten().tolist()) <= {END, *range(1000, 6000)}
    for length in (8, 30):  # short of a packed sequence or not, a held-out document is whole
        found = read(numbers_file, length=length).held_out
        assert [piece.tolist() for piece in found] == [list(range(int(p[0]), int(p[0]) + 20)) for p in found]
        assert all(int(piece[0]) % 100 == 0 and piece.dtype == torch.int32 for piece in found)


def test_the_seed_decides_what_is_held_out_and_the_order(numbers_file: Path) -> None:
    first, again, other = (read(numbers_file, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.sequences, again.sequences)
    assert all(map(torch.equal, first.held_out, again.held_out))
    assert not torch.equal(first.sequences, other.sequences)
    assert documents_in(*first.held_out) != documents_in(*other.held_out)


def test_known_documents_are_learned_from_and_not_held_out(numbers_file: Path) -> None:
    known = frozenset(read(numbers_file, documents=40).keys)
    stream = read(numbers_file, known=known)
    texts = [json.loads(line)["code"] for line in numbers_file.read_text().splitlines()]
    unknown = {number for number, text in enumerate(texts) if document_key(text) not in known}
    assert len(unknown) == 10
    assert len(documents_in(*stream.held_out)) == 2
    assert documents_in(*stream.held_out) <= unknown
    assert documents_in(stream.sequences) | documents_in(*stream.held_out) == set(range(50))
    assert set(stream.keys) == set(map(document_key, texts))
    with pytest.raises(DataError, match=r"numbers\.jsonl \(py150, train\) holds only documents .* Add others"):
        read(numbers_file, known=frozenset(stream.keys))


def test_too_small_a_source_is_refused(numbers_file: Path) -> None:
    for length, documents in ((2000, None), (8, 1)):
        said = rf"numbers\.jsonl \(py150, train\) is too small.*{documents or 50} documents.*{length} tokens.*Give more"
        with pytest.raises(DataError, match=said):
            read(numbers_file, length=length, documents=documents)


def write_copies(file: Path, copies: range) -> Path:
    texts = [" ".join(str(1000 + 100 * n + k) for k in range(20)) for n in range(12)]
    rows = [{"id": f"{n}-{copy}", "code": text} for n, text in enumerate(texts) for copy in copies]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_copies_of_what_is_held_out_are_not_learned_from(tmp_path: Path) -> None:
    file = write_copies(tmp_path / "copies.jsonl", range(5))
    for seed in range(4):
        stream = read(file, seed=seed)
        assert not documents_in(stream.sequences) & documents_in(*stream.held_out)


def test_nor_are_copies_in_another_source(tmp_path: Path) -> None:
    files = [write_copies(tmp_path / f"{name}.jsonl", range(1)) for name in "ab"]
    streams = read_streams(
        [Py150()], list(map(str, files)), NumberTokenizer(), split="train", length=8, documents=None, seed=0,
        note=lambda text: None,
    )  # fmt: skip
    held = set.union(*(documents_in(*stream.held_out) for stream in streams))
    assert not any(documents_in(stream.sequences) & held for stream in streams)


# ----------------------------------------------------------------------------------------- order


def stream(name: str, first: int, count: int) -> Stream:
    sequences = torch.arange(first, first + count, dtype=torch.int32).unsqueeze(1).repeat(1, 4)
    return Stream(name, SourceInfo("path", name, "0"), sequences, (), (), (), ())


def order(size: int, seed: int = 0, skip: int = 0) -> list[int]:
    data = PackedStreams([stream("short", 0, 3), stream("long", 100, 10)], size, seed, skip)
    assert len(data) == size
    rows: list[Any] = [data[index]["input_ids"] for index in range(size)]
    assert all(row.dtype == torch.int64 and row.shape == (4,) for row in rows)
    return [int(row[0]) for row in rows]


def test_streams_have_equal_shares_whatever_their_size() -> None:
    drawn = order(60)
    assert [number >= 100 for number in drawn] == [False, True] * 30
    assert set(Counter(number for number in drawn if number < 100).values()) == {10}
    assert set(Counter(number for number in drawn if number >= 100).values()) == {3}


def test_no_pack_comes_again_before_all_have_come() -> None:
    short = [number for number in order(60) if number < 100]
    rounds = [tuple(short[start : start + 3]) for start in range(0, 30, 3)]
    assert all(sorted(part) == [0, 1, 2] for part in rounds)
    assert len(set(rounds)) > 1  # reshuffled


def test_the_order_follows_the_seed_and_a_longer_one_begins_alike() -> None:
    assert order(40, seed=3) == order(40, seed=3)
    assert order(40, seed=3) != order(40, seed=4)
    assert order(60, seed=3)[:40] == order(40, seed=3)


def test_what_was_read_before_is_skipped() -> None:
    for skip in (1, 24):
        assert order(30, seed=3, skip=skip) == order(30 + skip, seed=3)[skip:]


@pytest.mark.parametrize(("size", "skip"), [(4, 0), (3, 4), (20, 5)])
def test_what_was_read_is_each_sequence_once_and_neighbours_are_one_text(size: int, skip: int) -> None:
    packs = PackedStreams([stream("short", 0, 3), stream("long", 100, 10)], size, seed=3, skip=skip)
    read = set(order(size + skip, seed=3))  # the skipped ones too
    expected: list[list[int]] = []
    for number in sorted(read):
        if number - 1 in read:
            expected[-1] += [number] * 4
        else:
            expected.append([number] * 4)
    assert [text.tolist() for text in packs.texts()] == expected
