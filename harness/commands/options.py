"""Flags of a command from its configuration: one declaration gives name, type, range, default and help.

``strategies: tuple[str, ...]`` becomes a repeatable ``--strategy``; a ``bool`` that is false a ``--flag``, one that may
be either ``--flag/--no-flag``. Flags that are not given are left out, so that a file or a resumed run can decide.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from harness.config import RunConfig
from harness.config.model import Configuration, Placeholder, RefusedValueError, WithPresets, limits
from harness.errors import ConfigError

C = TypeVar("C", bound=Configuration)

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def configured_by(
    model: type[Configuration], *, build: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a configuration, which is built of them for its first parameter.

    With ``build=False`` that receives the flags that were given, by field name. The command's own parameters follow as
    typer reads them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        model.model_rebuild()  # an annotation that cannot be resolved shows itself here
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        fields = {name: model.model_fields[name] for name in _names(model)}
        options = [_parameter(model, name, field) for name, field in fields.items()]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            flags = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in flags.items() if value not in (None, [])}
            command(configure(model, given) if build else given, **values)

        del run.__wrapped__
        parameters = sorted([*options, *own], key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def configure(model: type[C], given: Mapping[str, Any]) -> C:
    """Build a configuration that only flags decide; a refusal names the flag."""
    with named_by_flag(model, model.model_fields):
        return model.build(given)


def one_model(given: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return the flags that were given, with the model that was named before them."""
    if name is not None and given.get("model", name) != name:
        raise ConfigError(f"'{name}' and --model '{given['model']}' are two models. Give one.")
    return {**given} if name is None else {**given, "model": name}


def run_settings(given: Mapping[str, Any], config: Path | None, resume: Path | None) -> RunConfig:
    """Return the configuration of a run: flags over a TOML file, and both over that of the run to resume."""
    from harness.store.run_directory import RunDirectory
    from harness.store.same_run import refuse_absent_plugins

    before: dict[str, Any] = {}
    if resume is not None:
        with RunDirectory.read(resume) as store:
            refuse_absent_plugins(resume, store.manifest)
            before = {key: value for key, value in store.manifest.config.items() if key != "out"}
    file = {} if config is None else RunConfig.read_toml(config)
    settings = RunConfig.of_file(file, {**{key: value for key, value in before.items() if key not in file}, **given})
    if resume is not None and settings.out is not None and settings.out.absolute() != resume.absolute():
        raise ConfigError(f"--out {settings.out} and --resume {resume} name two directories. Omit --out.")
    return settings


@contextmanager
def named_by_flag(model: type[Configuration], given: Collection[str]) -> Iterator[None]:
    """Refuse the values of those settings that flags gave by the names of the flags, others as they are refused."""
    try:
        yield
    except RefusedValueError as error:
        if error.name not in given:
            raise
        shown = f"'{error.value}'" if isinstance(error.value, str) else _value_text(error.value)
        raise ConfigError(f"{flag(error.name, model.model_fields[error.name])} {shown}: {error.reason}.") from None


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads of the CPU, where a number was given."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def flag(name: str, field: FieldInfo) -> str:
    """Return the flag of a field: ``--cors-origin`` of ``cors_origins``, since it is given once per value."""
    if _is_list(field):
        name = f"{name.removesuffix('ies')}y" if name.endswith("ies") else name.removesuffix("s")
    return f"--{name.replace('_', '-')}"


def _parameter(model: type[Configuration], name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _kind(field)
    shown = flag(name, field)
    if kind is bool and _defaults(model, name, field).keys() != {"off"}:
        shown += f"/--no-{shown.removeprefix('--')}"
    placeholder = next((piece.text for piece in _pieces(field) if isinstance(piece, Placeholder)), None)
    panel = next((title for title, names in model.panels.items() if name in names), None)
    if placeholder is None and _is_list(field):
        placeholder = f"<{kind.__name__}>"  # typer would name a list
    option = typer.Option(
        shown, help=_help(model, name, field), metavar=placeholder, show_default=False, rich_help_panel=panel
    )
    needed = field.is_required()
    annotation: Any = list[kind] if _is_list(field) else kind  # type: ignore[valid-type]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else None,
        annotation=Annotated[annotation if needed else annotation | None, option],
    )


def _help(model: type[Configuration], name: str, field: FieldInfo) -> str:
    """Return the description, the choices where it does not name them, the default and the range."""
    text = (field.description or "").rstrip(".")
    choices = _choices(field)
    if choices and not all(choice in text for choice in choices):
        text += f": {', '.join(choices[:-1])} or {choices[-1]}"
    defaults = _defaults(model, name, field)
    if not (field.is_required() or "Default:" in text or defaults.keys() <= {"", "off"}):
        said = [f"{value} ({', '.join(presets)})" for value, presets in defaults.items()]
        text += f". Default: {', '.join(said if len(said) > 1 else defaults)}"
    allowed = limits(_pieces(field))
    return f"{text} ({allowed})." if allowed else f"{text}."


def _defaults(model: type[Configuration], name: str, field: FieldInfo) -> dict[str, list[str]]:
    """Return default as one would type it → presets that have it."""
    defaults: dict[str, list[str]] = {}
    presets = model.presets if issubclass(model, WithPresets) else {}
    for preset, values in presets.items() or [("", {})]:
        defaults.setdefault(_value_text(values.get(name, field.default)), []).append(preset)
    return defaults


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ", ".join(map(_value_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, Enum) else value)


def _kind(field: FieldInfo) -> type:
    """Return what the command line parses: a number or flag where the field is one, else text for pydantic to check."""
    if not _is_list(field) and any(get_origin(part) is tuple for part in get_args(field.annotation)):
        return str  # a comma list
    kinds = {kind for kind in _plain(field.annotation) if not isinstance(kind, str)} - {type(None)}
    return kinds.pop() if len(kinds) == 1 and kinds <= {int, float, bool, Path} and not _choices(field) else str


def _plain(annotation: Any) -> Iterator[Any]:
    """Yield the types that a value, or an item of it, may have, and the texts that it may be."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from map(str, get_args(annotation))
    elif inspect.isclass(annotation) and issubclass(annotation, Enum):
        yield from (str(member.value) for member in annotation)
    elif origin in (Annotated, Union, types.UnionType, tuple):
        for part in get_args(annotation)[: 1 if origin is Annotated else None]:
            yield from _plain(part) if part is not Ellipsis else ()
    else:
        yield annotation


def _choices(field: FieldInfo) -> list[str]:
    return list(dict.fromkeys(each for each in _plain(field.annotation) if isinstance(each, str)))


def _pieces(field: FieldInfo) -> list[Any]:
    def within(annotation: Any) -> Iterator[Any]:
        yield from getattr(annotation, "__metadata__", ())
        for part in get_args(annotation):
            yield from within(part)

    flat = [*field.metadata, *within(field.annotation)]
    return [piece for entry in flat for piece in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _names(model: type[Configuration]) -> list[str]:
    """Return the fields that have a flag, a class's own before those of its bases; one of a single value has none."""
    bases = [inspect.get_annotations(base) for base in model.__mro__]
    names = {name: None for own in bases for name in own if name in model.model_fields}
    return [name for name in names if len(_choices(model.model_fields[name])) != 1]
