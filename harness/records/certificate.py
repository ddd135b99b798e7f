"""A certificate of exactness: what was compared with what, every difference, and what becomes of the claim.

A difference is a *near-tie* where the reference's two logits lie no further apart than rounding may move them
(:mod:`harness.decoding.teacher_forcing`), else the claim does not hold there.
"""

from __future__ import annotations

from pydantic import Field

from harness.contracts import Accuracy
from harness.records.record import Count, Positive, Record


class TokenDifference(Record):
    """A place where two tokens differ that should be the same.

    Attributes:
        sample_id: of the prompt.
        place: which new token, from 1.
        token, other: the reference's token, and the one found instead; ``None`` where a completion had ended.
        logit, other_logit: the reference's logits of both; ``None`` where one of them has none.
        bound: how far apart rounding may bring or take two such logits, in logits.
    """

    sample_id: str
    place: Positive
    token: Count | None
    other: Count | None
    logit: float | None
    other_logit: float | None
    bound: float = Field(ge=0)

    @property
    def gap(self) -> float | None:
        """How far apart the reference has the two, in logits; ``None`` where there are no two."""
        return None if self.logit is None or self.other_logit is None else abs(self.logit - self.other_logit)

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the difference."""
        return self.gap is not None and self.gap <= self.bound


class Claim(Record):
    """That one way of decoding yields the tokens of another.

    Attributes:
        weights_format: of the matrices.
        accuracy: what the weights format promises.
        what: which tokens are held against which, in words.
        batch_size: rows decoded together; ``None`` where completions are read and not decoded.
        judged: a difference that rounding does not explain is a defect; else it is counted and no more.
        places: compared tokens. differences: every one of them.
        drafts: tokens drafted. accepted: those of them that stood. ``None`` where nothing is to be drafted.
    """

    weights_format: str
    accuracy: Accuracy
    what: str
    batch_size: Positive | None
    judged: bool
    places: Count
    differences: tuple[TokenDifference, ...]
    drafts: Count | None = None
    accepted: Count | None = None

    @property
    def near_ties(self) -> int:
        """Differences that rounding explains."""
        return sum(one.near_tie for one in self.differences)

    @property
    def beyond(self) -> tuple[TokenDifference, ...]:
        """Differences that it does not explain."""
        return tuple(one for one in self.differences if not one.near_tie)

    @property
    def defects(self) -> tuple[TokenDifference, ...]:
        """Those that break what was promised."""
        return self.beyond if self.judged else ()

    @property
    def share(self) -> float | None:
        """Equal places over all; where the claim is judged, over all that are no near-ties. ``None`` without any."""
        counted = self.places - self.near_ties if self.judged else self.places
        return (self.places - len(self.differences)) / counted if counted else None


class Certificate(Record):
    """The findings of ``harness verify``.

    Attributes:
        schema_version: of this document.
        model: name. fingerprint: tells the weights from others. weights: ``pretrained``, ``tuned`` or ``random``.
        sources: where the prompts come from, by task. prompts_sha256: over what was decoded, by task.
        prompts: how many.
        max_new_tokens: longest completion.
        seed: that drew prompts and noise.
        environment: the machine and its software in one line.
        claims: what was compared.
    """

    schema_version: int = 1
    model: str
    fingerprint: str
    weights: str
    sources: dict[str, str]
    prompts_sha256: dict[str, str]
    prompts: Count
    max_new_tokens: Positive
    seed: Count
    environment: str
    claims: tuple[Claim, ...]

    @property
    def defects(self) -> int:
        """Differences that break a claim."""
        return sum(len(claim.defects) for claim in self.claims)
