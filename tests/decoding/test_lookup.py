"""What prompt lookup proposes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from harness.contracts import Batch, Draft
from harness.decoding.drafts.lookup import Lookup


def proposed(text: Sequence[int], draft: Sequence[int] = (), most: int = 16, **options: int) -> list[int]:
    rule = Lookup(**options).start(None, Batch((0,), "cpu"))  # type: ignore[arg-type]
    return list(rule.propose(Draft(0, text[:-1], text[-1:], list(draft)), most))


@pytest.mark.parametrize(
    ("text", "draft", "found"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2], [], [3, 4, 5, 6, 1, 2]),
        ([1, 2, 3, 4, 5, 9, 9, 1, 2, 3], [], [4, 5, 9, 9, 1, 2]),
        ([7, 2, 3, 4, 8, 1, 2, 3, 5, 6, 0, 1, 2, 3], [], [5, 6, 0, 1, 2, 3]),  # three known tokens before two
        ([1, 2, 3, 8, 8, 1, 2, 4, 8, 9, 1, 2], [], [4, 8, 9, 1, 2, 4]),  # the latest occurrence
        ([1, 2, 3, 4], [], []),
        ([4, 1, 2, 3, 9, 4, 1], [2], [3, 9, 4, 1, 2, 3]),  # the draft counts as said
        ([5, 6], [5, 6], []),  # and is no text to look up in
        ([3, 3, 3], [], [3, 3, 3, 3, 3, 3]),  # a text that repeats itself goes on so
        ([1, 2, 1, 2], [], [1, 2, 1, 2, 1, 2]),
        ([1], [], []),
    ],
)
def test_what_followed_the_time_before(text: list[int], draft: list[int], found: list[int]) -> None:
    assert proposed(text, draft) == found


def test_no_more_than_asked_for() -> None:
    assert proposed([1, 2, 3, 4, 5, 1, 2], most=2) == [3, 4]
    assert proposed([1, 2, 3, 4, 5, 1, 2], k=1) == [3]
    assert proposed([1, 2, 3, 4, 1], least=1, k=2) == [2, 3]
    assert proposed([1, 2, 3, 4, 1], k=2) == []


def test_a_text_that_grows_is_searched_as_if_it_were_new() -> None:
    """Against a search from scratch, with rows that end and others that take their place."""
    draw = random.Random(0)
    rule = Lookup(n=3, least=2, k=5).start(None, Batch((0, 0), "cpu"))  # type: ignore[arg-type]
    for _ in range(60):
        prompt, said = [draw.randrange(4) for _ in range(draw.randrange(1, 12))], [draw.randrange(4)]
        draft = Draft(row := draw.randrange(2), prompt, said)
        for _ in range(10):
            drafted = [draw.randrange(4) for _ in range(draw.randrange(3))]
            draft.tokens[:] = drafted
            expected = searched([*prompt, *said], drafted, 5)
            assert list(rule.propose(draft, 5)) == expected, (row, prompt, said, drafted)
            said += [draw.randrange(4) for _ in range(draw.randrange(1, 4))]


def searched(text: list[int], draft: list[int], count: int) -> list[int]:
    whole = text + draft
    for size in (3, 2):
        for end in range(len(text) - 1, size - 1, -1):
            if len(whole) >= size and text[end - size : end] == whole[len(whole) - size :]:
                for place in range(end, end + count):
                    whole.append(text[place] if place < len(text) else whole[place])
                return whole[len(text) + len(draft) :]
    return []
