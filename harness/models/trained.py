"""Trained parts of a model: where they are looked for, which belong to it, and the commands that make a missing one.

A part belongs to weights by their fingerprint: base weights, or with an adapter merged.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import shell_command, shell_word
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError, OutOfReachError
from harness.host.files import DocumentError, read_json
from harness.host.hub import hub_offline
from harness.models.artefacts import NEEDED, PICKLES, SHIPPED, Artefact, json_path, look_into, read_artefact

logger = logging.getLogger(__name__)


_OTHERS = {
    "manifest.json": "a run directory",
    "index.json": "a trace",
    "config.json": "a model",
    "study.json": "a study",
}
"""Files that say what a folder without artefacts is."""


PREPARED: Mapping[str, Sequence[str]] = {"shortcut": (), "classifier": (), "rl": ("--agent",)}
"""Kinds that `harness prepare` makes → the flags with which it does."""


def artefact_folders(model: str, given: str | None) -> tuple[Path, ...]:
    """Return where a model's artefacts are looked for, in order; ``given`` is a folder or the name of a shipped set."""
    name = Path(model).name
    if given is None:
        return tuple(folder for folder in (Path("artefacts") / name, SHIPPED / name) if folder.is_dir())
    for folder in (Path(given), SHIPPED / given):
        if folder.is_dir():
            for file, what in _OTHERS.items():
                if (folder / file).exists() and not any("kind" in look_into(each) for each in folder.glob("*.json")):
                    raise ConfigError(f"--artefacts {given} is {what}. Give the folder that `harness train` wrote.")
            return (folder,)
    shipped = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []
    raise ConfigError(f"--artefacts {given} is no folder. Shipped sets: {', '.join(shipped) or 'none'}.")


SCALE = 2.0
"""Of an adapter's products, as ``harness train lite`` tunes it."""


def tuned_fingerprint(base: str, adapter_sha256: str, scale: float = SCALE) -> str:
    """Return the fingerprint of a base model with an adapter merged into it by a scale."""
    other = "" if scale == SCALE else f" scale {scale}"
    return hashlib.sha256(f"{base} {adapter_sha256}{other}".encode()).hexdigest()[:16]


