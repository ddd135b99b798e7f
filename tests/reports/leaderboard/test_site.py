"""The site's files: the same for the same runs, safe to embed, mergeable."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, StoreError
from reports.leaderboard.site import Site, read_script, script
from reports.published.numbers import references
from reports.recorded import RecordedRun
from reports.summary.summarise import summarise

Recorded = Callable[..., RecordedRun]


def publish(folder: Path, *runs: RecordedRun, **options: Any) -> dict[str, bytes]:
    """Make a site; return its files."""
    site = Site(folder, **options)
    for run in runs:
        site.add(run)
    site.finish()
    return files_of(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def index(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = read_script(folder / "data" / "index.js", "index")
    read["points"] = [dict(zip(read["fields"], point, strict=True)) for point in read["points"]]
    return read


@pytest.fixture
def two(recorded: Recorded) -> tuple[RecordedRun, RecordedRun]:
    return recorded("one"), recorded("two", cpu="Other CPU", manifest={"created": "2026-02-01T00:00:00Z"})


def test_the_same_runs_give_the_same_bytes_in_any_order(tmp_path: Path, two: tuple[RecordedRun, RecordedRun]) -> None:
    first = publish(tmp_path / "a", *two)
    assert publish(tmp_path / "b", *reversed(two)) == first
    assert publish(tmp_path / "a", *two) == first


def test_merging_gives_what_all_at_once_gives(tmp_path: Path, two: tuple[RecordedRun, RecordedRun]) -> None:
    publish(tmp_path / "a", two[0])
    merged = publish(tmp_path / "a", two[1], merge=True)
    assert merged == publish(tmp_path / "b", *two)
    assert publish(tmp_path / "a", two[0], two[1], merge=True) == merged


def test_without_merge_no_run_of_the_site_is_lost(
    tmp_path: Path, recorded: Recorded, two: tuple[RecordedRun, RecordedRun]
) -> None:
    before = publish(tmp_path / "a", *two)
    third = recorded("three", manifest={"created": "2026-03-01T00:00:00Z"})
    with pytest.raises(StoreError, match=r"a holds 1 run\(s\) that were not given again, data/runs/\w{16}\.js for one"):
        publish(tmp_path / "a", two[1], third)
    assert files_of(tmp_path / "a") == before
    assert publish(tmp_path / "a", *two, third) == publish(tmp_path / "b", *two, third)


def test_an_interrupted_making_goes_on_or_is_made_again(tmp_path: Path, two: tuple[RecordedRun, RecordedRun]) -> None:
    for folder in ("a", "b"):
        assert Site(tmp_path / folder).add(two[0]) == ()
    assert publish(tmp_path / "a", two[1], merge=True) == publish(tmp_path / "both", *two)
    assert publish(tmp_path / "b", two[1]) == publish(tmp_path / "one", two[1])


@pytest.mark.parametrize("left", ["data/points", ".site.json.part"])
def test_a_making_that_was_killed_at_its_start_is_no_obstacle(tmp_path: Path, recorded: Recorded, left: str) -> None:
    path = tmp_path / "a" / left
    (path.parent if path.suffix else path).mkdir(parents=True)
    if path.suffix:
        path.write_text('{"site_')
    assert publish(tmp_path / "a", recorded()) == publish(tmp_path / "b", recorded())


def test_links_do_not_depend_on_what_else_is_published_and_machines_are_not_ranked_together(
    tmp_path: Path, recorded: Recorded, two: tuple[RecordedRun, RecordedRun]
) -> None:
    publish(tmp_path / "a", two[0])
    publish(tmp_path / "b", *two)
    ids = {point["id"] for point in index(tmp_path / "a")["points"]}
    found = index(tmp_path / "b")
    assert len(ids) == 3
    assert ids < {point["id"] for point in found["points"]}
    assert all((tmp_path / "b" / "data" / "points" / f"{one}.js").exists() for one in ids)
    assert len(found["groups"]) == 2
    for group in (0, 1):
        members = [point for point in found["points"] if point["group"] == group]
        assert [point["ranks"][0] for point in members] == [2, 1, None]  # full, fixed:layer=5, the oracle
    slower = recorded("two", points={"fixed:layer=2": 0.8}, manifest={"created": "2026-02-01T00:00:00Z"})
    publish(tmp_path / "c", recorded("one"), slower)
    together = {point["name"]: point["ranks"][0] for point in index(tmp_path / "c")["points"]}
    assert together == {"fixed:layer=5": 1, "fixed:layer=2": 2, "full": 3, "oracle": None}


def test_lossless_rows_are_ranked_among_themselves_too(tmp_path: Path, recorded: Recorded) -> None:
    points = {"fixed:layer=5": 0.3, "fixed:layer=5@lossless": 0.5, "fixed:layer=2@lossless": 0.8, "oracle": 0.2}
    publish(tmp_path / "a", recorded(points=points))
    found = {point["name"]: point for point in index(tmp_path / "a")["points"]}
    assert {name: point["ranks"][0] for name, point in found.items()} == {
        "fixed:layer=5": 1, "fixed:layer=5@lossless": 2, "fixed:layer=2@lossless": 3, "full": 4, "oracle": None,
    }  # fmt: skip
    assert {name: point["lossless_ranks"] and point["lossless_ranks"][0] for name, point in found.items()} == {
        "fixed:layer=5": None, "fixed:layer=5@lossless": 1, "fixed:layer=2@lossless": 2, "full": 3, "oracle": None,
    }  # fmt: skip
    assert {point["decode"] for point in found.values()} == {"lossy", "lossless"}
    file = tmp_path / "a" / "data" / "points" / f"{found['fixed:layer=5@lossless']['id']}.js"
    details = read_script(file, "point")
    assert details["lossless"]
    assert ["decoding", "lossless, drafts of 16 tokens at most"] in details["settings"]
    assert details["drafts"] == [
        ["Drafts that stood, by what drafted them", [["exit at 5", "1.00 [too few] of 80"]]],
        ["Drafts of exits that stood, by kind of token", [["white space", "1.00 [too few] of 80"]]],
    ]
    lossy = tmp_path / "a" / "data" / "points" / f"{found['fixed:layer=5']['id']}.js"
    assert read_script(lossy, "point")["drafts"] == []


def cut_after(run: RecordedRun, count: int) -> RecordedRun:
    """Return a run as it was after so many windows, which have one sample each."""
    windows, samples = run.windows[:count], run.samples[:count]
    summary = summarise(run.manifest, windows, samples, lambda *_: {})
    return replace(run, windows=windows, samples=samples, summary=summary)


def test_what_submit_refuses_moves_nobody_s_rank_and_stands_on_no_front(tmp_path: Path, recorded: Recorded) -> None:
    fast = recorded("two", points={"fixed:layer=2": 0.2}, manifest={"created": "2026-02-01T00:00:00Z"})
    loud = replace(fast, windows=tuple(w.model_copy(update={"flags": ("throttled",)}) for w in fast.windows))
    whole = len(fast.windows)
    cut = cut_after(fast, whole - 1)
    for run, reason in (
        (loud, f"{whole} of {whole} windows that count are contaminated (throttled)"),
        (cut, f"not finished: {whole - 1} of {whole}"),
    ):
        publish(tmp_path / reason[-9:].strip(), recorded("one"), run)
        found = index(tmp_path / reason[-9:].strip())
        marks = {entry[1]: entry[4] for entry in found["runs"]}
        assert marks["one"] == []
        assert marks["two"][0].startswith(reason)
        by_name = {(found["runs"][point["run"]][1], point["name"]): point for point in found["points"]}
        assert by_name["two", "fixed:layer=2"]["ranks"] == [None] * len(found["criteria"])
        assert not by_name["two", "fixed:layer=2"]["front"]
        assert by_name["one", "fixed:layer=5"]["ranks"][0] == 1
        assert by_name["one", "full"]["ranks"][0] == 2


def test_a_run_whose_full_depth_says_nothing_is_not_ranked(tmp_path: Path, recorded: Recorded) -> None:
    """One token at every place: every exit agrees with it, and the first one is the fastest of all."""
    fast = recorded("two", points={"fixed:layer=2": 0.2}, manifest={"created": "2026-02-01T00:00:00Z"})
    dull = tuple(
        sample.model_copy(update={"token_ids": (0, *([0, 0] if sample.operating_point == "full" else [2, 4]))})
        for sample in fast.samples
    )
    dull_run = replace(fast, samples=dull, summary=summarise(fast.manifest, fast.windows, dull, lambda *_: {}))
    publish(tmp_path / "a", recorded("one"), dull_run)
    found = index(tmp_path / "a")
    marks = {entry[1]: entry[4] for entry in found["runs"]}
    assert marks["one"] == []
    assert marks["two"] == ["full depth on py150 makes token 0 and no other, in all of its 80 completions"]
    by_name = {(found["runs"][point["run"]][1], point["name"]): point for point in found["points"]}
    for name in ("full", "fixed:layer=2"):
        assert by_name["two", name]["ranks"] == [None] * len(found["criteria"])
        assert not by_name["two", name]["front"]
    assert by_name["one", "fixed:layer=5"]["ranks"][0] == 1


def test_the_first_ranking_is_the_one_with_most_samples_that_ranks_anything(tmp_path: Path, recorded: Recorded) -> None:
    def of(n: int, run: RecordedRun) -> RecordedRun:
        rows = tuple(row.model_copy(update={"n": n}) for row in run.summary.rows)
        return replace(run, summary=run.summary.model_copy(update={"rows": rows}))

    long = recorded("long", points={f"fixed:layer={layer}": 0.5 for layer in range(1, 4)})
    large = recorded("large", cpu="Second", points={"fixed:layer=5": 0.5})
    spoilt, alone = recorded("spoilt", cpu="Third"), recorded("alone", cpu="Fourth", points={"full": 1.0})
    flagged = tuple(window.model_copy(update={"flags": ("stolen-cpu",)}) for window in spoilt.windows)
    publish(tmp_path, of(20, long), of(40, large), of(60, replace(spoilt, windows=flagged)), of(80, alone))
    shown = index(tmp_path)
    assert [group["hardware"].split(",")[0] for group in shown["groups"]][:2] == ["Second", "Test Chip"]
    assert shown["points"][0]["n"] == 40


def test_the_latest_state_of_a_run_stays(tmp_path: Path, recorded: Recorded) -> None:
    whole = recorded("one")
    count = len(whole.windows)
    first, second = (cut_after(whole, windows) for windows in (count - 4, count - 1))
    publish(tmp_path / "a", first, second, first)
    assert [entry[4] for entry in index(tmp_path / "a")["runs"]] == [[f"not finished: {count - 1} of {count} windows"]]
    made = publish(tmp_path / "a", whole, second, merge=True)
    assert made == publish(tmp_path / "b", whole)


def test_of_two_completions_of_one_begun_run_one_is_published(tmp_path: Path, recorded: Recorded) -> None:
    whole = recorded("one")
    *begun, last = whole.windows
    other = replace(whole, windows=(*begun, last.model_copy(update={"duration_s": 2 * (last.duration_s or 1.0)})))
    made = publish(tmp_path / "a", whole, other)
    assert len(index(tmp_path / "a")["runs"]) == 1
    assert publish(tmp_path / "b", other, whole) == made


def test_private_paths_are_not_published(tmp_path: Path, recorded: Recorded) -> None:
    config = {"kv": "propagate", "batch_size": 1, "model": "/home/alice/models/tiny", "source": "/home/alice/data"}
    files = publish(tmp_path / "a", recorded(manifest={"config": config}, source="path: /home/alice/data"))
    mine = {name: content for name, content in files.items() if "plotly" not in name}
    assert not [name for name, content in mine.items() if b"alice" in content]
    assert "…/tiny".encode("ascii", "backslashreplace") in b"".join(mine.values())


def test_completions_are_limited_and_the_limit_is_said(tmp_path: Path, recorded: Recorded) -> None:
    files = publish(tmp_path / "a", recorded(), shown=3)
    points = [read_script(path, "point") for path in (tmp_path / "a" / "data" / "points").glob("*.js")]
    assert {len(point["samples"]) for point in points} == {3}
    assert {point["finished"] for point in points} == {80}
    assert len({tuple(sample["id"] for sample in point["samples"]) for point in points}) == 1
    assert b"Each operating point shows 3 completions" in files["index.html"].replace(b"\n", b" ")


def test_data_are_safe_inside_a_page_and_read_back(tmp_path: Path) -> None:
    value = {"name": "</script><!-- & \u2028\u2029 '\"", "numbers": [1, None, 0.5]}
    text = script("index", value)
    assert text.isascii()
    assert not {"<", ">", "&"} & set(text)
    (tmp_path / "x.js").write_text(text)
    assert read_script(tmp_path / "x.js", "index") == value
    with pytest.raises(StoreError, match="is no data file"):
        read_script(tmp_path / "x.js", "run")


def test_a_site_that_is_damaged_or_of_another_version_is_left_alone(tmp_path: Path, recorded: Recorded) -> None:
    publish(tmp_path / "a", recorded())
    mark = tmp_path / "a" / "site.json"
    sound = json.loads(mark.read_text())
    refused = {
        json.dumps(sound | {"site_schema": 7}): "site .*a has site_schema 7 and this harness reads 2",
        json.dumps(sound | {"schema_version": 7}): "site .*a has schema_version 7 and this harness reads 1",
        "[" * 200_000: "site.json is no mark of a leaderboard: it is nested deeper",
        "[]": "it has no site_schema",
        json.dumps(sound | {"samples": -1}): "site.json is no mark of a leaderboard: samples: .*greater",
    }
    for text, said in refused.items():
        mark.write_text(text)
        before = files_of(tmp_path / "a")
        for merge in (False, True):
            with pytest.raises(StoreError, match=said):
                Site(tmp_path / "a", merge=merge)
        assert files_of(tmp_path / "a") == before
    mark.write_text(json.dumps(sound))
    (file,) = (tmp_path / "a" / "data" / "runs").glob("*.js")
    for text, said in (
        (
            f'leaderboardData("run",{"[" * 200_000});\n',
            f"{file.name} is no data file of a leaderboard: it is nested deeper",
        ),
        (script("run", read_script(file, "run") | {"schema_version": 9}), rf"{file.name} has schema_version 9"),
    ):
        file.write_text(text)
        with pytest.raises(StoreError, match=said):
            Site(tmp_path / "a", merge=True)


@pytest.mark.parametrize("name", ["thesis.txt", "assets/thesis/one.txt", "data/runs/.site.json.part"])
def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match="not empty and no leaderboard"):
        Site(tmp_path)
    assert files_of(tmp_path) == {name: b"mine"}


def test_replayed_energy_is_refused(tmp_path: Path, recorded: Recorded) -> None:
    with pytest.raises(StoreError, match="replayed energy"):
        Site(tmp_path / "a").add(recorded(energy="replay"))


def test_a_site_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run to publish"):
        Site(tmp_path / "a").finish()
    assert not (tmp_path / "a").exists()


def test_without_plotly_nothing_is_written_and_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)  # as find_spec sees what is not there
    with pytest.raises(ConfigError, match="plot needs plotly, which is not installed") as refused:
        Site(tmp_path / "a")
    assert refused.value.commands == ("pip install 'early-exit-harness[leaderboard]'",)
    assert not (tmp_path / "a").exists()


def test_the_mean_layer_of_a_completion_leaves_prefill_out(tmp_path: Path, recorded: Recorded) -> None:
    """Of layers (10, 5, 5) the first is prefill's where there is a cache: the mean is 5, and 6.7 without one."""
    publish(tmp_path / "cached", recorded(points={"fixed:layer=5": 0.5}))
    publish(tmp_path / "plain", recorded(points={"fixed:layer=5": 0.5}, kv="none"))
    assert mean_layers(tmp_path / "cached") == {"full": {10.0}, "fixed:layer=5": {5.0}}
    assert mean_layers(tmp_path / "plain") == {"full": {10.0}, "fixed:layer=5": {6.7}}


