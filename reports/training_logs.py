"""Trainings behind runs: which folders hold them, and what every step of LITE and of PPO logged there.

Folders are found by what the runs' manifests name, never by a folder's name. A training may be writing its log, or was
killed in the middle of a line: what cannot be read is left out and said in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from os.path import isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, NonNegativeFloat, NonNegativeInt, TypeAdapter

from harness.contracts.recipes import WeightsRule
from harness.errors import StoreError
from harness.host.files import LARGEST_LOG_BYTES, parse_json, read_bytes, read_json, real_path, refusing
from harness.models.artefacts import SHIPPED, look_into
from harness.models.trained import SCALE, tuned_fingerprint
from harness.records import Manifest
from reports.recorded import RecordedRun
from reports.statistics.plausible import plausible

LITE_LOG, AGENT_LOG = "training.jsonl", "-training.jsonl"
TUNED = ("adapter.json", "tuning.json")
"""The file that says how weights were tuned: the adapter's facts, or those of weights that were tuned whole."""
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def _possible(number: float) -> float:
    if plausible(number) is None:
        raise ValueError("it cannot be true")
    return number


Number = Annotated[float, AfterValidator(_possible)]


@dataclass(frozen=True, slots=True)
class LiteStep:
    """One optimiser step, from 1: nats per token of the layers that it trained."""

    step: NonNegativeInt
    cross_entropy: Mapping[int, Annotated[NonNegativeFloat, AfterValidator(_possible)]]


@dataclass(frozen=True, slots=True)
class LiteLog:
    """How weights were tuned, as far as it is known."""

    steps: tuple[LiteStep, ...]
    exit_points: tuple[int, ...] = ()
    num_layers: int | None = None
    weights_rule: WeightsRule | None = None
    exits_per_step: int | None = None  # random exits besides the last layer; ``None`` for all
    text: str = ""  # what was learned from, in words


@dataclass(frozen=True, slots=True)
class AgentStep:
    """One rollout of PPO."""

    steps: NonNegativeInt  # decisions so far, these included
    reward_per_step: Number  # mean of a decision
    reward_per_episode: Number | None  # mean over episodes that ended
    episodes: NonNegativeInt  # that ended
    exits: Mapping[int, Number]  # exit layer → share of tokens that left there, exploration included


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last line of an agent's log: layer → tokens whose first right exit it was."""

    steps: NonNegativeInt
    optimal_exits: Mapping[int, NonNegativeInt]


_LITE: TypeAdapter[LiteStep] = TypeAdapter(LiteStep)
_AGENT: TypeAdapter[AgentStep | _Ended] = TypeAdapter(AgentStep | _Ended)


@dataclass(frozen=True, slots=True)
class AgentLog:
    """How an agent was trained."""

    name: str  # of its files
    steps: tuple[AgentStep, ...]
    optimal_exits: Mapping[int, int]  # over the whole training; empty in one that is not finished
    reward: str = ""  # its rule with the coefficients, in words
    text: str = ""  # what was learned from, in words


@dataclass(frozen=True, slots=True)
class TrainingLogs:
    """Everything of one folder."""

    folder: Path
    lite: LiteLog | None
    agents: tuple[AgentLog, ...]  # by name, the plain one first
    problems: tuple[str, ...]  # a line for each thing that could not be read

    @property
    def name(self) -> str:
        """Name of the folder."""
        return real_path(self.folder).name


class _Recipe(BaseModel):
    weights_rule: WeightsRule | None = None
    exits_per_step: int | None = None


class _Stream(BaseModel):
    stream: str = ""


class _Tuned(BaseModel):
    """What an adapter says of its training."""

    num_layers: int | None = None
    exit_points: tuple[int, ...] = ()
    recipe: _Recipe | None = None
    data: tuple[_Stream, ...] = ()


class _TrainedOn(BaseModel):
    streams: tuple[str, ...] = ()


class _Agent(BaseModel):
    """What an agent says of its training."""

    reward: dict[str, str | float] = {}
    trained_on: _TrainedOn = _TrainedOn()


def holds_training(folder: Path) -> bool:
    """Whether a folder holds anything that :func:`read_training` reads."""
    if not isdir(folder):
        return False
    return any(isfile(folder / name) for name in (LITE_LOG, *TUNED)) or any(folder.glob(f"*{AGENT_LOG}"))


