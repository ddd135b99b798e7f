"""A tokenizer that puts a token before every text, as Llama's does: the model reads what lm-eval's own ``hf`` reads.

Prompts with examples, and in a chat template that writes that token itself, included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.lm_eval.conftest import KINDS

Read: TypeAlias = set[tuple[int, ...]]
FIRST = "<bos>"


@pytest.fixture(scope="module")
def ours(begun: Path, datasets_cache: None) -> Any:
    from harness.lm_eval import EarlyExitLM

    return EarlyExitLM(str(begun), energy="none", threads=1)


@pytest.fixture(scope="module")
def theirs(begun: Path, datasets_cache: None) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(begun), batch_size=1, device="cpu", dtype="float32", trust_remote_code=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> tuple[Read, Read]:
    """What reached our model, and theirs, one row of tokens at a time."""
    from lm_eval.models.huggingface import HFLM

    import harness.lm_eval.model as room
    from harness.decoding.engine import Engine

    mine: Read = set()
    other: Read = set()
    decode, score, generate, call = Engine.decode, room.log_likelihoods, HFLM._model_generate, HFLM._model_call

    def decoding(engine: Engine, prompts: Sequence[Sequence[int]], *given: Any, **settings: Any) -> Any:
        mine.update(map(tuple, prompts))
        return decode(engine, prompts, *given, **settings)

    def scoring(engine: Engine, inputs: Sequence[Sequence[int]], *given: Any) -> Any:
        mine.update(map(tuple, inputs))
        return score(engine, inputs, *given)

    def generating(lm: Any, context: Any, *given: Any, **settings: Any) -> Any:
        other.update(map(tuple, context.tolist()))
        return generate(lm, context, *given, **settings)

    def calling(lm: Any, inputs: Any, *given: Any, **settings: Any) -> Any:
        other.update(map(tuple, inputs.tolist()))
        return call(lm, inputs, *given, **settings)

    monkeypatch.setattr(Engine, "decode", decoding)
    monkeypatch.setattr(room, "log_likelihoods", scoring)
    monkeypatch.setattr(HFLM, "_model_generate", generating)
    monkeypatch.setattr(HFLM, "_model_call", calling)
    return mine, other


def flat(answers: Sequence[Any]) -> list[Any]:
    """Texts, log-likelihoods, and whether they are of greedy tokens, one after the other."""
    return [value for answer in answers for value in (answer if isinstance(answer, tuple) else (answer,))]


def numbers(answers: Sequence[Any]) -> list[Any]:
    """Log-likelihoods within float32's rounding; whatever else was answered as it is."""
    return [pytest.approx(value, rel=1e-5, abs=1e-4) if isinstance(value, float) else value for value in flat(answers)]


CONTEXTS = {
    "none": "",
    "that begins with it": f"{FIRST}def load_path(",
    "that ends in spaces": "def save_name(items)  ",
    "longer than the model reads": "for item in items:\n    total = item.path + limit\n" * 30,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_context_is_read_and_answered_as_by_hf(ours: Any, theirs: Any, read: tuple[Read, Read], context: str) -> None:
    from lm_eval.api.instance import Instance

    mine, other = read
    to_write = [Instance("generate_until", {}, (context, {"until": ["never"], "max_gen_toks": 3}), 0, ("odd", 0, 1))]
    assert ours.generate_until(to_write, disable_tqdm=True) == theirs.generate_until(to_write, disable_tqdm=True)
    assert len(mine) == 1
    assert mine == other
    endings = (" total", f"{FIRST}x = 1", "x")
    to_score = [Instance("loglikelihood", {}, (context, text), at, ("odd", 0, 1)) for at, text in enumerate(endings)]
    scores = numbers(theirs.loglikelihood(to_score, disable_tqdm=True))
    assert flat(ours.loglikelihood(to_score, disable_tqdm=True)) == scores
    assert mine == other
    is_long = len(context) > 1000
    assert all((row[0] == ours.tokenizer.bos_token_id) != is_long for row in mine)
    assert all(row[1:2] != (ours.tokenizer.bos_token_id,) for row in mine)


CHAT = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
WRITTEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "with examples in a chat": (
        CHAT,
        {"num_fewshot": 2, "apply_chat_template": True},
        f"{FIRST}<system>Finish this.\n\n<user>def load_",
    ),
    "in a chat, no system": (NO_SYSTEM, {"num_fewshot": 1, "apply_chat_template": True}, f"{FIRST}<user>def load_"),
}
"""Name → chat template, what lm-eval is told, how every prompt then begins."""


@pytest.fixture(scope="module")
def described(write_task: Callable[[str, str], Path]) -> list[Path]:
    """Tasks that have a prompt, with a description before it."""
    return [write_task(f"told_{kind}", f'description: "Finish this.\\n"\n{KINDS[kind]}') for kind in ("line", "choice")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_is_written_read_and_answered_as_by_hf(
    ours: Any, theirs: Any, read: tuple[Read, Read], described: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    template, settings, beginning = WRITTEN[name]

    def samples(lm: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        manager = TaskManager(include_defaults=False)
        names = [str(file) for file in described]
        found = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, **settings)
        return [sample for task in ("told_line", "told_choice") for sample in found["samples"][task]]

    found, wanted = samples(ours), samples(theirs)
    mine, other = read
    assert mine == other
    first = ours.tokenizer.bos_token_id
    assert first in {row[0] for row in mine}
    assert first not in {row[1] for row in mine}
    for sample, same in zip(found, wanted, strict=True):
        prompt = sample["arguments"][0][0]
        assert prompt == same["arguments"][0][0]
        answers, same_answers = ([one for each in of["resps"] for one in each] for of in (sample, same))
        assert flat(answers) == numbers(same_answers)
        assert prompt.startswith(beginning)
        assert prompt.count("def load_") == 1 + settings.get("num_fewshot", 0)