def mean_layers(folder: Path) -> dict[str, set[float | None]]:
    """What the completions of each operating point say."""
    points = [read_script(path, "point") for path in (folder / "data" / "points").glob("*.js")]
    return {point["name"]: {sample["mean_layer"] for sample in point["samples"]} for point in points}


def test_published_numbers_stand_apart_with_their_own_caveats(tmp_path: Path, recorded: Recorded) -> None:
    files = publish(tmp_path / "a", recorded())
    parts = re.findall(r'<details class="reference">.*?</details>', files["index.html"].decode(), re.DOTALL)
    assert [part.count("<table") for part in parts] == [2, 2]
    for part, key in zip(parts, ("green-code", "codexglue"), strict=True):
        text = unescape(part)
        assert "not part of any ranking" in text.partition("</summary>")[0]
        for one in (one for one in references() if one.key == key):
            assert all(f"<li>{caveat}</li>" in text for caveat in one.caveats)
            assert f"<p>{one.source}. {one.difference}</p>" in text
    assert not [name for name, content in files.items() if name.startswith("data/") and b"OPT-2.7B" in content]
    own = [content for name, content in files.items() if "plotly" not in name and not name.startswith("data/")]
    assert not [content for content in own if b"http:" in content or b"https:" in content or b'"//' in content]
