"""The pages and what they load besides data: templates, style, scripts, and plotly's library once.

Pages carry no data of a run; they are the same for every site but for the counts and the published numbers, which
jinja2 escapes. A policy in each page forbids everything that does not lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.appearance.pages import templates
from harness.appearance.token_style import TOKEN_CSS
from harness.host.extras import require
from reports.leaderboard.contradictions import CANNOT_BE_CHECKED, COMPUTED_AGAIN
from reports.leaderboard.details import SAMPLES_SHOWN
from reports.leaderboard.entries import RunEntry
from reports.leaderboard.groups import group_of
from reports.leaderboard.ranking import MARGIN
from reports.published.section import Reference, references
from reports.summary.devices import RULE

__all__ = ["PAGES", "assets", "pages"]

PAGES = ("index.html", "point.html", "compare.html")
_PLOTLY = "plotly.min.js"


def pages(runs: Sequence[RunEntry], shown: int = SAMPLES_SHOWN) -> dict[str, str]:
    """Return file name → HTML.

    Args:
        runs: what the site holds.
        shown: completions per operating point.
    """
    groups = {group_of(run, point) for run in runs for point in run.points}
    facts = {
        "points": sum(len(run.points) for run in runs),
        "runs": len(runs),
        "groups": len(groups),
        "newest": max((run.manifest.created[:10] for run in runs), default="–"),
        "margin": f"{MARGIN:.2f}",
        "hardware_rule": RULE,
        "shown": shown,
        "computed_again": COMPUTED_AGAIN,
        "cannot_be_checked": CANNOT_BE_CHECKED,
        "published": _published(),
    }
    environment = templates("reports.leaderboard")
    return {name: environment.get_template(name).render(**facts) for name in PAGES}


def assets() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of what every page loads.

    Raises:
        ConfigError: plotly is not installed.
    """
    folder = resources.files("reports.leaderboard") / "static"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith((".css", ".js")):
            yield file.name, file.read_bytes()
    yield "tokens.css", TOKEN_CSS.encode()
    yield _PLOTLY, _plotly().read_bytes()


def _plotly() -> Path:
    """The library's one file, found without importing the package."""
    require("leaderboard", "plotly")
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("package_data") / _PLOTLY


def _published() -> list[dict[str, Any]]:
    """Published numbers by source: the tables of one source share its caveats."""
    found = references()
    by_source = [[one for one in found if one.key == key] for key in dict.fromkeys(one.key for one in found)]
    return [
        {
            "titles": ", ".join(one.title for one in alike),
            "tables": [_table(one) for one in alike],
            "caveats": list(dict.fromkeys(caveat for one in alike for caveat in one.caveats)),
        }
        for alike in by_source
    ]


def _table(reference: Reference) -> dict[str, Any]:
    return {
        "title": reference.title,
        "source": reference.source,
        "difference": reference.difference,
        "header": [column.term for column in reference.columns],
        "rows": list(zip(*(column.texts for column in reference.columns), strict=True)),
    }
