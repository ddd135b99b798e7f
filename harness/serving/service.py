"""The model behind the routes: loads it, prepares prompts, and takes jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from harness.appearance.visible_text import one_line
from harness.config.decode import check_defers, parse_decode
from harness.config.rules import NONE, idle_prefetches
from harness.contracts import Batch, ModelInfo
from harness.contracts.meters import is_measured
from harness.contracts.models import with_bos
from harness.decoding.engine import Engine
from harness.decoding.unit_costs import Timing
from harness.errors import ConfigError, HarnessError, reason
from harness.host.libraries import resolve_device
from harness.metering import open_meter
from harness.models.fill_in_the_middle import encode_inside, fill_in_the_middle
from harness.models.model import resolve
from harness.registry import KV_POLICIES, ran_out_of_memory
from harness.serving.completions import DrainingError, InvalidRequestError, Job, LoadingError, Prompt
from harness.serving.config import ServeConfig, prompt_cap
from harness.serving.exit_settings import Settings
from harness.serving.metrics import Metrics
from harness.serving.worker import Answer, EnergyShares, Worker

logger = logging.getLogger(__name__)

MAX_STOPS, MAX_STOP_CHARACTERS = 256, 4096
"""Stop texts of a request: all are looked for at every token."""

State = Literal["loading", "ready", "draining", "failed"]


class Service:
    """The model and its queue, as the routes see them. All that can be checked without weights is checked at once.

    Raises:
        HarnessError: it cannot be served, in one line.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        decode = parse_decode(config.decode)
        if decode.lossless:
            check_defers(config.kv)
        shallow = config.prompt_exit != NONE
        if shallow and decode.lossless:
            raise ConfigError("--prompt-exit is for lossy requests, and --decode is lossless. Add --decode lossy.")
        if config.prefetch != "none" and not config.kept_prompts:
            raise ConfigError("--prefetch computes for later prompts, and --kept-prompts is 0. Omit one.")
        for why in idle_prefetches({config.prefetch}, shallow=shallow, recalling=decode.recalls):
            raise ConfigError(why)
        self._model = resolve(config.request())
        if config.kv_input == "shortcut" and self._model.shortcut is None:
            raise ConfigError("--kv-input shortcut needs the exits' shortcuts, and the exit head is shared.")
        self.info: ModelInfo = self._model.info
        self.settings = Settings(
            config.strategies, self.info, decode, config.draft_max, config.kv, config.draft_head, config.stop,
            config.prompt_exit,
        )  # fmt: skip
        self.max_prompt_tokens = prompt_cap(config, self.info)
        self._tokenizer = self._model.tokenizer
        self._meter, _ = open_meter(config.energy, self._model.devices(self.device), config.tdp_w)
        self.energy_source, self.energy_description = self._meter.source, self._meter.description
        self.energy_measured = is_measured(self._meter)
        self.fim = fill_in_the_middle(self._tokenizer)
        self.metrics = Metrics(energy_measured=self.energy_measured)
        self.metrics.bind(self)
        self.state: State = "loading"
        self.failure: str | None = None  # why it could not be loaded, in one line
        self.weights_source = ""  # in words; empty until loaded
        self._worker: Worker | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def model_name(self) -> str:
        """The model's id as clients see it: a folder's own name, never its path."""
        return Path(self.info.name).name if Path(self.info.name).is_dir() else self.info.name

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return 0 if self._worker is None else len(self._worker.queue)

    @property
    def running(self) -> int:
        """Requests that are being decoded."""
        return 0 if self._worker is None else len(self._worker.served)

    def start(self) -> None:
        """Begin to load the model, on the engine's thread; returns at once. :attr:`state` says how it goes."""
        self._thread.start()

    def job(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        *,
        early_exit: Any = None,
        owner: str | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        keep_stop: bool = False,
        truncate: bool = False,
        generate_s: float | None = None,
        seed: int = 0,
        reuse: bool = True,
        scored: bool = False,
    ) -> Job:
        """Return the job that a request is: text before the cursor, or its tokens, and text after it, how it exits, and
        the fields of :class:`Job`.

        A prompt that is too long is refused, or loses what is far from the cursor (``truncate``). ``reuse`` shares K,V
        with other prompts of the same owner. A prompt that is ``scored`` is read whole, at full depth.

        Raises:
            InvalidRequestError: it cannot be served as it is written.
        """
        setting = self.settings.resolve(early_exit)
        stop, cap = tuple(dict.fromkeys(stop)), self.config.max_new_tokens
        if len(stop) > MAX_STOPS or sum(map(len, stop)) > MAX_STOP_CHARACTERS:
            raise InvalidRequestError(
                f"{len(stop)} stop texts of {sum(map(len, stop))} characters were given; {MAX_STOPS} of "
                f"{MAX_STOP_CHARACTERS} in all are allowed."
            )
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InvalidRequestError(f"{max_new_tokens} new tokens cannot be made. Send 1 or more, or no limit.")
        if scored and not KV_POLICIES.load(self.config.kv).facts.keeps_cache:
            raise InvalidRequestError("echo with logprobs needs a KV cache. Serve with --kv recompute.", "echo")
        return Job(
            prompt=self.encode(prompt, suffix or None, truncate=truncate),
            setting=setting,
            max_new_tokens=min(max_new_tokens or cap, cap),
            stop=stop,
            keep_stop=keep_stop,
            generate_s=generate_s,
            seed=seed % 2**63,  # every generator of random numbers takes it
            scored=scored,
            owner=owner if reuse and not scored else None,
        )

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model than the one that is served."""
        if name and name != self.model_name:
            said = f"model {name[:80]!r} is not served here. This server has {self.model_name!r}."
            raise InvalidRequestError(said, "model")

    def conversation(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a conversation, as the model's own template writes it up to where the answer begins."""
        try:
            text: str = self._tokenizer.wrapped.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is the model's, and may raise what it likes
            raise InvalidRequestError(
                f"{self.model_name} has no chat template that takes this conversation ({reason(error)}). Send a prompt "
                "to /v1/completions."
            ) from error
        return self._tokens(text)

    def encode(self, prompt: str | Sequence[int], suffix: str | None, *, truncate: bool) -> Prompt:
        """Return what the model reads; see :meth:`job`."""
        tokens, ends = self._tokens(prompt), self._tokenizer.eos_token_ids
        if suffix and self.fim is not None:
            after = encode_inside(self._tokenizer, suffix)
            read = with_bos(self._tokenizer, self.fim.token_ids(tokens, after))
            over = self._over(len(read), truncate=truncate)
            if over:
                room = len(tokens) + len(after) + self.fim.markers - over
                tokens, after = self.fim.fit(tokens, after, room)
                read = with_bos(self._tokenizer, self.fim.token_ids(tokens, after))
            return Prompt(tuple(read), over, 0, "used", tuple(tokens), ends | self.fim.end_token_ids)
        if suffix and self.config.suffix == "refuse":
            raise InvalidRequestError(
                f"{self.model_name} has no fill-in-the-middle tokens and cannot read a suffix. Send none, or serve "
                "with --suffix ignore."
            )
        if not tokens:
            raise InvalidRequestError("the prompt is empty. Send the text before the cursor.")
        start = self._tokenizer.start_ids if isinstance(prompt, str) else ()  # tokens are read as they are sent
        begins = tuple(tokens[: len(start)]) == start
        begun, tokens = (0, tokens[len(start) :]) if begins else (len(start), tokens)
        over = self._over(len(start) + len(tokens), truncate=truncate)
        read = [*start, *tokens[over:]]
        marked = None if suffix or self.fim is None else self.fim.before_gap(read)  # by the client, as llm-vscode does
        if self.fim is not None and marked is not None:
            return Prompt(tuple(read), over, begun, "used", marked, ends | self.fim.end_token_ids)
        return Prompt(tuple(read), over, begun, "ignored" if suffix else "none", end_token_ids=ends)

    def _over(self, tokens: int, *, truncate: bool) -> int:
        """Return how many tokens of a prompt are too many; refuse them where it is not to be truncated."""
        over = max(0, tokens - self.max_prompt_tokens)
        if over and not truncate:
            raise InvalidRequestError(
                f"the prompt has {tokens} tokens, and {self.max_prompt_tokens} are allowed. Send less, or serve "
                "with a larger --max-prompt-tokens."
            )
        return over

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        wrong = next((token for token in prompt if not 0 <= token < self.info.vocab_size), None)
        if wrong is not None:
            raise InvalidRequestError(
                f"token id {wrong} is outside the vocabulary of {self.model_name}. "
                f"Send ids from 0 to {self.info.vocab_size - 1}."
            )
        return list(prompt)

    def check_ready(self) -> None:
        """Refuse while no requests are accepted: not yet, never, or no more."""
        if self.state == "draining":
            raise DrainingError("the server is shutting down. Use another one.")
        if self.state == "failed":
            raise LoadingError(f"the model could not be loaded: {self.failure}")
        if self.state == "loading":
            raise LoadingError("the model is being loaded. Try again when /health says ready.")

    def submit(self, jobs: Sequence[Job]) -> Answer:
        """Queue the jobs of a request, all or none; call from the event loop that will read the answer.

        Raises:
            ServingError: the queue is full, or no requests are accepted now.
        """
        self.check_ready()
        assert self._worker is not None
        answer = Answer(jobs, self.config.deadline_s)
        self._worker.submit(answer)
        return answer

    def drain(self) -> None:
        """Accept no new requests and let accepted ones finish, for ``drain_s`` seconds at most; what is left
        then fails with :class:`DrainingError`. Returns at once; may be called from a signal handler.
        """
        if self.state != "failed":
            self.state = "draining"
        if self._worker is not None:
            self._worker.drain(self.config.drain_s)

    def close(self) -> bool:
        """Wait for the engine's thread, after :meth:`drain`; returns whether it has ended.

        It has not while it loads. The process must then leave by ``os._exit``: an interpreter that is torn down while
        torch computes aborts.
        """
        loading = self._worker is None and self.failure is None
        if self._thread.ident is not None:
            self._thread.join(0 if loading else self.config.drain_s + 5)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._worker = worker = self._load()
            if self.state == "draining":  # stopped while loading
                worker.drain(0)
            else:
                self.state = "ready"
            worker.run()
        except Exception as error:
            if not isinstance(error, HarnessError):
                logger.exception("the engine stopped")
            self.failure = one_line(str(error)) or type(error).__name__
            if ran_out_of_memory(error):
                self.failure = (
                    f"out of memory loading {self.model_name}. Use --dtype bfloat16, a smaller --batch-size or "
                    "--max-prompt-tokens."
                )
            if self._worker is not None:
                self.failure = f"the engine stopped: {self.failure}"
            self.state = "failed"
        finally:
            self._meter.close()

    def _load(self) -> Worker:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        loaded = self._model.load(self.device)
        self.info = loaded.info
        engine = Engine(loaded.backbone, self.info, self.config.kv_input, Timing())
        positions = self.max_prompt_tokens + self.config.max_new_tokens
        energy, special = EnergyShares(self._meter), self._tokenizer.special_ids
        worker = Worker(engine, self._tokenizer, special, self.config, positions, energy, self.metrics)
        default = self.settings.default
        # Their parts are read, and what decoding needs once is paid, before anyone asks.
        engine.prepare([] if default.lossless is None else [default.lossless.head])
        for strategy in self.settings.strategies():
            engine.prepare(strategy.cheap_heads())
            strategy.start(self.info, Batch((0,), self.device))
        for how in {None, default.lossless}:
            engine.decode([[0, 0]], default.strategy, kv=self.config.kv, max_new_tokens=[3], lossless=how)
        self.weights_source = loaded.weights_source
        return worker
