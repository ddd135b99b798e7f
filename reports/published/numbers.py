"""Numbers that others published, with their source, and the section of a report that shows them for reference.

They are never a row of ours, never in a ranking or on a front: other people's models, machines and data.

**GREEN-CODE**: means over the samples of its authors' runs on one Quadro RTX 8000, one run each, no interval, from the
result files of their repository (Large-scale-Sustainable-Computing-LSC/green-code, commit 56981c9), which figures 8 to
11 and Table IV of the paper are drawn from (Ilager et al., "GREEN-CODE", 2025). ``exact_match`` was counted on 15
tokens, not on lines. The agent's cost was measured with one sensor window inside another, per sample: it comes to about
2.9 ms a check where the same authors' run that never exits implies 0.2 ms.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from reports.tables.table import Cell, Column, Heading, Line, Part, Table

LAYERS = {"Llama-3.2-3B": 28, "OPT-2.7B": 32}
"""The paper's models and how many decoder layers they have."""

THRESHOLDS = (0.6, 0.8, 0.9, 0.91, 0.92)
"""Of the agent, as the paper's figures and Table IV show them."""

TITLE = "For reference: published numbers"
DATASETS = {"py150": ("PY150", "python"), "javacorpus": ("JavaCorpus", "java")}
"""Datasets of both sources, by task: name and language."""
LANGUAGES = tuple(language for _, language in DATASETS.values())

GREEN_CODE_CAVEATS = (
    "no KV cache: the whole prefix is computed again for every token. Switching the cache on saves more than any "
    "published early exit; the cached rows have longer prompts (30 % of a file, not 20 %), which counts against them",
    "one run each, no interval; samples vary by 70 to 100 % of their mean; nothing was interleaved, idle was not "
    "measured",
    "one Quadro RTX 8000 at nearly constant power (220 to 250 W), so energy saved is time saved; on another GPU only "
    "the shares can be compared",
    "15 tokens after the first 20 % of a file, without a stop at the line's end: not a line completion, and its exact "
    "match is not CodeXGLUE's",
    "no simple baseline (confidence, entropy, classifier, random, oracle) was published beside the agent",
    "at the same outputs the Llama exit model costs 13 % more than its baseline (it projects the whole sequence "
    "through the LM head), so the two differ in more than the exit",
    "throughput is a mean of each sample's ratio (13.5 tokens/s where total tokens over total time give 8.8) and is "
    "left out here",
    "CodeBLEU: data flow of nothing counts as 1, tokens are split at white space, and two of the scripts read Python "
    "as Java; compare only ratios within the paper",
    "references of the untuned and the tuned Python runs differ, so their scores cannot be subtracted",
    "the threshold is a probability of the authors' agent; ours is calibrated differently, so equal thresholds are not "
    "equal settings",
)
CODEXGLUE_CAVEATS = (
    "official test sets, whose answers are withheld; our rows are official dev or other data: not the same set",
    "systems were trained on the official training set; sizes differ",
    "edit similarity and exact match are of whole lines (our protocol codexglue-line, not green-code)",
)


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One of the authors' runs; ``None`` where they give no such number."""

    model: str
    language: str
    kv: str  # "none" recomputes the whole prefix for every token; "propagate" keeps a cache and has longer prompts
    weights: str  # "base" or "tuned"
    strategy: str  # "full", "fixed" (every token at one layer) or "rl" (their agent)
    threshold: float | None  # the agent's
    samples: int
    exit_layer_mean: float  # layers executed per token
    energy_j: float  # per sample, prefill included, as is the time
    time_s: float
    rouge_l: float | None  # scores are of 0…1
    codebleu: float | None
    exact_match: float | None

    @property
    def layers_skipped(self) -> float:
        """1 − layers executed / layers of the model, a fraction."""
        return 1 - self.exit_layer_mean / LAYERS[self.model]


@cache
def green_code() -> tuple[PublishedRun, ...]:
    """Return all runs that are what they claim to be, in the authors' order.

    Their untuned OPT-2.7B "Java" runs with a cache have the number of samples of the Python set and its scores (ROUGE-L
    within 0.0002 at every layer), so that they are most likely Python's, and are left out.
    """
    read: dict[str, Any] = {"str": str, "int": int, "float": float, "float | None": _number}
    runs = (
        PublishedRun(**{one.name: read[str(one.type)](row[one.name]) for one in fields(PublishedRun)})
        for row in read_rows("green-code.csv")
    )
    mislabelled = ("OPT-2.7B", "java", "propagate", "base")
    return tuple(run for run in runs if (run.model, run.language, run.kv, run.weights) != mislabelled)


def full_depth(run: PublishedRun, kv: str | None = None) -> PublishedRun:
    """Return tuned full depth of the same model and data: what a run's published savings are relative to."""
    return next(
        other
        for other in green_code()
        if other.strategy == "full"
        and other.weights == "tuned"
        and (other.model, other.language, other.kv) == (run.model, run.language, kv or run.kv)
    )


