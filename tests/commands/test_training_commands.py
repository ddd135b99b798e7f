"""What a user can get wrong with ``harness trace`` and ``harness train`` is one line with the remedy, and no file."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refusal = Callable[..., str]

KINDS = ("shortcut", "classifier", "lte", "rl")
"""What learns from a trace."""


def files_below(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refusal(cli: Command, tmp_path: Path) -> Refusal:
    """Run a command, and return the one line it must be refused with; no file or folder came or changed."""

    def run(*arguments: object) -> str:
        before = files_below(tmp_path)
        line: str = cli(*arguments).error
        assert files_below(tmp_path) == before
        return line

    return run


@pytest.fixture(scope="module")
def ready_trace(tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the tiny model's eight documents."""
    from tests.training.tracing import trace_of

    folder = tmp_path_factory.mktemp("ready") / "t"
    trace_of(tiny_llama, rows_file, folder, documents=100, length=64)
    return folder


@pytest.fixture
def traces(ready_trace: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, in ``t``."""
    return Path(shutil.copytree(ready_trace, tmp_path / "t"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is found before weights are read."""

    def too_late(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr("harness.models.model.ResolvedModel.module", too_late)


# ------------------------------------------------------------------------------------------ harness trace


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dtype", "float64"), "--dtype 'float64': input should be 'float32', 'bfloat16' or 'float16'."),
        (("--length", 15), "--length 15: input should be greater than or equal to 16."),
        (("--length", 64, "--new-tokens", 64), "--new-tokens 64 leaves no room for a context: documents have 64 to"),
        (("--seed", 2**32), "--seed 4294967296: input should be less than 4294967296."),
        (("--device", "abacus"), "unknown to torch"),
        (("--device", "cuda:99"), "'cuda:99' is not here"),
        (("--exit-points", "4,12"), "--exit-points 4,12: layers run from 1 to 11"),
        (("--exit-points", "papr"), "Write 'paper', 'all', or layers such as 4,8,12."),
        (("--task", "py15"), "Did you mean 'py150'?"),
        (("--model", "smollm2-135"), "Did you mean 'smollm2-135m'?"),
        (("--model", "."), "holds no transformers model"),
        (("--source", "nowhere"), "--source 'nowhere' is neither a file nor a folder."),
        (("--source", "embeded"), "Did you mean 'embedded'?"),
        (("--artefacts", "nowhere"), "--artefacts nowhere is no folder."),
    ],
)
def test_a_trace_that_cannot_be_made(
    refusal: Refusal, tiny_llama: Path, rows_file: Path, arguments: tuple[object, ...], said: str
) -> None:
    given = ("trace", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--out", "t")
    assert said in refusal(*given, *arguments)


@pytest.mark.usefixtures("no_weights")
def test_a_trace_of_parts_that_were_never_trained_names_the_commands(refusal: Refusal, tiny_llama: Path) -> None:
    name = tiny_llama.name
    line = refusal("trace", "--model", tiny_llama, "--weights", "tuned")
    assert f"there is no adapter for {name}" in line
    assert f"  harness train lite --model {tiny_llama}" in line.splitlines()
    line = refusal("trace", "--model", tiny_llama, "--exit-head", "shortcut")
    assert line.splitlines()[1:] == [f"  harness prepare {tiny_llama}"]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    "command", [("trace",), ("train", "lite"), ("train", "shortlist"), ("suitability",)], ids=" ".join
)
def test_a_file_is_not_read_as_two_languages(
    refusal: Refusal, command: tuple[str, ...], tiny_llama: Path, rows_file: Path
) -> None:
    model = (tiny_llama,) if command == ("suitability",) else ("--model", tiny_llama)
    line = refusal(*command, *model, "--source", rows_file)
    assert f"--source {rows_file} is one file and would be read as py150 and as javacorpus. Name its --task." in line


