from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from harness.contracts import Completion
from harness.registry import SCORES
from harness.running.scoring import score_corpus, score_sample
from reports.summary.measured import Corpus
from tasks.scores.match import code_tokens, edit_similarity, restore_literals

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


def test_scores_of_a_sample_by_hand() -> None:
    for name, text, reference, score in (
        *(("exact_match", " a  b\n", "a b", 1), ("exact_match", "ab", "a b", 0), ("exact_match", "A b", "a b", 0)),
        # the first line is what an editor shows; a completion may begin with the end of the prompt's line
        *(("first_line_match", "x = 1\ny = 2", "x = 1\ny = 3", 1), ("first_line_match", "x = 1", "x  = 1\ny", 1)),
        *(("first_line_match", "\n    x = 1\n", "x = 1", 1), ("first_line_match", "f ( <NUM_LIT> )", "f ( 0 )", 1)),
        ("first_line_match", "x = 1 <EOL> y", "x = 1 <EOL> z", 1),
        *(("first_line_match", "x = 2\ny", "x = 1\ny", 0), ("first_line_match", "", "x", 0)),
        ("first_line_match", "x", " \n", None),
        *(("accepted_prefix", "return x", "return y", 7), ("accepted_prefix", "return x + 1", "return x", 8)),
        *(("accepted_prefix", " a", "a", 0), ("accepted_prefix", "f('<STR_LIT:ab>')", "f('abc')", 5)),
        *(("rouge_l", "a + b", "a - b", 2 / 3), ("rouge_l", "a b", "a x b y", 2 / 3), ("rouge_l", "A", "a", 0)),
        # the last order has no match: exponential smoothing gives 1 / (2 · 1)
        ("bleu", "a b c x", "a b c d", (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25),
    ):
        assert sample_scores(text, reference)[name] == (score if score is None else pytest.approx(score)), (name, text)
    for made, wanted, score in (
        *(([1, 2, 3, 4, 5], [1, 2, 3], 1.0), ([1], [1, 2, 3, 4], 0.25), ([9, 2, 9, 4], [1, 2, 3, 4], 0.5)),
        *(([2, 3, 4], [1, 2, 3], 0.0), ([], [1], 0.0), ([1], [], None)),
    ):
        completion = Completion("a", "a", tuple(made), tuple(wanted), "python")
        assert score_sample(completion)["token_accuracy"] == score


def test_code_tokens_keep_operators_case_and_line_ends() -> None:
    assert code_tokens("self.x != Foo(1)  <EOL>é") == ["self", ".", "x", "!", "=", "Foo", "(", "1", ")", "<EOL>", "é"]


def test_overlap_is_1_for_equal_and_0_for_foreign_text() -> None:
    for text in LINES:
        for name in ("bleu", "rouge_l", "chrf"):
            assert sample_scores(text, text)[name] == pytest.approx(1)
            assert sample_scores(text, "§§ §§")[name] == pytest.approx(0)
            assert sample_scores("", text)[name] == 0


def test_scores_of_a_corpus_pool_counts() -> None:
    scores = corpus_scores(LINES, LINES, "java")
    assert set(scores) == POOLED
    assert all(scores[name] == pytest.approx(1) for name in ("bleu", "chrf", "syntax"))
    assert all(value is None or 0 <= value <= 1 for value in scores.values())
    pooled = corpus_scores(["a b c d e f g h", "x"], ["a b c d e f g h", "y"], "python")
    assert 0.5 < (pooled["bleu"] or 0) < 1


@pytest.mark.parametrize("name", SCORES.names())
def test_a_table_knows_what_to_call_a_score(name: str) -> None:
    score = SCORES.load(name)()
    assert score.title
    assert score.meaning == SCORES.entry(name).summary.rstrip(".")
    assert score.scores_samples or score.scores_corpora
