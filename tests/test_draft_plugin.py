"""A draft policy that learns while it decodes, a draft source and a draft rule of another package, in one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_plugin import seeing

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party_drafts"
NEW = 16

Shell = Callable[..., Any]
Command = Callable[..., Any]

Samples = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder the fixture project is installed into."""
    return install(PROJECT)


@pytest.fixture(scope="module")
def run(
    site: Path, forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Samples:
    """Samples of a run by operating point: the policy, alone and with what else drafts, beside full depth."""
    folder = tmp_path_factory.mktemp("drafts")
    strategies = (
        "believer:layer=4",
        "believer:layer=10:threshold=0",
        "fixed:layer=6",
        "full",
        "believer@lossless+lookup",
    )
    ran = forked(
        *("run", *(word for one in strategies for word in ("--strategy", one))),
        *("--decode", "lossy,lossless+echo+short:tokens=3"),
        *("--model", tiny_llama, "--source", rows_file, "--limit", 3, "--max-new-tokens", NEW),
        *("--energy", "none", "--threads", 1, "--out", "out"),
        cwd=folder,
        **seeing(site),
    )
    assert ran.returncode == 0, ran.stderr
    found: Samples = {}
    for line in (folder / "out" / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found.setdefault(sample["operating_point"], []).append(sample)
    return {name: sorted(rows, key=lambda row: str(row["sample_id"])) for name, rows in found.items()}


@pytest.mark.slow
def test_what_only_drafts_is_decoded_losslessly_whatever_the_others_are(run: Samples) -> None:
    assert set(run) == {
        "full",
        "full@lossless+echo+short:tokens=3",
        "fixed:layer=6",
        "fixed:layer=6@lossless+echo+short:tokens=3",
        "believer:layer=4@lossless+echo+short:tokens=3",
        "believer:layer=10:threshold=0@lossless+echo+short:tokens=3",
        "believer@lossless+lookup",
    }


def test_its_tokens_are_full_depth_s(run: Samples) -> None:
    full = [row["token_ids"] for row in run["full"]]
    for name, rows in run.items():
        if "@lossless" in name:
            assert [row["token_ids"] for row in rows] == full, name


def test_it_drafts(run: Samples) -> None:
    for name, rows in run.items():
        if name.startswith("believer"):
            assert sum(row["drafts"] for row in rows) > 0, name
            assert all(row["verifications"] > 0 for row in rows)


def test_a_rule_of_another_package_ends_drafts(run: Samples) -> None:
    for row in run["believer:layer=10:threshold=0@lossless+echo+short:tokens=3"]:
        assert row["drafts"] <= (3 + 1) * row["verifications"]  # the source's one token may follow a draft of three


def test_they_are_listed_and_shown(site: Path, see: Callable[[Path], None], cli: Command) -> None:
    see(site)
    assert "Draft at one exit for as long as" in " ".join(cli("list", "strategies").out.split())
    assert "Propose the last token again" in " ".join(cli("list", "drafts").out.split())
    assert "--decode lossless+short:tokens=2" in " ".join(cli("show", "short").out.split())


def test_taken_for_an_answer_it_is_refused(
    site: Path, see: Callable[[Path], None], cli: Command, tiny_llama: Path, rows_file: Path
) -> None:
    see(site)
    ran = cli("run", "--strategy", "believer:layer=4@lossy", "--model", tiny_llama, "--source", rows_file)
    assert ran.code == 2
    assert ran.error == (
        "error: believer:layer=4@lossy: believer only drafts, and its tokens have to be verified. "
        "Decode it losslessly: believer:layer=4@lossless in a run, else --decode lossless."
    )
