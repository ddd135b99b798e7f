"""``harness submit`` and what it packs: checked, clean, the same bytes every time, and never trusted when read."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.running.reading import read_run
from harness.running.rescore import Submission, examine_submission, pack
from harness.store.packed_run import LARGEST_BYTES, unpacked
from harness.store.run_directory import RunDirectory
from reports.leaderboard.redaction import redact_run
from tests.run_files import unseal

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one run is kept."""
    return tmp_path_factory.mktemp("kept") / "one"


@pytest.fixture
def finished(request: pytest.FixtureRequest, kept: Path, tmp_path: Path) -> Path:
    """A finished run without contaminated windows, whatever else this machine did meanwhile."""
    if not kept.exists():
        assert request.getfixturevalue("tiny_run")("--out", tmp_path / "made" / "one").code == 0
        shutil.copytree(tmp_path / "made" / "one", kept)
    shutil.copytree(kept, tmp_path / "one")
    unseal(tmp_path / "one")  # so that a test can change what it says
    file = tmp_path / "one" / "windows.jsonl"
    calm = [json.loads(line) | {"flags": []} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in calm))
    summary = tmp_path / "one" / "summary.json"
    summary.write_text(read_run(tmp_path / "one").summary.model_dump_json())
    return tmp_path / "one"


def failed(directory: Path) -> dict[str, str]:
    """Names and details of the conditions that do not hold."""
    return {check.name: check.detail for check in examine_submission(directory).checks if not check.passed}


def edit(file: Path, change: Callable[[dict[str, Any]], None], line: int | None = None) -> None:
    """Change a JSON document, or one line of a JSONL file."""
    if line is None:
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))
    else:
        lines = file.read_text().splitlines(keepends=True)
        document = json.loads(lines[line])
        change(document)
        lines[line] = json.dumps(document) + "\n"
        file.write_text("".join(lines))


def renew_summary(run: Path) -> None:
    (run / "summary.json").write_text(read_run(run).summary.model_dump_json())


def test_a_finished_run_is_packed_and_published(cli: Command, finished: Path, tmp_path: Path) -> None:
    ran = cli("submit", finished)
    assert ran.code == 0, ran
    assert "✗" not in ran.out
    assert ran.out.count("✓") == 14
    assert "Cannot be checked: that times and energy are what clocks and sensors read" in ran.out
    archive = tmp_path / "one.tar.gz"
    assert cli("leaderboard", archive, "--out", tmp_path / "packed").code == 0
    assert cli("leaderboard", finished, "--out", tmp_path / "plain").code == 0
    names = [sorted(file.name for file in (tmp_path / site / "data").rglob("*.js")) for site in ("packed", "plain")]
    assert names[0] == names[1]
    page = (tmp_path / "plain" / "index.html").read_text()
    assert "<b>Cannot be checked</b>, and is believed: that times and energy are" in page
    both = cli("leaderboard", archive, finished, "--out", tmp_path / "both")
    assert "1 run(s) with 1 operating points, 1 given twice" in both.out


def test_what_cannot_be_published_is_refused_with_every_remedy(cli: Command, finished: Path, tmp_path: Path) -> None:
    edit(finished / "windows.jsonl", lambda window: window.update(flags=["foreign-cpu"]), -1)
    renew_summary(finished)
    edit(finished / "summary.json", lambda summary: summary["rows"][0]["metrics"]["latency_p50_s"].update(value=0.001))
    ran = cli("submit", finished)
    assert ran.code == 2
    assert ran.out.count("✗") == 2
    assert "rows[0].metrics.latency_p50_s.value is 0.001 there" in ran.out
    assert "harness report" in ran.out
    assert "--strict" in ran.out
    assert "2 of 14 checks failed" in ran.err
    assert "does not end in .tar.gz" in cli("submit", finished, "--out", "one.zip").error
    assert not list(tmp_path.glob("*.tar.gz"))


