"""Documents that training read, and whether a text holds a run of their tokens word for word."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import ArtefactError
from harness.models.artefacts import write_artefact
from harness.models.ngrams import GRAM, RUN, NgramIndex, SeenDocuments, find_seen, read_index, write_index


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


@pytest.mark.parametrize("count", [0, RUN, 5000])
def test_it_comes_back_from_disk(tmp_path: Path, count: int) -> None:
    index = NgramIndex.of([tokens("text", count)])
    facts = write_index(tmp_path / "new", index)
    assert facts["hashes"] == index.hashes.size
    again = read_index(tmp_path / "new", facts)
    assert again.hashes.dtype == np.uint32
    assert np.array_equal(again.hashes, index.hashes)


def test_a_file_that_is_not_the_one_written_is_refused(tmp_path: Path) -> None:
    facts = write_index(tmp_path, NgramIndex.of([tokens("text", 500)]))
    file = tmp_path / facts["file"]
    with pytest.raises(ArtefactError, match=r"has other runs than those of 18 tokens"):
        read_index(tmp_path, facts | {"gram": 5})
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ArtefactError, match=r"is not the file that its JSON describes \(its hash differs\)\. Restore it"
    ):
        read_index(tmp_path, facts)
    (tmp_path / "inside").mkdir()  # a file outside the artefact's folder is not read
    with pytest.raises(ArtefactError, match=r"cannot read .*inside/ngrams-"):
        read_index(tmp_path / "inside", facts | {"file": f"../{facts['file']}"})
    file.unlink()
    with pytest.raises(ArtefactError, match=r"cannot read .*No such file.* Restore it, or train again\."):
        read_index(tmp_path, facts)


BASE, OTHER = "ba5e" * 4, "07e4" * 4


def write(folder: Path, name: str, documents: Sequence[str], known: str = BASE, **facts: Any) -> None:
    write_artefact(folder / f"{name}.json", name, {}, {"model_fingerprint": known, "documents": documents, **facts})


def test_documents_of_every_artefact_of_the_base_weights_were_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, "adapter", ["a", "b"])
    write(first, "shortcut", ["b", "c"], "7u4ed", base_fingerprint=BASE)  # maps of tuned weights
    write(second, "rl", ["d"])
    write(second, "other", ["x"], OTHER)
    write_artefact(second / "none.json", "rl", {}, {"model_fingerprint": BASE})
    (second / "broken.json").write_text('{"documents": ["y"')
    (second / "list.json").write_text('["z"]')
    assert find_seen(BASE, [first, second]).documents == {"a", "b", "c", "d"}
    assert find_seen(OTHER, [first, second]).documents == {"x"}
    assert find_seen("none", [first, second]) == SeenDocuments()
    assert find_seen(BASE, []) == SeenDocuments()
    (first / "another.json").write_text("[" * 200_000)
    assert find_seen(BASE, [first, second]).documents == {"a", "b", "c", "d"}


def test_the_indices_of_all_are_read_as_one(tmp_path: Path) -> None:
    texts = [range(start, start + 60) for start in (0, 1000, 2000)]
    for number, text in enumerate(texts):
        folder = tmp_path / str(number % 2)
        known = OTHER if number == 2 else BASE
        write(folder, f"rl{number}", ["k"], known, ngrams=write_index(folder, NgramIndex.of([text])))
    seen = find_seen(BASE, [tmp_path / "0", tmp_path / "1"])
    ngrams = seen.ngrams()
    assert ngrams is not None
    assert [ngrams.has_run_of(text) for text in texts] == [True, True, False]
    assert not seen.unindexed
    (tmp_path / "1" / next(iter((tmp_path / "1").glob("ngrams-*"))).name).unlink()
    with pytest.raises(ArtefactError, match="cannot read"):
        seen.ngrams()


def test_artefacts_without_an_index_of_everything_are_named(tmp_path: Path) -> None:
    index = NgramIndex.of([range(60)])
    write(tmp_path, "whole", ["a"], ngrams=write_index(tmp_path, index))
    write(tmp_path, "part", ["b"], ngrams=write_index(tmp_path, index, complete=False))
    write(tmp_path, "old", ["c"])
    write(tmp_path, "blank", [])  # read nothing
    seen = find_seen(BASE, [tmp_path])
    assert {file.stem for file in seen.unindexed} == {"part", "old"}
    assert seen.ngrams() is not None
    assert find_seen(OTHER, [tmp_path]).ngrams() is None
