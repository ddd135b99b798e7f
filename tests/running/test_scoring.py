"""Scores made in parallel processes are those of one process, whatever happens to the processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UnknownNameError
from harness.running import scoring
from harness.running.scoring import CorpusScores, score_corpora
from reports.summary.quality import Corpus

PYTHON = Corpus("py150", ("x = 1", "return y", "for i in z:"), ("x = 1", "return x", "for i in range(3):"))
JAVA = Corpus("javacorpus", ("int x = 1;", "return y;"), ("int x = 1;", "return x;"))
SHORT = Corpus("py150", ("x",), ("y",))
CORPORA = [PYTHON, JAVA, SHORT]


@pytest.fixture
def serial() -> list[dict[str, float | None]]:
    return score_corpora(CORPORA, processes=1)


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Make even small work parallel; returns the processes that were started."""
    monkeypatch.setattr(scoring, "SERIAL_SAMPLES", 0)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noted(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return started


@pytest.mark.parametrize("processes", [2, 9])
def test_parallel_scores_are_the_serial_ones_in_order(serial, parallel, processes) -> None:
    assert score_corpora(CORPORA, processes) == serial
    assert len(parallel) == min(processes, len(CORPORA)) - 1
    assert [process.returncode for process in parallel] == [0] * len(parallel)


def test_small_work_starts_no_process(serial, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert score_corpora(CORPORA, 2) == serial


def test_what_a_process_cannot_do_is_done_here(serial, parallel, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert score_corpora(CORPORA, 3) == serial
    assert len(parallel) == 2


def test_a_task_that_nobody_knows_is_refused_as_in_one_process(parallel) -> None:
    with pytest.raises(UnknownNameError, match="no-such-task"):
        score_corpora([PYTHON, Corpus("no-such-task", ("x",), ("x",))], 2)


def test_an_error_leaves_no_process_behind(parallel, monkeypatch) -> None:
    def interrupted(corpus):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_corpora(CORPORA, 3)
    assert len(parallel) == 2
    assert all(process.returncode is not None for process in parallel)


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from harness.running import scoring\n"
        "from reports.summary.quality import Corpus\n"
        "scoring.SERIAL_SAMPLES = 0\n"
        "print(len(scoring.score_corpora([Corpus('py150', (str(n),), ('x',)) for n in range(4)], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "started\n4\n"
    assert done.stderr == ""


def test_a_corpus_that_was_not_announced_is_scored_when_asked() -> None:
    scores = CorpusScores([PYTHON], processes=1)
    assert scores("py150", list(PYTHON.texts), list(PYTHON.references)) == score_corpora([PYTHON], 1)[0]
    assert scores("py150", list(SHORT.texts), list(SHORT.references)) == score_corpora([SHORT], 1)[0]


def test_what_cannot_be_scored_here_is_said_once(monkeypatch) -> None:
    assert CorpusScores(CORPORA, processes=1).missing() == ()
    monkeypatch.setitem(sys.modules, "codebleu", None)
    (said,) = CorpusScores(CORPORA, processes=1).missing()
    assert "pip install --no-deps codebleu" in said
    assert CorpusScores([], processes=1).missing() == ()


def test_a_task_of_before_the_question_has_nothing_to_say(monkeypatch) -> None:
    class Old:
        def score_corpus(self, texts, references):
            return {"exact_match": 1.0}

    monkeypatch.setattr(scoring, "_task", lambda name: Old())
    assert CorpusScores([PYTHON], processes=1).missing() == ()


def test_shares_are_even() -> None:
    corpora = [Corpus("py150", ("x",) * size, ("x",) * size) for size in (5, 1, 3, 1, 2)]
    shares = scoring._shares(corpora, 2)
    assert sorted(index for share in shares for index in share) == [0, 1, 2, 3, 4]
    assert sorted(sum(len(corpora[index].texts) for index in share) for share in shares) == [6, 6]
