"""What every configuration is: frozen, strict about its names, built from flags over a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.contracts import ExitHead, KVInput, ModelRequest, WeightsChoice
from harness.errors import ConfigError, did_you_mean

__all__ = ["Configuration", "ModelConfiguration"]


class Configuration(BaseModel):
    """Base of configurations. Frozen; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping and turn pydantic's report into one line.

        Raises:
            ConfigError: unknown name, wrong type or out of range; says which and what is allowed.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"unknown configuration key '{key}'.{did_you_mean(key, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:1])
            message = first["msg"].replace("tuple", "list")  # files have lists
            raise ConfigError(f"{where} = {first['input']!r}: {message[0].lower()}{message[1:]}.") from None

    @classmethod
    def read_toml(cls, path: Path) -> dict[str, Any]:
        """Return the keys of a TOML file, for :meth:`build` after flags were laid over them.

        Raises:
            ConfigError: the file cannot be read or parsed.
        """
        try:
            with path.open("rb") as file:
                return tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}. Give a TOML file.") from None
        except ValueError as error:  # TOMLDecodeError, or bytes that are not UTF-8
            raise ConfigError(f"configuration {path} is not valid TOML: {error}.") from None


class ModelConfiguration(Configuration):
    """What decides a model that decodes: which, its weights, its exits, where it runs, what measures its energy.

    Attributes:
        model: catalogue name, hub id or local folder.
        kv_input: what ``propagate`` fills them from: the exit's ``hidden`` state, or the line from there to what the
            exit's ``shortcut`` makes of it.
        exit_points: ``paper`` (GREEN-CODE's rule), ``all``, or a comma list of layers.
        dtype: torch dtype name of weights and activations.
        device: torch device; ``auto`` takes CUDA when there is one.
        threads: CPU threads; ``None`` leaves torch's choice.
        weights: ``pretrained`` (base), ``tuned`` (with the adapter of ``harness train lite``), ``random`` for runs at
            full size without weights, or ``auto``: tuned where there is an adapter.
        exit_head: what reads an exit: ``shared`` (the model's own head), ``shortcut`` (a linear map per exit before
            it), or ``auto``: shortcut where there are maps for the weights.
        artefacts: folder of trained artefacts or name of a shipped set; ``None`` for ``artefacts/MODEL`` and the
            shipped ones.
        energy: which meter, by registered name; ``auto`` takes the best sensor found, else the labelled estimate.
        tdp_w: power the estimate spreads over the logical cores the system shows, watts; ``None`` for its default.
    """

    model: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    kv_input: KVInput = "hidden"
    exit_points: str = "paper"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    weights: WeightsChoice = "auto"
    exit_head: ExitHead = "auto"
    artefacts: str | None = None
    energy: str = "auto"
    tdp_w: Annotated[float, Field(gt=0, le=10_000)] | None = None

    def request(self, seed: int = 0) -> ModelRequest:
        """Return which model is asked for; ``seed`` draws random weights."""
        return ModelRequest(
            self.model, self.weights, self.dtype, self.exit_points, self.exit_head, self.artefacts, seed
        )
