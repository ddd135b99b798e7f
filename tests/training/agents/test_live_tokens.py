"""A live environment is the engine: same tokens, same exits, and what it says is what a trace would."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts import ModelRequest
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.errors import TrainingError
from harness.models.controllers import Observation
from harness.models.model import resolve
from harness.training.agents.exit_env import ExitEnv
from harness.training.agents.reward import CONTINUE, EXIT, REWARDS
from harness.training.agents.train_agent import LiveTokens

PROMPT, NEW = [5, 9, 31, 7, 80, 12, 44, 3, 61, 2, 19, 23], 8


@pytest.fixture(scope="module", params=["shared", "shortcut"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> Engine:
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    backbone = resolved.load("cpu").backbone
    if request.param == "shared":
        return Engine(backbone, resolved.info)
    chance = torch.Generator().manual_seed(0)
    size = resolved.info.hidden_size
    maps = {
        point: Linear(torch.eye(size) + 0.2 * torch.randn(size, size, generator=chance), torch.zeros(size))
        for point in resolved.info.exit_points
    }
    return Engine(replace(backbone, shortcuts=maps), resolved.info, kv_input="shortcut")


def live(engine: Engine, length: int = NEW, documents: Any = None, **changes: Any) -> LiveTokens:
    observation = changes.pop("observation", Observation())
    return LiveTokens(
        engine, documents or [PROMPT * 3, PROMPT[::-1] * 2], length, observation, REWARDS["python"], **changes
    )


def test_gymnasium_s_contract(engine: Engine) -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(ExitEnv(live(engine, length=2)), skip_render_check=True)


@pytest.mark.parametrize("seed", range(3))
def test_random_exits_give_what_the_engine_gives(engine: Engine, seed: int) -> None:
    """Prefill yields the first token, unasked; the tokens behind it are the episode's."""
    tokens = live(engine)
    chance = np.random.default_rng(seed)
    layers = [*engine.info.exit_points, engine.info.num_layers]
    places = chance.integers(len(layers), size=NEW).tolist()
    (made,) = engine.replay(
        [PROMPT], [[engine.info.num_layers, *(layers[place] for place in places)]],
        kv="propagate", max_new_tokens=[NEW + 1],
    )  # fmt: skip
    token = tokens.read(PROMPT)
    given = []
    for number, place in enumerate(places):
        given.append(tokens._choices[place])
        following = tokens.follow(place)
        assert (following is None) == (number == NEW - 1)
        token = following or token
    assert given == made.token_ids[1:]


def test_full_depth_tokens_say_what_a_trace_says(engine: Engine) -> None:
    """Running on to the last layer, every observation and best exit is that of one pass over the same tokens."""
    tokens = live(engine)
    info, backbone = engine.info, engine.backbone
    token, seen, best = tokens.read(PROMPT), [], []
    made = []
    while token is not None:
        seen.append(token.observations)
        best.append(token.optimal)
        made.append(tokens._choices[-1])
        token = tokens.follow(len(info.exit_points))  # type: ignore[assignment]
    first = int(backbone.logits(engine.read(PROMPT, [info.num_layers])[0])[-1].argmax())
    states = engine.read([*PROMPT, first, *made[:-1]], [*info.exit_points, info.num_layers])
    states = [state[len(PROMPT) :] for state in states]
    torch.testing.assert_close(torch.from_numpy(np.stack(seen)), torch.stack(states[:-1], dim=1), atol=1e-3, rtol=1e-3)
    top = [
        backbone.logits(backbone.exit_state(s, p)).argmax(-1) for s, p in zip(states, info.exit_points, strict=False)
    ]
    final = backbone.logits(states[-1]).argmax(-1)
    assert final.tolist() == made
    right = torch.stack([*[each == final for each in top], torch.ones_like(final, dtype=torch.bool)], dim=1)
    assert best == right.int().argmax(1).tolist()


def test_exits_reach_the_tokens_behind_them(engine: Engine) -> None:
    """What replaying a trace cannot show: an early exit changes what later tokens look like."""
    shallow, deep = live(engine), live(engine)
    first, same = shallow.read(PROMPT), deep.read(PROMPT)
    assert (first.observations == same.observations).all()
    after, otherwise = shallow.follow(0), deep.follow(len(engine.info.exit_points))
    assert after is not None
    assert otherwise is not None
    assert np.abs(after.observations - otherwise.observations).max() > 1e-3


def test_an_end_of_text_ends_the_episode(engine: Engine) -> None:
    tokens = live(engine)
    tokens.read(PROMPT)
    ends = tokens._choices[0]
    tokens = live(engine, eos_token_ids={ends})
    tokens.read(PROMPT)
    assert tokens.follow(0) is None


def test_contexts_fit_the_model(engine: Engine) -> None:
    most = engine.info.max_positions
    tokens = live(engine, length=40, documents=[list(range(1, 97)) * 6])
    for seed in range(3):
        assert tokens.begin(np.random.default_rng(seed)) is not None
        assert tokens._position + 40 <= most
    with pytest.raises(TrainingError, match="no document to generate from"):
        LiveTokens(engine, [], 5, Observation(), REWARDS["python"])


def test_rewards_come_with_their_actions(engine: Engine) -> None:
    env = ExitEnv(live(engine))
    env.reset(seed=0)
    token = env._token
    assert token is not None
    _, reward, *_ = env.step(CONTINUE)
    assert reward == token.rewards[0, CONTINUE]
    _, reward, *_ = env.step(EXIT)
    assert reward == token.rewards[1, EXIT]
