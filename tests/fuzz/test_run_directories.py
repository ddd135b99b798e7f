"""A record that was damaged, lost, doubled or swapped is never taken for whole, and nothing that lies there hangs.

What the store promises (:mod:`harness.store.run_directory`), in the words of :func:`expected`: any change of committed
bytes is refused; files cut at the same window are a run that is not finished; at most one window is not committed yet.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from tests.fuzz.cases import RAW, REFUSED, Ran, Warm
from tests.fuzz.hostile import SPECIAL, TEXTS, Draw, as_json, changed_bytes, changed_json, changed_value, make_special

from .warm import ACCEPTED

Fuzz = Callable[..., None]
Fresh = Callable[[], AbstractContextManager[Path]]

MANIFEST, WINDOWS, SAMPLES, SUMMARY = "manifest.json", "windows.jsonl", "samples.jsonl", "summary.json"
RECORDS = (MANIFEST, WINDOWS, SAMPLES, SUMMARY)
OTHERS = (SUMMARY, ".lock", "report.md", "summary.csv")
"""What a command may write, or write again, beside the records."""

Expected = Literal["whole", "cut", "nothing", "perhaps", "refused"]


@dataclass(frozen=True)
class Whole:
    """An undamaged run.

    Attributes:
        folder: where it lies.
        files: content of its records.
        windows: lines of its windows, each with the bytes of its samples and whether it finishes anything.
        said: what the doors make of it.
    """

    folder: Path
    files: dict[str, bytes]
    windows: list[tuple[bytes, bytes, bool]]
    said: dict[str, Ran]

    @classmethod
    def of(cls, folder: Path, other: Path, warm: Warm, fresh: Fresh) -> Whole:
        files = {name: (folder / name).read_bytes() for name in RECORDS}
        samples, _ = _whole_lines(files[SAMPLES])
        windows = []
        for line in _whole_lines(files[WINDOWS])[0]:
            one = json.loads(line)
            own, samples = samples[: one["samples"]], samples[one["samples"] :]
            counts = not (one["warmup"] or one["idle"] or one["superseded"])
            windows.append((line, b"".join(own), counts))
        assert not samples
        said = {}
        for door, enter in DOORS.items():
            with fresh() as place:
                shutil.copytree(other, place / "good")
                shutil.copytree(folder, place / "run")
                said[door] = enter(warm, place)
                assert said[door].judge() != REFUSED or door == "submit", said[door]
        return cls(folder, files, windows, said)


# ------------------------------------------------------------------------------------------ doors


def _resume(warm: Warm, place: Path) -> Ran:
    return warm.run("run", "--resume", "run", cwd=place, until="weights")


DOORS: dict[str, Callable[[Warm, Path], Ran]] = {
    "report": lambda warm, place: warm.run("report", "run", "--json", cwd=place),
    "report --out": lambda warm, place: warm.run("report", "run", "--out", "all", "--no-figures", "--json", cwd=place),
    "compare": lambda warm, place: warm.run("compare", "good", "run", "--json", cwd=place),
    "compare, first": lambda warm, place: warm.run("compare", "run", "good", "--json", cwd=place),
    "submit": lambda warm, place: warm.run("submit", "run", cwd=place),
    "resume": _resume,
    "read": lambda warm, place: warm.run("run", cwd=place, door="read"),
}
"""What reads the run ``run``, alone or beside ``good``; from the folder of both."""

BATCHES: dict[str, Callable[[Warm, Path], Ran]] = {
    "report": lambda warm, place: warm.run("report", "good", "run", cwd=place),
    "report --out": lambda warm, place: warm.run("report", ".", "--out", "all", "--no-figures", cwd=place),
    "leaderboard": lambda warm, place: warm.run("leaderboard", ".", "--out", "site", cwd=place),
    "leaderboard --stored": lambda warm, place: warm.run("leaderboard", ".", "--out", "site", "--stored", cwd=place),
}
"""What reads ``good``, a run of its own, and ``run`` together, and leaves out what it cannot read."""


# ---------------------------------------------------------------------------------------- damages


def damage(draw: Draw, run: Whole, other: Whole, folder: Path) -> str:
    """Damage a copy of a run in one way; return what was done."""
    kind = draw(
        st.sampled_from(["bytes", "bytes", "lines", "lines", "field", "field", "cut", "mix", "special", "tail"])
    )
    name = draw(st.sampled_from(RECORDS))
    file = folder / name
    data = _plain(file) or b""
    if kind == "special":
        name = draw(st.sampled_from([*RECORDS, *OTHERS]))
        what = draw(st.sampled_from(SPECIAL))
        make_special(folder / name, what)
        return f"{name} is {what}"
    make_special(file, "absent")
    if kind == "mix":
        file.write_bytes(other.files[name])
        return f"{name} is of another run"
    if kind == "field":
        data, said = _field(draw, name, data)
    elif kind in ("lines", "tail", "cut"):
        data, said = _lines(draw, kind, data, other.files[name])
    else:
        data, said = changed_bytes(draw, data)
    file.write_bytes(data)
    if kind == "cut" and draw(st.booleans()):  # as if the disk had gone back to an earlier moment
        count = draw(st.integers(0, len(run.windows)))
        for part in (WINDOWS, SAMPLES):  # a damage before this one may have put something else there
            make_special(folder / part, "absent")
        (folder / WINDOWS).write_bytes(b"".join(line for line, _, _ in run.windows[:count]))
        (folder / SAMPLES).write_bytes(b"".join(samples for _, samples, _ in run.windows[:count]))
        if name in (WINDOWS, SAMPLES):
            return f"cut after {count} windows"
        file.write_bytes(run.files[name])
        return f"cut after {count} windows"
    return f"{name}: {said}"


def _field(draw: Draw, name: str, data: bytes) -> tuple[bytes, str]:
    """Change a value and leave the rest as it is written, white space included."""
    lines = data.splitlines() if name in (WINDOWS, SAMPLES) else [data]
    place = draw(st.integers(0, max(len(lines) - 1, 0)))
    try:
        document = json.loads(lines[place])
    except (ValueError, IndexError, RecursionError):  # damaged before
        return data, "nothing"
    changed, said = changed_json(draw, document)
    text = as_json(changed, indent=None if name in (WINDOWS, SAMPLES) else 2)
    lines[place] = text.encode("utf-8", "surrogatepass")
    return b"\n".join([*lines, b""]), f"{said} (line {place + 1})"


def _lines(draw: Draw, kind: str, data: bytes, foreign: bytes) -> tuple[bytes, str]:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data, "nothing"
    place, to = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "cut":
        return b"".join(lines[:place]), f"cut before line {place + 1}"
    if kind == "tail":
        added = draw(
            st.one_of(
                st.sampled_from([b"\x00" * 100, b"{", b"\n", b"not json\n", lines[-1], lines[-1][:-1], b"{}\n"]),
                st.just(b"".join(foreign.splitlines(keepends=True)[-2:])),
            )
        )
        return data + added, f"{ascii(added)[:40]} added"
    what = draw(st.sampled_from(["delete", "double", "swap", "move", "break"]))
    if what == "delete":
        del lines[place]
    elif what == "double":
        lines.insert(to, lines[place])
    elif what == "swap":
        lines[place], lines[to] = lines[to], lines[place]
    elif what == "move":
        lines.insert(to, lines.pop(place))
    else:
        lines[place] = lines[place].rstrip(b"\n")
    return b"".join(lines), f"{what} line {place + 1}, {to + 1}"


# ----------------------------------------------------------------------------------------- oracle


def _plain(file: Path) -> bytes | None:
    """Return the beginning of a regular file, nothing of one that is not there, and ``None`` for anything else."""
    try:
        if not file.is_file():
            return None if file.is_symlink() or file.exists() else b""
        with file.open("rb") as stream:
            return stream.read(1 << 24)
    except OSError:
        return None


def _whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
    *lines, torn = data.split(b"\n")
    return [line + b"\n" for line in lines], torn


def expected(run: Whole, folder: Path) -> tuple[Expected, int]:
    r"""Say what a reader must make of a damaged copy, and how many windows it may count.

    ``whole``: as if nothing had been done. ``cut``: a run that is not finished. ``nothing``: no window is finished, so
    that there is nothing to report and everything to resume. ``refused``. ``perhaps``: refused, or read as far as it is
    committed, without the rest: what lies behind the last committed window is at most one window's, or no whole
    line of a sample of a later one.
    """
    manifest, windows, samples = (_plain(folder / name) for name in (MANIFEST, WINDOWS, SAMPLES))
    if manifest != run.files[MANIFEST] or windows is None or samples is None:
        return "refused", 0
    lines, _ = _whole_lines(windows)
    count = len(lines)
    committed = b"".join(own for _, own, _ in run.windows[:count])
    if lines != [line for line, _, _ in run.windows[:count]] or not samples.startswith(committed):
        return "refused", 0
    rest, _ = _whole_lines(samples[len(committed) :])
    found: Expected = "whole" if count == len(run.windows) else "cut"
    if len(_owners(rest)) > 1:
        found = "refused"
    elif samples != committed:  # a torn line, lines of the window that comes next, or what never was a sample
        found = "perhaps"
    elif not any(counts for _, _, counts in run.windows[:count]):
        found = "nothing"
    return found, count


def _owners(lines: list[bytes]) -> set[int]:
    """Return the windows that whole lines of samples say they belong to."""
    found = set()
    for line in lines:
        try:
            found.add(json.loads(line)["window"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def check(run: Whole, door: str, ran: Ran, folder: Path, before: tuple[Expected, int], odd: bool) -> None:
    """Hold what a door made of a damaged copy against what it must.

    Args:
        run: undamaged.
        door: which.
        ran: what it did.
        folder: the copy.
        before: what was expected.
        odd: something else lies where a command would write, so that it may be refused for that.
    """
    expectation, count = before
    code = ran.judge()
    finished = sum(counts for _, _, counts in run.windows[:count])
    if expectation == "refused":
        assert code == REFUSED, f"takes a damaged record\n{ran}"
        return
    if code == REFUSED:
        allowed = ("perhaps",) if door == "resume" else ("perhaps", "nothing")
        assert odd or expectation in allowed or door == "submit", f"refuses what is {expectation}\n{ran}"
        return
    assert door == "resume" or finished, f"reports a run without a window\n{ran}"
    if door == "resume":
        assert code == ACCEPTED, ran
    elif count < len(run.windows):
        whole_windows = [counts for _, _, counts in run.windows]
        assert door != "submit", f"packs a part of a run\n{ran}"
        if finished < sum(whole_windows) and door == "report --out":
            assert "not finished" in json.loads(ran.out)[0]["state"], f"shows a part as a whole run\n{ran}"
    elif door != "submit":
        assert ran.out == run.said[door].out, f"shows other results than the records'\n{ran}\n{run.said[door]}"


@pytest.fixture(scope="session")
def wholes(warm: Warm, fresh: Fresh, recorded: dict[str, Path]) -> tuple[Whole, Whole]:
    one, two = recorded["one"], recorded["two"]
    return Whole.of(one, two, warm, fresh), Whole.of(two, one, warm, fresh)


def _odd(folder: Path) -> bool:
    return any(_plain(folder / name) is None for name in OTHERS)


def damages(draw: Draw, run: Whole, other: Whole, folder: Path) -> str:
    shutil.copytree(run.folder, folder)
    return " and ".join(damage(draw, run, other, folder) for _ in range(draw(st.sampled_from([1, 1, 1, 2]))))


def explained(error: AssertionError, done: str, expectation: Expected) -> AssertionError:
    return AssertionError(f"{done}; expected: {expectation}\n{error}")


# -------------------------------------------------------------------------------------- properties


@pytest.mark.slow
def test_no_damage_is_taken_for_a_record(fuzz: Fuzz, warm: Warm, fresh: Fresh, wholes: tuple[Whole, Whole]) -> None:
    run, other = wholes

    def case(draw: Draw) -> Ran:
        with fresh() as place:
            done = damages(draw, run, other, place / "run")
            door = draw(st.sampled_from(sorted(DOORS)))
            if door.startswith("compare"):
                shutil.copytree(other.folder, place / "good")
            before, odd = expected(run, place / "run"), _odd(place / "run")
            ran = DOORS[door](warm, place)
            try:
                check(run, door, ran, place / "run", before, odd)
            except AssertionError as error:
                raise explained(error, done, before[0]) from None
            return ran

    fuzz("run directories", case, cases=40)


# ------------------------------------------------------------------ whole records with hostile content


@pytest.mark.slow
def test_no_content_breaks_a_reader(
    fuzz: Fuzz, warm: Warm, fresh: Fresh, wholes: tuple[Whole, Whole], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that are sealed and fit the schema, and say what no honest run says."""
    from harness.errors import HarnessError
    from harness.records import Manifest, SampleRecord, WindowRecord
    from harness.store.run_directory import RunDirectory

    run, other = wholes
    doors = {**DOORS, **BATCHES}
    monkeypatch.setattr("os.fsync", lambda _: None)  # most of the time of writing them

    def case(draw: Draw) -> Ran | str:
        documents = [json.loads(run.files[MANIFEST]), *map(json.loads, run.files[WINDOWS].splitlines())]
        samples = [json.loads(line) for line in run.files[SAMPLES].splitlines()]
        names, done = _names(documents[0], samples), []
        for _ in range(draw(st.sampled_from([1, 2, 3]))):
            kind = draw(st.sampled_from(["rename", "rename", "value", "value", "value", "any"]))
            if kind == "rename":
                old, new = draw(st.sampled_from(names)), draw(TEXTS)
                documents, samples = _renamed((documents, samples), old, new)
                done.append(f"{old!a} is called {ascii(new)[:60]}")
                continue
            several = draw(st.sampled_from([documents[:1], documents[1:], samples]))
            one = draw(st.sampled_from(several))
            changed, said = (changed_json if kind == "any" else changed_value)(draw, one)
            one.clear()
            one.update(changed if isinstance(changed, dict) else {})
            done.append(f"{said} of {next(iter(one), '')}")
        with fresh() as place:
            try:
                manifest, *windows = (
                    kind.model_validate_json(as_json(document))
                    for kind, document in zip(
                        [Manifest, *[WindowRecord] * (len(documents) - 1)], documents, strict=True
                    )
                )
                records = [SampleRecord.model_validate_json(as_json(one)) for one in samples]
                _write(RunDirectory, place / "run", manifest, windows, records)
            except (ValueError, RecursionError, HarnessError):
                return "unwritable"  # the schema or the writer refuses it already
            shutil.copytree(other.folder, place / "good")
            door = draw(st.sampled_from(sorted(doors)))
            ran = doors[door](warm, place)
            try:
                ran.judge()
                for file in _written(place):
                    raw = RAW.search(file.read_text(encoding="utf-8"))
                    assert raw is None, f"writes {raw[0]!r} into {file.name}\n{ran}"
            except AssertionError as error:
                raise explained(error, "; ".join(done), "perhaps") from None
            return ran

    fuzz("run directories: hostile content", case, cases=20)


def _names(manifest: dict[str, Any], samples: list[dict[str, Any]]) -> list[str]:
    """Return what tables, figures and pages call things by, and other words of a run."""
    found = [point["name"] for point in manifest["operating_points"]] + [task["name"] for task in manifest["tasks"]]
    found += [manifest["model"]["name"], manifest["tasks"][0]["source"], manifest["created"], samples[0]["sample_id"]]
    return [*found, samples[0]["text"], samples[-1]["reference"], manifest["environment"]["cpu"]]


def _renamed(value: Any, old: str, new: str) -> Any:
    """Return JSON in which a text is another wherever it stands."""
    if isinstance(value, dict):
        return {key: _renamed(one, old, new) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(one, old, new) for one in value]
    return new if value == old else value


def _write(store: Any, folder: Path, manifest: Any, windows: list[Any], samples: list[Any]) -> None:
    with store.create(folder, manifest) as run:
        for window in windows:
            run.commit(window, [sample for sample in samples if sample.window == window.window])


def _written(place: Path) -> Iterator[Path]:
    """Yield the texts that a command wrote for people and programs; JSON has escapes of its own."""
    for suffix in ("md", "csv", "tex", "html", "svg"):
        yield from place.rglob(f"*.{suffix}")
