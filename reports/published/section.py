"""Published numbers as a section of their own: reference, never a row of ours, never in a ranking or on a front.

Other people's models, machines and data. Each table says what it is of, why it cannot be compared row by row, and what
to know before believing it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from reports.published.green_code import THRESHOLDS, PublishedRun, full_depth, green_code, read_rows, saving
from reports.tables.table import Column, Heading, Line, Part, Table

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
class Reference:
    """One source's results on one language.

    Attributes:
        key: ``green-code`` or ``codexglue``.
        title: what it is of.
        source: whose numbers.
        difference: one line: why it is not comparable row by row with ours.
        caveats: what to know, in sentences.
        columns: each with a cell per row, in the source's order.
    """

    key: str
    title: str
    source: str
    difference: str
    caveats: tuple[str, ...]
    columns: tuple[Column, ...]


def references(languages: Collection[str] = LANGUAGES) -> tuple[Reference, ...]:
    """Return every table, GREEN-CODE first.

    Args:
        languages: which ones a report is about: ``python``, ``java``.
    """
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
    name, language = DATASETS[dataset]
    runs = [run for run in green_code() if run.language == language and _is_shown(run)]

    def numbers(header: str, cells: Iterable[float | None], form: str = ".3f") -> Column:
        return Column(header=header, cells=tuple(cells), form=form)

    return Reference(
        key="green-code",
        title=f"GREEN-CODE on {name}",
        source="Ilager et al. 2025, means over about 1,000 samples, from the authors' result files",
        difference="Savings are relative to their own tuned full depth under the same KV policy, on their GPU.",
        caveats=GREEN_CODE_CAVEATS,
        columns=(
            Column(header="system", cells=tuple(map(_system, runs)), kind="text"),
            Column(header="KV cache", cells=tuple(run.kv for run in runs), kind="text"),
            numbers("layers skipped", (run.layers_skipped for run in runs), "percent"),
            numbers("time saved", (_saving(run, "time_s") for run in runs), "percent"),
            numbers("energy saved", (_saving(run, "energy_j") for run in runs), "percent"),
            numbers("s/sample", (run.time_s for run in runs), ".2f"),
            numbers("J/sample", (run.energy_j for run in runs), ".0f"),
            numbers("ROUGE-L", (run.rouge_l for run in runs)),
            numbers("CodeBLEU", (run.codebleu for run in runs)),
            numbers("exact match", (run.exact_match for run in runs)),
        ),
    )


def _is_shown(run: PublishedRun) -> bool:
    """The paper's bars, and tuned full depth with a cache, which it does not show."""
    if run.strategy == "full":
        return run.kv == "none" or run.weights == "tuned"
    return run.strategy == "rl" and run.threshold in THRESHOLDS


def _system(run: PublishedRun) -> str:
    weights = "untuned" if run.weights == "base" else "tuned"
    how = f"agent, threshold {run.threshold:g}" if run.threshold is not None else f"full depth, {weights}"
    return f"{run.model}: {how}"


def _saving(run: PublishedRun, quantity: str) -> float | None:
    """A share of the same authors' full depth under the same KV policy, which saves nothing over itself."""
    return None if run is full_depth(run) else saving(run, quantity)


def _codexglue(dataset: str) -> Reference:
    """Return the leaderboard of code completion: Lu et al., "CodeXGLUE", 2021, arXiv 2102.04664."""
    scores = {"exact_match": "exact match", "edit_similarity": "edit sim.", "token_accuracy": "token acc."}
    rows = [row for row in read_rows("codexglue.csv") if any(row[f"{dataset}_{score}"] for score in scores)]
    systems = Column(header="system", cells=tuple(row["system"] for row in rows), kind="text")
    columns = (
        Column(header=header, cells=tuple(float(text) if (text := row[f"{dataset}_{score}"]) else None for row in rows),
               form=".4f")
        for score, header in scores.items()
    )  # fmt: skip
    return Reference(
        key="codexglue",
        title=f"CodeXGLUE leaderboard, {DATASETS[dataset][0]}",
        source="Public leaderboard of CodeXGLUE (Lu et al. 2021)",
        difference="Official test; our rows are official dev or other data: not the same set.",
        caveats=CODEXGLUE_CAVEATS,
        columns=(systems, *columns),
    )