# ------------------------------------------------------------------------------------- harness train lite


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "fast"), "--preset 'fast': input should be 'paper', 'layerskip' or 'lora'."),
        (("--weights", "tuned"), "--weights 'tuned': input should be 'pretrained' or 'random'."),
        (("--save-steps", 0), "--save-steps 0: input should be greater than or equal to 1."),
        (("--learning-rate", "inf"), "--learning-rate inf: input should be a finite number."),
        (("--token-share", 1.5), "--token-share 1.5: input should be less than or equal to 1."),
        (("--length", 300), "--length 300: {name} has 256 positions."),
        (("--exit-points", "12"), "layers run from 1 to 11"),
        (("--source", "nowhere"), "--source 'nowhere' is neither a file nor a folder."),
        (("--length", 250, "--documents", 2), "do not fill one packed sequence of 250 tokens"),
    ],
)
def test_a_tuning_that_cannot_begin(
    refusal: Refusal, tiny_llama: Path, rows_file: Path, arguments: tuple[object, ...], said: str
) -> None:
    given = ("train", "lite", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--length", 64)
    line = refusal(*given, "--preset", "lora", "--out", "o", *arguments)
    assert said.format(name=tiny_llama.name) in line


# ------------------------------------------------------------------------------------- from traces


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("kind", KINDS)
def test_what_every_training_on_a_trace_refuses(
    refusal: Refusal, traces: Path, tiny_llama: Path, tiny_opt: Path, kind: str
) -> None:
    given = ("train", kind, "--model", tiny_llama, "--out", "o")
    assert f"--seed {2**32}: input should be " in refusal(*given, "--traces", "t", "--seed", 2**32)
    for form in ("..", "sub/{0}", "{0}\n"):
        name = form.format(kind)
        said = " ".join(f"--name '{name}': input should be a plain file name".split())
        assert said in refusal(*given, "--traces", "t", "--name", name)
    line = refusal(*given, "--traces", "traces/x")
    assert "there is no trace traces/x. Make one with:" in line
    assert f"  harness trace --model {tiny_llama} --out traces/x" in line.splitlines()
    theirs = json.loads((traces / "index.json").read_text())["model_fingerprint"]
    line = refusal("train", kind, "--model", tiny_opt, "--traces", "t", "--out", "o")
    assert f"t is a trace with model fingerprint {theirs} ({tiny_llama.name}); {tiny_opt.name} has " in line
    assert line.endswith(f"Trace again:\n  harness trace --model {tiny_opt} --out t-2")


# ---------------------------------------------------------------------------- runs on what was trained


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's heads are kept, trained once."""
    return tmp_path_factory.mktemp("kept") / "a"


@pytest.fixture
def trained(cli: Command, tiny_llama: Path, ready_trace: Path, kept: Path, tmp_path: Path) -> Path:
    """Heads of the tiny model, in ``a``."""
    given = ("--model", tiny_llama, "--traces", ready_trace, "--out", kept, "--epochs", 1, "--hidden", 4)
    for kind in () if kept.exists() else ("classifier", "lte"):
        ran = cli("train", kind, *given)
        assert ran.code == 0, ran.err
    return Path(shutil.copytree(kept, tmp_path / "a"))


@pytest.mark.parametrize(("strategy", "name"), [("rl", "mine"), ("classifier", "mine"), ("lte", "")])
def test_a_strategy_that_nothing_was_trained_for_names_the_commands_in_order(
    refused: Refusal, tiny_llama: Path, strategy: str, name: str
) -> None:
    option = {"": "", "mine": f":{'agent' if strategy == 'rl' else 'heads'}=mine"}[name]
    line = refused("--strategy", f"{strategy}{option}")
    assert f"there is no {name or strategy}.json for {tiny_llama.name} in artefacts/{tiny_llama.name}." in line
    traces = f"traces/{tiny_llama.name}"
    commands = (
        f"  harness train lite --model {tiny_llama}",
        f"  harness trace --model {tiny_llama} --out {traces}",
        f"  harness train {strategy} --model {tiny_llama} --traces {traces}{' --name mine' if name else ''}",
    )
    assert line.splitlines()[1:] == list(commands)


def test_what_was_trained_is_found_in_the_usual_place_and_where_it_is_told(
    tiny_run: Command, trained: Path, tiny_llama: Path, unseen: Path
) -> None:
    arguments = ("--strategy", "classifier", "--strategy", "lte", "--source", unseen, "--limit", 1)
    assert "there is no classifier.json" in tiny_run(*arguments).error
    assert tiny_run(*arguments, "--artefacts", "a", "--out", "told").code == 0
    shutil.copytree(trained, f"artefacts/{tiny_llama.name}")
    assert tiny_run(*arguments, "--out", "usual").code == 0


def test_heads_for_other_exit_points_or_weights(refused: Refusal, trained: Path, tiny_opt: Path) -> None:
    spec = f"lte:heads={trained / 'lte.json'}"
    line = refused("--strategy", spec, "--exit-points", "4,6")
    assert "was trained at exit points 4, 6, 10; this run has 4, 6." in line
    assert "Use --exit-points 4,6,10, or train it again" in line
    assert "harness train lte --model" in line
    theirs = json.loads((trained / "lte.json").read_text())["model_fingerprint"]
    line = refused("--strategy", spec, "--model", tiny_opt)
    assert f"was trained with weights {theirs}" in line
    assert f"{tiny_opt.name} runs with " in line


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_pickles_are_refused_unread(refused: Refusal, tmp_path: Path) -> None:
    for strategy, suffix in (("rl:agent", ".zip"), ("classifier:heads", ".pt"), ("lte:heads", ".pkl")):
        file = tmp_path / f"agent{suffix}"
        file.write_bytes(pickle.dumps(Trap()))
        line = refused("--strategy", f"{strategy}={file}")
        assert f"{file} may be a pickle" in line
        assert "Give the .json that `harness train` wrote." in line
        assert not Path("sprung").exists()


def test_a_pickle_in_disguise_is_not_unpickled(
    cli: Command, tiny_run: Command, tiny_llama: Path, ready_trace: Path, unseen: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "a"  # heads that this process never read
    given = ("--model", tiny_llama, "--traces", ready_trace, "--out", trained, "--epochs", 1, "--hidden", 3)
    assert cli("train", "lte", *given).code == 0
    content = pickle.dumps(Trap())
    facts = json.loads((trained / "lte.json").read_text())
    (trained / "lte.safetensors").write_bytes(content)
    arguments = ("--strategy", "lte", "--artefacts", "a", "--source", unseen, "--limit", 1)
    assert "its hash differs" in tiny_run(*arguments, "--out", "first").error
    (trained / "lte.json").write_text(json.dumps(facts | {"sha256": hashlib.sha256(content).hexdigest()}))
    assert "lte.safetensors is damaged" in tiny_run(*arguments, "--out", "second").error
    assert not Path("sprung").exists()
