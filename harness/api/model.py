"""A model at hand: generate with any strategy, watch the tokens come, and see what every exit says of a text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

from pydantic import Field

from harness.api.columns import TRACE, TracedExit, frame
from harness.api.generation import Completion, Requests, Stream
from harness.appearance.terminal import Console, Line
from harness.appearance.visible_text import one_line
from harness.config import BASELINE, RunConfig, parse_all
from harness.config.decode import DRAFT_MAX, DraftHead, DraftMax, parse_decode
from harness.config.model import Configuration, ModelConfiguration, Seed
from harness.config.rules import NONE, build_prompt_rule, build_stop
from harness.config.strategies import as_strategy
from harness.contracts import ExitHead, ModelInfo, Strategy, WeightsChoice
from harness.contracts.models import with_bos
from harness.decoding.engine import Engine
from harness.decoding.unit_costs import Timing
from harness.errors import ConfigError, ModelError
from harness.host.libraries import resolve_device
from harness.models.model import LoadedModel, resolve
from harness.running.operating_points import OperatingPoint, build_all, drafting, operating_point
from harness.training.traces.record_trace import read_exits

if TYPE_CHECKING:
    import pandas as pd


class LoadOptions(ModelConfiguration):
    """Arguments of :func:`load`."""

    seed: Seed = 0


class GenerateOptions(Configuration):
    """Arguments of :meth:`Model.generate` as a run has them, checked whether they have an effect or not."""

    kv: str
    max_new_tokens: Annotated[int, Field(ge=1)]
    stop_rule: str
    seed: Seed
    decode: str | None
    draft_max: DraftMax
    draft_head: DraftHead
    prompt_exit: str
    batch_size: Annotated[int, Field(ge=1)] = 1


def load(
    model: str | Path,
    *,
    weights: WeightsChoice = "auto",
    dtype: str = "float32",
    weights_format: str = "auto",
    exit_points: str = "paper",
    exit_head: ExitHead = "auto",
    artefacts: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
) -> Model:
    """Return a model ready to generate; a line on stderr says what begins, another what was taken.

    Args:
        model: catalogue name, hub id, folder or GGUF file.
        weights: ``pretrained``, ``tuned``, ``random``, or ``auto``: tuned where there is an adapter.
        dtype: of activations: ``float32``, ``bfloat16`` or ``float16``.
        weights_format: how matrices are stored and multiplied: ``auto`` for the fastest here that keeps float32's
            tokens, which ``harness run`` takes, too, or a registered format such as ``float32``.
        exit_points: ``paper``, ``all``, or layers such as ``"4,8,12"``.
        exit_head: ``shared``, ``shortcut``, or ``auto``: shortcut where there are some for the weights.
        artefacts: folder of trained artefacts or name of a shipped set.
        device: torch device; ``auto`` takes CUDA when there is one.
        threads: CPU threads of this process from now on; ``None`` leaves them as they are.
        seed: of random weights.

    Raises:
        HarnessError: it cannot be had, in one line with the remedy.
    """
    import torch

    given = {
        "model": str(model), "weights": weights, "dtype": dtype, "exit_points": exit_points, "exit_head": exit_head,
        "artefacts": None if artefacts is None else str(artefacts), "device": device, "threads": threads, "seed": seed,
        "weights_format": weights_format,
    }  # fmt: skip
    config = LoadOptions.build(given)
    where = resolve_device(config.device)
    resolved = resolve(config.request(config.seed))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    started = time.perf_counter()
    _say(f"loading {resolved.info.name} …")
    loaded = Model(resolved.load(where, lambda text: _say(f"{text} …")))
    why = ", the fastest here that keeps float32's tokens" if loaded.loaded.format_choice.seconds else ""
    took = f"{loaded.info.weights} weights in {loaded.info.weights_format}{why}"
    _say(f"{loaded.info.name}: {took}, loaded in {time.perf_counter() - started:.1f} s")
    return loaded


def _say(text: str) -> None:
    Console(stderr=True).print(Line(text), style="dim", highlight=False, soft_wrap=True)


class Model:
    """A loaded model: facts, tokenizer, weights. Made by :func:`load`."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._engine = Engine(loaded.backbone, loaded.info, timing=Timing())

    @property
    def info(self) -> ModelInfo:
        """Its facts: layers, exit points, bytes."""
        return self.loaded.info

    @property
    def sources(self) -> Mapping[str, str]:
        """Where weights, tokenizer and exits came from, in words."""
        return self.loaded.sources

    def __repr__(self) -> str:
        info, exits = self.info, ", ".join(map(str, self.info.exit_points)) or "nowhere"
        where = self.loaded.backbone.device
        name = one_line(info.name)
        return f"{name}: {info.num_layers} layers, {info.weights} {info.weights_format} on {where}, exits after {exits}"

    @overload
    def generate(
        self, text: str | Sequence[int], strategy: str | Strategy | type[Strategy] = BASELINE, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        text: Sequence[str | Sequence[int]],
        strategy: str | Strategy | type[Strategy] = BASELINE,
        **options: Any,
    ) -> list[Completion]: ...

    def generate(  # type: ignore[misc]  # options of both are those spelled out here
        self,
        text: str | Sequence[int] | Sequence[str | Sequence[int]],
        strategy: str | Strategy | type[Strategy] = BASELINE,
        *,
        kv: str = "auto",
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stop_rule: str = NONE,
        seed: int = 0,
        decode: str | None = None,
        draft_max: int = DRAFT_MAX,
        draft_head: str = "auto",
        prompt_exit: str = NONE,
        batch_size: int = 8,
    ) -> Completion | list[Completion]:
        """Continue a text greedily, or several.

        Args:
            text: the prompt, or its token ids; a list of either is decoded together and gives a list of completions,
                each what it would be alone, up to rounding.
            strategy: ``NAME[:option=value]…``, or a strategy as an object or class, from wherever it is defined. One
                that looks at the answer (the oracle) does so meanwhile: its times mean nothing. Full depth, what others
                are compared with, unless named; `harness serve` adds ``decode="lossless+suffix"``, as Results advise.
            kv: what happens to keys and values of skipped layers; ``auto`` for the strategy's own default, which the
                oracle has in place of any that is not exact.
            max_new_tokens: limit.
            stop: text or texts that end it and are no part of it.
            stop_rule: a rule of ``harness list stops`` that ends it, ``NAME[:option=value]…``. One that parses needs
                the language: ``statement:language=python``.
            seed: of a random strategy.
            decode: ``lossy`` takes what exits say. ``lossless`` lets them draft and yields full depth's tokens;
                ``lossless+SOURCE[:option=value]…`` lets a draft source propose tokens first, as ``lossless+lookup``.
                ``None`` for lossy, unless the strategy only drafts.
            draft_max: tokens that lossless decoding drafts before it verifies, at most.
            draft_head: what reads the tokens that exits draft: ``full``, ``NAME`` or ``NAME/SIZE`` of a cheap head, or
                ``auto``, a trained one if the model has it.
            prompt_exit: how deep the prompt is read: ``none`` for all layers, or a rule of ``harness list prompts``, as
                ``layer=18:tail=64``.
            batch_size: of several prompts, how many are decoded together at most.

        Raises:
            HarnessError: what was asked for cannot be had, in one line with the remedy.
        """
        options = GenerateOptions(
            kv=kv, max_new_tokens=max_new_tokens, stop_rule=stop_rule, seed=seed, decode=decode, draft_max=draft_max,
            draft_head=draft_head, prompt_exit=prompt_exit, batch_size=batch_size,
        )  # fmt: skip
        several = (
            isinstance(text, Sequence)
            and not isinstance(text, str | bytes)
            and isinstance(next(iter(text), 0), Sequence)
        )
        prompts = [self._read(one) for one in (text if several else [text])]  # type: ignore[arg-type]  # just told apart
        made: list[Completion] = []
        for start in range(0, len(prompts), options.batch_size):
            requests = self._requests(prompts[start : start + options.batch_size], strategy, options, stop)
            made += [requests.completion(row) for row in range(len(prompts[start : start + options.batch_size]))]
        return made if several else made[0]

    def stream(
        self,
        text: str | Sequence[int],
        strategy: str | Strategy | type[Strategy] = BASELINE,
        *,
        kv: str = "auto",
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        stop_rule: str = NONE,
        seed: int = 0,
        decode: str | None = None,
        draft_max: int = DRAFT_MAX,
        draft_head: str = "auto",
        prompt_exit: str = NONE,
    ) -> Stream:
        """Return an iterator over the tokens that :meth:`generate` makes, each when it is decoded, or verified; same
        arguments.
        """
        options = GenerateOptions(
            kv=kv, max_new_tokens=max_new_tokens, stop_rule=stop_rule, seed=seed, decode=decode, draft_max=draft_max,
            draft_head=draft_head, prompt_exit=prompt_exit,
        )  # fmt: skip
        return Stream(self._requests([self._read(text)], strategy, options, stop))

    def trace(self, text: str | Sequence[int]) -> pd.DataFrame:
        """Return what every exit says of a text: one row per token and exit, full depth being the last one."""
        token_ids = self._read(text)
        _, readings = read_exits(self._engine, token_ids)
        spell, layers = self.loaded.tokenizer.decode, (*self.info.exit_points, self.info.num_layers)
        read = [[reading[name].tolist() for name in ("top", "top1", "entropy")] for reading in readings]
        return frame(TRACE, [
            TracedExit(
                place, token_id, spell([token_id]), layer, tops[place], spell([tops[place]]), probabilities[place],
                entropies[place], tops[place] == read[-1][0][place],
            )
            for place, token_id in enumerate(token_ids)
            for layer, (tops, probabilities, entropies) in zip(layers, read, strict=True)
        ])  # fmt: skip

    def _requests(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: str | Strategy | type[Strategy],
        options: GenerateOptions,
        stop: str | Sequence[str],
    ) -> Requests:
        texts, point = _stop_texts(stop), self._point(strategy, options)
        return Requests(
            self._engine, self.loaded.tokenizer, prompts, point, options.max_new_tokens, texts, options.seed
        )  # fmt: skip

    def _read(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                said = f"character {error.start} of the prompt is half of a surrogate pair. Omit it."
                raise ConfigError(said) from None
            token_ids = self.loaded.tokenizer.encode(text)
        else:
            token_ids = _token_ids(text)
        if not token_ids:
            raise ModelError("the prompt is empty. Give the text to continue.")
        if isinstance(text, str):
            token_ids = with_bos(self.loaded.tokenizer, token_ids)
        self._engine.check([token_ids], [0])
        return token_ids

    def _point(self, strategy: str | Strategy | type[Strategy], options: GenerateOptions) -> OperatingPoint:
        given = strategy if isinstance(strategy, str) else as_strategy(strategy)
        built = build_all(parse_all([given]))
        if len(built) != 1:
            raise ConfigError(f"'{strategy}' is {len(built)} operating points, and one can generate. Give one value.")
        policies = RunConfig.build({"kv": options.kv}).kv_policies
        if len(policies) > 1:
            raise ConfigError(f"kv = '{options.kv}' is {len(policies)} policies, and one can generate. Give one.")
        ((spec, one),) = built
        how = parse_decode(one.default_decode if options.decode is None else options.decode)
        lossless = drafting(how, options.draft_max, options.draft_head, one, self.info)
        # A strategy's own policy may keep nothing to be verified.
        own = None if lossless is None else Strategy.default_kv
        stop = build_stop(options.stop_rule)
        if stop is not None:
            stop.rule.check(self.info, "")
        kept = policies[0] if policies else own
        prompt = build_prompt_rule(options.prompt_exit)
        return operating_point(spec, one, self.info, kept, decode=how, lossless=lossless, stop=stop, prompt=prompt)


def _stop_texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence | Set) else (stop,)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"stop = {text!r}: give the text that ends a completion, a list of such, or nothing.")
    return texts


def _token_ids(given: Any) -> list[int]:
    """Return token ids, those of an array or a tensor, too, as Python's integers."""
    try:
        if isinstance(given, bytes | bytearray):
            raise TypeError
        return [index(token_id) for token_id in given]
    except TypeError:
        said = f"text = {repr(given)[:60]}: give the prompt as one text, or its token ids as whole numbers."
        raise ConfigError(said) from None
