"""Pages of the reference, made of what the code declares when the site is built.

They are never files of the repository, so that they cannot drift from it: the command line is read from the parser,
columns and settings from their declarations, file formats from the records, the HTTP interface from the server's
schema. One file, since all of them share how words, types and tables become Markdown.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin


def filled(page: str) -> str:
    """Put the fields of a configuration where a page leaves room for them: `<!-- fields of MODULE.CLASS -->`."""
    return re.sub(r"^<!-- fields of (\S+) -->$", lambda found: "\n".join(settings(found[1])), page, flags=re.M)


def generated() -> Iterator[tuple[str, str]]:
    """Yield every generated file: its path in the site's sources, and what it says."""
    yield "reference/cli.md", "\n".join(cli())
    yield "reference/registered.md", "\n".join(registered())
    yield "reference/columns.md", "\n".join(columns())
    yield "reference/files.md", "\n".join(formats())
    for name, model in documents().items():
        yield f"reference/schemas/{schema_file(name)}", json.dumps(model.model_json_schema(), indent=2) + "\n"
    api = openapi()
    yield "reference/http.md", "\n".join(http(api))
    yield "reference/schemas/openapi.json", json.dumps(api, indent=2) + "\n"


# ------------------------------------------------------------------------------ Markdown


def text(words: object) -> str:
    """Return words as Markdown that shows them; what stands in backticks stays code."""
    pieces = re.split(r"(`+[^`]+`+)", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", str(words)))
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_\[\]|])", r"\\\1", html.escape(piece, quote=False))
        for piece in pieces
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; nothing where there are no rows."""
    lines = ["| " + " | ".join(cell.replace("\n", " ") for cell in row) + " |" for row in rows]
    if lines:
        yield from ("", "| " + " | ".join(head) + " |", "|" + ":--|" * len(head), *lines, "")


def code(words: object) -> str:
    """Return words as code, in a cell too; nothing for nothing."""
    shown = str(words)
    return f"`{shown}`" if shown else ""


# ------------------------------------------------------------------------------ the command line


def cli() -> Iterator[str]:
    """Yield the page of every command, from the parser."""
    from harness.cli import COMMANDS
    from harness.commands.lazy import as_command

    yield "# The command line\n"
    yield "Made of the parser itself; `harness NAME --help` says the same. Results go to stdout, progress and logs to "
    yield "stderr; [exit codes](index.md#exit-codes) tell a refusal from a defect.\n"
    for name, point in COMMANDS.items():
        command = as_command(name, point.load())
        yield from _command(f"harness {name}", command, "##")
        for below in getattr(command, "commands", ()):
            yield from _command(f"harness {name} {below}", as_command(below, command.load(below)), "###")


def _command(called: str, command: Any, level: str) -> Iterator[str]:
    context = command.make_context(called, [], resilient_parsing=True)
    below = [f"{name.upper()} …" for name in (["recipe"] if hasattr(command, "commands") else ())]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    names = [f"{param.metavar or param.name.upper()}{'…' if param.nargs != 1 else ''}" for param in arguments]
    shown = [name if param.required else f"[{name}]" for name, param in zip(names, arguments, strict=True)]
    yield f"\n{level} {called}\n"
    usage = " ".join([called, *below, *shown, *(["[OPTION]…"] if options else [])])
    yield f"```\n{usage}\n```\n"
    yield f"{prose(command.help or '')}\n"
    for name, argument in zip(names, arguments, strict=True):
        yield f"{code(name)}\n:   {text(argument.help or '')}\n"
    for option in options:
        flags, said = option.get_help_record(context)
        needed = " *(required)*" if option.required else ""
        yield f"{code(flags)}{needed}\n:   {text(said.removesuffix('[required]').strip())}\n"


# ------------------------------------------------------------------------------ settings from Python


def settings(name: str) -> Iterator[str]:
    """Yield the fields of a configuration, named with its module: by its panels, or by who declares them."""
    module, _, cls = name.rpartition(".")
    model = getattr(import_module(module), cls)
    by_class = {base.__name__: inspect.get_annotations(base) for base in reversed(model.__mro__)}
    for title, names in (model.panels or by_class).items():
        fields = {each: model.model_fields[each] for each in names if each in model.model_fields}
        yield f"\n**{title}**\n" if fields else ""
        yield from table(
            ("field", "type", "default", "meaning"),
            (
                (code(each), text(written(field.annotation)),
                 "*required*" if field.is_required() else code(repr(field.get_default(call_default_factory=True))),
                 text(field.description or ""))
                for each, field in fields.items()
            ),
        )  # fmt: skip


def written(annotation: Any) -> str:
    """Return a type as one writes it, without what its parts are annotated with."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return written(parts[0])
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " | ".join(map(written, parts))
    if parts:
        return f"{origin.__name__}[{', '.join(map(written, parts))}]"
    signs = {NoneType: "None", Ellipsis: "..."}
    return signs[annotation] if annotation in signs else str(getattr(annotation, "__name__", annotation))


