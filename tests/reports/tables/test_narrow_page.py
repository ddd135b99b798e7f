"""A report's page on a telephone: what the verdict speaks of is in sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.collection import Collection, write_collection

WIDE = 390  # pixels
LONG = "classifier:threshold=0.9793:map=python-and-java@lossless+suffix"
POINTS = ("full", LONG, "fixed:layer=5")


@pytest.fixture
def pages(build: Any, tmp_path: Path) -> Path:
    """The folder of a report of rows under two KV policies, of which some samples failed."""
    run = build(points=POINTS, policies={"full": "recompute"}, bandwidth=1e4)
    for block in range(12):
        for place, point in enumerate(POINTS):
            seconds = (1 + block % 3 / 10) / (1 + place)
            sample = {"latency_s": seconds, "scores": {"edit_similarity": 0.5, "exact_match": 0.1}}
            run.window(point, sample, block=block, duration=seconds, energy_j=seconds, energy_source="rapl")
    run.window(LONG, {"error": "broken"}, block=12)
    write_collection(Collection((run.recorded(),)), tmp_path / "out", figures=False)
    return tmp_path / "out"


def test_the_speed_up_of_every_row_is_in_sight(chromium: Any, pages: Path) -> None:
    page = chromium.new_page(viewport={"width": WIDE, "height": 800})
    page.goto(f"file://{pages}/index.html")
    table = page.locator("#tables ~ .wide table").first
    heads = table.locator("thead th").all()
    place = next(number for number, head in enumerate(heads) if head.inner_text().startswith("speed-up"))
    cells = [row.locator("th, td").nth(place) for row in table.locator("tbody tr").all()]
    assert len(cells) == len(POINTS)
    for cell in (heads[place], *cells):
        box = cell.bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= WIDE
    page.close()
