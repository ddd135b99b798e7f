"""A tag can name any commit: nothing is uploaded to PyPI before its tests passed and its wheel ran."""

from __future__ import annotations

from pathlib import Path

import yaml

FILE = Path(__file__).resolve().parents[1] / ".github" / "workflows" / "publish.yml"
JOBS = yaml.safe_load(FILE.read_text(encoding="utf-8"))["jobs"]


def before(name: str) -> set[str]:
    """Jobs that must have passed before one begins."""
    needs = JOBS[name].get("needs", [])
    needed = {needs} if isinstance(needs, str) else set(needs)
    return needed.union(*map(before, needed))


def test_nothing_is_uploaded_before_the_tests_passed() -> None:
    (upload,) = (
        name
        for name, job in JOBS.items()
        if any("gh-action-pypi-publish" in step.get("uses", "") for step in job["steps"])
    )
    ran = [step.get("run", "") for name in before(upload) for step in JOBS[name]["steps"]]
    assert any(line.startswith("make lint") for line in ran)
    assert any(line.startswith("make test") for line in ran)


def test_the_wheel_runs_before_it_is_handed_on() -> None:
    steps = JOBS["build"]["steps"]
    places = [
        next(place for place, step in enumerate(steps) if wanted in step.get("run", "") + step.get("uses", ""))
        for wanted in ("python -m build", "try_wheel.sh", "actions/upload-artifact")
    ]
    assert places == sorted(places)
