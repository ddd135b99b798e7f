"""lm-evaluation-harness's view of a model that exits early.

Everything that reaches the model's tokens is as lm-eval's own ``hf`` model does it, so that full depth has its results:
how contexts and continuations are encoded, truncated and windowed, where answers are cut. Greedy; one process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from jinja2.exceptions import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from harness.config import BASELINE, RunConfig
from harness.config.model import DEFAULT_MODEL
from harness.contracts import OWN_FORMAT, Meter, StopRule, Strategy
from harness.contracts.meters import is_measured
from harness.decoding.engine import Engine, decode_in_turn
from harness.decoding.readings import scores
from harness.decoding.step import PrefixPass
from harness.decoding.unit_costs import Timing
from harness.errors import ConfigError, ModelError
from harness.host.libraries import library_border, resolve_device
from harness.lm_eval.requests import Ask, cut, read_generation, stop_rule
from harness.lm_eval.results import Spent
from harness.metering import metered, open_meter
from harness.models.model import resolve
from harness.records import OperatingPointRecord
from harness.running.operating_points import OperatingPoint, build_all, operating_points

logger = logging.getLogger(__name__)


@torch.inference_mode()
def log_likelihoods(
    engine: Engine, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]], layer: int
) -> list[list[tuple[float, bool]]]:
    """Return the log-likelihood of each continuation, and whether it is what would be generated greedily."""
    engine.check(inputs, [0] * len(inputs))
    current = PrefixPass(engine.backbone, engine.rotary(max(map(len, inputs))), inputs, list(range(len(inputs))))
    current.advance(layer)
    found = []
    for state, read, each in zip(current.states(), inputs, targets, strict=True):
        longest = max(map(len, each))
        states = state[len(read) - longest : len(read)]
        found.append([_score(engine, states[longest - len(target) :], target, layer) for target in each])
    return found


def _score(engine: Engine, states: Tensor, target: Sequence[int], layer: int) -> tuple[float, bool]:
    found = list(scores(engine.backbone, states, target, layer))
    greedy = all(best == token for token, (_, best, _) in zip(target, found, strict=True))
    return math.fsum(value for value, _, _ in found), greedy


MAX_GEN_TOKS = 256
"""New tokens where a task names no limit, as of lm-eval's ``hf``."""

Encoded = tuple[Any, list[int], list[int]]
"""A request of lm-eval, and the tokens of its context and continuation."""