# ------------------------------------------------------------------------------ what is registered


def registered() -> Iterator[str]:
    """Yield the page of everything that has a name: docstrings, options, ranges, defaults."""
    from harness.registry import REGISTRIES

    yield "# What is registered\n"
    yield "Everything below is an entry point, as yours would be. `harness list` and `harness show NAME` say the same"
    yield "of your installation, with the packages of others.\n"
    for noun, registry in REGISTRIES.items():
        yield f"\n## {noun.replace('_', ' ').capitalize().replace('Kv', 'KV policies')}\n"
        if noun in ("metrics", "models", "families"):
            what = "their units stand among the [columns](columns.md)" if noun == "metrics" else ""
            yield f"Entry points in `{registry.group}`{'; ' if what else ''}{what}.\n"
            yield from table(("name", "what it is"), ((code(e.name), text(e.summary)) for e in registry.entries()))
            continue
        yield f"Entry points in `{registry.group}`.\n"
        for entry in registry.entries():
            yield f"\n### {entry.name}\n"
            thing = registry.load(entry.name)
            yield f"{prose(inspect.getdoc(thing) or entry.summary)}\n"
            if isinstance(thing, type) and is_dataclass(thing):
                yield from _options(entry.name, registry)
            yield f"`{entry.target}`\n"


def _options(name: str, registry: Any) -> Iterator[str]:
    from harness.config.options import option_facts

    yield from table(
        ("option", "type", "range", "default", "meaning"),
        (
            (code(fact.name), text(fact.kind), text(fact.limits), code("" if fact.default is None else fact.default),
             text(fact.description))
            for fact in option_facts(name, registry)
        ),
    )  # fmt: skip


def prose(docstring: str) -> str:
    """Return a docstring's paragraphs, without the sections that a table replaces."""
    said = re.split(r"^(?:Attributes|Args|Raises|Returns):$", docstring, maxsplit=1, flags=re.M)[0]
    paragraphs = re.split(r"\n\s*\n", said.strip())
    return "\n\n".join(
        f"```\n{part}\n```" if part.startswith("    ") else text(" ".join(part.split())) for part in paragraphs
    )


# ------------------------------------------------------------------------------ columns


def columns() -> Iterator[str]:
    """Yield the page of every column that files and frames hold, from the declarations."""
    import harness
    from reports.metrics.vocabulary import all_metrics
    from reports.tables.frame import PARTS

    metrics = {metric.name: metric for metric in all_metrics()}
    derived = {f"{metric.name}_{part}" for metric in metrics.values() for part in metric.parts}
    yield "# Columns\n"
    yield "`harness.columns()` gives this table as a frame. What was not measured is empty, never zero. In"
    yield "`summary.csv` and in `harness.read(…).rows` a metric is the column of its name, and what its estimate holds"
    yield "besides follows it:\n"
    yield from table(
        ("ending", "what it holds"), ((code(f"_{p}"), text(said.format("it"))) for p, said in PARTS.items() if p)
    )
    for name, frame in harness.columns().groupby("table", sort=False):
        yield f"\n## {name}\n"
        yield from table(
            ("column", "unit", "meaning", "endings"),
            (
                (code(row.column), text(row.unit), text(row.meaning),
                 " ".join(code(f"_{part}") for part in getattr(metrics.get(str(row.column)), "parts", ())))
                for row in frame.itertuples() if row.column not in derived
            ),
        )  # fmt: skip


# ------------------------------------------------------------------------------ file formats


