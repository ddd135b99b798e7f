from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import ConfigError
from harness.running.scoring import score_corpus
from reports.summary.measured import Corpus
from tasks import languages as grammars
from tasks.scores import code_bleu
from tasks.scores.code_bleu import CodeBleu, data_flow
from tasks.scores.match import restore_literals

GRAMMAR = grammars.grammar.__wrapped__  # what is not kept from an earlier test
FLOW = "total = first + second"
NO_FLOW = "print ( )"


def components(pairs: list[tuple[str, str]], language: str = "python"):  # type: ignore[no-untyped-def]
    found = code_bleu.components(pairs, language)
    assert found is not None
    return found


def corpus_scores(texts: list[str], references: list[str], language: str) -> dict[str, float | None]:
    return score_corpus(Corpus(language, tuple(texts), tuple(references)))


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
    assert data_flow("é = ü + ñ", "python") == data_flow("e = u + n", "python")  # read whole outside ASCII, too
    assert data_flow("a = b\nc = a + b", "python") == data_flow("x = y\nz = x + y", "python")
    assert data_flow("a = b\nc = a + b", "python") != data_flow("x = y\nz = x + x", "python")


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


@pytest.mark.parametrize(
    "text", ["", " ", "def (", "((((" * 40, "'''", '"', "é = ü + ñ", "}", "\\", "y = 1\x00", "x = " + "(" * 2000]
)
@pytest.mark.parametrize("language", ["python", "java"])
def test_fragments_do_no_harm(text: str, language: str) -> None:
    for pair in [(text, FLOW), (FLOW, text), (text, text)]:
        found = components([pair], language)
        assert 0 <= found.score <= 1


@pytest.fixture(scope="module")
def golden(shared: Path):  # type: ignore[no-untyped-def]
    """Pairs of CodeXGLUE's sample predictions, (text, reference), alone or with their contexts before them."""
    folder = shared / "data" / "codexglue_line" / "golden"

    def pairs(language: str, *, contexts: bool = False) -> list[tuple[str, str]]:
        version = {"python": "2020-09-09", "java": "HEAD"}[language]
        rows = [json.loads(row) for row in (folder / f"answers_{version}.json").read_text().splitlines()]
        texts = (folder / f"predictions_{version}.txt").read_text().split("\n")[: len(rows)]
        before = [f"{row['input']} " if contexts else "" for row in rows]
        return [
            (restore_literals(context + text), restore_literals(context + row["gt"]))
            for context, text, row in zip(before, texts, rows, strict=True)
        ]

    return pairs


# Scores that codebleu 0.7.0 gave with the tree-sitter its metadata asks for (0.22.3), Python 3.11.


@pytest.mark.parametrize(
    ("language", "index", "score"),
    [
        ("python", 15, 0.05214893571468941),
        ("python", 35, 0.45083408507009926),
        ("python", 77, 0.255307490507106),
        ("python", 91, 0.7961516536011625),
        ("python", 94, 0.09631505243675224),
        ("java", 1, 0.4180135756603252),
        ("java", 2, 0.16384516997455226),
        ("java", 4, 0.06196815986047372),
    ],
)
def test_a_later_tree_sitter_scores_completions_as_before(golden, language: str, index: int, score: float) -> None:  # type: ignore[no-untyped-def]
    assert components([golden(language)[index]], language).score == pytest.approx(score, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", (0.9908261488306976, 0.9910540173383202, 0.9875201879312876, 0.96363932822436, 0.98)),
        ("java", (0.9798931226814933, 0.9801230918692372, 0.8823529411764706, 0.952755905511811, 1.0)),
    ],
)
def test_a_later_tree_sitter_scores_whole_files_as_before(golden, language: str, expected: tuple[float, ...]) -> None:  # type: ignore[no-untyped-def]
    found = components(golden(language, contexts=True), language)
    parts = (found.ngram, found.weighted_ngram, found.syntax, found.dataflow, found.dataflow_defined)
    assert parts == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"the grammar of python is not installed\. Run `pip install tree-sitter-python`"),
        (SimpleNamespace(language=lambda: "no grammar"), r"does not fit it .* Run `pip install 'tree-sitter>=0\.25'`"),
    ],
)
def test_a_grammar_that_is_missing_or_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: object, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_python", module)
    with pytest.raises(ConfigError, match=message):
        GRAMMAR("python")


def test_without_the_library_its_scores_are_none_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = corpus_scores([FLOW], [FLOW], "python")
    assert CodeBleu().unavailable() is None
    monkeypatch.setitem(sys.modules, "codebleu", None)
    without = corpus_scores([FLOW], [FLOW], "python")
    absent = ("codebleu", "syntax", "dataflow", "dataflow_defined")
    assert without == with_it | dict.fromkeys(absent)
    reason = "the package codebleu is not installed (pip install --no-deps codebleu==0.7.0)"
    assert CodeBleu().unavailable() == reason


def test_an_unknown_language_has_no_code_bleu() -> None:
    assert code_bleu.components([("a", "a")], "cobol") is None
    scores = corpus_scores(["a"], ["a"], "cobol")
    assert scores["codebleu"] is scores["syntax"] is scores["dataflow"] is scores["dataflow_defined"] is None
    assert scores["bleu"] == pytest.approx(1)


def test_the_score_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from tasks.scores.code_bleu import components;"
        "a='x = 1\\nwhile x < 9 :\\n  y = x + alpha + beta\\n  x = y + gamma * alpha\\n';"
        "b='z = 1\\nwhile z < 9 :\\n  w = z + beta + delta\\n  z = z + gamma * w\\n';"
        "print(components([(a,b),(b,a)],'python'))"
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
