"""The ``harness`` command. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 the reader of stdout went away, or a defect (with its traceback); 2 something that was
asked for cannot be done (one line says what and the remedy); 130 interrupted. Heavy imports happen inside the
subcommands, so that ``--help`` and ``list`` are instant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import doctor_command, reproduce_command, sweep_command, training_commands
from harness.errors import HarnessError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.summary import Summary

__all__ = ["app", "main"]

# Base of the parser's complaints. typer exports this one of them, whichever click it is built on.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="harness",
    help="Benchmark early-exit decoding of code language models: accuracy, time, energy and layers, compared fairly.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"early-exit-harness {version('early-exit-harness')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command and turn refusals into one line and an exit code."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], prog_name="harness", standalone_mode=False)
    except HarnessError as error:
        _refuse(str(error))
        sys.exit(error.exit_code)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        where = getattr(context, "command_path", "harness")
        _refuse(f"{error.format_message().rstrip('.')}. See `{where} --help`.")  # type: ignore[attr-defined]
        sys.exit(HarnessError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
def run(
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:option=value[,value…]]; a comma list makes one operating point each. Repeatable. "
            "Full depth is always added as the baseline.",
            metavar="SPEC",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Catalogue name, hub id or folder. Default: smollm2-135m.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="py150, javacorpus. Repeatable. Default: py150.")] = None,
    protocol: Annotated[str | None, typer.Option(help="green-code or codexglue-line. Default: green-code.")] = None,
    source: Annotated[
        str | None, typer.Option(help="embedded, hub, or PATH of a JSONL file or dataset folder. Default: embedded.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples per task; 0 for all. Default: 16.")] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="K,V of skipped layers: propagate, recompute, none, skip; a comma list compares. Default: propagate."
        ),
    ] = None,
    kv_input: Annotated[
        str | None,
        typer.Option(help="What propagate fills them from: hidden, or shortcut. Default: hidden."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples decoded together. Default: 1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's choice.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="auto, tuned, pretrained or random. Default: auto, tuned where there is an adapter."),
    ] = None,
    exit_head: Annotated[
        str | None,
        typer.Option(help="auto, shared or shortcut. Default: auto, shortcut where there are maps for the weights."),
    ] = None,
    artefacts: Annotated[
        str | None,
        typer.Option(help="Folder of `harness train`, or a shipped set. Default: artefacts/MODEL, then shipped."),
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="auto, nvml, rapl, estimate, none or replay:FILE. Default: auto.")
    ] = None,
    attribute: Annotated[
        bool | None,
        typer.Option("--attribute", help="Measure where the time goes: adds a run of each strategy that never exits."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Repetitions of each block, each in a fresh process. Default: 1.")
    ] = None,
    arrival_rate: Annotated[
        float | None,
        typer.Option(help="Requests per second, at random times, with a queue. Default: one after the other."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides sampling, order and random strategies. Default: 0.")] = None,
    exit_points: Annotated[
        str | None, typer.Option(help="paper, all, or layers such as 4,8,12. Default: paper.", metavar="LAYERS")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Overrides the protocol's limit.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Samples per interleaved block. Default: from the meter.")
    ] = None,
    tdp_w: Annotated[
        float | None, typer.Option(help="Watts the energy estimate assumes for all cores. Default: 4 W per core.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Measure windows that other work contaminated again, up to 3 times.")
    ] = None,
    idle_s: Annotated[
        float | None,
        typer.Option(help="Seconds of idle power before and after the work; 0 for none. Default: from the sensor."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/TIME-MODEL-TASK.", metavar="DIR")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a run directory.", metavar="DIR")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with the same names; flags win.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")] = False,
) -> None:
    """Run operating points over a task and print the comparison. Without options: the demo."""
    given: dict[str, Any] = {
        "strategies": tuple(strategy) if strategy else None,
        "model": model,
        "tasks": tuple(task) if task else None,
        "protocol": protocol,
        "source": source,
        "limit": limit,
        "kv": kv,
        "kv_input": kv_input,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "weights": weights,
        "exit_head": exit_head,
        "artefacts": artefacts,
        "energy": energy,
        "attribute": attribute,
        "repeats": repeats,
        "arrival_rate": arrival_rate,
        "seed": seed,
        "exit_points": exit_points,
        "max_new_tokens": max_new_tokens,
        "block_size": block_size,
        "tdp_w": tdp_w,
        "strict": strict,
        "idle_s": idle_s,
        "out": out,
    }
    from harness.settings import resolve_settings

    settings = resolve_settings(given, config, resume)
    console = _stderr()
    _log_to(console)
    from harness.progress import RunProgress
    from harness.runner import execute

    with RunProgress(console) as progress:
        try:
            result = execute(settings, resume=resume, observer=progress)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
    _show(result.summary, as_json=as_json)
    console.print(
        f"[dim]Records, report.md, summary.csv and summary.json are in {_escape(str(result.directory))}[/]",
        soft_wrap=True,
    )


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="strategies, tasks, models or meters; all of them when left out.")
    ] = None,
) -> None:
    """List what is registered, third-party packages included."""
    from rich.table import Table

    registries = _registries()
    if kind is not None and kind not in registries:
        raise UnknownNameError("kind of thing", kind, registries)
    console = _stdout()
    for noun in [kind] if kind else list(registries):
        table = Table(title=noun, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        table.add_column("from", style="dim", overflow="fold")
        for entry in registries[noun].entries():
            table.add_row(entry.name, _escape(entry.summary), entry.distribution)
        console.print(table)
        console.print()


@app.command()
def show(name: Annotated[str, typer.Argument(help="A strategy, task, model or meter.")]) -> None:
    """Show one strategy, task, model or meter: source paper, options, ranges and defaults."""
    registries = _registries()
    holders = [noun for noun, registry in registries.items() if name in registry]
    if not holders:
        known = [known for registry in registries.values() for known in registry.names()]
        raise UnknownNameError("name", name, known, "See `harness list`.")
    for noun in holders:
        _show_entry(noun, name)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN_DIR…")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the tables and Pareto fronts of run directories, and write report.md, summary.csv and summary.json."""
    from harness.runner import summarise_directory
    from reports.export import write_report

    summaries = [summarise_directory(directory) for directory in directories]
    if as_json:
        parts = [summary.model_dump(mode="json") for summary in summaries]
        print(json.dumps(parts if len(parts) > 1 else parts[0], indent=2))
    else:
        for summary in summaries:
            _show(summary, as_json=False)
    for summary, directory in zip(summaries, directories, strict=True):  # last: it fails where only reading is allowed
        write_report(summary, directory)


