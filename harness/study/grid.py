"""The grid of a study: what its file declares, and the points, one run each, that follow from it.

A point's identity is a hash of its settings, so that a file may grow or be reordered while what was measured stays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from pydantic import Field

from harness.config import RunConfig
from harness.config.model import Configuration
from harness.config.strategies import combinations
from harness.errors import ConfigError, UnknownNameError, did_you_mean
from harness.study.steps import Step, StepConfig, filled_settings, steps_in, steps_of

MANY = 1000
"""Points beyond which a study asks whether it was meant."""
MOST = 1_000_000
"""Points of a study at most: they are held in memory."""

_LISTS = ("strategies", "tasks")
_NOT_OF_A_POINT = ("out",)
_LONGEST_NAME = 80
_SHORT = 10

Settings = Mapping[str, Any]


class StudyConfig(Configuration):
    """A study as its file declares it; settings have the names of a run's TOML file."""

    preset: str | None = Field(default=None, description="A grid to begin with, see `harness study --help`.")
    needs: str = Field(default="", description="What a machine must have for it; `--dry-run` prints it.")
    run: dict[str, Any] = Field(default={}, description="Settings of every run.")
    grid: dict[str, list[Any]] = Field(default={}, description="Setting → its values; every combination is a point.")
    exclude: tuple[dict[str, Any], ...] = Field(default=(), description="Points with all these values are left out.")
    include: tuple[dict[str, Any], ...] = Field(default=(), description="One more point each, over [run].")
    override: tuple[dict[str, Any], ...] = Field(
        default=(), description="Settings of the points that `where` matches; a list in it matches any of its values."
    )
    step: tuple[StepConfig, ...] = Field(default=(), description="Commands whose folders points and steps name.")

    def over(self, preset: StudyConfig) -> StudyConfig:
        """Return a preset with what this study says laid over it: tables by setting, lists behind one another."""
        return StudyConfig(
            needs=self.needs or preset.needs,
            run={**preset.run, **self.run},
            grid={**preset.grid, **self.grid},
            **{
                name: getattr(preset, name) + getattr(self, name) for name in ("exclude", "include", "override", "step")
            },
        )


@dataclass(frozen=True)
class Point:
    """One run of a study; ``{NAME}`` in its settings is the folder of one of its steps."""

    name: str
    settings: Settings
    steps: Mapping[str, Step] = field(default_factory=dict)
    place: ClassVar = "runs"

    @cached_property
    def identity(self) -> str:
        """Hash over the settings, with the identities of steps in their place, 64 hexadecimal digits."""
        settings = filled_settings(self.settings, {name: step.identity for name, step in self.steps.items()})
        given = {name: value for name, value in settings.items() if name not in _NOT_OF_A_POINT}
        return hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def short(self) -> str:
        """The beginning of the identity, by which its folder is found whatever else a file says of other points."""
        return self.identity[:_SHORT]

    @property
    def folder(self) -> str:
        """The name of a new folder of it: the values in which points differ, and :attr:`short`."""
        return self.name

    @property
    def title(self) -> str:
        """Its label."""
        return self.name

    @property
    def model(self) -> tuple[str, ...]:
        """Everything a process loads for it; points that share it can follow one another in one process."""
        names = ("model", "weights", "dtype", "device", "exit_points", "exit_head", "artefacts", "weights_format")
        return tuple(json.dumps(self.settings.get(name)) for name in (*names, "device_map", "threads"))

    @property
    def is_untimed(self) -> bool:
        """Whether nothing of it is timed, so that it may share its machine with others like it."""
        return bool(self.settings.get("untimed"))

    def config(self, folders: Mapping[str, Path] = MappingProxyType({})) -> RunConfig:
        """Return the configuration of its run; steps whose folder is not given stay names."""
        try:
            return RunConfig.build(filled_settings(self.settings, folders))
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error.message}", error.commands) from None


Part: TypeAlias = Point | Step
"""Of a study."""


def presets() -> dict[str, StudyConfig]:
    """Return the grids that come with the harness, by name."""
    found = sorted(Path(__file__).with_name("presets").glob("*.toml"))
    return {file.stem: StudyConfig.build(StudyConfig.read_toml(file)) for file in found}


def read_study(given: str) -> StudyConfig:
    """Return a study from a TOML file, or the preset of that name."""
    if given in (known := presets()) and not Path(given).exists():
        return known[given]
    if not given.endswith(".toml") and not Path(given).exists():
        raise UnknownNameError("preset", given, known, "Give a TOML file, or one of these.")
    study = StudyConfig.build(StudyConfig.read_toml(Path(given)))
    if study.preset is None:
        if not (study.run or study.grid or study.include or study.step):
            raise ConfigError(
                f"{given} declares no point and no step. Give it a [run], [grid], [[include]] or [[step]]."
            )
        return study
    if study.preset not in known:
        raise UnknownNameError("preset", study.preset, known)
    return study.over(known[study.preset])


def size(study: StudyConfig) -> int:
    """Return how many points a study declares, before any is excluded or found twice. None of them is made."""
    of_grid = math.prod(map(len, study.grid.values())) if study.grid or _is_one_run(study) else 0
    return of_grid + len(study.include)


def _is_one_run(study: StudyConfig) -> bool:
    """Whether a study without a grid is the run of its settings, and does not just make steps."""
    return not study.include and bool(study.run or not study.step)


