"""The base of every configuration: frozen, strict about its names, built from flags over a TOML file.

A field declares an option once: its name, type, range, default and description are the flag's as well
(:mod:`harness.commands.options`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.config.device_map import DeviceMap
from harness.config.placeholder import Placeholder
from harness.config.registered import FormatName
from harness.config.texts import writable
from harness.contracts import ExitHead, KVInput, ModelRequest, WeightsChoice
from harness.errors import ConfigError, complaint, did_you_mean
from harness.host.foreign_files import DocumentError, read_toml

__all__ = [
    "DEFAULT_MODEL",
    "Artefacts",
    "Configuration",
    "File",
    "Folder",
    "ModelChoice",
    "ModelConfiguration",
    "ModelName",
    "OperatingPoint",
    "Placeholder",
    "RefusedValueError",
    "Seed",
    "Source",
    "TaskName",
    "Threads",
    "limits",
]

DEFAULT_MODEL = "smollm2-135m"


class RefusedValueError(ConfigError):
    """A configuration that pydantic refuses, in one line.

    Args:
        error: what pydantic says.
        values: of the configuration, as they were given.

    Attributes:
        name: of the option; empty where options contradict one another.
        value: as it was given.
        reason: a phrase without its period.
    """

    def __init__(self, error: ValidationError, values: Mapping[str, Any]) -> None:
        first = error.errors()[0]
        self.name = str(first["loc"][0]) if first["loc"] else ""
        self.value, self.reason = first["input"], complaint(error).replace("tuple", "list")  # files have lists
        where, missing = _place(first["loc"], values), first["type"] == "missing"
        if missing:
            where = ".".join(filter(None, (where, str(first["loc"][-1]))))
        elif first["type"] in ("list_type", "tuple_type"):
            self.reason += f": write [[{where}]]" if isinstance(self.value, Mapping) else f", such as [{self.value!r}]"
        shown = where if missing else f"{where} = {self.value!r}"
        super().__init__(f"{shown}: {self.reason}." if where else f"{self.reason}.")


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

    Raises:
        ConfigError: unknown name, wrong type or out of range; says which and what is allowed.

    Attributes:
        panels: title of a panel of the help → the fields whose flags stand in it; the others stand in one for all.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _texts_can_be_written(cls, value: Any) -> Any:
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
        """Return the configuration that a mapping describes.

        Raises:
            ConfigError: as for the class.
        """
        return cls(**values)

    @classmethod
    def part_of(cls, whole: Self) -> Self:
        """Return what this class declares of a configuration that inherits it; nothing is validated again."""
        return cls.model_construct(**{name: getattr(whole, name) for name in cls.model_fields})

    def replace(self, **changes: Any) -> Self:
        """Return the same with some values replaced.

        Raises:
            ConfigError: as for :meth:`build`.
        """
        return self.build({**self.model_dump(exclude_unset=True), **changes})

    @classmethod
    def read_toml(cls, path: Path) -> dict[str, Any]:
        """Return the keys of a TOML file, for :meth:`build` after flags were laid over them.

        Raises:
            ConfigError: the file cannot be read or parsed.
        """
        try:
            return read_toml(path)
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}. Give a TOML file.") from None
        except DocumentError as error:
            raise ConfigError(f"cannot read configuration {path}: {error}. Give a TOML file.") from None


def limits(metadata: Iterable[Any]) -> str:
    """Return the range that a field's metadata allows, in signs; empty where there is none."""
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    pairs = ((sign, getattr(piece, name, None)) for piece in metadata for name, sign in signs)
    return ", ".join(dict.fromkeys(f"{sign} {value}" for sign, value in pairs if value is not None))


def _one(task: str) -> str:
    if "," in task:
        raise ValueError("give each task by itself: --task NAME --task NAME, in a file a list")
    return task


ModelName = Annotated[str, Field(min_length=1, description="Catalogue name, hub id or folder.")]
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
        "own head) or shortcut (a linear map per exit before it).",
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

    weights_format: FormatName = Field(
        default="auto",
        description="How matrices are stored and multiplied: auto (the fastest here that keeps float32's tokens, timed "
        "when the model is loaded), or a format of `harness list`: float32, fp16, bfloat16, int8, int4.",
    )
    device_map: DeviceMap = None
    kv_input: KVInput = Field(
        default="hidden",
        description="What propagate fills K,V of skipped layers from: the exit's hidden state, or the line from "
        "there to what the exit's shortcut makes of it.",
    )
    threads: Threads = None
    energy: str = Field(
        default="auto",
        description="Meter: auto (the best sensor found, else the estimate), nvml, rapl, "
        "estimate, none or replay:FILE.",
    )
    tdp_w: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Watts the energy estimate assumes for all cores. Default: 4 W per core.",
    )
