"""``harness export``, ``convert``, ``submit`` and ``leaderboard``: models, runs and tables for others to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from os.path import exists, isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from harness.appearance.visible_text import json_text, one_line, shell_command, shell_word
from harness.commands.console import escape, note, say, show_progress, stderr, stdout, tell_refused, write
from harness.commands.options import configured_by
from harness.config.model import Folder, ModelChoice
from harness.errors import ConfigError, HarnessError, StoreError
from harness.host.files import real_path

if TYPE_CHECKING:
    from harness.models.facts import Exported
    from reports.interchange import SpeedRow
    from reports.leaderboard.site import Site


class ExportOptions(ModelChoice):
    """The exported model and its card."""

    device: Literal["cpu"] = "cpu"
    weights: Literal["auto", "tuned", "pretrained"] = Field(
        default="auto", description="auto (tuned where there is an adapter), tuned, or pretrained (base)."
    )
    base_model: str | None = Field(
        default=None, min_length=1, max_length=200, description="Hub id that the card names. Default: the catalogue's."
    )
    runs: tuple[Folder, ...] = Field(default=(), description="Run directory of these weights, for the card's results.")


@configured_by(ExportOptions)
def export(
    options: ExportOptions,
    directory: Annotated[
        Path, typer.Argument(help="Folder to make.", metavar="DIR", exists=False, readable=False, show_default=False)
    ],
) -> None:
    """Write tuned weights, merged, as a plain transformers folder with its exits and a model card.

    `harness run --model DIR` finds the exits and what the weights have read.
    """
    from harness.models.export import export as write_folder
    from harness.models.model import resolve
    from harness.running.reading import read_run
    from reports.model_card import model_card

    resolved = resolve(options.request())
    recorded = [read_run(run) for run in options.runs]
    for run in recorded:
        if run.manifest.model.fingerprint != resolved.info.fingerprint:
            raise ConfigError(
                f"--run {run.directory} has other weights ({run.manifest.model.name}, {run.manifest.model.weights}, "
                f"{run.manifest.model.fingerprint or 'no fingerprint'}) than are exported ({resolved.info.name}, "
                f"{resolved.info.weights}, {resolved.info.fingerprint}). Give runs of these."
            )

    def card(exported: Exported, read: Mapping[str, Any]) -> str:
        base = options.base_model or exported.published
        return model_card(directory.name, base, exported.model_dump(), read, [run.summary for run in recorded])

    exported = write_folder(resolved, directory, card, say)
    run_it = shell_command(["harness", "run", "--model", directory])
    say(f"{directory}: {exported.weights} weights, {exported.made_of}. Decode with them: {run_it}")


def submit(
    directory: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN_DIR", readable=False)],
    out: Annotated[
        Path | None, typer.Option(help="Archive to write. Default: RUN.tar.gz here.", metavar="FILE", readable=False)
    ] = None,
) -> None:
    """Check that a run directory can be published, and pack it for `harness leaderboard`; say what is missing.

    Tables and scores are computed again, tokens, counts and times are held against each other, and what has to be
    believed is listed.
    """
    from harness.running.rescore import examine_submission, pack
    from harness.store.packed_run import ARCHIVE
    from reports.leaderboard.checks import CANNOT_BE_CHECKED

    file = out or Path(f"{real_path(directory).name}{ARCHIVE}")
    if not file.name.endswith(ARCHIVE):
        raise StoreError(f"--out {file} does not end in {ARCHIVE}. Use --out {file.name.partition('.')[0]}{ARCHIVE}.")
    submission = examine_submission(directory)
    console = stdout()
    width = max(len(check.name) for check in submission.checks)
    for check in submission.checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        detail = escape(one_line(check.detail))
        console.print(f"{mark} {check.name:<{width}}  {detail}", highlight=False, soft_wrap=True)
    note(f"Cannot be checked: {CANNOT_BE_CHECKED}.")
    failed = sum(not check.passed for check in submission.checks)
    if failed:
        raise StoreError(
            f"{directory} cannot be published: {failed} of {len(submission.checks)} checks failed (above)."
        )
    pack(submission, file)
    packed = shell_word(file)
    note(f"Packed in {packed}. Publish it with `harness leaderboard {packed} --out SITE`.")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run directory, a file of Spec-Bench's answers, or a folder of SPEED-Bench's results.",
            metavar="RUN",
            readable=False,
        ),
    ],
    to: Annotated[
        Literal["rows", "every-eval-ever", "hub"],
        typer.Option(
            help="rows: JSON lines that any engine can write; every-eval-ever: records of that schema; hub: files for "
            ".eval_results/, and eval.yaml."
        ),
    ] = "rows",
    out: Annotated[
        Path | None,
        typer.Option(help="File of rows, or folder of the others. Rows go to stdout without it.", readable=False),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Of Spec-Bench and SPEED-Bench: vanilla decoding's.", readable=False)
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Of their questions. Repeatable. Default: all.", metavar="NAME")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Of hub: id of the benchmark's dataset.", metavar="ID")] = "",
    score: Annotated[str, typer.Option(help="Of hub: the score to show.")] = "edit_similarity",
    organisation: Annotated[str, typer.Option(help="Of every-eval-ever: who measured.")] = "not stated",
) -> None:
    """Write a run's results in formats of others, or turn Spec-Bench's and SPEED-Bench's into rows like ours."""
    from harness.host.files import replace_files
    from harness.running.reading import read_run
    from reports import interchange

    if to == "rows":
        if out is not None and isdir(out):
            raise ConfigError(f"--out {out} is a folder. Give a file for the rows.")
        rows = _speed_rows(source, baseline, category or ())
        text = "".join(f"{row.model_dump_json(exclude_none=True)}\n" for row in rows)
        if out is None:
            write(text, end="")
        else:
            replace_files({out: text.encode()})
        return
    if out is None:
        raise ConfigError(f"--to {to} writes a file for each operating point. Give --out DIR.")
    run = read_run(source)
    if to == "hub":
        if not dataset:
            raise ConfigError("--to hub names a benchmark of the hub. Give --dataset OWNER/NAME.")
        files = {Path(".eval_results") / name: text for name, text in interchange.hub_results(run, dataset, score)}
        files[Path("eval.yaml")] = interchange.hub_benchmark(run, dataset)
    else:
        records = interchange.every_eval_ever(run, organisation)
        files = {Path(name): json_text(record) + "\n" for name, record in records}
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    replace_files({out / name: text.encode() for name, text in files.items()})
    note(f"{len(files)} files in {out}.")


