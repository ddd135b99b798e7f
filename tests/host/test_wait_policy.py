"""How threads wait: what is set reaches OpenMP, and what a user has set stands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.cli import SPINS, spin_briefly


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_a_user_has_chosen_stands(given: dict[str, str], after: dict[str, str]) -> None:
    spin_briefly(given)
    assert given == after


def test_the_library_reads_it_since_the_command_sets_it_before_torch_is_there() -> None:
    """OpenMP prints what it goes by when it is loaded."""
    code = "import sys; from harness.cli import main\ntry: main()\nexcept SystemExit: import torch"
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env={**unset, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch's OpenMP is not GNU's")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