def documents() -> Mapping[str, Any]:
    """Return file → record of a line, or of the whole file."""
    from harness.models.artefacts import ArtefactFacts
    from harness.models.facts import Exported
    from harness.records import Manifest, SampleRecord, ScoresRecord, WindowRecord
    from harness.records.calibration import Calibration
    from harness.records.certificate import Certificate
    from harness.records.guarantee import CalibratedPoint
    from harness.records.summary import Summary
    from harness.replay.records import Suitability, Sweep
    from harness.study.ledger import Event, StudyRecord
    from harness.study.step_run import StepRecord
    from reports.interchange import SpeedRow

    return {
        "manifest.json": Manifest,
        "samples.jsonl": SampleRecord,
        "windows.jsonl": WindowRecord,
        "scores.json": ScoresRecord,
        "summary.json": Summary,
        "rows.jsonl": SpeedRow,
        "operating-point.json": CalibratedPoint,
        "certificate.json": Certificate,
        "suitability.json": Suitability,
        "sweep.json": Sweep,
        "calibration.json": Calibration,
        "study.json": StudyRecord,
        "events.jsonl": Event,
        "step.json": StepRecord,
        "artefact.json": ArtefactFacts,
        "early_exit.json": Exported,
    }


MADE_BY = {
    "manifest.json": "`harness run`, once, before the first sample.",
    "samples.jsonl": "`harness run`: a line per sample × operating point. The line of its window commits it.",
    "windows.jsonl": "`harness run`: a line per window. It ends with a SHA-256 of all that was committed before it.",
    "scores.json": "`harness rescore`: scores that stand in place of those in `samples.jsonl`, which keeps its own.",
    "summary.json": "`harness run` and `harness report`: can be made of the other files again.",
    "rows.jsonl": "`harness convert --out rows.jsonl`, or by any other engine: a line per way of decoding.",
    "operating-point.json": "`harness calibrate`; `harness run --strategy @FILE` takes it.",
    "certificate.json": "`harness verify --json FILE`.",
    "suitability.json": "`harness suitability --out DIR`.",
    "sweep.json": "`harness sweep --out DIR`; `sweep.csv` has its rows.",
    "calibration.json": "`harness sweep --out DIR`, of its scores: which thresholds tell right exits from wrong ones.",
    "study.json": "`harness study`, when it begins or its grid has changed.",
    "events.jsonl": "`harness study`: a line for whatever becomes of a point or a step.",
    "step.json": "`harness study`, last, in the folder of a step: without it, the folder is not used.",
    "artefact.json": "`harness train NAME`, as `artefacts/MODEL/NAME.json` beside the tensors, `NAME.safetensors`.",
    "early_exit.json": "`harness export`, in the exported folder.",
}


def schema_file(name: str) -> str:
    """Return the file of a document's JSON Schema."""
    return f"{name.partition('.')[0]}.schema.json"


def formats() -> Iterator[str]:
    """Yield the page of the files that others may build on, from the records that are written."""
    yield "# File formats\n"
    yield "A run directory holds `manifest.json`, `samples.jsonl`, `windows.jsonl` and `summary.json`, and after"
    yield "`harness rescore` `scores.json`. Every record"
    yield "names its run, and each window's line seals what was committed before it: a changed, lost or foreign line is"
    yield "refused by whatever reads the run. `null` means not measured or not defined, never zero; fields that you do"
    yield "not know may be added in later versions.\n"
    below: dict[str, Any] = {}
    for name, model in documents().items():
        schema = model.model_json_schema()
        yield f"\n## {name}\n"
        yield f"Written by {MADE_BY[name]} [JSON Schema](schemas/{schema_file(name)}).\n"
        yield from _fields(schema)
        below |= schema.get("$defs", {})
    yield from trace()
    yield "\n## Records within\n"
    for name, schema in sorted(below.items()):
        yield f"\n### {name}\n"
        yield from _fields(schema)


