"""Markers are found where they are whole tokens; prompts and their trimming are counted by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from harness.models.fill_in_the_middle import FillInTheMiddle, detect, fill_in_the_middle
from harness.models.tokenizer import TransformersTokenizer


def numbered(*tokens: str) -> dict[str, int]:
    return {token: 10 + place for place, token in enumerate(tokens)}


def found(*tokens: str) -> FillInTheMiddle:
    vocabulary = numbered(*tokens)
    fim = detect({**vocabulary, "a": 0, "b": 1}, set(vocabulary.values()))
    assert fim is not None
    return fim


STARCODER = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<|endoftext|>", "<file_sep>")
QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>")
CODELLAMA = ("<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>")
CODEGEMMA = ("<pad>", "<eos>", "<bos>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>")
SANTACODER = ("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>")
CODESTRAL = ("<unk>", "<s>", "</s>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]")


@pytest.mark.parametrize(
    ("tokens", "family", "prompt", "ends"),
    [
        (STARCODER, "starcoder", [10, 0, 0, 12, 1, 11], {13, 14, 15}),
        (SANTACODER, "santacoder", [11, 0, 0, 13, 1, 12], {10, 14}),
        (QWEN, "qwen", [13, 0, 0, 15, 1, 14], {10, 12, 16, 17, 18}),
        (CODEGEMMA, "codegemma", [12, 13, 0, 0, 14, 1, 15], {11, 16}),
        (DEEPSEEK, "deepseek", [10, 13, 0, 0, 12, 1, 14], {11}),
        (CODELLAMA, "codellama", [11, 13, 0, 0, 15, 1, 14], {12, 16}),
        (CODESTRAL, "codestral", [11, 15, 1, 13, 0, 0], {12}),
    ],
)
def test_every_family_writes_its_own_prompt(
    tokens: tuple[str, ...], family: str, prompt: list[int], ends: set[int]
) -> None:
    fim = found(*tokens)
    assert fim.family.name == family
    assert fim.token_ids([0, 0], [1]) == prompt
    assert fim.end_token_ids == ends
    assert len(fim.token_ids([], [])) == fim.markers


def test_markers_made_of_pieces_or_incomplete_are_none() -> None:
    for missing in STARCODER[:3]:
        vocabulary = numbered(*(token for token in STARCODER if token != missing))
        assert detect(vocabulary, set(vocabulary.values())) is None
    vocabulary = numbered(*STARCODER)
    assert detect(vocabulary, set()) is None
    assert detect(vocabulary, set(vocabulary.values()) - {vocabulary["<fim_suffix>"]}) is None


def test_fitting_keeps_what_is_near_the_cursor() -> None:
    fim = found(*STARCODER)  # three markers
    prefix, suffix = list(range(100, 120)), list(range(200, 220))
    # 16 of room: 12 before the cursor, 4 after it
    assert fim.fit(prefix, suffix, 19) == (prefix[-12:], suffix[:4])
    # a short side leaves its share to the other one
    assert fim.fit(prefix, [200], 19) == (prefix[-15:], [200])
    assert fim.fit([100], suffix, 19) == ([100], suffix[:15])
    assert fim.fit(prefix, suffix, 43) == (prefix, suffix)
    assert fim.fit(prefix, suffix, 3) == ([], [])
    with pytest.raises(ValueError, match="3 marker tokens"):
        fim.fit(prefix, suffix, 2)


def test_a_tokenizer_that_was_given_markers_has_them(tiny_tokenizer: Any) -> None:
    assert fill_in_the_middle(TransformersTokenizer(tiny_tokenizer, frozenset())) is None
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]})
    fim = fill_in_the_middle(TransformersTokenizer(tokenizer, frozenset()))
    assert fim is not None
    before = tokenizer.encode("def load_path", add_special_tokens=False)
    after = tokenizer.encode(" return", add_special_tokens=False)
    prompt = fim.token_ids(before, after)
    spelled = "<fim_prefix>def load_path<fim_suffix> return<fim_middle>"
    assert tokenizer.decode(prompt) == spelled
    assert tokenizer.encode(spelled, add_special_tokens=False) == prompt, "what an editor writes is the same prompt"
