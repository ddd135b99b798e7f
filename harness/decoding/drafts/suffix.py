"""Drafts from text: what followed every earlier occurrence of the last tokens, for as long as it pays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.contracts import Batch, Draft, DraftRule, ModelInfo
from harness.contracts.drafts import DraftSource

LONGEST_MATCH = 16
"""Tokens by which an occurrence is compared."""
OCCURRENCES = 48
"""Occurrences of the last token that are compared, the latest."""
SHORTER = 1.5
"""Occurrences that count as much as all that is known from shorter matches."""
NEGLIGIBLE = 0.01
"""Weight below which shorter matches are left out."""

MOST_ROWS = 64
"""Rows of a pass, other requests' among them, up to which drafts are proposed."""

_END = -1


@dataclass(frozen=True)
class Suffix(DraftSource):
    """Propose the likeliest continuation by all earlier occurrences of the last tokens, and as many of it as pay.

    Rule: p(t) mixes, from the longest match down, how often t followed; n occurrences leave (c / (n + c))^√j to shorter
    matches, c = 1.5, j the lengths by which the match can be shortened before there are more of them. A draft goes on
    with the likeliest t, along the occurrences that have it. Of all its lengths that one is proposed which promises
    most tokens per cost: (b + 1 + Σ_i p₁·…·p_i) / C(b + 1 + k), C(n) the measured cost of a pass of n rows, which
    climbs in steps, b the rows of other requests in it; none where that promises most. Where nothing was measured,
    further rows are free.

    After Oliaro et al., "SuffixDecoding", 2024, arXiv 2411.04975: a continuation's frequency says how far to draft.
    What differs: occurrences of every length count, as in prediction by partial matching (Cleary and Witten 1984),
    where the paper takes the best length; lengths come from measured costs and not from a multiple of the match; a
    draft is a chain, since a tree gained .3 to 1 % more here. In an editor session it also knows what was decoded for
    earlier requests (:attr:`Batch.known`).
    """

    recalls: ClassVar[bool] = True

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Take the model's costs, and the owner's earlier texts."""
        costs = model.costs
        return _Suffix([costs.deep(model.num_layers, rows) for rows in range(1, MOST_ROWS + 1)], batch.known)


class _Text:
    """What is known, prompt and completion of one row, and behind which places each token stands."""

    def __init__(self, prompt: Sequence[int], known: Sequence[Sequence[int]]) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self._ends: defaultdict[int, list[int]] = defaultdict(list)
        for text in known:
            self.extend([*text, _END])
        self._own = len(self.tokens)
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            self._ends[token].append(len(self.tokens))

    def follow(self, completion: Sequence[int]) -> None:
        """Add what is new of a completion."""
        self.extend(completion[len(self.tokens) - self._own - len(self.prompt) :])

    def matches(self, said: Sequence[int]) -> list[tuple[int, int]]:
        """Return how many tokens each earlier occurrence of the last one shares, and where it goes on."""
        found, here = [], len(said)
        for end in self._ends.get(said[-1], [])[-OCCURRENCES - 1 :]:
            if end < here and said[end] != _END:
                same, most = 1, min(LONGEST_MATCH, end)
                while same < most and said[end - 1 - same] == said[here - 1 - same]:
                    same += 1
                found.append((same, end))
        return found


def likeliest(said: Sequence[int], matches: Sequence[tuple[int, int]]) -> tuple[int, float]:
    """Return the likeliest next token by matches of at least one token and where these go on in a text; and how likely.

    Of equally likely ones it is that of the longest, the latest match.
    """
    ordered = sorted(matches, reverse=True)
    counts: defaultdict[int, int] = defaultdict(int)
    chances: defaultdict[int, float] = defaultdict(float)
    weight, place = 1.0, 0
    while place < len(ordered) and weight > NEGLIGIBLE:
        length = ordered[place][0]
        while place < len(ordered) and ordered[place][0] == length:
            counts[said[ordered[place][1]]] += 1
            place += 1
        shorter = ordered[place][0] if place < len(ordered) else 0
        left = weight * (SHORTER / (place + SHORTER)) ** math.sqrt(length - shorter)
        for token, count in counts.items():
            chances[token] += (weight - left) * count / place
        weight = left
    return max(chances.items(), key=lambda one: one[1])


class _Suffix(DraftRule):
    def __init__(self, costs: Sequence[float], known: Sequence[Sequence[int]]) -> None:
        self._costs, self._known = costs, known
        self._texts: dict[int, _Text] = {}

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        text = self._texts.get(draft.row)
        if text is None or text.prompt is not draft.prompt:
            text = self._texts[draft.row] = _Text(draft.prompt, self._known)
        text.follow(draft.token_ids)
        said = [*text.tokens, *draft.tokens]
        begin, costs = len(said), self._costs[draft.beside + len(draft.tokens) :]
        if not costs:
            return ()
        stands, tokens = 1.0, draft.beside + 1.0
        best, length = tokens / costs[0], 0
        matches = text.matches(said)
        while matches and (count := len(said) - begin + 1) <= max_tokens and count < len(costs):
            if tokens + stands * (max_tokens - count + 1) <= best * costs[count]:
                break  # were all of the rest to stand
            token, chance = likeliest(said, matches)
            stands *= chance
            tokens += stands
            said.append(token)
            if tokens / costs[count] > best:
                best, length = tokens / costs[count], count
            matches = [(same + 1, end + 1) for same, end in matches if said[end] == token and said[end + 1] != _END]
        return said[begin : begin + length]
