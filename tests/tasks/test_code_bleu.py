from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from tasks.scores import corpus_scores
from tasks.scores.code_bleu import code_bleu, data_flow

FLOW = "total = first + second"
NO_FLOW = "print ( )"


def components(pairs: list[tuple[str, str]], language: str = "python"):  # type: ignore[no-untyped-def]
    found = code_bleu(pairs, language)
    assert found is not None
    return found


def test_identity_of_a_long_line_is_1_in_every_component() -> None:
    found = components([(FLOW, FLOW)])
    assert (found.ngram, found.weighted_ngram, found.syntax, found.dataflow) == pytest.approx((1, 1, 1, 1))
    assert found.score == pytest.approx(1)


def test_no_flow_in_any_reference_is_undefined_not_1() -> None:
    found = components([(NO_FLOW, NO_FLOW), (FLOW, NO_FLOW)])
    assert found.dataflow is None
    assert found.dataflow_defined == 0
    assert found.score == pytest.approx((found.ngram + found.weighted_ngram + found.syntax) / 3)


def test_flow_that_is_missed_is_0_not_1() -> None:
    found = components([(NO_FLOW, FLOW)])
    assert found.dataflow == 0
    assert found.dataflow_defined == 1
    assert found.score == pytest.approx((found.ngram + found.weighted_ngram + found.syntax) / 4)


def test_flow_counts_only_where_the_reference_has_any() -> None:
    found = components([(FLOW, FLOW), (NO_FLOW, FLOW), (NO_FLOW, NO_FLOW), (FLOW, NO_FLOW)])
    assert found.dataflow == pytest.approx(0.5)
    assert found.dataflow_defined == pytest.approx(0.5)


def test_flow_edges_by_hand() -> None:
    # first, second, total in order of appearance of an edge: total is 0 … but it comes from 0 and 1, named first
    assert data_flow("total = first + second", "python") == [
        (2, "computedFrom", (0, 1)),
        (0, "comesFrom", ()),
        (1, "comesFrom", ()),
    ]
    assert data_flow("print ( )", "python") == []
    assert data_flow("", "python") == []


def test_flow_ignores_names() -> None:
    assert data_flow("a = b\nc = a + b", "python") == data_flow("x = y\nz = x + y", "python")
    assert data_flow("a = b\nc = a + b", "python") != data_flow("x = y\nz = x + x", "python")


def test_ngrams_by_hand() -> None:
    found = components([("w x y b", "w x y z")])
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** 0.25  # the library smooths an order without match with 0.1
    assert found.ngram == pytest.approx(expected)


def test_keywords_weigh_more_whatever_the_spacing() -> None:
    keyword = components([("return b", "return x"), ("return;b", "return;x")], "java")
    name = components([("b x", "return x"), ("b;x", "return;x")], "java")
    assert keyword.weighted_ngram > name.weighted_ngram
    assert keyword.ngram == pytest.approx(name.ngram)


def test_the_language_decides_the_parse() -> None:
    declaration = "int x = y ;"
    assert data_flow(declaration, "java")
    assert data_flow(declaration, "java") != data_flow(declaration, "python")
    pair = [("for ( int i = 0 ; i < n ; i ++ ) { a ( ) ; }", "for ( int j = 0 ; j < m ; j ++ ) { b ( ) ; }")]
    assert components(pair, "java").syntax == 1
    assert components(pair, "java").dataflow == 1


def test_official_line_ends_are_read_as_lines() -> None:
    joined, split = "if a : <EOL> b = a", "if a : \n b = a"
    assert components([(joined, split)]).syntax == 1
    assert corpus_scores(["x = '<STR_LIT:a>' + <NUM_LIT:1>"], ["x = 'a' + 1"], "python")["codebleu"] == pytest.approx(1)


@pytest.mark.parametrize(
    "text", ["", " ", "def (", "((((" * 40, "'''", '"', "é = ü + ñ", "}", "\\", "x = " + "(" * 2000]
)
@pytest.mark.parametrize("language", ["python", "java"])
def test_fragments_do_no_harm(text: str, language: str) -> None:
    for pair in [(text, FLOW), (FLOW, text), (text, text)]:
        found = components([pair], language)
        assert 0 <= found.score <= 1


def test_names_outside_ascii_are_read_whole() -> None:
    assert data_flow("é = ü + ñ", "python") == data_flow("e = u + n", "python")


def test_an_unknown_language_has_no_code_bleu() -> None:
    assert code_bleu([("a", "a")], "cobol") is None
    scores = corpus_scores(["a"], ["a"], "cobol")
    assert scores["codebleu"] is scores["syntax"] is scores["dataflow"] is scores["dataflow_defined"] is None
    assert scores["exact_match"] == 1


def test_nothing_reaches_the_screen_and_logging_stays_as_it_was(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.level, root.disabled, list(root.handlers), list(root.filters), logging.root.manager.disable)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus_scores([NO_FLOW, "a ."], [NO_FLOW, "a ."], "python")
        corpus_scores([NO_FLOW], [NO_FLOW], "java")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert (root.level, root.disabled, list(root.handlers), list(root.filters), logging.root.manager.disable) == before


def test_the_score_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from tasks.scores.code_bleu import code_bleu;"
        "a='x = 1\\nwhile x < 9 :\\n  y = x + alpha + beta\\n  x = y + gamma * alpha\\n';"
        "b='z = 1\\nwhile z < 9 :\\n  w = z + beta + delta\\n  z = z + gamma * w\\n';"
        "print(code_bleu([(a,b),(b,a)],'python'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