def test_what_must_be_hashed_is(finished: Path) -> None:
    whole = (finished / "manifest.json").read_text()
    changes: tuple[tuple[str, Callable[[dict[str, Any]], None]], ...] = (
        ("weights", lambda manifest: manifest["model"].update(weights_sha256=None)),
        ("data", lambda manifest: manifest["tasks"][0].update(fingerprint="0")),
        ("artefacts", lambda manifest: manifest["operating_points"][0].update(artefacts={"agent": "?"})),
    )
    for name, change in changes:
        (finished / "manifest.json").write_text(whole)
        edit(finished / "manifest.json", change)
        renew_summary(finished)
        assert list(failed(finished)) == [name]


def test_what_is_unfinished_or_has_no_summary_is_not_published_and_last_digits_do_no_harm(finished: Path) -> None:
    edit(
        finished / "summary.json", lambda summary: summary["rows"][0]["metrics"]["agreement"].update(value=1.0 - 1e-13)
    )
    assert failed(finished) == {}
    (finished / "summary.json").unlink()
    assert "there is no summary.json" in failed(finished)["summary"]
    file = finished / "windows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert "harness run --resume" in failed(finished)["finished"]


def test_superseded_windows_do_no_harm(finished: Path) -> None:
    windows, samples = finished / "windows.jsonl", finished / "samples.jsonl"
    again = json.loads(windows.read_text().splitlines()[-1])
    mine = [one for one in map(json.loads, samples.read_text().splitlines()) if one["window"] == again["window"]]
    edit(windows, lambda window: window.update(flags=["stolen-cpu"], superseded=True), -1)
    with windows.open("a") as file:
        file.write(json.dumps(again | {"window": again["window"] + 1}) + "\n")
    with samples.open("a") as file:
        file.writelines(json.dumps(line | {"window": again["window"] + 1}) + "\n" for line in mine)
    renew_summary(finished)
    assert failed(finished) == {}


def archive_of(finished: Path, folder: Path) -> Path:
    return pack(examine_submission(finished), folder / "one.tar.gz")


def test_the_packed_copy_is_clean_complete_and_hashed(finished: Path, tmp_path: Path) -> None:
    """The tiny run's model and data lie in a temporary folder: private paths, in the original."""
    before = (finished / "manifest.json").read_bytes()
    assert str(tmp_path.parent).encode() in before
    first = archive_of(finished, tmp_path).read_bytes()
    for file in finished.iterdir():
        os.utime(file, (1, 1))
    assert archive_of(finished, tmp_path / "again").read_bytes() == first
    with unpacked(tmp_path / "one.tar.gz") as directory:
        contents = {file.name: file.read_bytes() for file in directory.iterdir()}
        run = read_run(directory)
    assert set(contents) == {"manifest.json", "windows.jsonl", "samples.jsonl", "summary.json", "submission.json"}
    assert not [name for name, content in contents.items() if str(tmp_path.parent).encode() in content]
    listed = json.loads(contents["submission.json"])["files"]
    assert {name: facts["sha256"] for name, facts in listed.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if name != "submission.json"
    }
    original = redact_run(read_run(finished)).run
    assert run.identity == original.identity
    assert run.summary == original.summary
    assert (finished / "manifest.json").read_bytes() == before


