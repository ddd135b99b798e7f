"""Tiny random models of every family, and transformers made to exit early: what the engine is compared with."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.families import read
from harness.decoding.generation import Generation
from harness.decoding.unit_costs import Timing
from harness.models.artefacts import write_artefact
from harness.models.controllers import OBSERVATIONS, Activation, Network, write_controller
from harness.models.heads import head_tensors
from harness.training.identity import identity
from strategies.classifier import Classifier
from strategies.confidence import Confidence
from strategies.consistent import Consistent
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.free import Free
from strategies.full import Full
from strategies.hash import Hash
from strategies.lte import LearnToExit
from strategies.margin import Margin
from strategies.oracle import Oracle
from strategies.patience import Patience
from strategies.predictor import Predictor
from strategies.pruned import Pruned
from strategies.random import Random
from strategies.rl import ReinforcementLearning
from strategies.saturation import Saturation
from strategies.schedule import Schedule as ScheduleStrategy
from strategies.shortlist import Shortlist

LAYERS, VOCABULARY, POSITIONS = 6, 97, 160
EXIT_POINTS = (1, 2, 3, 4, 5)

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA = {"intermediate_size": 96, "num_key_value_heads": 2}
_OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64}
_ROPE_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Every form of decoder layer the families can take, by transformers' model type and its configuration.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-biases": (
        "llama",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True},
    ),
    "llama3-rope": ("llama", {**_LLAMA, "rope_parameters": _ROPE_3}),
    "mistral": ("mistral", {**_LLAMA, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 32}),
    "opt": ("opt", _OPT),
    "opt-post-norm": ("opt", {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "opt-bare": ("opt", {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt2": ("gpt2", {}),
    "gpt2-layer-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "neox-parallel": ("gpt_neox", {"intermediate_size": 96, "rotary_pct": 0.25}),
    "neox-sequential": ("gpt_neox", {"intermediate_size": 96, "rotary_pct": 1.0, "use_parallel_residual": False}),
}

KINDS = ["llama-biases", "mistral", "qwen3", "opt-post-norm", "gpt2", "neox-parallel"]
"""A form of each way to place norms, positions and K,V heads: for tests of what all families share."""

each_kind = pytest.mark.parametrize("case", KINDS, indirect=True)

_OUTPUTS = ("o_proj.weight", "out_proj.weight", "dense.weight", "c_proj.weight", "down_proj.weight", "fc2.weight",
            "4h_to_h.weight")  # fmt: skip


def randomise(model: Any, form: str) -> None:
    """Give weights wide enough that tokens vary, yet no branch so strong that a model repeats itself."""
    wide, branch, seed = (0.3, 0.1, 2) if form == "opt-post-norm" else (0.5, 0.5, 1)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=wide * (branch if name.endswith(_OUTPUTS) else 1))
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


@dataclass(frozen=True)
class Case:
    """One form: transformers untouched, and the same weights read into an engine."""

    form: str
    reference: Any
    module: Any
    engine: Engine
    info: ModelInfo

    @property
    def gives_up_qkv(self) -> bool:
        return self.info.family == "gpt_neox"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tiny models are too small to share out; threads that wait for each other on a busy machine cost more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """``make_case(form, **changes)`` builds a form with weights wide enough that its tokens vary."""

    def make(form: str, **changes: Any) -> Case:
        from transformers import AutoConfig, AutoModelForCausalLM

        family, shape = FORMS[form]
        config = AutoConfig.for_model(family, **{**_SHAPE, **shape, **changes})
        reference = AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)
        randomise(reference, form)
        reference.generation_config.pad_token_id = 0
        module = copy.deepcopy(reference)
        info = ModelInfo(
            name=form,
            family=family,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            exit_points=tuple(range(1, config.num_hidden_layers)),
            max_positions=config.max_position_embeddings,
            dtype="float32",
            weights="random",
            layer_bytes=1,
            lm_head_bytes=1,
            kv_projection_bytes=1,
            kv_entry_bytes=1,
        )
        return Case(form, reference, module, Engine(read(module), info), info)

    return make


@pytest.fixture(scope="session")
def cases(make_case: Callable[..., Case]) -> Callable[[str], Case]:
    """Forms by name, each built once."""
    built: dict[str, Case] = {}

    def find(form: str) -> Case:
        if form not in built:
            built[form] = make_case(form)
        return built[form]

    return find


@pytest.fixture(params=FORMS)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Every form; those of :func:`tests.crossing.in_turn` or ``each_kind`` where a test asks for them."""
    return cases(request.param)


@pytest.fixture
def llama(cases: Callable[[str], Case]) -> Case:
    return cases("llama")


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Three prompts of different lengths."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in (7, 12, 5)]


@dataclass
class Again:
    """Records by keeping the work itself, on any device.

    Attributes:
        recorded: how often work was recorded.
    """

    recorded: int = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()
        return work


# ----------------------------------------------------------------------- strategies of the tests