def belongs_to(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the weights that an artefact belongs to: base weights, or with an adapter merged."""
    base, adapter = str(facts.get("model_fingerprint", "")), facts.get("adapter_sha256")
    return tuned_fingerprint(base, adapter) if adapter else base


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that no folder has for a model; ``refusal`` makes the error, with the commands that make the part."""

    refusal: Callable[[], ArtefactError]


def find(kind: str, model: ModelInfo, folders: Iterable[str | Path] | None = None) -> Artefact | Missing:
    """Return the first part of a kind that belongs to a model, in its own folders or others; reads no tensors.

    A kind is ``adapter``, ``shortcut`` (from all exit points of the model), or what a cheap head is made from.
    """
    places, misfits = tuple(map(Path, model.artefacts if folders is None else folders)), ""
    for file in _files(kind, places):
        artefact = _read(file, kind, _changed(file))
        misfit = _misfit(kind, artefact.facts, model)
        if not misfit:
            return artefact
        misfits += f" {file} {misfit}."
    return Missing(partial(_missing, kind, model, places, misfits))


def require(found: Artefact | Missing) -> Artefact:
    """Return what was found; raises ``ArtefactError`` where nothing was."""
    if isinstance(found, Missing):
        raise found.refusal()
    return found


def _files(kind: str, folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if kind == "shortcut":  # the one with the plain name first
            yield from sorted(folder.glob("shortcut*.json"), key=lambda file: (file.stem != "shortcut", file.name))
        elif (file := folder / f"{kind}.json").is_file() or (kind == "adapter" and os.path.lexists(file)):
            yield file


def _misfit(kind: str, facts: Mapping[str, Any], model: ModelInfo) -> str:
    """Return in a clause why a part is not of a model; empty where it is."""
    if kind == "adapter":
        theirs = facts["model_fingerprint"]
        return "" if theirs == model.fingerprint else f"was trained on weights {theirs}, these are {model.fingerprint}"
    if kind == "shortcut":
        theirs, points = belongs_to(facts), facts["exit_points"]
        fits = theirs == model.fingerprint and set(model.exit_points) <= set(points)
        return "" if fits else f"is of weights {theirs}, exit points {_listed(points)}"
    for what, name, ours in (
        ("base weights", "base_fingerprint", model.base_fingerprint),
        ("weights", "model_fingerprint", model.fingerprint),
        ("exit head", "exit_head", model.exit_head),
    ):
        if name in facts and facts[name] != ours:
            return f"is of {what} {facts[name]}, and these are {ours}"
    return ""


def _missing(kind: str, model: ModelInfo, folders: Sequence[Path], others: str) -> ArtefactError:
    use = "--prompt-exit none" if kind == "prompt-exit" else "head=full"
    what, lead = f"is no {kind}.json for {model.name}", f"Use {use}, or make it"
    if kind == "adapter":
        what = f"is no adapter for {model.name}"
        lead = "Use --weights pretrained, or make it" if model.asked.weights == "tuned" else "Make it"
        for folder in (folder for folder in folders if (folder / "tuning.json").is_file()):
            whole = f"--model {shell_word(folder / 'model')} --artefacts {shell_word(folder)}"
            others += f" {folder} holds weights that were tuned as a whole, a model of their own: {whole}."
    elif kind == "shortcut":
        wanted = f"weights {model.fingerprint}, exit points {_listed(model.exit_points)}"
        what, lead = f"are no shortcuts for {model.name} ({wanted})", "Use --exit-head shared, or make them"
    return _refusal(f"there {what}.{others} {lead} with", kind, model, kind)


def prompt_maps(exits: Sequence[int], model: ModelInfo) -> dict[str, str]:
    """Return the hashes of the artefact that holds the maps of a prompt's exits.

    Raises:
        ArtefactError: there is none, or it lacks one of the exits; the last layer but one needs none.
    """
    found = require(find("prompt-exit", model))
    lacking = sorted({*exits} - {*found.facts["exits"], model.num_layers - 1})
    if lacking:
        layers = " ".join(f"--layer {layer}" for layer in lacking)
        raise ArtefactError(
            f"{found.path} has maps for prompt exits at {_listed(found.facts['exits'])}, not at {_listed(lacking)}. "
            f"Use one of those, or make it anew: harness train prompt-exit {layers}."
        )
    return found.hashes()


def find_trained(
    kind: str,
    name: str,
    model: ModelInfo,
    needed: tuple[str, ...] = (),
    same_exits: Callable[[Artefact], bool] = lambda _: True,
) -> Artefact:
    """Find what a strategy has learned and check that it was made for this model; reads no tensors.

    Of several with the name, the first that was made for this model is taken, or else the first.

    Args:
        kind: its artefact kind.
        name: what the user gave: a path, a name without folder and suffix, or nothing for ``kind`` itself.
        model: whose artefact folders are searched.
        needed: facts without which it is of no use, besides those by which it knows its model.
        same_exits: whether it must be asked at the exit points it was trained at; else at some of them.

    Raises:
        ArtefactError: missing, or made for other weights, exit points or another exit head; gives both values.
    """
    path = _learned_path(kind, name, model)
    stamp = json_path(path)
    artefact = _read(path, kind, _changed(stamp))
    facts = artefact.facts
    for key in ("model", "model_fingerprint", "exit_head", "hidden_size", "exit_points", *needed):
        if key not in facts:
            raise ArtefactError(f"{path} lacks what a {kind} needs ('{key}'). Train it again.")
    again = partial(_refusal, kind=kind, model=model, name=stamp.stem, overwrite=True)
    if path == Path(name):  # another folder than where it would be looked for
        again = partial(again, folder=stamp.parent)
    for what, theirs, ours in (
        ("weights", facts["model_fingerprint"], model.fingerprint),
        ("exit head", facts["exit_head"], model.exit_head),
        ("hidden size", facts["hidden_size"], model.hidden_size),
    ):
        if theirs != ours:
            raise again(
                f"{path} was trained with {what} {theirs} ({facts['model']}); {model.name} runs with {ours}. "
                "Train it for this model",
                tune=what == "weights",
            )
    known = tuple(facts["exit_points"])
    if not (known == model.exit_points if same_exits(artefact) else set(model.exit_points) <= set(known)):
        raise again(
            f"{path} was trained at exit points {_listed(known)}; this run has {_listed(model.exit_points)}. Use "
            f"--exit-points {','.join(map(str, known))}, or train it again",
            tune=False,
        )
    return artefact


def _learned_path(kind: str, name: str, model: ModelInfo) -> Path:
    given = Path(name or kind)
    if given.suffix in (".json", ".safetensors", *PICKLES) or len(given.parts) > 1:  # a name such as rl-0.5 has dots
        return given
    there = [path for folder in model.artefacts if (path := Path(folder) / f"{given}.json").is_file()]
    if not there:
        places = ", ".join(model.artefacts) or f"artefacts/{Path(model.name).name}"
        others = sorted({path.stem for folder in model.artefacts for path in Path(folder).glob(f"{kind}*.json")})
        known = f" There are: {', '.join(others)}." if others else ""
        raise _refusal(
            f"there is no {given}.json for {model.name} in {places}.{known} Make it with", kind, model, str(given)
        )
    wanted = {"kind": kind, "model_fingerprint": model.fingerprint, "exit_head": model.exit_head}
    ours = (path for path in there if len(there) > 1 and wanted.items() <= look_into(path).items())
    return next(ours, there[0])


@lru_cache(maxsize=64)
def _read(path: Path, kind: str, changed: int) -> Artefact:
    return read_artefact(path, kind)


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns if file.is_file() else 0


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def shortcut_path(wanted: Path, weights: str, exit_points: Sequence[int]) -> Path:
    """Return where shortcuts are written: beside ``wanted``, if that is of other weights or exit points."""
    own = f"{wanted.stem}-{weights[:8]}"
    for name in chain([wanted.stem, own], (f"{own}-{number}" for number in count(2))):
        path = wanted.with_name(f"{name}.json")
        facts = look_into(path)
        readable = facts.get("kind") == "shortcut" and facts.keys() >= set(NEEDED["shortcut"])
        if not readable or (belongs_to(facts), facts["exit_points"]) == (weights, list(exit_points)):
            break  # what is no shortcut stops every run until it is replaced
    if path != wanted:
        logger.warning("%s is of other weights or exit points and is kept: these shortcuts are %s", wanted, path)
    return path


def _refusal(
    lead: str,
    kind: str,
    model: ModelInfo,
    name: str,
    folder: Path | None = None,
    *,
    tune: bool = True,
    overwrite: bool = False,
) -> ArtefactError:
    """Return an error with the commands in order, after which the same run finds what it looked for.

    A controller wants tuning first where the run would take an adapter and there is none. A trace of the same model
    that lies in its usual place is not made again, nor another one there touched; a shipped set is copied first.
    """
    asked, plain = model.asked, Path(model.name).name
    given = ["--model", asked.model or model.name]
    head = "shared" if kind == "shortcut" else asked.exit_head
    exits = [] if head == "auto" else ["--exit-head", head]
    exits += [] if asked.exit_points == "paper" else ["--exit-points", asked.exit_points]
    found = [] if asked.artefacts is None else ["--artefacts", asked.artefacts]
    out = [] if asked.artefacts is None else ["--out", asked.artefacts]
    if not out and Path(given[1]).name != plain:  # a folder given as . or the like
        out = ["--out", f"artefacts/{plain}"]
    commands: dict[str, Sequence[str]] = {}
    if asked.artefacts and not Path(asked.artefacts).is_dir() and (shipped := SHIPPED / asked.artefacts).is_dir():
        copy = ["cp", "-r", str(shipped), asked.artefacts]  # else a new folder of its name would stand in for the set
        commands["the copy is your own and what --artefacts then means"] = copy
    plainly = (asked.weights, asked.dtype, asked.exit_points, asked.artefacts) == ("auto", "float32", "paper", None)
    plainly = plainly and asked.exit_head != "shared" and model.weights == "pretrained" and name == kind
    if kind in PREPARED and plainly and not overwrite and _is_prepared(Path("artefacts") / plain):
        other = [*out, "--traces", f"traces/{plain}"] if out else []
        prepare = ["harness", "prepare", given[1], *PREPARED[kind], *other]
        return _with_commands(lead, {"minutes to hours; the same command goes on after anything": prepare})
    lite = ["harness", "train", "lite", *given, *exits, *out]
    if kind == "adapter":
        return _with_commands(lead, commands | {"hours": lite})
    if kind in ("shortlist", "prompt-exit"):  # from the data themselves
        return _with_commands(lead, commands | {"minutes": ["harness", "train", kind, *given, *found, *out]})
    names = [f"traces/{plain}/exits"] if _is_trace_of(Path(f"traces/{plain}/exits"), model) else []  # of prepare
    usual = (f"traces/{plain}{number}" for number in chain([""], (f"-{number}" for number in count(2))))
    traces = next(each for each in chain(names, usual) if _is_trace_of(Path(each), model) or not os.path.lexists(each))
    if not os.path.lexists(traces):
        if tune and kind != "shortcut" and asked.weights == "auto" and model.weights == "pretrained":
            commands["hours to tune, without which the base weights serve"] = lite
        weights = [] if asked.weights == "auto" else ["--weights", asked.weights]
        weights += [] if asked.dtype == "float32" else ["--dtype", asked.dtype]
        weights += ["--seed", str(asked.seed)] if model.weights == "random" and asked.seed else []
        commands["minutes to hours to trace"] = ["harness", "trace", *given, *weights, *exits, *found, "--out", traces]
    out = out if folder is None else ["--out", str(folder)]
    named = [*(["--name", name] if name != kind else []), *(["--overwrite"] if overwrite else [])]
    train = ["harness", "train", kind, *given, "--traces", traces, *found, *out, *named]
    return _with_commands(lead, commands | {"minutes to train": train})


def _is_prepared(folder: Path) -> bool:
    """Whether `harness prepare` may go on in a folder: it is not there, is empty, or was begun by it."""
    return (folder / "prepare.json").is_file() or not (folder.is_dir() and any(folder.iterdir()))


def unreachable(error: OutOfReachError, model: str, kinds: Collection[str]) -> ArtefactError:
    """Return the refusal of a run that lacks a model and what would be learned from it: all of it, in one list."""
    flags = dict.fromkeys(flag for kind in kinds for flag in PREPARED.get(kind, ()))
    commands = [["unset", "HF_HUB_OFFLINE"]] if hub_offline() else []
    commands.append(["harness", "prepare", model, *flags])
    exits = f"traces/{Path(model).name}/exits"
    commands += [
        ["harness", "train", kind, "--model", model, "--traces", exits] for kind in kinds if kind not in PREPARED
    ]
    return ArtefactError(
        f"{error.fact} {' and '.join(kinds)} must be learned from its weights, and random ones teach nothing. Where "
        "the hub can be reached, or with --model FOLDER of the weights, this downloads and makes all (hours for "
        "billions of parameters, memory for four bytes each):",
        [shell_command(words) for words in commands],
    )


def _with_commands(lead: str, commands: Mapping[str, Sequence[str]]) -> ArtefactError:
    return ArtefactError(f"{lead} ({'; '.join(commands)}):", [shell_command(words) for words in commands.values()])


def _is_trace_of(folder: Path, model: ModelInfo) -> bool:
    wanted = (model.fingerprint, model.exit_head, list(model.exit_points))
    try:
        index = read_json(folder / "index.json")
        found = (index["model_fingerprint"], index["exit_head"], index["exit_points"])
        return found == wanted and bool(index["shards"])
    except (OSError, DocumentError, KeyError, TypeError):
        return False
