"""Tokens of a model that runs while the agent learns: ``--live``.

Each token takes one pass through all layers, so that every exit's token and the last layer's are known; an exit then
fills the deeper layers' keys and values from its hidden state (``propagate``), and its token is read next. Later tokens
therefore see what real exits leave behind, which a trace cannot show. One episode at a time, and slow: a token costs a
full pass and an LM-head evaluation per exit. Nothing of it is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.contracts import KVBatch, KVPolicy
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.step import PrefixPass, TokenPass
from harness.errors import TrainingError
from harness.models.controllers import Observation
from harness.training.agents.episodes import CONTEXT
from harness.training.agents.exit_env import Token
from harness.training.agents.reward import Reward, reward_table

__all__ = ["LiveTokens"]


class LiveTokens:
    """Generates what :class:`harness.training.agents.exit_env.ExitEnv` steps through. Implements ``TokenSource``.

    Args:
        engine: runs the model.
        documents: tokens of each document; a context is 20–60 % of one.
        length: tokens of an episode; fewer where the model ends its text.
        observation: what the agent looks at.
        reward: what decisions earn.
        eos_token_ids: tokens that end an episode.

    Raises:
        TrainingError: no document.
    """

    def __init__(
        self,
        engine: Engine,
        documents: Sequence[Sequence[int]],
        length: int,
        observation: Observation,
        reward: Reward,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        if not documents:
            raise TrainingError("there is no document to generate from. Give the trace's data with --source.")
        self._engine, self._documents, self._length = engine, documents, length
        self._observation, self._reward, self._eos = observation, reward, eos_token_ids
        self.exits = len(engine.info.exit_points)
        self.width = observation.width(engine.info.hidden_size, self.exits)
        self._cache: KVCache | None = None
        self._batch: KVBatch | None = None
        self._position = self._count = 0
        self._states: list[Tensor] = []
        self._exit_states: list[Tensor] = []
        self._choices: list[int] = []

    @torch.inference_mode()
    def begin(self, generator: np.random.Generator) -> Token:
        """Draw a document and a context, run it, and return the first token the agent is asked about."""
        document = self._documents[int(generator.integers(len(self._documents)))]
        most = self._engine.info.max_positions - self._length
        context = min(max(1, round(float(generator.uniform(*CONTEXT)) * len(document))), most)
        return self.read(document[:context])

    @torch.inference_mode()
    def read(self, prompt: Sequence[int]) -> Token:
        """Begin an episode behind a chosen prompt."""
        backbone = self._engine.backbone
        reach = len(prompt) + self._length
        self._cache = self._engine.cache(1, reach)
        self._batch = self._engine.kv_batch(self._cache, reach, [Generation()])
        state = PrefixPass(backbone, self._engine.rotary(reach), [prompt], [0], cache=self._cache).read()
        self._position, self._count = len(prompt), 0
        return self._run(int(backbone.logits(state).argmax()))

    @torch.inference_mode()
    def follow(self, place: int) -> Token | None:
        """Leave the current token at an exit and run the one it gave."""
        assert self._batch is not None
        token = self._choices[place]
        self._count += 1
        if self._count >= self._length or token in self._eos:
            return None
        if place < self.exits:
            layer = self._engine.info.exit_points[place]
            final = self._exit_states[place] if self._engine.kv_input == "shortcut" else None
            self._batch.fill(layer, [0], [self._position], self._states[place], final)
        self._position += 1
        return self._run(token)

    def _run(self, token: int) -> Token:
        """Take one token through all layers, keeping what every exit sees and says."""
        engine, cache, batch = self._engine, self._cache, self._batch
        backbone, info = engine.backbone, engine.info
        assert cache is not None
        assert batch is not None
        current = TokenPass(
            backbone, engine.rotary(self._position + 1), cache, KVPolicy(batch),
            [0], [[token]], [self._position], [Generation()],
        )  # fmt: skip
        self._states, self._exit_states, self._choices = [], [], []
        for point in info.exit_points:
            current.advance(point)
            state = current.hidden()
            self._states.append(state)
            self._exit_states.append(backbone.exit_state(state, point))
            self._choices.append(int(backbone.logits(self._exit_states[-1]).argmax()))
        current.advance(backbone.num_layers)
        final = int(backbone.logits(current.hidden()).argmax())
        right = torch.tensor([[choice == final for choice in self._choices]])
        self._choices.append(final)
        seen = self._exit_states if self._observation.state == "exit" else self._states
        observations = self._observation.build_all(torch.stack(seen, dim=1))[0].cpu().numpy()
        rewards, best = reward_table(right, info.exit_points, info.num_layers, self._reward)
        return Token(observations, rewards[0].numpy(), int(best[0]))