def random_network(*widths: int, seed: int = 7, activation: Activation = "relu", scale: float = 1.0) -> Network:
    """Return a network of random weights: of so many inputs, numbers in between, and outputs."""
    chance = torch.Generator().manual_seed(seed)
    layers = [
        (scale * torch.randn(rows, columns, generator=chance) / columns**0.5, torch.randn(rows, generator=chance))
        for columns, rows in itertools.pairwise(widths)
    ]
    return Network(tuple(layers), activation)


STRATEGIES: dict[str, Strategy] = {
    "full": Full(),
    "fixed": Fixed(layer=3),
    "random": Random(probability=0.3),
    "oracle": Oracle(),
    "confidence": Confidence(threshold=0.6),
    "margin": Margin(threshold=0.5, decay=2.0),
    "entropy": Entropy(threshold=0.3),
    "saturation": Saturation(threshold=0.8),
    "patience": Patience(patience=2),
    "schedule": ScheduleStrategy(first=5, last=2, horizon=8),
    "free": Free(layer=3, threshold=0.3, posterior=0.5, every=2),
    "pruned": Pruned(layers=2),
    "shortlist": Shortlist(threshold=0.8, size=8),
    "shortlist, patience": Shortlist("patience", size=8, token="full"),
}
"""What needs no training."""

LEARNED = ("classifier", "lte", "rl", "hash", "predictor", "consistent")


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, ModelInfo], Strategy]:
    """``learned("rl", model)``: one of :data:`LEARNED`, whose trained part has random weights."""

    def make(name: str, model: ModelInfo) -> Strategy:
        chance, width = torch.Generator().manual_seed(5), model.hidden_size + 3
        path = tmp_path_factory.mktemp(name) / f"{name}.json"
        facts = identity(model, "t") | {"threshold": 0.6}
        points = list(map(str, model.exit_points))
        if name == "hash":
            shares = torch.rand(model.vocab_size, len(points), generator=chance).half()
            tensors = {"token_ids": torch.arange(model.vocab_size).int(), "shares": shares}
            write_artefact(path, name, tensors, facts | {"threshold": 0.8})
            return Hash(table=str(path))
        if name == "predictor":
            tensors = {}
            for seed, point in enumerate(points):
                tensors |= random_network(12, 1, seed=seed, scale=3.0).tensors(point)
            described = {"candidates": 4, "head": "full", "activation": "relu"}
            write_artefact(path, name, tensors, facts | described)
            return Predictor(head="full", predictor=str(path))
        of_each = name in ("classifier", "consistent")
        names = points if of_each else ["shared"]
        networks = {each: random_network(width, 1, seed=5 + seed, scale=3.0) for seed, each in enumerate(names)}
        write_controller(path, name, OBSERVATIONS["rich"], networks, facts)
        if name == "rl":
            return ReinforcementLearning(agent=str(path))
        if name == "consistent":
            return Consistent(policies=str(path))
        return {"classifier": Classifier, "lte": LearnToExit}[name](heads=str(path))

    return make


def with_heads(case: Case, folder: Path, timing: Timing | None = None, **facts: Any) -> Engine:
    """Return an engine for whose model cheap heads are trained."""
    kept = {"shortlist": {"token_ids": torch.arange(VOCABULARY).roll(11)}, "lowrank": {"root": torch.eye(64)}}
    for kind, tensors in kept.items():
        write_artefact(folder / f"{kind}.json", kind, tensors, {"model": case.info.name})
    info = replace(case.info, artefacts=(str(folder),), **facts)
    backbone = replace(case.engine.backbone, trained=partial(head_tensors, info, "cpu"))
    return Engine(backbone, info, timing=timing)


def decode_open(
    engine: Engine, rows: Sequence[tuple[Sequence[int], Strategy, int]], kv: str = "recompute", seed: int = 0
) -> tuple[list[Generation], dict[int, Exception]]:
    """Decode (prompt, strategy, limit) rows in one open batch, each by its own rule; return them and what failed."""
    tally = [Generation() for _ in rows]
    exits = RowExits(engine.info, "cpu", tally)
    batch = engine.open(len(rows), 60, kv, exits, tally)
    batch.with_log_probabilities = True
    for row, (prompt, strategy, limit) in enumerate(rows):
        exits.join(row, strategy, seed)
        batch.join(row, prompt, limit)
        batch.prefill([row])
    while batch.running:
        batch.step()
        for row in exits.failures:
            batch.drop(row)
    return tally, exits.failures


@dataclass(frozen=True)
class Sight:
    """What was to be seen of one row at one exit point."""

    row: int
    position: int
    layer: int
    hidden_state: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Schedule(Strategy):
    """Leave where the schedule says: ``layers[row][step]``, with steps counted by the tokens there are.

    Looking asks for logits at every exit point; what was seen is kept.
    """

    layers: Sequence[Sequence[int]]
    points: tuple[int, ...] = EXIT_POINTS
    looking: bool = False
    seen: list[Sight] = field(default_factory=list)

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return self.points

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        logits = view.logits if self.looking else [None] * len(view.rows)
        facts = zip(view.rows.tolist(), view.position.tolist(), view.hidden_state, logits, strict=True)
        self.seen.extend(Sight(row, position, view.exit_layer, state, seen) for row, position, state, seen in facts)
        steps = zip(view.rows.tolist(), view.token_ids, strict=True)
        return torch.tensor([self.layers[row][len(tokens)] == view.exit_layer for row, tokens in steps])