def test_a_packed_run_is_bound_together_anew(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Without its private paths it is other bytes of the same run."""
    assert request.getfixturevalue("tiny_run")("--out", tmp_path / "sealed").code == 0
    submission = examine_submission(tmp_path / "sealed")
    assert submission.redacted.places
    archive = pack(Submission(submission.redacted, ()), tmp_path / "sealed.tar.gz")  # however busy this machine was
    with (
        unpacked(archive) as directory,
        RunDirectory.read(directory) as packed,
        RunDirectory.read(tmp_path / "sealed") as original,
    ):
        assert packed.manifest.run == original.manifest.run != ""
        assert packed.seal != original.seal
        summary = packed.read_summary()
        assert summary is not None
        assert summary.records == packed.seal


def rewrite(archive: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]) -> Path:
    """Unpack an archive's members, change them, and pack them again."""
    with tarfile.open(archive) as tar:
        members = [(member, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]
    change(members)
    with tarfile.open(archive, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return archive


def extra(name: str, **facts: Any) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    """Add a member."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member = tarfile.TarInfo(name)
        for fact, value in facts.items():
            setattr(member, fact, value)
        members.append((member, b""))

    return change


def altered(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Change a file: its hash is listed."""
    members[:] = [
        (member, content.replace(b"0", b"1", 1) if member.name.endswith("samples.jsonl") else content)
        for member, content in members
    ]


NOT_A_RUN: tuple[Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], ...] = (
    extra("/etc/passwd"),
    extra("../../manifest.json"),
    extra("one/../manifest.json"),
    extra("one/run.py"),
    extra("two/manifest.json"),
    extra("one/manifest.json"),
    extra("one/manifest.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    extra("one/samples.jsonl", type=tarfile.LNKTYPE, linkname="one/manifest.json"),
    extra("one/windows.jsonl", type=tarfile.FIFOTYPE),
    extra("one/samples.jsonl", type=tarfile.GNUTYPE_SPARSE),
    altered,
    lambda members: members.clear(),
    lambda members: members.pop(0),
    lambda members: members.pop(),
)


def test_an_archive_of_anything_else_is_refused(finished: Path, tmp_path: Path) -> None:
    whole = archive_of(finished, tmp_path)
    for change in NOT_A_RUN:
        archive = rewrite(Path(shutil.copy(whole, tmp_path / "changed.tar.gz")), change)
        with pytest.raises(StoreError, match=r"changed\.tar\.gz"), unpacked(archive):
            pass
        assert not (tmp_path.parent / "manifest.json").exists()


def test_an_extended_header_is_not_read_into_memory(tmp_path: Path) -> None:
    """A header of 32 MiB packs to a few KiB; it is refused on its first block."""
    bomb = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("one/manifest.json")
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        member.type, member.size = kind, 32 << 20
        with gzip.open(bomb, "wb", compresslevel=1) as packed:
            packed.write(member.tobuf(tarfile.USTAR_FORMAT))
            packed.write(bytes(member.size))
        tracemalloc.start()
        try:
            with pytest.raises(StoreError, match=r"bomb\.tar\.gz .*holds .*not a plain file"), unpacked(bomb):
                pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20


def test_an_archive_does_not_fill_the_disk(tmp_path: Path) -> None:
    """A gibibyte of zeros packs to a megabyte; unpacking stops at the limit, whatever the header says."""
    bomb = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("one/samples.jsonl")
    member.size = 8 * LARGEST_BYTES
    with gzip.open(bomb, "wb", compresslevel=1) as packed:
        packed.write(member.tobuf(tarfile.GNU_FORMAT))
        packed.write(bytes(1 << 20))
    with pytest.raises(StoreError, match=r"cannot be unpacked|unpacks to more"), unpacked(bomb):
        pass


def test_the_limit_counts_all_files_together_and_holds_for_what_is_packed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(finished, tmp_path)
    monkeypatch.setattr("harness.store.packed_run.LARGEST_BYTES", 2_000)
    with pytest.raises(StoreError, match="unpacks to more than"), unpacked(archive):
        pass
    with pytest.raises(StoreError, match="Measure fewer samples or operating points"):
        archive_of(finished, tmp_path / "large")
    assert not (tmp_path / "large").exists() or not list((tmp_path / "large").iterdir())


def test_a_damaged_archive_is_one_line(cli: Command, tmp_path: Path) -> None:
    for content in (b"", b"no archive", gzip.compress(b"no tar" * 1000), gzip.compress(bytes(10_240))[:-9]):
        (tmp_path / "x.tar.gz").write_bytes(content)
        ran = cli("leaderboard", tmp_path / "x.tar.gz", "--out", tmp_path / "site")
        assert ran.code == 2
        assert "left out: " in ran.err
        assert "x.tar.gz" in ran.err
