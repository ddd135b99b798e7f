"""A certificate in a terminal: a line per claim, the differences, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.records.certificate import Certificate, Claim, TokenDifference

__all__ = ["LISTED", "render", "verdict"]

LISTED = 20
"""Differences of a claim that are printed, those with the widest gaps; ``--json`` has all."""


def render(found: Certificate) -> RenderableType:
    """Return a certificate as a rich renderable."""
    sources = "; ".join(f"{task} from {label}" for task, label in found.sources.items())
    head = (
        f"{found.model} ({found.weights}), {found.prompts} prompts, {found.max_new_tokens} new tokens each: {sources}"
    )
    table = _table("format", "claim", "places", "drafts", "equal", "ties", "beyond", "gap", "")
    for claim in found.claims:
        widest = max((one.gap for one in claim.differences if one.gap is not None), default=None)
        table.add_row(
            Line(claim.weights_format),
            Line(claim.what),
            f"{claim.places:,}",
            "" if claim.drafts is None else f"{claim.accepted}/{claim.drafts}",
            "–" if claim.share is None else f"{claim.share:.2%}",
            str(claim.near_ties),
            str(len(claim.beyond)),
            "–" if widest is None else f"{widest:.2g}",
            _outcome(claim),
        )
    legend = (
        "drafts: how many stood of how many; equal: of all places where they are counted, else of those that are no "
        "near-ties; gap: the widest between two logits of the reference whose tokens are exchanged. A near-tie's is no "
        "wider than rounding may move a logit (bound)."
    )
    return Group(Line(head, "bold"), table, Text(legend, "dim"), *_listed(found), Text(), _verdict_line(found))


def verdict(found: Certificate) -> str:
    """Return the verdict in one line."""
    judged = [claim for claim in found.claims if claim.judged]
    places, ties = sum(claim.places for claim in judged), sum(claim.near_ties for claim in judged)
    if found.defects:
        return f"not exact: {found.defects} of {places:,} places differ by more than rounding explains"
    reported = sorted({claim.weights_format for claim in found.claims if not claim.judged})
    more = f"; counted, not judged: {', '.join(reported)} against float32" if reported else ""
    if not judged:
        return f"nothing to certify{more}"
    but = f"{places:,} places but for {ties} near-tie{'' if ties == 1 else 's'}" if ties else f"all {places:,} places"
    return f"exact at {but}{more}"


def _verdict_line(found: Certificate) -> Text:
    return Text(verdict(found), "bold red" if found.defects else "bold green")


def _outcome(claim: Claim) -> Text:
    if claim.defects:
        return Text("broken", "red")
    if claim.drafts == 0:
        return Text("no drafts", "yellow")
    return Text("holds", "green") if claim.judged else Text("counted", "dim")


def _listed(found: Certificate) -> Iterator[RenderableType]:
    for claim in found.claims:
        if not claim.differences:
            continue
        yield Text()
        yield Line(f"{claim.weights_format}, {claim.what}", "bold")
        table = _table("prompt", "place", "token", "instead", "logits", "gap", "bound", "")
        for one in sorted(claim.differences, key=_rank)[:LISTED]:
            table.add_row(
                Line(one.sample_id),
                *("end" if number is None else str(number) for number in (one.place, one.token, one.other)),
                " ".join("–" if logit is None else f"{logit:.3f}" for logit in (one.logit, one.other_logit)),
                *("–" if number is None else f"{number:.2g}" for number in (one.gap, one.bound)),
                "tie" if one.near_tie else "beyond",
            )
        yield table
        if len(claim.differences) > LISTED:
            yield Text(f"and {len(claim.differences) - LISTED} with narrower gaps: --json FILE has them", "dim")


def _rank(one: TokenDifference) -> float:
    return -math.inf if one.gap is None else -one.gap


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column in columns:
        words = column in ("claim", "prompt")
        left = words or column in ("format", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=not words, overflow="fold")
    return table