def trace() -> Iterator[str]:
    """Yield what a trace consists of, from the docstring of what writes it."""
    from harness.training.traces import store

    said = re.sub(r"\n {8,}", " ", store.__doc__ or "")
    rows = [re.split(r"\s{2,}", line) for line in said.splitlines() if line.startswith("``")]
    yield "\n## A trace\n"
    yield "A folder, written by `harness trace` and `harness suitability --out DIR`. `index.json` says what it is of"
    yield "and lists shards, files of safetensors:\n"
    yield from table(("field", "meaning"), (list(map(text, row)) for row in rows if len(row) == 2))
    yield "A shard has a row per token, the rows of a document one after the other (n tokens, E exit points, D hidden"
    yield "size):\n"
    yield from table(("column", "shape, type", "meaning"), (list(map(text, row)) for row in rows if len(row) == 3))


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    docstring = schema.get("description", "")
    yield f"{prose(docstring)}\n"
    said = {name: meaning for names, meaning in _attributes(docstring) for name in names}
    yield from table(
        ("field", "type", "meaning"),
        (
            (code(name), _linked(found), text(said.get(name) or found.get("description", "")))
            for name, found in schema.get("properties", {}).items()
        ),
    )


def _attributes(docstring: str) -> Iterator[tuple[list[str], str]]:
    """Yield names that share a meaning, and the meaning, of a docstring's section."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.sub(r"\n {8,}", " ", section)
    for line in entries.splitlines():
        for names, meaning in re.findall(r"(?:^\s*|(?<=\. ))(\w+(?:, \w+)*): (.*?)(?=\. \w+(?:, \w+)*: |$)", line):
            yield names.split(", "), meaning.rstrip(".") + "."


# ------------------------------------------------------------------------------ HTTP


def openapi() -> dict[str, Any]:
    """Return the schema that a server answers with; no model is loaded for it."""
    from harness.serving.app import make_app

    return make_app(cast("Any", None)).openapi()


def http(api: Mapping[str, Any]) -> Iterator[str]:
    """Yield the page of the server's interface."""
    yield "# HTTP\n"
    yield f"{text(api['info']['description'])} A running server answers `/openapi.json` with the same schema:"
    yield "[openapi.json](schemas/openapi.json). How to start one: [Serve your editor](../tutorials/editor.md).\n"
    yield "\n## Routes\n"
    for path, item in api["paths"].items():
        for method, route in item.items():
            yield f"\n### {method.upper()} {path}\n"
            yield f"{prose(route.get('description') or route.get('summary', ''))}\n"
            yield from table(
                ("parameter", "in", "type", "meaning"),
                ((code(p["name"]), p["in"], text(_kind(p["schema"])), text(p.get("description", "")))
                 for p in route.get("parameters", ())),
            )  # fmt: skip
            body = route.get("requestBody", {}).get("content", {})
            for schema in {
                json.dumps(found.get("schema", {})): found.get("schema", {}) for found in body.values()
            }.values():
                yield f"Body: {_linked(schema)}.\n"
            answers = {code_: _answer(found) for code_, found in route.get("responses", {}).items()}
            yield from table(("status", "answer"), ((code(code_), said) for code_, said in answers.items()))
    yield "\n## Bodies\n"
    for name, schema in sorted(api["components"]["schemas"].items()):
        yield f"\n### {_label(name)}\n"
        yield f"{prose(schema.get('description', ''))}\n"
        needed = schema.get("required", ())
        yield from table(
            ("field", "type", "meaning"),
            (
                (
                    code(field) + (" *(required)*" if field in needed else ""),
                    _linked(found),
                    text(found.get("description", "")),
                )
                for field, found in schema.get("properties", {}).items()
            ),
        )


def _answer(found: Mapping[str, Any]) -> str:
    content = [_linked(body["schema"]) for body in found.get("content", {}).values() if body.get("schema")]
    return " ".join([text(found.get("description", "")), *dict.fromkeys(content)]).strip()


def _kind(schema: Mapping[str, Any]) -> str:
    """Return what a value may be, in words."""
    if "$ref" in schema:
        return _label(str(schema["$ref"]).rpartition("/")[2])
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    for joint in ("anyOf", "oneOf"):
        if joint in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[joint]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def _label(name: str) -> str:
    """Return a schema's name as one reads it: two of a name are told apart by their module."""
    return re.sub(r"^\w+__(\w+?)__(\w+)$", r"\1.\2", name)


def _linked(schema: Mapping[str, Any]) -> str:
    """Return what a value may be, with links to what is described below."""
    names = {_label(name) for name in re.findall(r'"#/(?:components/schemas|\$defs)/([^"]+)"', json.dumps(schema))}
    links = {text(name): f"[{text(name)}](#{name.lower().replace('.', '')})" for name in names}
    return re.sub(r"[\w.-]+", lambda word: links.get(word[0], word[0]), text(_kind(schema)))
