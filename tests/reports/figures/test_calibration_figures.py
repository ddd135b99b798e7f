"""Figures of scores: what is drawn is what the file says, and that it is replayed stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records.calibration import ALL, CALIBRATION, KIND, Calibration
from reports.collection import find_calibrations, read_calibration
from reports.figures.calibration import calibration_figures
from tests.reports.figures.on_paper import check_on_paper, drawn


def exit_part(layer: int | None, auroc: float | None, *, interval: bool = True) -> dict[str, Any]:
    bins = [
        {
            "scores": (n / 4, (n + 1) / 4), "score": (n + 0.5) / 4, "quantiles": (n / 4, (n + 1) / 4), "tokens": 10,
            "agreement": n / 4, "agreement_ci": (max(0, n / 4 - 0.1), n / 4 + 0.1) if interval else None,
        }
        for n in range(4)
    ]  # fmt: skip
    return {
        "exit_layer": layer, "tokens": 40, "documents": 6, "agreement": 0.375, "auroc": auroc,
        "auroc_ci": None if auroc is None or not interval else (auroc - 0.05, auroc + 0.05), "ece": 0.125, "bins": bins,
    }  # fmt: skip


def made(*scores: tuple[str, bool], auroc: float | None = 0.8, interval: bool = True) -> Calibration:
    return Calibration.model_validate(
        {
            "title": "replayed: py150, 20 tokens of 6 held-out documents", "traces": "traces/x", "tokens": 20,
            "documents": 6, "generated": False, "model": "tiny", "weights": "random", "dtype": "float32",
            "exit_head": "shared", "num_layers": 12, "exit_points": (4, 6), "fingerprint": "f", "notes": (),
            "seconds": 0,
            "scores": [
                {
                    "score": name, "strategy": name.partition(":")[0], "options": {}, "probability": probability,
                    "ascending": True, "levels": 9, "pooled": exit_part(None, auroc, interval=interval),
                    "exits": [exit_part(4, None), exit_part(6, auroc, interval=interval)],
                }
                for name, probability in scores
            ],
        }
    )  # fmt: skip


def test_three_figures_all_labelled_replayed() -> None:
    found = calibration_figures([made(("confidence", True), ("rl", False)), made(("rl", False))])
    assert [figure.name for figure in found] == [
        "calibration-tiny-reliability", "calibration-tiny-quantiles", "calibration-tiny-auroc",
        "calibration-tiny-2-quantiles", "calibration-tiny-2-auroc",
    ]  # fmt: skip
    assert all(figure.caption.startswith("Replayed, teacher-forced: tiny, py150, 20 tokens") for figure in found)
    assert calibration_figures([made(("rl", False), auroc=None), made()]) == []


def test_what_is_drawn_is_what_the_file_says() -> None:
    calibration = made(("confidence", True), ("rl:agent=a", False), ("rl:agent=b", False))
    reliability, quantiles, auroc = calibration_figures([calibration])
    panel = drawn(reliability).axes[0]
    (pooled,) = (line for line in panel.lines if line.get_label() == "all exit points")
    assert list(pooled.get_xdata()) == [0.125, 0.375, 0.625, 0.875]
    assert list(pooled.get_ydata()) == [0, 0.25, 0.5, 0.75]
    assert any(text.get_text().endswith("\nECE 0.125") for text in panel.texts)
    _, *lines = drawn(quantiles).axes[0].lines
    assert [line.get_label() for line in lines] == ["confidence", "rl:agent=a", "rl:agent=b"]
    assert len({line.get_linestyle() for line in lines[1:]}) == 2
    _, *lines = drawn(auroc).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.8]] * 3, "an exit without a value has no point"
    assert {round(float(line.get_xdata()[0])) for line in lines} == {1}


def test_every_figure_stays_on_paper() -> None:
    names = ("confidence", "classifier", *(f"rl:agent=rl-python-of-another-model:seed={seed}" for seed in range(3)))
    found = calibration_figures([made(*((name, True) for name in names))])
    assert len(found) == 3
    for figure, size in zip(found, ("n = 40", "n = 6 documents", "n = 6 documents"), strict=True):
        check_on_paper(figure, size)


def grouped(name: str, *, drafts: bool = False, **facts: Any) -> Calibration:
    """A calibration without scores, whose groups are all tokens, two kinds and, of few tokens, a third."""

    def group(by: str, of: str, tokens: int, layer: float) -> dict[str, Any]:
        stood = {"operating_point": "s@lossless", "drafted": 10, "accepted": 8, "accepted_ci": (0.6, 0.9)}
        return {
            "by": by, "name": of, "tokens": tokens, "documents": 6, "sufficient_layer": layer,
            "sufficient_layer_ci": (layer - 1, layer + 1), "agreement": (0.25, 0.5), "agreement_ci": (None, (0.4, 0.6)),
            "drafts": [stood] if drafts else [],
        }  # fmt: skip

    groups = [
        group(ALL, ALL, 90, 7.0), group(KIND, "identifier", 50, 9.0), group(KIND, "keyword", 31, 5.0),
        group(KIND, "number", 9, 4.0),
    ]  # fmt: skip
    return Calibration.model_validate({**made().model_dump(), **facts, "title": name, "groups": groups})


def test_sweeps_of_the_same_tokens_share_the_figure_of_where_exits_pay() -> None:
    base = grouped("replayed: py150, 90 tokens", weights="pretrained")
    tuned = grouped("replayed: py150, 90 tokens", weights="tuned", exit_head="shortcut:1")
    other = grouped("replayed: py150, 80 tokens", drafts=True)
    first, second = calibration_figures([base, other, tuned])
    assert (first.name, second.name) == ("exits-pay-tiny", "exits-pay-tiny-2")
    layers, shallow, deep = drawn(first).axes
    assert [line.get_label() for line in layers.lines] == ["base, one head", "tuned, exit modules"]
    assert [list(line.get_xdata()) for line in layers.lines] == [[7, 9, 5]] * 2, "too few numbers to say something"
    assert [list(line.get_xdata()) for line in shallow.lines] == [[0.25] * 3] * 2
    assert [list(line.get_xdata()) for line in deep.lines] == [[0.5] * 3] * 2
    assert [list(line.get_xdata()) for line in drawn(second).axes[-1].lines] == [[0.8] * 3]
    for figure in (first, second):
        said = check_on_paper(figure, "n = 6 documents")
        assert {"kind of token", "identifier (50)", "keyword (31)"} <= {*said}


def test_files_are_found_and_damaged_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / CALIBRATION).write_text(made(("rl", False)).model_dump_json())
    assert find_calibrations([tmp_path, tmp_path / "s", tmp_path / "none"]) == [tmp_path / "s"]
    assert read_calibration(tmp_path / "s") == made(("rl", False))
    later = made().model_copy(update={"schema_version": 2}).model_dump_json()
    (tmp_path / "s" / CALIBRATION).write_text(later)
    with pytest.raises(StoreError, match="has version 2"):
        read_calibration(tmp_path / "s")
    with pytest.raises(StoreError, match="harness sweep --replay"):
        read_calibration(tmp_path)
