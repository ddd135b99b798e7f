"""Published numbers as a section of their own: reference, never a row of ours, never in a ranking or on a front.

Other people's models, machines and data. Each table says what it is of, why it cannot be compared row by row, and what
to know before believing it. Plain data, and the same as Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from reports.green_code.published_runs import THRESHOLDS, PublishedRun, full_depth, green_code, saving
from reports.published.codexglue import DATASETS, codexglue
from reports.tables.columns import MISSING

__all__ = [
    "CODEXGLUE_CAVEATS",
    "GREEN_CODE_CAVEATS",
    "Reference",
    "ReferenceColumn",
    "ReferenceRow",
    "reference_markdown",
    "references",
]

TITLE = "For reference: published numbers"
LANGUAGES = tuple(DATASETS.values())

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
class ReferenceColumn:
    """A column: a field of :class:`ReferenceRow`, its header, and whether it is shown as a percentage."""

    key: str
    header: str
    percent: bool = False
    decimals: int = 3

    def text(self, row: ReferenceRow) -> str:
        """Return a row's cell."""
        value = getattr(row, self.key)
        if value is None:
            return MISSING
        if isinstance(value, str):
            return value
        text = f"{100 * value:.1f} %" if self.percent else f"{value:.{self.decimals}f}"
        return text.replace("-", "−")


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One published result; ``None`` where nothing is published, fractions where nothing else is said.

    Attributes:
        system: what ran, in words.
        language, dataset: ``python`` and ``PY150``, or ``java`` and ``JavaCorpus``.
        kv: KV policy, or ``None`` where it is not known.
        samples: number of samples.
        layers_skipped, time_saving, energy_saving: shares of the same authors' full depth under the same KV policy.
        time_s, energy_j: per sample.
        rouge_l, codebleu, exact_match, edit_similarity, token_accuracy: 0…1.
    """

    system: str
    language: str
    dataset: str
    kv: str | None = None
    samples: int | None = None
    layers_skipped: float | None = None
    time_saving: float | None = None
    energy_saving: float | None = None
    time_s: float | None = None
    energy_j: float | None = None
    rouge_l: float | None = None
    codebleu: float | None = None
    exact_match: float | None = None
    edit_similarity: float | None = None
    token_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """One source's results on one language.

    Attributes:
        key: ``green-code`` or ``codexglue``.
        title: what it is of.
        source: whose numbers.
        difference: one line: why it is not comparable row by row with ours.
        caveats: what to know, in sentences.
        columns: those that some row has.
        rows: in the source's order.
    """

    key: str
    title: str
    source: str
    difference: str
    caveats: tuple[str, ...]
    columns: tuple[ReferenceColumn, ...]
    rows: tuple[ReferenceRow, ...]


def references(languages: Collection[str] = LANGUAGES) -> tuple[Reference, ...]:
    """Return every table, GREEN-CODE first.

    Args:
        languages: which ones a report is about: ``python``, ``java``.
    """
    wanted = [(dataset, language) for dataset, language in DATASETS.items() if language in languages]
    return (
        *(_green_code(dataset, language) for dataset, language in wanted),
        *(_codexglue(dataset, language) for dataset, language in wanted),
    )


def reference_markdown(languages: Collection[str] = LANGUAGES) -> str:
    """Return the whole section as Markdown; empty where nothing is published."""
    parts = list(_markdown(references(languages)))
    return "\n".join(parts) + "\n" if parts else ""


def _markdown(found: tuple[Reference, ...]) -> Iterator[str]:
    if not found:
        return
    yield f"## {TITLE}"
    yield "\nOther people's models, machines and data: never ranked with the rows above, never on their front."
    for key in dict.fromkeys(reference.key for reference in found):
        alike = [reference for reference in found if reference.key == key]
        for reference in alike:
            yield f"\n### {reference.title}\n"
            yield f"{reference.source}. {reference.difference}\n"
            yield "| " + " | ".join(column.header.replace("\n", " ") for column in reference.columns) + " |"
            yield "|---" + "|--:" * (len(reference.columns) - 1) + "|"
            for row in reference.rows:
                yield "| " + " | ".join(column.text(row) for column in reference.columns) + " |"
        yield ""
        yield from (f"- {caveat}" for caveat in alike[0].caveats)


def _green_code(dataset: str, language: str) -> Reference:
    rows = tuple(_green_code_row(run) for run in green_code() if run.language == language and _is_shown(run))
    return Reference(
        key="green-code",
        title=f"GREEN-CODE on {_name(dataset)}",
        source="Ilager et al. 2025, means over about 1,000 samples, from the authors' result files",
        difference="Savings are relative to their own tuned full depth under the same KV policy, on their GPU.",
        caveats=GREEN_CODE_CAVEATS,
        columns=(
            ReferenceColumn("system", "system"),
            ReferenceColumn("kv", "KV cache"),
            ReferenceColumn("layers_skipped", "layers\nskipped", percent=True),
            ReferenceColumn("time_saving", "time\nsaved", percent=True),
            ReferenceColumn("energy_saving", "energy\nsaved", percent=True),
            ReferenceColumn("time_s", "s/\nsample", decimals=2),
            ReferenceColumn("energy_j", "J/\nsample", decimals=0),
            ReferenceColumn("rouge_l", "ROUGE-L"),
            ReferenceColumn("codebleu", "Code-\nBLEU"),
            ReferenceColumn("exact_match", "exact\nmatch"),
        ),
        rows=rows,
    )


def _is_shown(run: PublishedRun) -> bool:
    """The paper's bars, and tuned full depth with a cache, which it does not show."""
    if run.strategy == "full":
        return run.kv == "none" or run.weights == "tuned"
    return run.strategy == "rl" and run.threshold in THRESHOLDS


