"""Scores that cannot be had here, and those of a plug-in that fail, are said with their reason."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from harness.contracts import Completion, Score
from harness.registry import SCORES
from harness.running import scoring
from harness.running.scoring import CorpusScores, score_sample
from reports.summary.measured import Corpus

PYTHON = Corpus("python", ("x = 1", "return y", "for i in z:"), ("x = 1", "return x", "for i in range(3):"))
JAVA = Corpus("java", ("int x = 1;", "return y;"), ("int x = 1;", "return x;"))
SHORT = Corpus("python", ("x",), ("y",))
CORPORA = [PYTHON, JAVA, SHORT]


def test_what_cannot_be_scored_here_is_said_once(monkeypatch) -> None:
    assert CorpusScores(CORPORA).missing() == ()
    monkeypatch.setitem(sys.modules, "codebleu", None)
    (said,) = CorpusScores(CORPORA).missing()
    assert "CodeBLEU, data flow, flow defined, syntax" in said
    assert "pip install --no-deps codebleu" in said
    assert CorpusScores([]).missing() == ()


class Fails(Score):
    """A score that fails."""

    title = "fails"

    def sample(self, completion: Completion) -> float:
        return 1 / 0

    def corpus(self, pairs: object, language: str) -> float:
        raise KeyError("x")


def test_a_plug_in_s_score_that_fails_is_named_with_its_package(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "registered_scores", lambda: {"fails": Fails()})
    with monkeypatch.context() as plugged:
        plugged.setitem(SCORES._points, "fails", EntryPoint("fails", "outside:Fails", SCORES.group))
        scores = CorpusScores([PYTHON])
        said = "the score 'fails' of unknown distribution fails: "
        assert scores("python", PYTHON.texts, PYTHON.references) == {"fails": None}
        assert scores.failures == {"fails": f"{said}KeyError: 'x'"}
        found = score_sample(Completion("a", "a", (), (), "python"))
        assert found == {"fails": f"{said}ZeroDivisionError: division by zero"}
    monkeypatch.setitem(SCORES._points, "fails", next(iter(SCORES._points.values())))  # one of ours is a defect
    with pytest.raises(KeyError):
        CorpusScores([PYTHON])