def read_training(folder: Path, named: Set[str] | None = None) -> TrainingLogs:
    """Read a folder that `harness train` wrote to, or a shipped one; never fails, see ``problems``.

    ``named`` are the SHA-256 of the agents that are wanted; ``None`` for all.
    """
    problems: list[str] = []
    if not folder.is_dir():
        problems.append(f"{folder} is no folder. Give one that `harness train` wrote to.")
    steps = sorted(_lines(folder / LITE_LOG, _LITE, problems), key=lambda step: step.step)
    tuned = next((folder / name for name in TUNED if (folder / name).is_file()), folder / TUNED[0])
    facts, lite = _facts(tuned, _Tuned, problems), None
    if steps or facts.recipe:
        recipe, text = facts.recipe or _Recipe(), _tasks(one.stream for one in facts.data)
        rule, each = recipe.weights_rule, recipe.exits_per_step
        lite = LiteLog(tuple(steps), facts.exit_points, facts.num_layers, rule, each, text)
    agents = []
    for log in folder.glob(f"*{AGENT_LOG}"):
        name = log.name.removesuffix(AGENT_LOG)
        if named is None or look_into(folder / f"{name}.json").get("sha256") in named:
            lines = list(_lines(log, _AGENT, problems))
            rollouts = {line.steps: line for line in lines if isinstance(line, AgentStep)}  # written again, counts once
            optimal = next((line.optimal_exits for line in lines if isinstance(line, _Ended)), {})
            agent = _facts(folder / f"{name}.json", _Agent, problems)
            coefficients = (f"{key} {value}" for key, value in agent.reward.items() if key != "rule")
            reward = ", ".join([str(agent.reward["rule"]), *coefficients]) if "rule" in agent.reward else ""
            kept = tuple(rollouts[done] for done in sorted(rollouts))
            agents += [AgentLog(name, kept, optimal, reward, _tasks(agent.trained_on.streams))] if kept else []
    if not problems and lite is None and not agents and named is None:
        problems.append(f"{folder} holds no log of a training. Give a folder that `harness train` wrote to.")
    agents.sort(key=lambda agent: (len(agent.name), agent.name))
    return TrainingLogs(folder, lite, tuple(agents), tuple(problems))


def _lines(log: Path, kind: TypeAdapter[T], problems: list[str]) -> Iterator[T]:
    """Yield a log's lines that are whole and hold what a line of its kind does; count the others."""
    if not log.exists():
        return
    try:
        raw = read_bytes(log, LARGEST_LOG_BYTES).split(b"\n")
    except OSError as error:
        problems.append(f"cannot read {log}: {error.strerror}.")
        return
    damaged = 0
    last = max((number for number, text in enumerate(raw) if text.strip()), default=-1)
    for number, text in enumerate(raw):
        try:
            if text.strip():
                yield kind.validate_python(parse_json(text))
        except ValueError:
            if number == last and raw[-1]:  # no newline behind it: cut off, or being written
                problems.append(f"the last line of {log} is half-written and left out.")
            else:
                damaged += 1
    if damaged:
        problems.append(f"{damaged} of {len(raw) - 1} lines of {log} are damaged and left out.")


def _facts(file: Path, kind: type[M], problems: list[str]) -> M:
    """Return what an artefact's JSON says; nothing where there is none yet."""
    if file.is_file():
        try:
            with refusing(file, StoreError, "It is left out.", "JSON of an artefact"):
                return kind.model_validate(read_json(file))
        except StoreError as error:
            problems.append(str(error))
    return kind()


def _tasks(streams: Iterable[str]) -> str:
    """Return the tasks that streams are of, each once."""
    return " + ".join(sorted({stream.partition(",")[0] for stream in streams if stream}))


ARTEFACTS = Path("artefacts")  # where `harness train` puts a model's folder, below the working directory


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
    return [folder for folder in (*own, *sorted(ARTEFACTS.glob("*")), *sorted(SHIPPED.glob("*"))) if folder.is_dir()]


def _offers(folder: Path) -> frozenset[str]:
    """Return the hashes of a folder's artefacts, whole and as an exit head shortens them, and of weights it makes."""
    offers: set[str] = set()
    for file in sorted(folder.glob("*.json")):
        facts = look_into(file)
        digest, base = facts.get("sha256"), facts.get("model_fingerprint")
        if isinstance(digest, str):
            offers |= {digest, digest[:16]}
            if facts.get("kind") == "adapter" and isinstance(base, str):
                offers.add(tuned_fingerprint(base, digest, facts.get("scale", SCALE)))
    return frozenset(offers)
