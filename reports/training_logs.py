"""Trainings behind runs: which folders hold them, and what every step of LITE and of PPO logged there.

Folders are found by what the runs' manifests name, never by a folder's name. Logs are read as tolerantly as a report
must be: a training may be writing one, or was killed in the middle of a line. What cannot be read is left out and said
in one line; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from os.path import isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path
from typing import Any, get_args

from harness.contracts.recipes import WeightsRule
from harness.host.files import LARGEST_LOG_BYTES, DocumentError, parse_json, read_bytes, read_json, real_path
from harness.models.artefacts import SHIPPED, look_into
from harness.models.trained import tuned_fingerprint
from harness.records import Manifest
from reports.recorded import RecordedRun
from reports.statistics.plausible import is_plausible

LITE_LOG, AGENT_LOG = "training.jsonl", "-training.jsonl"
TUNED = ("adapter.json", "tuning.json")
"""The file that says how weights were tuned: the adapter's facts, or those of weights that were tuned whole."""


@dataclass(frozen=True, slots=True)
class LiteStep:
    """One optimiser step."""

    step: int
    cross_entropy: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class LiteLog:
    """How weights were tuned."""

    steps: tuple[LiteStep, ...]
    exit_points: tuple[int, ...] = ()
    num_layers: int | None = None
    weights_rule: WeightsRule | None = None
    exits_per_step: int | None = None
    exit_head: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class AgentStep:
    """One rollout of PPO."""

    steps: int
    reward_per_step: float
    reward_per_episode: float | None
    episodes: int
    exits: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class AgentLog:
    """How an agent was trained."""

    name: str
    steps: tuple[AgentStep, ...]
    optimal_exits: Mapping[int, int]
    reward: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class TrainingLogs:
    """Everything of one folder."""

    folder: Path
    lite: LiteLog | None
    agents: tuple[AgentLog, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return real_path(self.folder).name


def holds_training(folder: Path) -> bool:
    """Whether a folder holds anything that :func:`read_training` reads."""
    if not isdir(folder):
        return False
    named = (LITE_LOG, *TUNED)
    return any(isfile(folder / name) for name in named) or any(folder.glob(f"*{AGENT_LOG}"))


def read_training(folder: Path, named: Set[str] | None = None) -> TrainingLogs:
    """Read a folder that `harness train` wrote to, or a shipped one; never fails, see ``problems``."""
    problems: list[str] = []
    if not folder.is_dir():
        problems.append(f"{folder} is no folder. Give one that `harness train` wrote to.")
    lite = _read_lite(folder, problems)
    agents = [
        _read_agent(file, problems)
        for file in sorted(folder.glob(f"*{AGENT_LOG}"))
        if named is None or look_into(file.with_name(f"{_agent_of(file)}.json")).get("sha256") in named
    ]
    kept = sorted((agent for agent in agents if agent.steps), key=lambda agent: (len(agent.name), agent.name))
    if not problems and lite is None and not kept and named is None:
        problems.append(f"{folder} holds no log of a training. Give a folder that `harness train` wrote to.")
    return TrainingLogs(folder, lite, tuple(kept), tuple(problems))


def _read_lite(folder: Path, problems: list[str]) -> LiteLog | None:
    steps = []
    for line in _lines(folder / LITE_LOG, problems):
        losses = {layer: loss for layer, loss in _by_layer(line, "cross_entropy").items() if loss >= 0}
        steps.append(LiteStep(int(line["step"]), losses))
    found = next((folder / name for name in TUNED if (folder / name).is_file()), None)
    facts = {} if found is None else _facts(found, problems)
    recipe = _mapping(facts.get("recipe"))
    if not steps and not recipe:
        return None
    layers, rule, each = facts.get("num_layers"), recipe.get("weights_rule"), recipe.get("exits_per_step")
    streams = [_mapping(stream).get("stream") for stream in _listed(facts.get("data"))]
    return LiteLog(
        steps=tuple(sorted(steps, key=lambda step: step.step)),
        exit_points=tuple(point for point in _listed(facts.get("exit_points")) if isinstance(point, int)),
        num_layers=layers if isinstance(layers, int) else None,
        weights_rule=next((known for known in get_args(WeightsRule) if known == rule), None),
        exits_per_step=each if isinstance(each, int) else None,
        exit_head=str(recipe.get("exit_head") or ""),
        text=_tasks(streams),
    )


def _agent_of(log: Path) -> str:
    return log.name.removesuffix(AGENT_LOG)


def _read_agent(log: Path, problems: list[str]) -> AgentLog:
    name = _agent_of(log)
    steps: dict[int, AgentStep] = {}
    optimal: Mapping[int, float] = {}
    for line in _lines(log, problems):
        done = int(line["steps"])
        if "optimal_exits" in line:
            optimal = _by_layer(line, "optimal_exits")
            continue
        episode = line.get("reward_per_episode")
        steps[done] = AgentStep(  # a step that was written again counts once, the last time
            done,
            float(line["reward_per_step"]),
            None if episode is None else float(episode),
            int(line["episodes"]),
            _by_layer(line, "exits"),
        )
    facts = _facts(log.with_name(f"{name}.json"), problems)
    return AgentLog(
        name=name,
        steps=tuple(steps[done] for done in sorted(steps)),
        optimal_exits={layer: int(count) for layer, count in optimal.items()},
        reward=_reward(_mapping(facts.get("reward"))),
        text=_tasks(_listed(_mapping(facts.get("trained_on")).get("streams"))),
    )


def _lines(log: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a log's lines that are whole and hold what every reader here wants; count the others."""
    if not log.exists():
        return
    try:
        raw = read_bytes(log, LARGEST_LOG_BYTES).split(b"\n")
    except OSError as error:
        problems.append(f"cannot read {log}: {error.strerror}.")
        return
    damaged = 0
    last = next((number for number in reversed(range(len(raw))) if raw[number].strip()), -1)
    for number, text in enumerate(raw):
        if not text.strip():
            continue
        line = _line(text)
        if line is not None:
            yield line
        elif number == last and raw[-1]:  # no newline behind it: cut off, or being written
            problems.append(f"the last line of {log} is half-written and left out.")
        else:
            damaged += 1
    if damaged:
        problems.append(f"{damaged} of {len(raw) - 1} lines of {log} are damaged and left out.")


def _line(text: bytes) -> dict[str, Any] | None:
    """Return a log's line, if all that is read of it is there."""
    try:
        line = parse_json(text)
        if "step" in line:
            number, values = line["step"], (*_by_layer(line, "cross_entropy").values(),)
        elif "optimal_exits" in line:
            number, values = line["steps"], (*_by_layer(line, "optimal_exits").values(),)
        else:
            episode = line.get("reward_per_episode")
            number, values = line["steps"], (
                line["reward_per_step"], line["episodes"], *(() if episode is None else (episode,)),
                *_by_layer(line, "exits").values(),
            )  # fmt: skip
        whole = int(number) >= 0 and all(map(is_plausible, (number, *values)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return line if whole and isinstance(line, dict) else None


def _by_layer(line: Mapping[str, Any], key: str) -> dict[int, float]:
    return {int(layer): float(value) for layer, value in line[key].items()}


def _facts(file: Path, problems: list[str]) -> Mapping[str, Any]:
    """Return what an artefact's JSON says; nothing where there is none yet."""
    if not file.is_file():
        return {}
    try:
        facts = read_json(file)
    except OSError as error:
        problems.append(f"cannot read {file}: {error.strerror}.")
        return {}
    except DocumentError:
        facts = None
    if not isinstance(facts, dict):
        problems.append(f"{file} is not the JSON of an artefact and left out.")
        return {}
    return facts


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tasks(streams: list[Any]) -> str:
    """Return the tasks that streams are of, each once."""
    names = dict.fromkeys(str(stream).partition(",")[0] for stream in streams if stream)
    return " + ".join(sorted(names))


def _reward(facts: Mapping[str, Any]) -> str:
    coefficients = [f"{name} {value}" for name, value in facts.items() if name != "rule"]
    return ", ".join([str(facts["rule"]), *coefficients]) if "rule" in facts else ""


ARTEFACTS = Path("artefacts")
"""Where `harness train` puts a model's folder, below the working directory."""


def training_folders(
    runs: Iterable[RecordedRun], given: Iterable[Path] = ()
) -> list[tuple[Path, frozenset[str] | None]]:
    """Return the artefact folders that runs used and that hold the log of a training, each once.

    With each comes what the runs name, hashes of their agents among it, or ``None`` where the folder itself was asked
    for, and all that it holds is.

    A folder is a run's when it holds a file of that run: an agent or a head by its SHA-256, shortcuts by theirs, or the
    adapter that makes the run's weights of its base. Looked for in the run's own ``--artefacts``, in ``artefacts/*``
    below the working directory, and among those that ship; a copy of what an earlier folder holds is left out.
    """
    found = {real_path(folder): folder for folder in given}
    known = {place: _offers(folder) for place, folder in found.items()}
    asked = frozenset(found)
    covered = {name for names in known.values() for name in names}
    named: frozenset[str] = frozenset()
    for run in runs:
        wanted = _named_by(run.manifest)
        named |= wanted
        for folder in _candidates(run.manifest):
            place = real_path(folder)
            if place not in known:
                known[place] = _offers(folder) if holds_training(folder) else frozenset()
            new = (known[place] & wanted) - covered
            if new and place not in found:
                found[place] = folder
                covered |= known[place]
    return [(folder, None if place in asked else named) for place, folder in found.items()]


def _named_by(manifest: Manifest) -> frozenset[str]:
    """Return what a manifest names: hashes of artefacts, and the fingerprint of its weights."""
    shortcut = manifest.model.exit_head.partition("shortcut:")[2]
    named = {digest for point in manifest.operating_points for digest in point.artefacts.values()}
    return frozenset(named | {name for name in (shortcut, manifest.model.fingerprint) if name})


def _candidates(manifest: Manifest) -> list[Path]:
    given = manifest.config.get("artefacts")
    own = [Path(given), SHIPPED / given] if isinstance(given, str) and given else []
    return [folder for folder in (*own, *_below(ARTEFACTS), *_below(SHIPPED)) if folder.is_dir()]


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _offers(folder: Path) -> frozenset[str]:
    """Return the hashes of a folder's artefacts, whole and as an exit head shortens them, and of weights it makes."""
    offers: set[str] = set()
    for file in sorted(folder.glob("*.json")):
        facts = look_into(file)
        digest, base = facts.get("sha256"), facts.get("model_fingerprint")
        if isinstance(digest, str):
            offers |= {digest, digest[:16]}
            if facts.get("kind") == "adapter" and isinstance(base, str):
                offers.add(tuned_fingerprint(base, digest))
    return frozenset(offers)