def _green_code_row(run: PublishedRun) -> ReferenceRow:
    weights = "untuned" if run.weights == "base" else "tuned"
    how = f"agent, threshold {run.threshold:g}" if run.threshold is not None else f"full depth, {weights}"
    baseline = full_depth(run)
    return ReferenceRow(
        system=f"{run.model}: {how}",
        language=run.language,
        dataset=_name(_dataset(run.language)),
        kv=run.kv,
        samples=run.samples,
        layers_skipped=run.layers_skipped,
        time_saving=None if run is baseline else saving(run, "time_s"),
        energy_saving=None if run is baseline else saving(run, "energy_j"),
        time_s=run.time_s,
        energy_j=run.energy_j,
        rouge_l=run.rouge_l,
        codebleu=run.codebleu,
        exact_match=run.exact_match,
    )


def _codexglue(dataset: str, language: str) -> Reference:
    entries = [entry for entry in codexglue() if entry.dataset == dataset]
    return Reference(
        key="codexglue",
        title=f"CodeXGLUE leaderboard, {_name(dataset)}",
        source="Public leaderboard of CodeXGLUE (Lu et al. 2021)",
        difference="Official test; our rows are official dev or other data: not the same set.",
        caveats=CODEXGLUE_CAVEATS,
        columns=(
            ReferenceColumn("system", "system"),
            ReferenceColumn("exact_match", "exact\nmatch", decimals=4),
            ReferenceColumn("edit_similarity", "edit\nsim.", decimals=4),
            ReferenceColumn("token_accuracy", "token\nacc.", decimals=4),
        ),
        rows=tuple(
            ReferenceRow(
                system=entry.system,
                language=language,
                dataset=_name(dataset),
                exact_match=entry.exact_match,
                edit_similarity=entry.edit_similarity,
                token_accuracy=entry.token_accuracy,
            )
            for entry in entries
        ),
    )


def _name(dataset: str) -> str:
    return {"py150": "PY150", "javacorpus": "JavaCorpus"}[dataset]


def _dataset(language: str) -> str:
    return next(dataset for dataset, other in DATASETS.items() if other == language)