def expand(
    study: StudyConfig, only: Mapping[str, Sequence[str]] = MappingProxyType({}), limit: int | None = None
) -> tuple[Point, ...]:
    """Return the points of a study, each once, in the order of the grid; ``only`` those with one of these values."""
    _check_names(study)
    if (count := size(study)) > MOST:
        raise ConfigError(f"the study has {count} points, and one has {MOST} at most. Make several of it.")
    combined = combinations(study.grid) if study.grid or _is_one_run(study) else ()
    kept: list[Settings] = [_plain({**study.run, **chosen}) for chosen in combined]
    for place, values in enumerate(study.exclude, 1):
        left = [settings for settings in kept if not _matches(settings, values)]
        if len(left) == len(kept):
            raise ConfigError(f"[[exclude]] {place} takes no point away: none has {_settings_text(values)}.")
        kept = left
    kept = _overridden([*kept, *(_plain({**study.run, **values}) for values in study.include)], study.override)
    for name, texts in only.items():
        if name not in RunConfig.model_fields:
            raise ConfigError(f"--only has an unknown setting '{name}'.{did_you_mean(name, RunConfig.model_fields)}")
        kept = [settings for settings in kept if not set(texts).isdisjoint(map(str, _listed(settings, name)))]
        if not kept:
            raise ConfigError(f"--only {name}={','.join(texts)} leaves no point.")
    if limit is not None:
        kept = [{**settings, "limit": limit} for settings in kept]
    known = {step.name: step for step in steps_of(study.step)}
    made = (Point("", settings, steps_in(settings, known)) for settings in kept)
    unique = list({point.identity: point for point in made}.values())
    if not unique and size(study):
        raise ConfigError("the study has no points: what [grid] makes is excluded. Add values or an [[include]].")
    names = dict.fromkeys(name for point in unique for name in point.settings)
    vary = [name for name in names if len({json.dumps(each.settings.get(name), default=str) for each in unique}) > 1]
    return tuple(replace(point, name=f"{_slug(point.settings, vary)}-{point.short}") for point in unique)


def _check_names(study: StudyConfig) -> None:
    tables: list[tuple[str, Iterable[str]]] = [("[run]", study.run), ("[grid]", study.grid)]
    tables += [("[[exclude]]", values) for values in study.exclude]
    tables += [("[[include]]", values) for values in study.include]
    for place, values in enumerate(study.override, 1):
        where = values.get("where")
        if not isinstance(where, dict) or not where or len(values) == 1:
            raise ConfigError(f"[[override]] {place} needs `where = {{setting = value}}` and what it sets there.")
        tables += [("[[override]]", [name for name in values if name != "where"]), ("[[override]] where", where)]
    for table, names in tables:
        for name in names:
            if name in _NOT_OF_A_POINT:
                raise ConfigError(f"{table} sets {name}: every run has a folder of its own. Omit it.")
            if name not in RunConfig.model_fields:
                raise ConfigError(
                    f"{table} has an unknown setting '{name}'.{did_you_mean(name, RunConfig.model_fields)}"
                )
    for name, listed in study.grid.items():
        if not listed:
            raise ConfigError(f"[grid] {name} has no values.")


def _overridden(points: Sequence[Settings], overrides: Sequence[Mapping[str, Any]]) -> list[Settings]:
    changed: list[Settings] = []
    unused = dict(enumerate(overrides, 1))
    for settings in points:
        by: dict[str, int] = {}
        result = dict(settings)
        for place, override in enumerate(overrides, 1):
            if not _matches(settings, override["where"]):
                continue
            unused.pop(place, None)
            for name, value in _plain({key: value for key, value in override.items() if key != "where"}).items():
                if name in by and result[name] != value:
                    raise ConfigError(
                        f"[[override]] {by[name]} and {place} contradict each other: {name} = {result[name]!r} and "
                        f"{value!r} for the same point ({_settings_text(settings)}). Narrow one `where`."
                    )
                by[name], result[name] = place, value
        changed.append(result)
    for place, override in unused.items():
        raise ConfigError(f"[[override]] {place} changes nothing: no point has {_settings_text(override['where'])}.")
    return changed


def _matches(settings: Settings, values: Settings) -> bool:
    """Whether a point has every value, or one of the values where a list is given."""
    for name, value in values.items():
        several = isinstance(value, list) and (name not in _LISTS or any(isinstance(one, list) for one in value))
        wanted = [_plain({name: one})[name] for one in (value if several else [value])]
        if settings.get(name, _default(name)) not in wanted:
            return False
    return True


def _listed(settings: Settings, name: str) -> list[Any]:
    value = settings.get(name, _default(name))
    return value if isinstance(value, list) else [value]


def _default(name: str) -> Any:
    default = RunConfig.model_fields[name].default
    return list(default) if isinstance(default, tuple) else default


def _plain(settings: Settings) -> dict[str, Any]:
    """Return settings with a list where a run wants one."""
    return {
        name: [value] if name in _LISTS and not isinstance(value, list) else value for name, value in settings.items()
    }


def _slug(settings: Settings, vary: Sequence[str]) -> str:
    """Return the values in which points differ as a file name; ``point`` where there is only one."""
    parts = [_word(name, settings[name]) for name in vary if name in settings]
    return ".".join(part for part in parts if part)[:_LONGEST_NAME].rstrip(".-") or "point"


def _word(name: str, value: Any) -> str:
    if name == "strategies" and isinstance(value, list) and len(value) > 1:
        return f"{len(value)}-strategies"
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, (bool, int, float)):
        text = f"{name}={value}"
    text = Path(text).stem if "/" in text else text
    return re.sub(r"[^A-Za-z0-9=+_.]+", "-", text).strip("-.")


def _settings_text(values: Settings) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())
