"""The base of every configuration, and the values that several have: models, devices, documents, names, presets.

A field declares an option once: name, type, range, default and description are the flag's, too. No torch at import.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.contracts import ExitHead, KVInput, ModelRequest, WeightsChoice
from harness.errors import ConfigError, complaint, did_you_mean
from harness.host.files import DEEPEST_PATH, read_toml, refusing
from harness.registry import KV_POLICIES, METERS, WEIGHTS_FORMATS, Registry


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The placeholder of a value in a command's help: ``Annotated[Path, Placeholder("DIR")]``."""

    text: str


DISK = "disk"
"""Layers in a file that is mapped into memory: the CPU multiplies, and lets go of what it needs room for."""

Span: TypeAlias = tuple[int, int, str]
"""First and last layer, from 1, and their device."""

_SPAN = re.compile(rf"(\d{{1,4}})(?:-(\d{{1,4}}))?=(cpu|cuda:\d{{1,3}}|{DISK})", re.ASCII)


def parse_device_map(text: str) -> tuple[Span, ...]:
    """Return what an explicit map says, in the order of the layers; nothing for ``auto``."""
    if text == "auto":
        return ()
    spans = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"'{part}' should be LAYERS=DEVICE, such as 17-32=cuda:1, with cpu, cuda:N or {DISK}")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last:
            raise ValueError(f"'{part}' names no layers: they count from 1, the first one before the last")
        spans.append((first, last, found[3]))
    spans.sort()
    for (_, last, _), (first, *_) in pairwise(spans):
        if first <= last:
            raise ValueError(f"layer {first} is named twice")
    return tuple(spans)


def _checked(text: str | None) -> str | None:
    if text is not None:
        parse_device_map(text)
    return text


DeviceMap = Annotated[
    str | None,
    AfterValidator(_checked),
    Placeholder("MAP"),
    Field(
        description="Layers beyond --device, for a model that does not fit one: auto (accelerate's plan by free "
        "memory), or LAYERS=DEVICE[,…] with cpu, cuda:N or disk, such as 17-32=cuda:1; the rest stays on --device. "
        "Default: all of it."
    ),
]


