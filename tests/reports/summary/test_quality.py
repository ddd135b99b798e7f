"""Scores come from the first repeat, and agreement counts what is missing against a completion."""

from __future__ import annotations

import pytest

FULL, OTHER = "full", "fixed:layer=5"


def test_agreement_is_tokens_over_tokens_and_missing_places_disagree(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2, 3, 4)}, {"token_ids": (5, 6)})
    run.window(OTHER, {"token_ids": (1, 2)}, {"token_ids": (5, 9, 6, 6)})  # 2 of 4, then 1 of 2
    assert run.row(OTHER).value("agreement") == pytest.approx(3 / 6)
    assert run.row(FULL).value("agreement") == 1.0


def test_agreement_needs_both_samples_and_ignores_later_repeats(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2)}, {"token_ids": (1, 1)})
    run.window(OTHER, {"token_ids": (1, 2)}, {"error": "broken"})
    for point in (FULL, OTHER):
        run.window(point, {"token_ids": (1, 8 if point == FULL else 9)}, repeat=1)
    assert run.row(OTHER).value("agreement") == 1.0


def test_scores_are_means_over_the_first_repeat(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"exact_match": 1.0}}, {"scores": {"exact_match": 0.0}})
    run.window(FULL, {"scores": {"exact_match": 0.0}}, {"scores": {"exact_match": 0.0}}, repeat=1)
    row = run.row(FULL)
    assert (row.value("exact_match"), row.n, row.repeats) == (0.5, 2, 2)


def test_undefined_scores_are_left_out_of_the_mean_and_unknown_ones_are_none(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"dataflow": None}}, {"scores": {"dataflow": 0.4}}, {"scores": {"chrf": None}})
    row = run.row(FULL)
    assert row.value("dataflow") == pytest.approx(0.4)
    assert row.value("chrf") is None
    assert row.value("bleu") is None


def test_corpus_scores_win_also_when_they_say_not_defined(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"bleu": 0.9, "codebleu": 0.9, "chrf": 0.9}})
    row = run.row(FULL, score_corpus=lambda *_: {"bleu": 0.1, "codebleu": None, "n": 99})
    assert (row.value("bleu"), row.value("codebleu"), row.value("chrf")) == (0.1, None, 0.9)
    assert row.n == 1  # a scorer cannot overwrite what is not a score


def test_corpus_scorer_sees_each_finished_sample_of_the_first_repeat_once(build) -> None:
    run = build()
    run.window(FULL, {"text": "a", "reference": "A"}, {"error": "broken"}, {"text": "b", "reference": "B"})
    run.window(FULL, {"text": "later"}, repeat=1)
    calls = []
    run.summary(lambda *arguments: calls.append(arguments) or {})
    assert calls == [("python", ("a", "b"), ("A", "B"))]  # and not at all for the operating point without samples
