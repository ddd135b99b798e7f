from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from harness.contracts import Completion
from harness.registry import SCORES
from harness.running.scoring import score_corpus, score_sample
from reports.summary.measured import Corpus
from tasks.scores.match import code_tokens, edit_similarity, exact_match, restore_literals, token_accuracy
from tasks.scores.overlap import chrf, corpus_bleu, corpus_chrf, rouge_l, sentence_bleu

LINES = ["return x + 1 ;", "foo ( bar )", "x", "if a != b :", 'String s = "text" ;']


POOLED = {"bleu", "chrf", "codebleu", "dataflow", "dataflow_defined", "syntax"}


def corpus_scores(texts: list[str], references: list[str], language: str) -> dict[str, float | None]:
    return score_corpus(Corpus(language, tuple(texts), tuple(references)))


def sample_scores(text: str, reference: str) -> dict[str, float | None]:
    return score_sample(Completion(text, reference, (), (), "python"))


def test_the_official_evaluator_s_published_scores_are_reproduced(data: Path) -> None:
    golden = data / "codexglue_line" / "golden"
    expected = json.loads((golden / "EXPECTED.json").read_text())
    assert len(expected) == 2
    for case in expected:
        references = [json.loads(row)["gt"] for row in (golden / case["answers"]).read_text().splitlines()]
        texts = (golden / case["predictions"]).read_text().splitlines()
        assert len(texts) == len(references) == case["n"]
        rows = [sample_scores(*pair) for pair in zip(texts, references, strict=True)]
        assert round(100 * fmean(row["exact_match"] or 0 for row in rows), 2) == case["EM"]
        assert round(100 * fmean(row["edit_similarity"] or 0 for row in rows), 2) == case["edit_sim"]


@pytest.mark.parametrize(
    ("text", "restored"),
    [
        ("f ( '<STR_LIT>' , <NUM_LIT> )", "f ( '' , 0 )"),
        ("f ( '<STR_LIT:a b>' , <NUM_LIT:2> , '<CHAR_LIT:;>' )", "f ( 'a b' , 2 , ';' )"),
        ("a < b > c", "a < b > c"),
    ],
)
def test_literals_are_restored(text: str, restored: str) -> None:
    assert restore_literals(text) == restored
    assert sample_scores(text, restored)["exact_match"] == 1


def test_exact_match_ignores_white_space_only() -> None:
    assert exact_match(" a  b\n", "a b") == 1
    assert exact_match("ab", "a b") == 0
    assert exact_match("A b", "a b") == 0


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("abcd", "abcd", 100),
        ("", "", 100),
        ("abcd", "", 0),
        ("abcd", "wxyz", 0),
        ("ab", "abcd", 67),  # 4 of 6 characters
        ("axxxxxxx", "ayyyyyyy", 12),  # 12.5, half to even
        ("aaaaaaax", "aaaaaaay", 88),  # 87.5, half to even
        ("abcdefgh", "efghabcd", 50),  # a common subsequence, however it is found
    ],
)
def test_edit_similarity_by_hand(text: str, reference: str, score: int) -> None:
    assert edit_similarity(text, reference) == edit_similarity(reference, text) == score
    assert edit_similarity(f"\n {text} ", reference) == score


@pytest.mark.parametrize(
    ("token_ids", "reference_ids", "score"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3, 4, 5], [1, 2, 3], 1.0),
        ([1], [1, 2, 3, 4], 0.25),
        ([9, 2, 9, 4], [1, 2, 3, 4], 0.5),
        ([2, 3, 4], [1, 2, 3], 0.0),
        ([], [1], 0.0),
        ([1], [], None),
    ],
)
def test_token_accuracy(token_ids: list[int], reference_ids: list[int], score: float | None) -> None:
    assert token_accuracy(token_ids, reference_ids) == score


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("x = 1\ny = 2", "x = 1\ny = 3", 1),
        ("x = 1", "x  = 1\ny", 1),
        ("\n    x = 1\n", "x = 1", 1),  # a completion may begin with the end of the prompt's line
        ("x = 1 <EOL> y", "x = 1 <EOL> z", 1),
        ("f ( <NUM_LIT> )", "f ( 0 )", 1),
        ("x = 2\ny = 2", "x = 1\ny = 2", 0),
        ("", "x", 0),
        ("x", " \n", None),
    ],
)
def test_the_first_line_is_what_an_editor_shows(text: str, reference: str, score: float | None) -> None:
    assert sample_scores(text, reference)["first_line_match"] == score