@pytest.fixture(scope="session")
def schedule() -> type[Schedule]:
    return Schedule


@pytest.fixture(scope="session")
def exits() -> Callable[..., list[list[int]]]:
    """``exits(rows, tokens, first=LAYERS, seed=0)``: exit layers in all orders, the first token's given."""

    def draw(rows: int, tokens: int, *, first: int = LAYERS, seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(1, LAYERS + 1, (rows, tokens - 1), generator=generator)
        return [[first, *row] for row in drawn.tolist()]

    return draw


# ------------------------------------------------------------------ transformers that exits early


class Reference:
    """One row decoded by a transformers model, its layers steered by hooks.

    ``none`` and ``recompute`` run the whole sequence for every token and take the hidden state after
    some layers. ``propagate`` and ``skip`` run one token against transformers' own cache: after the exit,
    ``propagate`` hands every deeper layer the exit hidden state, so that transformers itself computes and
    stores the keys and values; ``skip`` masks, layer by layer, the positions that never got there.
    """

    def __init__(self, model: Any, kv: str, prompt: Sequence[int]) -> None:
        self.model, self.kv, self.sequence = model, kv, list(prompt)
        self.cache: Any = None
        self._looked: list[Tensor] | None = None
        self.depths = [LAYERS] * len(prompt)
        core = model.base_model
        self._layers = getattr(getattr(core, "decoder", core), "h" if model.config.model_type == "gpt2" else "layers")

    @property
    def cached(self) -> bool:
        return self.kv in ("propagate", "skip")

    def look(self) -> list[Tensor]:
        """Logits after 1…LAYERS layers for the next token, without moving."""
        if self._looked is None:
            _, self._looked = self._run(LAYERS, copy.deepcopy(self.cache))
        return self._looked

    def leave(self, layer: int) -> int:
        """Decode the next token after so many layers."""
        first = len(self.depths) == len(self.sequence)
        if self.cached or self._looked is None:
            self.cache, self._looked = self._run(layer, self.cache)
        logits, self._looked = self._looked, None
        if not first:
            self.depths.append(layer)
        token = int(logits[layer - 1].argmax())
        self.sequence.append(token)
        return token

    @torch.no_grad()
    def _run(self, layer: int, cache: Any) -> tuple[Any, list[Tensor]]:
        one_by_one = self.cached and cache is not None
        tokens = self.sequence[-1:] if one_by_one else self.sequence
        inputs: list[Tensor] = []

        def steer(index: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                inputs.append(args[0])
                if one_by_one and self.kv == "propagate" and index > layer:
                    args = (inputs[layer], *args[1:])
                if one_by_one and self.kv == "skip":
                    mask = torch.tensor([[[[depth > index for depth in self.depths] + [True]]]])
                    if self.model.config.model_type == "gpt2":
                        args = (*args[:2], mask, *args[3:])
                    else:
                        kwargs = {**kwargs, "attention_mask": mask}
                return args, kwargs

            return hook

        handles = [
            block.register_forward_pre_hook(steer(index), with_kwargs=True) for index, block in enumerate(self._layers)
        ]
        ids = torch.tensor([tokens])
        try:
            with warnings.catch_warnings():  # transformers 5.24 says `cache`; its predecessors know only this name
                warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
                out = self.model(ids, past_key_values=cache if one_by_one else None, use_cache=True)
        finally:
            for handle in handles:
                handle.remove()
        early = [self._head(state[:, -1])[0] for state in inputs[1:]]
        return out.past_key_values, [*early, out.logits[0, -1]]

    def _head(self, state: Tensor) -> Tensor:
        core = self.model.base_model
        core = getattr(core, "decoder", core)
        for name in ("norm", "final_layer_norm", "ln_f"):
            state = (getattr(core, name, None) or nn.Identity())(state)
        state = (getattr(core, "project_out", None) or nn.Identity())(state)
        return self.model.get_output_embeddings()(state)


@pytest.fixture(scope="session")
def follow() -> Callable[..., Reference]:
    """``follow(case, kv, prompt, exit_layers)``: the reference after those tokens."""

    def run(case: Case, kv: str, prompt: Sequence[int], exit_layers: Sequence[int]) -> Reference:
        reference = Reference(case.reference, kv, prompt)
        for layer in exit_layers:
            reference.leave(layer)
        return reference

    return run


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[int]]:
    """``greedy(model, prompt, count)``: transformers' own ``generate``."""

    def run(model: Any, prompt: Sequence[int], count: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    return run


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[KVCache]:
    """Every cache the engine makes during the test."""
    made: list[KVCache] = []

    class Kept(KVCache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("harness.decoding.engine.KVCache", Kept)
    return made