@register_model("early-exit")
class EarlyExitLM(TemplateLM):  # type: ignore[misc]
    """A model whose completions are decoded with a strategy, for ``lm_eval.simple_evaluate(model=…)``.

    ``generate_until`` decodes greedily with the strategy, ``batch_size`` requests together: where one ends, the next
    one joins. ``loglikelihood`` and ``loglikelihood_rolling`` score texts that are known, at full depth unless
    ``loglikelihood_exit`` names a layer: a strategy decides about tokens that are made, not about those. What it took,
    per task, is in the results at ``config`` → ``early_exit``.

    Args:
        model: catalogue name, hub id, folder or GGUF file.
        strategy: ``NAME[:option=value]…``, one operating point, or a strategy as an object or class.
        max_gen_toks: new tokens where a task names no limit.
        loglikelihood_exit: exit point whose head scores texts; ``None`` for full depth.
        max_batch_size: lm-eval hands one to every model; ``batch_size`` decides here.
        settings: further ones of :class:`harness.RunConfig`: ``weights``, ``dtype``, ``weights_format``, ``exit_head``,
            ``kv``, ``decode``, ``prompt_exit``, ``batch_size``, ``device``, ``threads``, ``energy``, ``seed``. The
            weights format is the dtype's own unless named, so that full depth is ``hf``'s.

    Attributes:
        config: all of these.
        spent: what generation and scoring took, by (``generated`` or ``scored``, task).

    Raises:
        HarnessError: it cannot be had, or does not fit the model, in one line with the remedy.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        strategy: str | Strategy | type[Strategy] = BASELINE,
        *,
        max_gen_toks: int = MAX_GEN_TOKS,
        loglikelihood_exit: int | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in settings.items() if value is not None}
        given.setdefault("weights_format", OWN_FORMAT.get(given.get("dtype", "float32"), "auto"))
        self.configure(
            RunConfig.build({**given, "model": str(model), "strategies": (strategy,)}),
            max_gen_toks,
            loglikelihood_exit,
        )

    def configure(self, config: RunConfig, max_gen_toks: int, loglikelihood_exit: int | None) -> None:
        """Check what was asked for; reads no weights."""
        self.config, self._limit = config, max_gen_toks
        self._device = resolve_device(config.device)
        self._resolved = resolve(config.request(config.seed))
        info = self._resolved.info
        if loglikelihood_exit not in (None, info.num_layers, *info.exit_points):
            raise ConfigError(
                f"loglikelihood_exit = {loglikelihood_exit}: {info.name} has no exit there. Known: "
                f"{', '.join(map(str, info.exit_points)) or 'none'}; {info.num_layers} is full depth."
            )
        self._scoring_layer = loglikelihood_exit or info.num_layers
        self.tokenizer = self._resolved.tokenizer.wrapped
        self._warned = False
        self.spent: dict[tuple[str, str], Spent] = {}
        self._task = ""

    @property
    def eot_token_id(self) -> int:
        """Id that ends a text."""
        end: int | None = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                f"the tokenizer of {self.config.model} has no end token, which lm-eval needs. Add it there."
            )
        return end

    @property
    def prefix_token_id(self) -> int:
        """Id before a text that has no context."""
        first: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def max_length(self) -> int:
        """Tokens of a context and its continuation together, at most."""
        return self._resolved.info.max_positions

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task names no limit."""
        return self._limit

    @property
    def batch_size(self) -> int:
        """Requests that are read, or decoded, together."""
        return self.config.batch_size

    @property
    def tokenizer_name(self) -> str:
        """The name of this model's chat template in caches."""
        return self.config.model.replace("/", "__")

    def check_chat_template(self) -> None:
        """Refuse a tokenizer without a template, or with several and none by default."""
        try:
            with suppress(NotImplementedError):  # mistral-common's tokenizers write conversations without a template
                self.tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                f"the tokenizer of {self.config.model} has no default chat template. Omit --apply-chat-template, or "
                "name a model whose tokenizer has one."
            ) from error

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the tokenizer's template writes it, without system messages where that fails."""
        self.check_chat_template()

        def written(messages: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        with library_border(f"the chat template of {self.config.model} fails", "Omit --apply-chat-template."):
            try:
                return written(chat_history)
            except TemplateError:
                text = written([message for message in chat_history if message["role"] != "system"])
        if not self._warned:
            self._warned = True
            said = "the chat template of %s takes no system message: descriptions of tasks are left out, as by hf"
            logger.warning(said, self.config.model)
        return text

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer puts around a text unless it begins with one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a completion of each request's context."""
        asks = [self._ask(request) for request in requests]
        answers = [self.text(ask, made) for ask, made in zip(asks, self._generate(asks, disable_tqdm), strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return of each (context, continuation) the log-likelihood, and whether it would be generated greedily."""
        return self._by_task(requests, super().loglikelihood, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text as a whole, in windows where it is longer than the model reads."""

        def totals(some: Sequence[Any], disable_tqdm: bool) -> list[float]:
            windows = [self._windows(request.args[0]) for request in some]
            scored = iter(self._loglikelihood_tokens([one for each in windows for one in each], disable_tqdm))
            return [sum(next(scored)[0] for _ in each) for each in windows]

        return self._by_task(requests, totals, disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """Return what results say of the model: how it decoded, and what that took, per task."""
        info, record = self._resolved.info, self.operating_point
        full = self._scoring_layer == info.num_layers
        facts = {
            "operating_point": record.name,
            "kv": record.kv,
            "decode": record.decode,
            "prompt_exit": record.prompt_exit,
            "model": info.name,
            "weights": info.weights,
            "weights_format": record.weights_format,
            "dtype": info.dtype,
            "exit_head": info.exit_head.partition(":")[0],
            "num_layers": info.num_layers,
            "device": self._device,
            "threads": torch.get_num_threads(),
            "loglikelihood_at": "full depth" if full else f"exit after layer {self._scoring_layer}",
            "loglikelihood_layer": self._scoring_layer,
            "tasks": self.facts(),
        }
        return {"early_exit": facts}

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return task → ``generated``, ``scored`` → what it took."""
        found: dict[str, dict[str, Any]] = {}
        for (kind, task), spent in self.spent.items():
            found.setdefault(task, {})[kind] = spent.facts()
        return found

    def close(self) -> None:
        """Release the energy sensor, if it was used."""
        if "meter" in self.__dict__:
            self.meter.close()

    @cached_property
    def meter(self) -> Meter:
        """The energy meter."""
        return open_meter(self.config.energy, self._resolved.devices(self._device), self.config.tdp_w)[0]

    @cached_property
    def engine(self) -> Engine:
        """The model, its weights read when first asked for."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        loaded = self._resolved.load(self._device)
        return Engine(loaded.backbone, loaded.info, self.config.kv_input, Timing())

    @property
    def operating_point(self) -> OperatingPointRecord:
        """The model that results belong to."""
        return self.point.record

    @cached_property
    def point(self) -> OperatingPoint:
        """The exit settings."""
        points = operating_points(build_all(self.config.specs()), self.config, [self.engine.info])
        # full depth otherwise than as usual has the usual one beside it
        found = [one for one in points if one.record.strategy != BASELINE or one is points[-1]]
        if len(found) != 1:
            raise ConfigError(f"{len(found)} operating points were asked for, and one can answer lm-eval. Name one.")
        return found[0]

    def spent_on(self, kind: str, task: str) -> Spent:
        """Return what generation or scoring took for a task so far."""
        return self.spent.setdefault((kind, task), Spent(self.meter.source, is_measured(self.meter)))

    @contextmanager
    def _measured(self, kind: str, task: str) -> Iterator[Spent]:
        """Measure the body as one window, since a sensor that ticks slowly sees nothing of a batch; count it there."""
        _ = self.point  # which reads the model, before
        spent = self.spent_on(kind, task)
        with metered(self.meter) as window:
            yield spent
        assert window.reading is not None
        spent.add(window.reading)

    def _ask(self, request: Any) -> Ask:
        context, settings = request.args
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        until, limit = read_generation(request.task_name, settings, self.max_gen_toks, end)
        room = self.max_length - limit
        if not 0 < room < self.max_length:
            raise ConfigError(
                f"the task {request.task_name} asks for {limit} new tokens, and {self.config.model} has "
                f"{self.max_length} positions for prompt and completion. Set another max_gen_toks."
            )
        ids = self.tok_encode(context, left_truncate_len=room) or [self.prefix_token_id]
        name = str(request.doc_id) if not request.idx else f"{request.doc_id}.{request.idx}"
        return Ask(request.task_name or "", name, tuple(ids), until, limit, request)

    def text(self, ask: Ask, token_ids: Sequence[int]) -> str:
        """Return the answer that tokens are: their text without special tokens, cut where a stop text begins."""
        return cut(self.tokenizer.decode(list(token_ids), skip_special_tokens=True), ask.until)

    def _generate(self, asks: Sequence[Ask], disable_tqdm: bool) -> list[Sequence[int]]:
        found: dict[int, Sequence[int]] = {}
        alike: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for place, ask in enumerate(asks):
            alike.setdefault((ask.task, ask.until), []).append(place)
        with tqdm(total=len(asks), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for (task, until), places in alike.items():
                rule = stop_rule(self._resolved.tokenizer, until)
                longest_first = sorted(places, key=lambda place: -len(asks[place].prompt_ids))
                with self._measured("generated", task) as spent:
                    for place, token_ids in self._decode([asks[place] for place in longest_first], rule, spent):
                        found[longest_first[place]] = token_ids
                        bar.update()
        return [found[place] for place in range(len(asks))]

    def _decode(self, asks: Sequence[Ask], stop: StopRule, spent: Spent) -> Iterator[tuple[int, Sequence[int]]]:
        point = self.point
        facts = point.record.kv_facts
        first = int(facts is not None and facts.keeps_cache)  # a prompt pass has no depth to choose
        for place, made in decode_in_turn(
            self.engine,
            [ask.prompt_ids for ask in asks],
            point.strategy,
            rows=self.batch_size,
            kv=point.kv,
            max_new_tokens=[ask.limit for ask in asks],
            seeds=[self.config.seed + crc32(ask.sample_id.encode()) for ask in asks],
            stop=stop,
            eos_token_ids=self._resolved.tokenizer.eos_token_ids,
            lossless=point.lossless,
            prompt_rule=None if point.prompt is None else point.prompt.rule,
        ):
            if made.failure is not None:
                raise ModelError(f"{asks[place].task}, request {asks[place].sample_id}: {made.failure}")
            spent.count(1, len(made.token_ids), made.exit_layers[first:])
            yield place, made.token_ids

    def _by_task(self, requests: Sequence[Any], score: Callable[..., list[Any]], disable_tqdm: bool) -> list[Any]:
        """Score the requests of one task after another's, so that each is known by what it took."""
        found: dict[int, Any] = {}
        for task in dict.fromkeys(request.task_name for request in requests):
            places = [place for place, request in enumerate(requests) if request.task_name == task]
            self._task = task or ""
            found.update(zip(places, score([requests[place] for place in places], disable_tqdm), strict=True))
        return [found[place] for place in range(len(requests))]

    def _windows(self, text: str) -> list[Encoded]:
        tokens = self.tok_encode(text)
        windows = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [(None, *make_disjoint_window(window)) for window in windows]

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; those that follow the same tokens are read in one pass."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, (texts, context, continuation) in enumerate(requests):
            if not continuation or len(continuation) > self.max_length:
                raise ModelError(
                    f"{self._task}: a continuation has {len(continuation)} tokens, and 1 to {self.max_length} can be "
                    f"scored{'' if texts is None else f': {texts[1]!r}'}."
                )
            read = (*context, *continuation)[-(self.max_length + 1) : -1]
            alike.setdefault(read, []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        longest_first = sorted(alike.items(), key=lambda item: -len(item[0]))
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        with bar, self._measured("scored", self._task) as spent:
            for start in range(0, len(longest_first), self.batch_size):
                batch = longest_first[start : start + self.batch_size]
                found.update(self._score(requests, dict(batch), spent))
                bar.update(sum(len(places) for _, places in batch))
        answers = [found[place] for place in range(len(requests))]
        for (texts, _context, _continuation), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score(
        self, requests: Sequence[Encoded], batch: Mapping[tuple[int, ...], Sequence[int]], spent: Spent
    ) -> dict[int, tuple[float, bool]]:
        targets = [[requests[place][2] for place in places] for places in batch.values()]
        scores = log_likelihoods(self.engine, list(batch), targets, self._scoring_layer)
        tokens = sum(len(target) for each in targets for target in each)
        spent.count(sum(map(len, targets)), tokens, [self._scoring_layer] * tokens)
        places = (place for each in batch.values() for place in each)
        return dict(zip(places, (one for each in scores for one in each), strict=True))
