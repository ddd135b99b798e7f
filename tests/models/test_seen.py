"""What everything trained for some weights has read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArtefactError
from harness.models.artefacts import SeenDocuments, find_seen, write_artefact
from harness.models.ngrams import NgramIndex, write_index

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
    with pytest.raises(ArtefactError, match="cannot read the index"):
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