app.command()(doctor_command.doctor)
app.command()(reproduce_command.reproduce)
app.command()(training_commands.trace)
app.command()(sweep_command.sweep)
app.add_typer(training_commands.app)


def _show(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print(summary.model_dump_json(indent=2))
        return
    from reports.terminal import render

    _stdout().print(render(summary))


def _show_entry(noun: str, name: str) -> None:
    import inspect

    registry = _registries()[noun]
    entry, console = registry.entry(name), _stdout()
    console.print(f"[bold cyan]{name}[/] [dim]({registry.noun} from {entry.distribution}, {entry.target})[/]")
    thing = registry.load(name)
    if isinstance(thing, type):
        console.print(_escape(inspect.getdoc(thing) or ""), highlight=False)
    else:
        console.print(_escape(entry.summary), highlight=False)
        _show_facts(console, thing)
    if noun == "strategies":
        _show_options(console, name)
    console.print()


def _show_facts(console: Console, thing: Any) -> None:
    """Print the fields of a catalogue entry."""
    import dataclasses

    if not dataclasses.is_dataclass(thing):
        return
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if value and field.name != "name":
            console.print(f"  [dim]{field.name}[/] {_escape(str(value))}", highlight=False)


def _show_options(console: Console, name: str) -> None:
    from rich.table import Table

    from harness.options import option_facts

    facts = option_facts(name)
    if not facts:
        console.print("\nNo options.")
        return
    table = Table(title="Options", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for column in ("option", "type", "range", "default", "meaning"):
        table.add_column(column, style="cyan" if column == "option" else "", overflow="fold")
    for fact in facts:
        default = "" if fact.default is None else _escape(str(fact.default))
        table.add_row(fact.name, fact.kind, fact.limits, default, _escape(fact.description))
    console.print()
    console.print(table)
    example = "" if facts[0].default is None else f":{facts[0].name}={facts[0].default}"
    console.print(f"\n[dim]harness run --strategy {name}{example}[/]")


def _registries() -> dict[str, Any]:
    from harness.registry import METERS, MODELS, STRATEGIES, TASKS

    return {"strategies": STRATEGIES, "tasks": TASKS, "models": MODELS, "meters": METERS}


def _refuse(message: str) -> None:
    """Print one line, whatever line breaks a file name or another library brought into the message."""
    _stderr().print(f"[bold red]error:[/] {_escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)


def _log_to(console: Console) -> None:
    """Send warnings to the console that draws the progress bar, so that neither overwrites the other."""
    import logging

    class OneLine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = _escape(" ".join(record.getMessage().split()))
            console.print(f"[yellow]{record.levelname.lower()}:[/] {message}", highlight=False, soft_wrap=True)

    logging.basicConfig(level=logging.WARNING, handlers=[OneLine()])


def _stdout() -> Console:
    from rich.console import Console

    return Console(emoji=False)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, emoji=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
