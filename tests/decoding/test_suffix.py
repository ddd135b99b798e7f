"""The source ``suffix``: what it takes for likely, how far it drafts, by hand and against a search from scratch."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest

from harness.contracts import Batch, Draft, UnitCosts
from harness.decoding.drafts import suffix
from harness.decoding.drafts.suffix import Suffix, likeliest
from tests.decoding.test_draft_rules import INFO

FREE = UnitCosts(1, 0, 0, "this test")
STEPS = dataclasses.replace(FREE, passes=((1, 10.0), (4, 10.3), (5, 16.0), (33, 20.0)))  # up to four rows almost free


def proposed(
    text: Sequence[int], draft: Sequence[int] = (), most: int = 16, known: Sequence[Sequence[int]] = (),
    costs: UnitCosts = STEPS, beside: int = 0,
) -> list[int]:  # fmt: skip
    model = dataclasses.replace(INFO, unit_costs=lambda: costs)
    rule = Suffix().start(model, Batch((0,), "cpu", known))
    return list(rule.propose(Draft(0, text[:-1], text[-1:], list(draft), beside=beside), most))


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        # one occurrence, c = 1 of all: half of it; of two lengths as √2 of them say
        ([(1, 3)], (7, 1 / 2)),
        ([(4, 3)], (7, 1 - 1 / 4)),
        # two occurrences of one length: 2 / 3 to them
        ([(1, 3), (1, 4)], (8, 1 / 3)),
        # the longer says 7 by 1/2, then 8 and 7 share 2/3 of the rest
        ([(2, 3), (1, 4)], (7, 1 / 2 + 1 / 2 * 2 / 3 / 2)),
        # four shorter ones against a longer one
        ([(2, 3), *[(1, 4)] * 4], (7, 1 / 2 + 1 / 2 * (5 / 6) / 5)),
    ],
)
def test_a_token_is_as_likely_as_occurrences_of_every_length_say(
    matches: list[tuple[int, int]], expected: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suffix, "SHORTER", 1)
    token, chance = likeliest([0, 0, 0, 7, 8], matches)
    assert (token, chance) == (expected[0], pytest.approx(expected[1]))


def test_a_draft_is_as_long_as_it_pays() -> None:
    text = [*range(20), 30, *range(20), 31, 5, 6]
    assert proposed([*range(20), 30, 5], costs=FREE) == [*range(6, 20), 30, 5], "rows are free"
    assert proposed([*range(20), 30, 5]) == [6, 7, 8], "a fifth row is dear"
    assert proposed([*range(20), 30, *range(10)]) == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 30, 0, 1, 2, 3, 4]
    assert proposed(text, most=2) == [7, 8]
    dear = dataclasses.replace(FREE, passes=((1, 10.0), (33, 33 * 10.0)))
    assert proposed(text, costs=dear) == [], "each row costs a pass"
    assert proposed([*range(20), 30, 5], beside=2) == [6], "of four cheap rows two are others'"
    assert proposed([*range(20), 30, 5], beside=70) == [], "as many as are proposed at all"


@pytest.mark.parametrize(
    ("text", "draft", "known", "found"),
    [
        ([1, 2, 3, 8, 8, 1, 2, 4, 8, 9, 1, 2], [], [], [4, 8, 9]),  # of equally likely ones the latest
        ([1, 2, 4, 1, 2, 4, 1, 2, 3, 1, 2], [], [], [4, 1, 2]),  # the more frequent before the latest
        ([4, 1, 2, 3, 9, 4, 1], [2], [], [3, 9]),  # a draft counts as said, and has a row already
        ([5, 6], [5, 6], [], [5]),  # and goes on with itself
        ([3, 3, 3], [], [], [3] * 16),  # a text that repeats itself goes on so
        ([1], [], [], []),
        ([8, 1, 2], [], [[1, 2, 5, 6, 7]], [5, 6, 7]),
        ([8, 1, 2], [], [[1, 2, 5], [1, 2, 6]], [6]),  # the newest of equally likely ones
        ([8, 1, 2], [], [[8, 1, 2]], []),  # nothing follows in a known text,
        ([7, 8, 1, 2], [], [[1, 2, 5], [4]], [5]),  # and its end is not the next one's beginning
    ],
)
def test_what_is_proposed(text: list[int], draft: list[int], known: list[list[int]], found: list[int]) -> None:
    assert proposed(text, draft, known=known) == found


def test_a_text_that_grows_is_searched_as_if_it_were_new() -> None:
    """Against a search from scratch, with rows that end and others that take their place."""
    draw = random.Random(0)
    known = [[draw.randrange(4) for _ in range(6)] for _ in range(2)]
    model = dataclasses.replace(INFO, unit_costs=lambda: STEPS)
    rule = Suffix().start(model, Batch((0, 0), "cpu", known))
    for _ in range(60):
        prompt, said = [draw.randrange(4) for _ in range(draw.randrange(1, 12))], [draw.randrange(4)]
        draft = Draft(draw.randrange(2), prompt, said)
        for _ in range(10):
            found = list(rule.propose(draft, 1))
            if found:
                assert found[0] in searched(known, [*prompt, *said])
            said += [draw.randrange(4) for _ in range(draw.randrange(1, 4))]


def searched(known: list[list[int]], text: list[int]) -> set[int]:
    """Return the tokens that are likeliest by a recursion from the shortest matches to the longest."""
    places: dict[int, list[int]] = {}
    for other in [*known, text]:
        for end in range(1, len(other)):
            same = 0
            while same < min(end, len(text), suffix.LONGEST_MATCH) and other[end - 1 - same] == text[-1 - same]:
                same += 1
            if same:
                places.setdefault(same, []).append(other[end])
    chances: dict[int, float] = {}
    for length in sorted(places):
        counts = Counter(token for same, tokens in places.items() if same >= length for token in tokens)
        shorter = max((same for same in places if same < length), default=0)
        left = float(Fraction(3, 2) / (Fraction(3, 2) + counts.total())) ** (length - shorter) ** 0.5
        chances = {
            token: (1 - left) * counts[token] / counts.total() + left * chances.get(token, 0)
            for token in {*counts, *chances}
        }
    return {token for token, chance in chances.items() if chance > max(chances.values()) - 0.02}