def _speed_rows(source: Path, baseline: Path | None, categories: Sequence[str]) -> Iterable[SpeedRow]:
    from harness.running.reading import read_run
    from reports.interchange import spec_bench_rows, speed_bench_rows, speed_rows

    if (source / "timing.json").exists():
        return speed_bench_rows(source, baseline, categories=categories)
    if isdir(source):
        return speed_rows(read_run(source))
    if baseline is None:
        raise ConfigError(f"{source} is no run directory. Give one, or with Spec-Bench's answers --baseline FILE.")
    return spec_bench_rows(source, baseline, categories=categories)


Refused = list[tuple[Path, str]]


def leaderboard(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, archives of `harness submit`, or folders of them.", metavar="RUN", readable=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the site.", metavar="SITE", readable=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="Keep the runs that the site holds; else all of them must be given.")
    ] = False,
    stored: Annotated[
        bool, typer.Option("--stored", help="Trust each summary.json and all scores, instead of computing them again.")
    ] = False,
    samples: Annotated[
        int, typer.Option(help="Completions to show per operating point.", min=0, max=1000, metavar="N")
    ] = 8,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 if a run is left out or not ranked."),
    ] = False,
) -> None:
    """Merge run directories into a leaderboard: a static site that needs no server and no network.

    What is not comparable (hardware class, energy source, data, weights …) is never ranked together; what `harness
    submit` would refuse (unfinished, contaminated, contradicting itself …) is marked and not ranked.
    index.html#decoding=lossless ranks lossless operating points and full depth among themselves.
    """
    from reports.leaderboard.site import Site

    site = Site(out, merge=merge, shown=samples)
    kept = len(site.runs)
    refused, marked, double = _add_all(site, _sources(paths), stored=stored)
    tell_refused(refused, stderr())
    tell_refused(marked, stderr(), "not ranked")
    site.finish()
    points = sum(len(run.points) for run in site.runs.values())
    counts = {"new": len(site.runs) - kept if merge else 0, "marked and not ranked": len(marked)}
    counts |= {"given twice or there already": double, "left out": len(refused)}
    parts = [f"{len(site.runs)} run(s) with {points} operating points"]
    parts += [f"{count} {what}" for what, count in counts.items() if count or (merge and what == "new")]
    note(f"{', '.join(parts)}. Open {out / 'index.html'} in a browser, or publish the folder as it is.")
    if strict and (refused or marked):
        raise typer.Exit(1)


def _sources(paths: Iterable[Path]) -> list[Path]:
    """Run directories and archives that paths name: themselves, or all below a folder."""
    from harness.running.reading import find_runs
    from harness.store.committed import MANIFEST
    from harness.store.packed_run import ARCHIVE

    found: list[Path] = []
    for path in paths:
        is_folder = isdir(path) and not exists(path / MANIFEST)
        archives = sorted(path.rglob(f"*{ARCHIVE}")) if is_folder else []
        runs = [path] if isfile(path) else find_runs([path])
        found += [*(run for run in runs if not (archives and run == path)), *archives]  # or a folder of archives alone
    return list(dict.fromkeys(found))


def _add_all(site: Site, sources: list[Path], *, stored: bool) -> tuple[Refused, Refused, int]:
    """Add what can be read, one run in memory at a time.

    Returns what was left out, and what was added without a rank, both with reasons; and the number of doubles.
    """
    from harness.registry import plugin_at_fault
    from harness.running.reading import DAMAGE

    refused: Refused = []
    marked: Refused = []
    double = 0
    with show_progress() as progress:
        progress.begin("reading runs", len(sources))
        for done, source in enumerate(sources, 1):
            try:
                reasons = _add(site, source, stored=stored)
                double += reasons is None
                if reasons:
                    marked.append((source, reasons))
            except HarnessError as error:
                refused.append((source, one_line(str(error))))
            except DAMAGE as error:  # met by one run of many: the others are published, and it is named
                what = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
                whose = f" of {at}" if (at := plugin_at_fault(error)) else ""
                reason = f"{source} cannot be understood ({what}); leave it out, and report it as a defect{whose}"
                refused.append((source, reason))
            progress.step(done)
    return refused, marked, double


def _add(site: Site, source: Path, *, stored: bool) -> str | None:
    """Add a run; return why it does not rank, empty where it does, ``None`` where it is there already."""
    from harness.running.reading import read_run
    from harness.running.rescore import rescored
    from harness.store.packed_run import unpacked

    with unpacked(source) if isfile(source) else nullcontext(source) as directory:
        try:
            failed = site.add(read_run(directory, stored=stored, keep=True), None if stored else rescored)
        except StoreError as error:  # of an archive: name it, not the temporary folder
            raise StoreError(str(error).replace(str(directory), str(source))) from None
    return None if failed is None else " ".join(check.detail for check in failed).replace(str(directory), str(source))