def registered(registry: Registry[Any], name: str, also: tuple[str, ...] = ()) -> str:
    """Return a name that stands in a registry, or is one of a few words beside it."""
    if name not in registry and name not in also:
        known = (*also, *registry.names())
        raise ValueError(f"unknown {registry.noun} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return name


STORED = (
    "How matrices are stored and multiplied: auto (the fastest here that keeps float32's tokens, timed when the model "
    f"is loaded), or a format of `harness list`: {', '.join(WEIGHTS_FORMATS.names())}"
)
"""Description of a weights format."""

KVName: TypeAlias = Annotated[str, AfterValidator(partial(registered, KV_POLICIES))]
FormatName: TypeAlias = Annotated[str, AfterValidator(partial(registered, WEIGHTS_FORMATS, also=("auto",)))]


def comma_list(value: object, each: Callable[[Any], Any] = str, separator: str = ",") -> object:
    """Take ``a,b``, or a list, apart: its values, each once; one alone is that one, and anything else is left alone."""
    if isinstance(value, str):
        value = [part.strip() for part in re.split(separator, value)]
    if not isinstance(value, list | tuple) or not all(isinstance(one, str | int) for one in value):
        return value
    if not value:
        raise ValueError("names nothing")
    once = tuple(dict.fromkeys(map(each, value)))
    return once[0] if len(once) == 1 else once


def writable(value: Any) -> Any:
    """Return a value whose texts and paths, those of its items included, can be written and opened."""
    items = value if isinstance(value, list | tuple) else (value,)
    for text in (str(item) for item in items if isinstance(item, str | Path)):
        if "\0" in text:
            raise ValueError("it holds a NUL character, which no name and no path can have")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it is not valid UTF-8. Use a name that is") from None
        if text.count("/") > DEEPEST_PATH:
            raise ValueError(f"it has more than {DEEPEST_PATH} folders inside one another. Give a shorter path")
    return value


@dataclass(frozen=True, slots=True)
class Named:
    """A registered name as written, and the options given for it, still text; as text it is read back as the same."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{option}={value}" for option, value in self.options)])


def parse_named(text: str, given: str, noun: str, form: str) -> Named:
    """Read ``NAME[:option=value]…``."""
    name, *pieces = (piece.strip() for piece in text.split(":"))
    if not name:
        raise ConfigError(f"{given} names no {noun}. {form}")
    options: dict[str, str] = {}
    for piece in pieces:
        option, _, value = (part.strip() for part in piece.partition("="))
        if not option or not value:
            raise ConfigError(f"{given} cannot be read at '{piece}'. {form}")
        if option in options:
            raise ConfigError(f"{given} gives option '{option}' twice.")
        options[option] = value
    return Named(name, tuple(options.items()))


DEFAULT_MODEL = "smollm2-135m"


class RefusedValueError(ConfigError):
    """What pydantic refuses, in one line; ``name`` is the option's, empty where options contradict one another."""

    def __init__(self, error: ValidationError, values: Mapping[str, Any]) -> None:
        first = error.errors()[0]
        self.name = str(first["loc"][0]) if first["loc"] else ""
        self.value, self.reason = first["input"], complaint(error).replace("tuple", "list")  # files have lists
        where, missing = _place(first["loc"], values), first["type"] == "missing"
        if missing:
            where = ".".join(filter(None, (where, str(first["loc"][-1]))))
        elif first["type"] == "tuple_type":
            self.reason += f", such as [{self.value!r}]"
        shown = where if missing else f"{where} = {self.value!r}"
        super().__init__(f"{shown}: {self.reason}." if where else f"{self.reason}.")


class ContradictionError(ConfigError):
    """Values that are allowed, and contradict one another."""


def _place(loc: Iterable[int | str], values: Mapping[str, Any]) -> str:
    """Return where a value stands, as ``grid.model`` or ``tasks[1]``, without pydantic's names of a union's parts."""
    place, value = "", values
    for part in loc:
        try:
            value = value[part]  # type: ignore[index]
        except (LookupError, TypeError):
            continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place


class Configuration(BaseModel):
    """Base of configurations. Frozen; what is not allowed is refused in one line, however one is made.

    Attributes:
        panels: title of a panel of the help → the fields whose flags stand in it; the others stand in one for all.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _texts_can_be_written(cls, value: Any, field: ValidationInfo) -> Any:
        if value == "" != cls.model_fields[str(field.field_name)].default:
            raise ValueError("it is empty. Name something, or leave it out")
        return writable(value)

    def __init__(self, **values: Any) -> None:
        known = type(self).model_fields
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown configuration key '{key}'.{did_you_mean(key, known)}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RefusedValueError(error, values) from None

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration that a mapping describes."""
        return cls(**values)

    @classmethod
    def of_file(cls, file: Mapping[str, Any], flags: Mapping[str, Any]) -> Self:
        """Return what a file says with flags laid over it; what the file says behind a flag must be allowed, too."""
        together = {**file, **flags}
        for name in file.keys() & flags.keys():
            try:
                cls.build({**together, name: file[name]})
            except ContradictionError:
                pass  # the flag may be there to end it
            except RefusedValueError as error:
                raise ConfigError(error.message) if error.name == name else error from None
        return cls.build(together)

    @classmethod
    def part_of(cls, whole: Self) -> Self:
        """Return what this class declares of a configuration that inherits it; nothing is validated again."""
        return cls.model_construct(**{name: getattr(whole, name) for name in cls.model_fields})

    def replace(self, **changes: Any) -> Self:
        """Return the same with some values replaced."""
        return self.build({**self.model_dump(exclude_unset=True), **changes})

    @classmethod
    def read_toml(cls, path: Path) -> dict[str, Any]:
        """Return the keys of a TOML file, for :meth:`build` after flags were laid over them."""
        with refusing(path, ConfigError, "Give a TOML file."):
            return read_toml(path)


def limits(metadata: Iterable[Any]) -> str:
    """Return the range that a field's metadata allows, in signs; empty where there is none."""
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    pairs = ((sign, getattr(piece, name, None)) for piece in metadata for name, sign in signs)
    return ", ".join(dict.fromkeys(f"{sign} {value}" for sign, value in pairs if value is not None))


def _one(task: str) -> str:
    if "," in task:
        raise ValueError("give each task by itself: --task NAME --task NAME, in a file a list")
    return task


ModelName = Annotated[str, Field(min_length=1, description="Catalogue name, hub id, folder or GGUF file.")]
Artefacts = Annotated[
    str | None,
    Field(description="Folder of `harness train`, or a shipped set. Default: artefacts/MODEL, then shipped."),
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Threads = Annotated[int | None, Field(ge=1, le=1024, description="CPU threads. Default: torch's choice.")]
Folder = Annotated[Path, Placeholder("DIR")]
File = Annotated[Path, Placeholder("FILE")]
OperatingPoint = Annotated[str, Placeholder("SPEC")]
TaskName = Annotated[str, Placeholder("TASK"), AfterValidator(_one)]
Source = Annotated[str, Placeholder("SOURCE")]


class ModelChoice(Configuration):
    """Which model, with which weights and exits, and where it runs."""

    model: ModelName = DEFAULT_MODEL
    exit_points: Annotated[str, Placeholder("LAYERS")] = Field(
        default="paper", description="paper (GREEN-CODE's rule), all, or layers such as 4,8,12."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Data type of activations and of keys and values."
    )
    device: str = Field(default="auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N.")
    weights: WeightsChoice = Field(
        default="auto",
        description="auto (tuned where there is an adapter), tuned (with the adapter of `harness train lite`), "
        "pretrained (base), or random (full size without weights).",
    )
    exit_head: ExitHead = Field(
        default="auto",
        description="What reads an exit: auto (shortcut where there are some for the weights), shared (the model's "
        "own head) or shortcut (an exit module of its own before it).",
    )
    artefacts: Artefacts = None

    def request(self, seed: int = 0) -> ModelRequest:
        """Return which model is asked for; ``seed`` draws random weights."""
        return ModelRequest(
            self.model, self.weights, self.dtype, self.exit_points, self.exit_head, self.artefacts, seed
        )


class ModelConfiguration(ModelChoice):
    """Configuration of a model that decodes: which, where it runs, and what measures its energy."""

    def request(self, seed: int = 0) -> ModelRequest:
        """Return which model is asked for; ``seed`` draws random weights."""
        return replace(super().request(seed), weights_format=self.weights_format, device_map=self.device_map)

    weights_format: FormatName = Field(default="auto", description=f"{STORED}.")
    device_map: DeviceMap = None
    kv_input: KVInput = Field(
        default="hidden",
        description="What propagate fills K,V of skipped layers from: the exit's hidden state, or the line from "
        "there to what the exit's shortcut makes of it.",
    )
    threads: Threads = None
    energy: str = Field(
        default="auto",
        description="Meter: auto (the best sensor found, else the estimate), or one of `harness list meters`: "
        f"{', '.join(f'{name}:FILE' if name == 'replay' else name for name in METERS.names())}.",
    )
    tdp_w: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Watts the energy estimate assumes for all cores. Default: 4 W per core.",
    )


class DocumentChoice(Configuration):
    """Tasks, and where their documents come from."""

    tasks: tuple[TaskName, ...] = Field(
        default=("py150", "javacorpus"), description="Task whose documents are read. Repeatable."
    )
    sources: tuple[Source, ...] = Field(
        default=("embedded",), description="embedded, hub, or PATH. Repeatable; each in equal shares."
    )

    @model_validator(mode="after")
    def _a_file_is_of_one_task(self) -> Self:
        if "tasks" not in self.model_fields_set:
            for source in self.sources:
                if os.path.isfile(os.path.expanduser(source)):
                    raise ConfigError(
                        f"--source {source} is one file and would be read as {' and as '.join(self.tasks)}. "
                        "Name its --task."
                    )
        return self


class WithPresets(Configuration):
    """A configuration some of whose values depend on a preset.

    Attributes:
        presets: preset → option → its value there; an option that a preset leaves out keeps its default.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def under(self, preset: str) -> Self:
        """Return the same with a preset's values for what was not given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.build({**self.presets[preset], **given})
