"""The model behind the routes: loads it, prepares prompts, and takes jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness.appearance.visible_text import one_line
from harness.config.decode import check_defers, parse_decode
from harness.contracts import ModelInfo
from harness.contracts.meters import is_measured
from harness.contracts.models import with_bos
from harness.errors import ConfigError, HarnessError, is_out_of_memory
from harness.host.libraries import resolve_device
from harness.metering import open_meter
from harness.models.fill_in_the_middle import FillInTheMiddle, encode_inside, fill_in_the_middle
from harness.models.model import resolve
from harness.serving.completions import (
    DrainingError,
    EngineTicket,
    InvalidRequestError,
    Job,
    LoadingError,
    Prompt,
    Ticket,
    Wanted,
)
from harness.serving.config import ServeConfig, prompt_cap
from harness.serving.exit_settings import Settings, read_controls
from harness.serving.metrics import Metrics
from harness.serving.worker import EnergyShares, Worker

logger = logging.getLogger(__name__)

MAX_STOPS, MAX_STOP_CHARACTERS = 256, 4096
"""Stop texts of a request: all are looked for at every token."""

State = Literal["loading", "ready", "draining", "failed"]


class Service:
    """The model and its queue, as the routes see them.

    Args:
        config: what is asked for. Everything about it that can be checked without weights is checked here.

    Attributes:
        config: the same.
        metrics: counters.
        state: ``loading`` until the model is loaded; then ``ready``; ``draining`` once stopped; or ``failed``.
        failure: why it could not be loaded, in one line.
        info: facts of the model.
        settings: strategies that requests may use.
        device: of the weights.
        weights_source: in words; empty until loaded.
        load_s: seconds that loading took.
        energy_source: of the meter. energy_measured: it reads a sensor. energy_description: one line.
        max_prompt_tokens: cap on the tokens of a prompt.
        fim: how the tokenizer fills in the middle; ``None`` when it cannot.

    Raises:
        HarnessError: it cannot be served, in one line.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        decode = parse_decode(config.decode)
        if decode.lossless:
            check_defers(config.kv)
        self._model = resolve(config.request())
        if config.kv_input == "shortcut" and self._model.shortcut is None:
            raise ConfigError("--kv-input shortcut needs the exits' shortcuts, and the exit head is shared.")
        self.info: ModelInfo = self._model.info
        self.settings = Settings(
            config.strategies, self.info, decode, config.draft_max, config.kv, config.draft_head, config.stop
        )
        self.max_prompt_tokens = prompt_cap(config, self.info)
        self._tokenizer = self._model.tokenizer
        self._longest = max(map(len, self._tokenizer.wrapped.get_vocab()), default=1)
        self._meter, _ = open_meter(config.energy, self._model.devices(self.device), config.tdp_w)
        self.energy_source, self.energy_description = self._meter.source, self._meter.description
        self.energy_measured = is_measured(self._meter)
        self.fim = fill_in_the_middle(self._tokenizer.wrapped)
        self.metrics = Metrics(energy_measured=self.energy_measured)
        self.state: State = "loading"
        self.failure: str | None = None
        self.weights_source = ""
        self.load_s = 0.0
        self._worker: Worker | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def model_name(self) -> str:
        """The model's id as clients see it: a folder's own name, never its path."""
        return Path(self.info.name).name if Path(self.info.name).is_dir() else self.info.name

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return self.info.weights_format

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return 0 if self._worker is None else self._worker.waiting

    @property
    def running(self) -> int:
        """Requests that are being decoded."""
        return 0 if self._worker is None else self._worker.running

    def start(self) -> None:
        """Begin to load the model, on the engine's thread; returns at once. :attr:`state` says how it goes."""
        self._thread.start()

    def encode(self, prompt: str | Sequence[int], suffix: str | None, *, truncate: bool) -> Prompt:
        """Return what the model reads.

        Args:
            prompt: text before the cursor, or its tokens.
            suffix: text after it; read with the tokenizer's fill-in-the-middle tokens, where it has them.
            truncate: whether a prompt that is too long loses its beginning instead of being refused.

        Raises:
            InvalidRequestError: empty, too long and not to be truncated, an unknown token id, or a suffix that the
                model cannot read.
        """
        tokens = self._tokens(prompt, truncate=truncate)
        if suffix and self.fim is not None:
            after = self._tokens(suffix, truncate=truncate, after=True)
            return self._between(self.fim, tokens, after, truncate=truncate)
        if suffix and self.config.suffix == "refuse":
            raise InvalidRequestError(
                f"{self.model_name} has no fill-in-the-middle tokens and cannot read a suffix. Send none, or serve "
                "with --suffix ignore."
            )
        if not tokens:
            raise InvalidRequestError("the prompt is empty. Send the text before the cursor.")
        start = self._tokenizer.start_ids if isinstance(prompt, str) else ()  # tokens are read as they are sent
        tokens = tokens[len(start) :] if tuple(tokens[: len(start)]) == start else tokens
        over = self._over(len(start) + len(tokens), truncate=truncate)
        read = [*start, *tokens[over:]]
        marked = None if suffix or self.fim is None else self.fim.before_gap(read)  # by the client, as llm-vscode does
        if marked is not None:
            return Prompt(tuple(read), truncated=over, suffix="used", before=marked)
        return Prompt(tuple(read), truncated=over, suffix="ignored" if suffix else "none")

    def _between(self, middle: FillInTheMiddle, before: list[int], after: list[int], *, truncate: bool) -> Prompt:
        """Return the prompt of the gap between two texts."""
        more = len(with_bos(self._tokenizer, middle.token_ids([], []))) - middle.markers
        over = self._over(more + len(before) + len(after) + middle.markers, truncate=truncate)
        if over:
            before, after = middle.fit(before, after, self.max_prompt_tokens - more)
        read = with_bos(self._tokenizer, middle.token_ids(before, after))
        return Prompt(tuple(read), truncated=over, suffix="used", before=tuple(before))

    def _over(self, tokens: int, *, truncate: bool) -> int:
        """Return how many tokens of a prompt are too many.

        Raises:
            InvalidRequestError: some are, and the prompt is not to be truncated.
        """
        over = max(0, tokens - self.max_prompt_tokens)
        if over and not truncate:
            raise InvalidRequestError(
                f"the prompt has {tokens} tokens, and {self.max_prompt_tokens} are allowed. Send less, or serve "
                "with a larger --max-prompt-tokens."
            )
        return over

    def job(self, wanted: Wanted, controls: Any, owner: str) -> Job:
        """Return the job that a request is.

        Args:
            wanted: the request.
            controls: early exit where the request itself says nothing of it.
            owner: whose it is.

        Raises:
            InvalidRequestError: it cannot be served as it is written.
        """
        given = controls if wanted.early_exit is None else wanted.early_exit
        setting = self.settings.resolve(read_controls(given))
        stop = tuple(dict.fromkeys(text for text in wanted.stop if text))
        if len(stop) > MAX_STOPS or sum(map(len, stop)) > MAX_STOP_CHARACTERS:
            raise InvalidRequestError(
                f"{len(stop)} stop texts of {sum(map(len, stop))} characters were given; {MAX_STOPS} of "
                f"{MAX_STOP_CHARACTERS} in all are allowed."
            )
        cap = self.config.max_new_tokens
        return Job(
            prompt=self.encode(wanted.prompt, wanted.suffix or None, truncate=wanted.truncate),
            setting=setting,
            max_new_tokens=min(wanted.max_new_tokens or cap, cap),
            stop=stop,
            keep_stop=wanted.keep_stop,
            generate_s=wanted.generate_s,
            seed=wanted.seed,
            owner=owner if wanted.reuse else None,
        )

    def submit(self, job: Job) -> Ticket:
        """Queue a job; call from the event loop that will iterate over the ticket.

        Raises:
            OverloadedError: the queue is full.
            LoadingError, DrainingError: no requests are accepted now.
        """
        if self.state == "draining":
            raise DrainingError("the server is shutting down. Use another one.")
        if self.state == "failed":
            raise LoadingError(f"the model could not be loaded: {self.failure}")
        if self._worker is None or self.state == "loading":
            raise LoadingError(f"{self.model_name} is being loaded. Try again in a few seconds.")
        ends = self._tokenizer.eos_token_ids
        if job.prompt.suffix == "used" and self.fim is not None:
            ends |= self.fim.end_token_ids
        job = replace(job, end_token_ids=ends)
        ticket = EngineTicket(job, self.config.deadline_s)
        self._worker.submit(ticket)
        return ticket

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
            worker = self._load()
        except Exception as error:
            self.failure = _why(error, self.info.name)
            self.state = "failed"
            if not isinstance(error, HarnessError):
                logger.exception("loading failed")
            self._meter.close()
            return
        self._worker = worker
        if self.state == "loading":
            self.state = "ready"
        if self.state == "draining":  # stopped while loading
            worker.drain(0)
        try:
            worker.run()
        except Exception as error:
            logger.exception("the engine stopped")
            self.failure, self.state = f"the engine stopped: {_why(error, self.model_name)}", "failed"
        finally:
            self._meter.close()

    def _load(self) -> Worker:
        import torch

        from harness.contracts import Batch
        from harness.decoding.engine import Engine
        from harness.decoding.unit_costs import Timing

        started = time.perf_counter()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        loaded = self._model.load(self.device)
        self.info = loaded.info
        engine = Engine(loaded.backbone, self.info, self.config.kv_input, Timing())
        positions = self.max_prompt_tokens + self.config.max_new_tokens
        energy = EnergyShares(self._meter)
        special = self._tokenizer.special_ids
        worker = Worker(engine, self._tokenizer, special, self.config, positions, energy, self.metrics)
        lossless = self.settings.default.lossless
        # Their parts are read, and everything is paid once, before anyone asks.
        engine.prepare([] if lossless is None else [lossless.head])
        for strategy in self.settings.strategies():
            engine.prepare(strategy.cheap_heads())
            strategy.start(self.info, Batch((0,), self.device))
            for how in {None, lossless}:
                engine.decode([[0, 0]], strategy, kv=self.config.kv, max_new_tokens=[3], lossless=how)
        self.weights_source = loaded.weights_source
        self.load_s = time.perf_counter() - started
        return worker

    def _tokens(self, prompt: str | Sequence[int], *, truncate: bool, after: bool = False) -> list[int]:
        """Return the tokens of text before the cursor, or after it; of text that is far too long those next to it."""
        if not isinstance(prompt, str):
            wrong = next((token for token in prompt if not 0 <= token < self.info.vocab_size), None)
            if wrong is not None:
                raise InvalidRequestError(
                    f"token id {wrong} is outside the vocabulary of {self.model_name}. "
                    f"Send ids from 0 to {self.info.vocab_size - 1}."
                )
            return list(prompt)
        enough = (self.max_prompt_tokens + 1) * self._longest  # characters that are certainly more tokens than allowed
        if len(prompt) > enough:
            if not truncate:
                raise InvalidRequestError(
                    f"the prompt has {len(prompt)} characters, which is more than {self.max_prompt_tokens} tokens. "
                    "Send less, or serve with a larger --max-prompt-tokens."
                )
            prompt = prompt[:enough] if after else prompt[-enough:]
        return encode_inside(self._tokenizer, prompt) if after else self._tokenizer.encode(prompt)


def _why(error: Exception, name: str) -> str:
    if is_out_of_memory(error):
        return f"out of memory loading {name}. Use --dtype bfloat16, a smaller --batch-size or --max-prompt-tokens."
    return one_line(str(error)) or type(error).__name__