def saving(run: PublishedRun, quantity: str) -> float:
    """Return the share of full depth's mean cost that a run saves; below 0 it costs more."""
    return 1 - float(getattr(run, quantity)) / float(getattr(full_depth(run), quantity))


@cache
def agent_costs(model: str, language: str, threshold: float) -> dict[str, float | None]:
    """Return what the agent cost at a point of the grid, by column of ``green-code-overhead.csv``.

    ``time_of_run`` and ``energy_of_run`` are its shares of the instrumented run itself, ``…_of_full`` of full depth, as
    in Table IV; ``None`` where there is no such full depth. Empty where the authors did not measure it.
    """
    for row in read_rows("green-code-overhead.csv"):
        here = row["model"], row["language"], float(row["threshold"]), float(row["context"])
        if here == (model, language, threshold, 0.2):  # the grid's context; they tried others
            return {name: _number(text) for name, text in row.items() if name not in ("model", "language")}
    return {}


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one of this package's CSV files."""
    text = (resources.files("reports.published") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _number(text: str) -> float | None:
    return float(text) if text else None


@dataclass(frozen=True, slots=True)
class Reference:
    """One source's results on one language."""

    key: str  # "green-code" or "codexglue"
    title: str
    source: str
    difference: str  # one line: why it is not comparable row by row with ours
    caveats: tuple[str, ...]
    columns: tuple[Column, ...]


def references(languages: Collection[str] = LANGUAGES) -> tuple[Reference, ...]:
    """Return every table, GREEN-CODE first."""
    wanted = [dataset for dataset, (_, language) in DATASETS.items() if language in languages]
    return (*map(_green_code, wanted), *map(_codexglue, wanted))


def published(languages: Collection[str] = LANGUAGES) -> Iterator[Part]:
    """Yield the whole section; nothing where nothing is published."""
    found = references(languages)
    if found:
        yield Heading(TITLE)
        yield Line("Other people's models, machines and data: never ranked with the rows above, never on their front.")
    for key in dict.fromkeys(reference.key for reference in found):
        alike = [reference for reference in found if reference.key == key]
        for one in alike:
            yield Table(title=one.title, columns=one.columns, notes=(f"{one.source}. {one.difference}",), wide=True)
        yield from (Line(caveat, bullet=True) for caveat in alike[0].caveats)


def _green_code(dataset: str) -> Reference:
    """Return the paper's bars, and tuned full depth with a cache, which it does not show."""
    name, language = DATASETS[dataset]
    runs = [
        run
        for run in green_code()
        if run.language == language
        and (run.threshold in THRESHOLDS if run.strategy == "rl" else run.strategy == "full")
        and (run.kv == "none" or run.weights == "tuned")
    ]

    def row(run: PublishedRun) -> tuple[Cell, ...]:
        how = f"full depth, {'untuned' if run.weights == 'base' else 'tuned'}"
        how = how if run.threshold is None else f"agent, threshold {run.threshold:g}"
        saved = [None if run is full_depth(run) else saving(run, quantity) for quantity in ("time_s", "energy_j")]
        scores = (run.rouge_l, run.codebleu, run.exact_match)
        return f"{run.model}: {how}", run.kv, run.layers_skipped, *saved, run.time_s, run.energy_j, *scores

    headers = [
        *(Column(header=header, kind="text") for header in ("system", "KV cache")),
        *(Column(header=header, form="percent") for header in ("layers skipped", "time saved", "energy saved")),
        Column(header="s/sample", form=".2f"),
        Column(header="J/sample", form=".0f"),
        *(Column(header=header, form=".3f") for header in ("ROUGE-L", "CodeBLEU", "exact match")),
    ]
    return Reference(
        key="green-code",
        title=f"GREEN-CODE on {name}",
        source="Ilager et al. 2025, means over about 1,000 samples, from the authors' result files",
        difference="Savings are relative to their own tuned full depth under the same KV policy, on their GPU.",
        caveats=GREEN_CODE_CAVEATS,
        columns=Table.of_rows("", headers, map(row, runs)).columns,
    )


def _codexglue(dataset: str) -> Reference:
    """Return the leaderboard of code completion: Lu et al., "CodeXGLUE", 2021, arXiv 2102.04664."""
    scores = {"exact_match": "exact match", "edit_similarity": "edit sim.", "token_accuracy": "token acc."}
    headers = [Column(header="system", kind="text"), *(Column(header=one, form=".4f") for one in scores.values())]
    rows = [
        (row["system"], *(_number(row[f"{dataset}_{score}"]) for score in scores)) for row in read_rows("codexglue.csv")
    ]
    shown = [row for row in rows if any(row[1:])]
    return Reference(
        key="codexglue",
        title=f"CodeXGLUE leaderboard, {DATASETS[dataset][0]}",
        source="Public leaderboard of CodeXGLUE (Lu et al. 2021)",
        difference="Official test; our rows are official dev or other data: not the same set.",
        caveats=CODEXGLUE_CAVEATS,
        columns=Table.of_rows("", headers, shown).columns,
    )
