"""lm-eval's results beside what they took: depth, time and energy; files for programs, a table for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import json_text
from harness.contracts import EnergyReading
from harness.records.estimate import MISSING
from harness.records.summary import SummaryRow
from reports.files import write_files
from reports.tables.table import Cell, Column, Table

FOLDER = "lm-eval"
"""Folder in the run directory that has a folder for each operating point."""
FILE = "results.json"
Results = Mapping[str, Mapping[str, Any]]


def write_results(directory: Path, results: Results) -> tuple[Path, ...]:
    """Write ``lm-eval/POINT/results.json`` for each operating point, in lm-eval's own form; return the paths."""
    from lm_eval.utils import handle_non_serializable

    written: list[Path] = []
    for point, found in results.items():
        folder = directory / FOLDER / re.sub(r"[^\w.,=@:+-]", "_", point)
        folder.mkdir(parents=True, exist_ok=True)
        text = json_text(found, default=handle_non_serializable, ensure_ascii=False)
        written += write_files(folder, {FILE: text + "\n"})
    return tuple(written)


def tables(results: Results) -> Iterator[Table]:
    """Yield metrics of every task and operating point with depth, time and energy beside them."""
    first = next(iter(results.values()))
    rows: list[tuple[Cell, ...]] = []
    groups: list[tuple[int, str]] = []
    sources: dict[str, bool] = {}
    kinds: set[str] = set()
    known = False
    for task in first["results"]:
        for metric in first["results"][task]:
            name, comma, pipeline = metric.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            groups.append((len(rows), f"{task}: {name if pipeline == 'none' else metric}"))
            for point, found in results.items():
                values, facts = found["results"][task], found["config"]["early_exit"]["tasks"].get(task, {})
                asked, spent = _kinds(found, task), facts.get("generated") or facts.get("scored", {})
                kinds |= asked
                known = known or bool(spent.get("known_requests"))
                if spent.get("j_per_token") is not None:
                    sources[spent["energy_source"]] = spent["energy_measured"]
                costs = (spent.get(cost) for cost in ("exit_layer_mean", "s_per_token", "j_per_token"))
                value, error = values.get(metric), values.get(f"{name}_stderr,{pipeline}")
                shown = f"{value:.4f}" if isinstance(value, int | float) else MISSING
                shown += f" ± {error:.4f}" if isinstance(error, int | float) else ""
                at = found["config"]["early_exit"].get("loglikelihood_at", "") if "scored" in asked else ""
                where = point if not at else at if asked == {"scored"} else f"{point}; scored: {at}"
                rows.append((where, shown, *costs))
                if asked == {"scored"}:  # the same at every operating point
                    break
    yield Table.of_rows(
        "",
        (
            Column(header="operating point", kind="text"),
            "value",
            Column(header="layers", form=".1f"),
            Column(header="ms/token", form=".2f", scale=1000),
            Column(header="J/token", form=".3g"),
        ),
        rows,
        groups=tuple(groups),
        notes=tuple(_notes(first, sources, kinds, known)),
    )


def _kinds(results: Mapping[str, Any], name: str) -> set[str]:
    members = results.get("group_subtasks", {}).get(name, ())
    return set(results["config"]["early_exit"]["tasks"].get(name, ())).union(*(_kinds(results, one) for one in members))


def _notes(results: Mapping[str, Any], sources: Mapping[str, bool], kinds: set[str], known: bool) -> Iterator[str]:
    facts = results["config"]["early_exit"]
    yield f"{facts['model']}, {facts['weights']} weights, {facts['num_layers']} layers, {facts['weights_format']}."
    if "generated" in kinds:
        yield "ms/token, J/token: of generated tokens, prompts included; layers: of a decoded token."
    if "scored" in kinds:
        yield f"Given texts were scored at {facts['loglikelihood_at']}, contexts included; no strategy decides there."
    if known:
        yield "Texts that another task had scored were not read again: ms/token, J/token are of the others."
    for source, measured in sources.items():
        yield f"Energy: {source}, {'measured by a sensor' if measured else 'not measured by a sensor'}."


@dataclass(slots=True)
class Spent:
    """Sums over the windows of one task's requests."""

    source: str
    measured: bool
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0
    layers: int = 0
    decoded: int = 0
    known_requests: int = 0
    known_tokens: int = 0
    flags: set[str] = field(default_factory=set)
    reason: str | None = None

    def count(self, requests: int, tokens: int, layers: Iterable[int], *, known: bool = False) -> None:
        """Count requests and tokens, the layers that each decoded one ran, and whether another task's window has it."""
        depths = list(layers)
        self.requests, self.tokens = self.requests + requests, self.tokens + tokens
        self.layers, self.decoded = self.layers + sum(depths), self.decoded + len(depths)
        if known:
            self.known_requests, self.known_tokens = self.known_requests + requests, self.known_tokens + tokens

    def add(self, reading: EnergyReading) -> None:
        """Add a window."""
        self.seconds += reading.duration_s
        self.joules = None if self.joules is None or reading.energy_j is None else self.joules + reading.energy_j
        self.flags.update(reading.flags)
        self.reason = self.reason or reading.reason

    def facts(self) -> dict[str, Any]:
        """Return the facts of a result; what was not measured is ``None``."""
        read = self.tokens - self.known_tokens
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "exit_layer_mean": self.layers / self.decoded if self.decoded else None,
            "s_per_token": self.seconds / read if read else None,
            "j_per_token": self.joules / read if read and self.joules is not None else None,
            "energy_source": self.source,
            "energy_measured": self.measured,
            "known_requests": self.known_requests,
            "known_tokens": self.known_tokens,
            "energy_flags": sorted(self.flags),
            "energy_reason": self.reason or (None if read or not self.tokens else "scored for another task"),
        }


def facts_of_row(row: SummaryRow, tokens: int) -> dict[str, Any]:
    """Return the same facts from a row of a run's summary."""
    speed = row.value("tokens_per_s")
    return {
        "requests": row.n,
        "tokens": tokens,
        "exit_layer_mean": row.value("exit_layer_mean"),
        "s_per_token": 1 / speed if speed else None,
        "j_per_token": row.value("energy_j_per_token"),
        "energy_source": row.energy_source,
        "energy_measured": row.energy_measured,
    }
