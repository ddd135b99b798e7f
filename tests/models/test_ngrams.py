"""The index of n-grams: whatever is shared is found, whatever is not is not, and it comes back from disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ArtefactError
from harness.models.ngrams import GRAM, RUN, WINDOW, NgramIndex, read_index, write_index
from tasks.draw import COMPARED


def tokens(seed: str, count: int, vocabulary: int = 49_152) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(vocabulary) for _ in range(count)]


@pytest.mark.parametrize("vocabulary", [2, 40, 49_152])  # of two tokens many hashes are equal, as in a table of zeros
@pytest.mark.parametrize("length", [RUN, RUN + 1, 3 * RUN])
def test_a_shared_run_is_found_wherever_it_stands(length: int, vocabulary: int) -> None:
    """The guarantee of winnowing."""
    chance = random.Random(f"{length} {vocabulary}")
    for trial in range(200):
        run = tokens(f"run {trial} {length}", length, vocabulary)
        before, after = (tokens(f"{side} {trial}", chance.randrange(60), vocabulary) for side in ("before", "after"))
        index = NgramIndex.of([tokens("another", 90, vocabulary), [*before, *run, *after]])
        cut = chance.randrange(length - RUN + 1)
        assert index.has_run_of(run[cut : cut + RUN])
        assert index.has_run_of([*tokens(f"x {trial}", 33), *run, *tokens(f"y {trial}", 7)])


def test_what_shares_less_than_a_hashed_run_is_not_found() -> None:
    text = tokens("text", 3000)
    index = NgramIndex.of([text])
    assert not index.has_run_of(tokens("other", 3000))
    for start in range(0, 2900, 7):
        part = text[start : start + GRAM - 1]
        assert not index.has_run_of([*tokens(f"a{start}", 9), *part, *tokens(f"b{start}", 9)])


def test_no_run_crosses_from_one_text_into_the_next() -> None:
    text = tokens("text", 2 * RUN)
    apart = NgramIndex.of([text[:RUN], text[RUN:]])
    assert not apart.has_run_of(text[RUN // 2 : RUN // 2 + RUN])
    assert NgramIndex.of([text]).has_run_of(text[RUN // 2 : RUN // 2 + RUN])


def test_a_text_that_is_too_short_to_compare_is_not_found() -> None:
    text = tokens("text", 100)
    index = NgramIndex.of([text, [], [1, 2, 3]])
    assert not index.has_run_of([])
    assert not index.has_run_of(text[: RUN - 1])
    assert not NgramIndex.of([]).has_run_of(text)


def test_a_union_is_of_everything() -> None:
    first, second = tokens("first", 200), tokens("second", 200)
    both = NgramIndex.union([NgramIndex.of([first]), NgramIndex.of([second]), NgramIndex.of([])])
    assert np.array_equal(both.hashes, NgramIndex.of([first, second]).hashes)
    assert both.has_run_of(first[50:80])
    assert both.has_run_of(second[50:80])


def test_a_hash_in_two_tokens_and_two_bytes_each(tmp_path: Path) -> None:
    index = NgramIndex.of([tokens("text", 400_000)])
    assert index.hashes.size == pytest.approx(400_000 * 2 / (WINDOW + 1), rel=0.01)
    facts = write_index(tmp_path, index)
    assert (tmp_path / facts["file"]).stat().st_size < 2 * index.hashes.size + 140_000


@pytest.mark.parametrize("count", [0, RUN, 5000])
def test_it_comes_back_from_disk(tmp_path: Path, count: int) -> None:
    index = NgramIndex.of([tokens("text", count)])
    facts = write_index(tmp_path / "new", index)
    assert facts["hashes"] == index.hashes.size
    again = read_index(tmp_path / "new", facts)
    assert again.hashes.dtype == np.uint32
    assert np.array_equal(again.hashes, index.hashes)


def test_many_hashes_of_one_high_half_come_back_too(tmp_path: Path) -> None:
    index = NgramIndex(np.arange(1 << 16, dtype=np.uint32) + np.uint32(7 << 16))
    assert np.array_equal(read_index(tmp_path, write_index(tmp_path, index)).hashes, index.hashes)


def test_what_read_the_same_shares_a_file(tmp_path: Path) -> None:
    text = tokens("text", 100)
    first, again = (write_index(tmp_path, NgramIndex.of([text])) for _ in range(2))
    other = write_index(tmp_path, NgramIndex.of([text[1:]]))
    assert first == again
    assert {path.name for path in tmp_path.iterdir()} == {first["file"], other["file"]}


def test_a_file_that_is_not_the_one_written_is_refused(tmp_path: Path) -> None:
    facts = write_index(tmp_path, NgramIndex.of([tokens("text", 500)]))
    file = tmp_path / facts["file"]
    with pytest.raises(ArtefactError, match=r"has other runs than those of 18 tokens"):
        read_index(tmp_path, facts | {"gram": 5})
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"is not the index that was written \(its hash differs\)\. Restore it"):
        read_index(tmp_path, facts)
    file.unlink()
    with pytest.raises(ArtefactError, match=r"cannot read the index .*No such file.* Restore it, or train again\."):
        read_index(tmp_path, facts)


def test_a_file_outside_the_artefact_s_folder_is_not_read(tmp_path: Path) -> None:
    facts = write_index(tmp_path, NgramIndex.of([tokens("text", 500)]))
    (tmp_path / "inside").mkdir()
    with pytest.raises(ArtefactError, match=r"cannot read the index .*inside/ngrams-"):
        read_index(tmp_path / "inside", facts | {"file": f"../{facts['file']}"})


def test_what_is_compared_of_a_sample_is_long_enough() -> None:
    assert COMPARED >= RUN
