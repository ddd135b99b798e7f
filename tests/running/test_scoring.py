"""Scores made in parallel processes are those of one process, whatever happens to the processes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness.contracts import Completion, Score
from harness.registry import SCORES
from harness.running import scoring
from harness.running.scoring import CorpusScores, score_corpora, score_sample
from reports.summary.measured import Corpus

PYTHON = Corpus("python", ("x = 1", "return y", "for i in z:"), ("x = 1", "return x", "for i in range(3):"))
JAVA = Corpus("java", ("int x = 1;", "return y;"), ("int x = 1;", "return x;"))
SHORT = Corpus("python", ("x",), ("y",))
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


def test_what_a_process_cannot_do_is_done_here_and_said(serial, parallel, monkeypatch, caplog) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert score_corpora(CORPORA, 3) == serial
    assert len(parallel) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "exit code 1 (it printed nothing)" in caplog.text


def test_a_process_that_fails_is_quoted(serial, parallel, monkeypatch, caplog, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert score_corpora(CORPORA, 3) == serial
    assert caplog.text.count("'tasks' is not a package") == 2


def test_a_task_that_prints_spoils_nothing(serial, parallel, monkeypatch, caplog, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "def talk():\n"
        "    while True:\n"
        "        print('hello', end='', flush=True)\n"
        "        time.sleep(0.01)\n"
        "print('hello', end='', flush=True)\n"
        "if 'harness.running.scoring' in sys.orig_argv:\n"
        "    threading.Thread(target=talk, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score_corpora(CORPORA, 3) == serial
    assert not caplog.records


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
        "from reports.summary.measured import Corpus\n"
        "scoring.SERIAL_SAMPLES = 0\n"
        "print(len(scoring.score_corpora([Corpus('python', (str(n),), ('x',)) for n in range(4)], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "started\n4\n"
    assert done.stderr == ""


def test_a_corpus_that_was_not_announced_is_scored_when_asked() -> None:
    scores = CorpusScores([PYTHON], processes=1)
    assert scores("python", list(PYTHON.texts), list(PYTHON.references)) == score_corpora([PYTHON], 1)[0]
    assert scores("python", list(SHORT.texts), list(SHORT.references)) == score_corpora([SHORT], 1)[0]


def test_what_cannot_be_scored_here_is_said_once(monkeypatch) -> None:
    assert CorpusScores(CORPORA, processes=1).missing() == ()
    monkeypatch.setitem(sys.modules, "codebleu", None)
    (said,) = CorpusScores(CORPORA, processes=1).missing()
    assert "CodeBLEU, data flow, flow defined, syntax" in said
    assert "pip install --no-deps codebleu" in said
    assert CorpusScores([], processes=1).missing() == ()


class Fails(Score):
    """A score that fails."""

    title = "fails"

    def sample(self, completion: Completion) -> float:
        return 1 / 0

    def corpus(self, pairs: object, language: str) -> float:
        raise KeyError("x")


def test_a_plug_in_s_score_that_fails_is_named_with_its_package(parallel, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "registered_scores", lambda: {"fails": Fails()})
    with monkeypatch.context() as plugged:
        plugged.setitem(SCORES._points, "fails", EntryPoint("fails", "outside:Fails", SCORES.group))
        scores = CorpusScores([PYTHON], processes=1)
        said = "the score 'fails' of unknown distribution fails: "
        assert scores("python", PYTHON.texts, PYTHON.references) == {"fails": None}
        assert scores.failures == {"fails": f"{said}KeyError: 'x'"}
        found = score_sample(Completion("a", "a", (), (), "python"))
        assert found == {"fails": f"{said}ZeroDivisionError: division by zero"}
    monkeypatch.setitem(SCORES._points, "fails", next(iter(SCORES._points.values())))  # one of ours is a defect
    with pytest.raises(KeyError):
        CorpusScores([PYTHON], processes=1)


def test_shares_are_even() -> None:
    corpora = [Corpus("python", ("x",) * size, ("x",) * size) for size in (5, 1, 3, 1, 2)]
    shares = scoring._shares(corpora, 2)
    assert sorted(index for share in shares for index in share) == [0, 1, 2, 3, 4]
    assert sorted(sum(len(corpora[index].texts) for index in share) for share in shares) == [6, 6]
