"""The text that is sent is the text that was generated, to the character, whatever the tokens and stops are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from harness.decoding.generation import Generation, Transcript
from harness.models.tokenizer import TransformersTokenizer


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


def spoken(transcript: Transcript, token_ids: Sequence[int]) -> list[str]:
    """What each token lets out; stops where the transcript does."""
    made = Generation()
    for token in token_ids:
        made.token_ids.append(token)
        over = transcript.follow(made.token_ids)
        publish(transcript, made)
        if over:
            break
    return [token.text for token in transcript.tokens]


def publish(transcript: Transcript, made: Generation) -> None:
    """Read what a row has made since the last time."""
    new = len(made.token_ids) - len(transcript.tokens)
    made.exit_layers += [1] * new
    made.token_times_s += [0.0] * new
    made.log_probabilities += [0.0] * new
    for _ in range(new):
        transcript.read(made, last=False)


@pytest.mark.parametrize("seed", range(8))
def test_pieces_and_rest_are_the_text(seed: int) -> None:
    drawn = random.Random(seed)
    text = "".join(drawn.choice("ab\n é語🙂def") for _ in range(30))
    stops = ["".join(drawn.choice("ab\n é語🙂def") for _ in range(drawn.randrange(1, 4))) for _ in range(2)]
    for keep in (False, True):
        transcript = Transcript(Bytes(), stops, keep_stop=keep)
        pieces = spoken(transcript, Bytes().encode(text))
        whole = transcript.finish()
        assert "".join(pieces) + transcript.rest() == whole
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        assert transcript.stopped == bool(ends)
        assert whole == (text if not ends else text[: min(ends)[0 if keep else 1]])


def test_a_character_comes_whole_with_its_last_byte() -> None:
    transcript = Transcript(Bytes(), ())
    assert spoken(transcript, Bytes().encode("é語🙂")) == ["", "é", "", "", "語", "", "", "", "🙂"]


def test_bytes_that_are_no_character_come_at_the_end() -> None:
    transcript = Transcript(Bytes(), ())
    assert spoken(transcript, [*b"ab", 0xF0, 0x9F]) == ["a", "b", "", ""]
    assert transcript.finish() == "ab\ufffd"
    assert transcript.rest() == "\ufffd"


def test_special_tokens_add_no_text() -> None:
    transcript = Transcript(Bytes(), (), silent=frozenset({0}))
    assert spoken(transcript, [97, 0, 98]) == ["a", "", "b"]
    assert transcript.finish() == "ab"


def test_what_may_become_a_stop_is_held_back_until_it_is_none() -> None:
    transcript = Transcript(Bytes(), ["</s>"])
    assert spoken(transcript, Bytes().encode("a</b</s>c")) == ["a", "", "", "</b", "", "", "", ""]
    assert transcript.stopped
    assert transcript.finish() == "a</b"
    assert transcript.rest() == ""


def test_it_spells_as_the_tokenizer_spells_all_at_once(tiny_tokenizer: Any, documents: list[str]) -> None:
    tokenizer = TransformersTokenizer(tiny_tokenizer, frozenset({0}))
    for text in [*documents[:2], "naïve 語 🙂 \t\n  x"]:
        ids = tokenizer.encode(text)
        transcript = Transcript(tokenizer, ())
        pieces = spoken(transcript, ids)
        assert len(pieces) == len(ids)
        assert transcript.finish() == tokenizer.decode(ids)
        assert "".join(pieces) + transcript.rest() == transcript.finish()


def test_a_stop_beside_half_a_character_is_seen_at_once() -> None:
    class Pieces(Bytes):
        def decode(self, token_ids: Sequence[int]) -> str:
            return b"".join([b"a", b"b;\xe2", b"\x80\x93"][token] for token in token_ids).decode(errors="replace")

    for keep, text in ((False, "ab"), (True, "ab;")):
        transcript = Transcript(Pieces(), [";"], keep_stop=keep)
        assert [transcript.follow([0]), transcript.follow([0, 1])] == [False, True]
        assert transcript.finish() == text


def test_a_tokenizer_that_begins_texts_without_a_space_keeps_it_inside_one() -> None:
    class Sentence(Bytes):
        """Spells ``▁`` as a space, but not the first one of a text."""

        def decode(self, token_ids: Sequence[int]) -> str:
            return "".join(["return", " foo", "   ", "x"][token] for token in token_ids).removeprefix(" ")

    for made, text in (([1, 3], " foox"), ([2, 0], "   return")):
        transcript = Transcript(Sentence(), (), after=(3, 0))
        assert "".join(spoken(transcript, made)) == text
        assert transcript.finish() == text


def test_the_prompt_is_no_part_of_the_text() -> None:
    transcript = Transcript(Bytes(), ["b"], after=list(b"aaabbb"))
    assert spoken(transcript, list(b"cd")) == ["c", "d"]
    assert not transcript.stopped
    assert transcript.finish() == "cd"


@pytest.mark.parametrize("seed", range(12))
def test_drafts_leave_no_trace(seed: int) -> None:
    """Whatever a stop rule is asked about meanwhile, pieces, text and ending are those of the tokens that stand."""
    drawn = random.Random(seed)
    text = "".join(drawn.choice("ab\n é語🙂def") for _ in range(40))
    stops = ["".join(drawn.choice("ab\n é語🙂def") for _ in range(drawn.randrange(2, 4))) for _ in range(2)]
    token_ids = Bytes().encode(text)
    for keep in (False, True):
        plain = Transcript(Bytes(), stops, keep_stop=keep)
        expected = spoken(plain, token_ids)
        drafting, made = Transcript(Bytes(), stops, keep_stop=keep), Generation()
        while len(made.token_ids) < len(expected):
            draft = list[int]()
            for _ in range(drawn.randrange(6)):
                there = len(made.token_ids) + len(draft)
                right = token_ids[there] if there < len(token_ids) and drawn.random() < 0.7 else drawn.randrange(256)
                draft.append(right)
                if drafting.follow([*made.token_ids, *draft]):
                    break
            for token in token_ids[len(made.token_ids) : len(expected)][: len(draft) + 1]:
                made.token_ids.append(token)
                if token not in draft:
                    drafting.follow(made.token_ids)
            publish(drafting, made)
        assert drafting.follow(made.token_ids) == plain.stopped
        assert [token.text for token in drafting.tokens] == expected
        assert drafting.finish() == plain.finish()
        assert drafting.rest() == plain.rest()


def test_an_end_token_that_replaces_a_draft_adds_no_text() -> None:
    transcript, made = Transcript(Bytes(), ()), Generation(token_ids=list(b"a"))
    transcript.follow(list(b"abc"))
    made.token_ids.append(ord("!"))
    made.finish_reason = "eos"
    publish(transcript, made)
    assert [token.text for token in transcript.tokens] == ["a", ""]
    assert transcript.finish() == "a"


def test_a_token_that_could_not_be_spelled_is_spelled_again() -> None:
    class Broken(Bytes):
        def decode(self, token_ids: Sequence[int]) -> str:
            if 0 in token_ids:
                raise ValueError("no such token")
            return super().decode(token_ids)

    transcript = Transcript(Broken(), ())
    for _ in range(2):
        with pytest.raises(ValueError, match="no such token"):
            transcript.follow([97, 0])
    assert not transcript.follow([97, 98])
    assert transcript.finish() == "ab"