@pytest.mark.parametrize(
    ("text", "reference", "characters"),
    [
        ("return x", "return y", 7),
        ("return x", "return x + 1", 8),
        ("return x + 1", "return x", 8),
        (" a", "a", 0),
        ("", "a", 0),
        ("f('<STR_LIT:ab>')", "f('abc')", 5),
    ],
)
def test_characters_until_the_completion_differs(text: str, reference: str, characters: int) -> None:
    assert sample_scores(text, reference)["accepted_prefix"] == characters


def test_code_tokens_keep_operators_case_and_line_ends() -> None:
    assert code_tokens("self.x != Foo(1)  <EOL>é") == ["self", ".", "x", "!", "=", "Foo", "(", "1", ")", "<EOL>", "é"]


def test_rouge_l_by_hand() -> None:
    assert rouge_l("a + b", "a - b") == pytest.approx(2 / 3)
    assert rouge_l("a b", "a x b y") == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert rouge_l("A", "a") == 0


def test_bleu_by_hand() -> None:
    precisions = [3 / 4, 2 / 3, 1 / 2, 1 / 2]  # the last order has no match: exponential smoothing gives 1 / (2 · 1)
    expected = (precisions[0] * precisions[1] * precisions[2] * precisions[3]) ** 0.25
    assert sentence_bleu("a b c x", "a b c d") == pytest.approx(expected)
    assert sentence_bleu("d c b a", "a b c d") < sentence_bleu("a b c x", "a b c d")


def test_corpus_bleu_pools_counts() -> None:
    pairs = [("a b c d e f g h", "a b c d e f g h"), ("x", "y")]
    assert 0.5 * (sentence_bleu(*pairs[0]) + sentence_bleu(*pairs[1])) < corpus_bleu(pairs) < 1


@pytest.mark.parametrize("score", [sentence_bleu, rouge_l, chrf])
def test_overlap_is_1_for_equal_and_0_for_foreign_text(score: object) -> None:
    for text in LINES:
        assert score(text, text) == pytest.approx(1)  # type: ignore[operator]
        assert score(text, "§§ §§") == pytest.approx(0)  # type: ignore[operator]
        assert score("", text) == 0  # type: ignore[operator]
        assert 0 <= score(text, LINES[0]) <= 1  # type: ignore[operator]


def test_corpus_of_equals_is_perfect_and_in_range() -> None:
    scores = corpus_scores(LINES, LINES, "java")
    assert set(scores) == POOLED
    for name in ("bleu", "chrf", "syntax"):
        assert scores[name] == pytest.approx(1)
    assert all(value is None or 0 <= value <= 1 for value in scores.values())
    assert corpus_chrf([(line, line) for line in LINES]) == 1


def test_every_score_but_those_of_a_corpus_or_a_benchmark_is_given_to_each_sample() -> None:
    of_corpora = {"codebleu", "dataflow", "dataflow_defined", "syntax"}
    of_benchmarks = {"edit_similarity_indented", "statement_match", "identifier_match", "identifier_f1", "pass_at_1"}
    assert set(sample_scores("a", "a")) == set(SCORES.names()) - of_corpora - of_benchmarks


@pytest.mark.parametrize("name", SCORES.names())
def test_a_table_knows_what_to_call_a_score(name: str) -> None:
    score = SCORES.load(name)()
    assert score.title
    assert score.meaning == SCORES.entry(name).summary.rstrip(".")
    assert score.scores_samples or score.scores_corpora
