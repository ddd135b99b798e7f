"""HumanEval-Infilling: the authors' example samples pass as they say, both ways to prompt, and a run of each.

The example problem and its samples are those of openai/human-eval-infilling, commit 88062ff (MIT), ``data/``; its
README says that they should yield 30 % pass@1.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Completion, Sample, TaskRequest
from harness.errors import ConfigError
from harness.models.tokenizer import TransformersTokenizer
from harness.running.scoring import score_sample
from tasks.humaneval_infilling import MultiLineInfilling, RandomSpanInfilling, SingleLineInfilling
from tasks.languages import PYTHON
from tasks.protocols.infilling import Infilling
from tasks.rows import GapRow
from tasks.sandbox import passes

PROBLEM = {
    "task_id": "test/0",
    "prompt": "def return1():\n",
    "suffix": "1",
    "canonical_solution": "    return ",
    "test": "def check(candidate):\n    assert candidate() == 1",
    "entry_point": "return1",
}
SAMPLES = {
    "    import subprocess\n    subprocess.check_output('rm -rf tmp')": False,
    "    import time\n    time.sleep(10)\n    return 1": False,
    "    return input('enter a number')": False,
    "    return 1": False,
    "  return 1": False,
    "\treturn 1": False,
    "    import time\n    time.sleep(10)\n    return ": False,
    "    return ": True,
    "  return ": True,
    "\treturn ": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The authors' layout: compressed lines below data/."""
    rows = [
        PROBLEM,
        PROBLEM | {"task_id": "test/1", "prompt": "def return1():\n    x = 1\n", "suffix": "    return x\n"},
        PROBLEM | {"task_id": "test/2", "entry_point": "os.remove"},
    ]
    file = tmp_path / "benchmark" / "data" / "HumanEval-SingleLineInfilling.jsonl.gz"
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt") as lines:
        lines.write("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "benchmark"


@pytest.fixture(scope="module")
def fim_model(make_model: Callable[..., Path], marked: TransformersTokenizer) -> Path:
    """A tiny model whose tokenizer has StarCoder's markers."""
    model = make_model("llama", vocab_size=len(marked.wrapped))
    marked.wrapped.save_pretrained(model)
    return model


def drawn(source: object, tokenizer: Any, protocol: str = "infilling", **more: Any) -> Any:
    return SingleLineInfilling().load(TaskRequest(protocol, str(source), **more), tokenizer)


def test_the_authors_example_samples_pass_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    quick: Callable[..., bool] = lambda program: passes(program, seconds=0.7)  # noqa: E731 - theirs sleep for ten
    monkeypatch.setattr("tasks.scores.pass_at_1.passes", quick)
    around, tests = (PROBLEM["prompt"], PROBLEM["suffix"]), f"{PROBLEM['test']}\ncheck({PROBLEM['entry_point']})"
    scores = {
        text: score_sample(Completion(text, "    return ", (), (), "python", "infilling", around, tests))["pass_at_1"]
        for text in SAMPLES
    }
    assert scores == SAMPLES
    assert sum(filter(None, scores.values())) / len(scores) == pytest.approx(0.3)


def test_nothing_is_run_that_nobody_allowed(folder: Path, marked: Any) -> None:
    asked, allowed = (drawn(folder, marked, allow_code_execution=allow) for allow in (False, True))
    assert {sample.tests for sample in asked.samples} == {""}
    assert {sample.tests for sample in allowed.samples} == {f"{PROBLEM['test']}\ncheck(return1)"}
    assert asked.source.detail["tests"] == "not run: no pass@1 without --allow-code-execution"
    assert allowed.source.detail["tests"].startswith("run; ")
    assert "pass_at_1" not in score_sample(Completion("a", "a", (), (), "python", "infilling", ("", ""), ""))


def test_the_prompt_has_the_model_s_own_marks(folder: Path, marked: Any) -> None:
    data = drawn(folder, marked)
    prompts = {sample.sample_id: marked.decode(sample.prompt_ids) for sample in data.samples}
    assert prompts["test/0"] == "<fim_prefix>def return1():\n<fim_suffix>1<fim_middle>"
    assert [row.reason for row in data.bad_rows] == ["row 3: 'entry_point' is no name of a function"]
    task, pad = SingleLineInfilling(), marked.wrapped.convert_tokens_to_ids("<fim_pad>")
    stop = task.stop_rule("infilling", marked)
    assert stop([*marked.encode("a\n"), pad])
    assert not stop(marked.encode("a\n"))
    assert task.completion("infilling", "    return \n<fim_pad>", ("", "1")) == "    return \n"


GAP = GapRow(1, "a", before="for it", answer="em in items:\n    d", after="one()\n")


@pytest.fixture(scope="module")
def codellama() -> TransformersTokenizer:
    """CodeLlama's over single characters: texts begin with a space more, and what it spells with one less."""
    from transformers import CodeLlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return TransformersTokenizer(CodeLlamaTokenizer(vocab=vocabulary, merges=[]), frozenset({2}))


def test_the_space_that_begins_every_text_of_codellama_begins_the_prefix_alone(codellama: Any) -> None:
    sample = Infilling(PYTHON).sample(GAP, codellama, TaskRequest("infilling", "x"))
    assert isinstance(sample, Sample)
    prompt, reference = map(codellama.wrapped.convert_ids_to_tokens, (sample.prompt_ids, sample.reference_ids))
    assert prompt == ["<s>", "▁<PRE>", *"▁for▁it", "▁<SUF>", *"one()", "<0x0A>", "▁<MID>"]
    assert reference == [*"em▁in▁items:", "<0x0A>", *"▁▁▁▁d"]


def test_a_model_without_marks_is_refused_or_sees_the_left_alone(folder: Path, words: Any) -> None:
    with pytest.raises(ConfigError, match=r"no fill-in-the-middle tokens.*or --protocol infilling-left: left context"):
        drawn(folder, words)
    data = drawn(folder, words, "infilling-left")
    assert {words.decode(sample.prompt_ids) for sample in data.samples} == {
        "def return1():\n", "def return1():\n    x = 1\n"
    }  # fmt: skip
    assert data.source.detail["samples_from"] == "2 × prefix alone: left context"
    around = ("", "\n    return x\nelse")
    completion = SingleLineInfilling().completion
    assert completion("infilling-left", "    x += 1\n    return x\nprint()\n", around) == "    x += 1\n"
    assert completion("infilling-left", "    x += 1\n", around) == "    x += 1\n"


@pytest.mark.parametrize(
    ("before", "text", "after", "wanted"),
    [
        # whole lines: the end of a line that is indented deeper is none
        ("if a:\n", "        return x\n    return x\n", "    return x\n", "        return x\n"),
        ("if a:\n", "        return x\n", "    return x\n", "        return x\n"),
        ("", "    return x\n", "    return x\n", ""),
        ("x = ", "1\n        return x\n    return x\n", "\n    return x\n", "1\n        return x\n"),
        # the rest of a line
        ("def f():\n", "    return 1\n", "1\n", "    return "),
        ("def f():\n", "    return a + b\n", " + b\n", "    return a"),
        ("x = ", "1\n    return x\n", "  return x\n", "1\n  "),  # of its indentation
    ],
)
def test_left_context_ends_where_the_line_after_the_gap_begins(before: str, text: str, after: str, wanted: str) -> None:
    assert SingleLineInfilling().completion("infilling-left", text, (before, after)) == wanted


def test_a_run_by_each_way_says_which_and_scores_what_it_may(
    tiny_run: Callable[..., Any],
    cli: Callable[..., Any],
    fim_model: Path,
    tiny_llama: Path,
    folder: Path,
    tmp_path: Path,
) -> None:
    task = ("--task", "humaneval-infilling-single", "--source", folder)
    for way, model, more, is_scored in [
        ("infilling", fim_model, ["--allow-code-execution"], True),
        ("infilling-left", tiny_llama, ["--protocol", "infilling-left"], False),
    ]:
        ran = tiny_run(*task, "--model", model, *more, "--out", way)
        assert ran.code == 0, ran.err
        assert f"humaneval-infilling-single · {way}" in ran.out
        (record,) = json.loads((tmp_path / way / "manifest.json").read_text())["tasks"]
        assert record["protocol"] == way
        samples = [json.loads(line) for line in (tmp_path / way / "samples.jsonl").read_text().splitlines()]
        scores = [sample["scores"] for sample in samples if not sample.get("error")]
        assert len(scores) == 2
        assert all(("pass_at_1" in each) == is_scored for each in scores)
        assert ("pass@1" in ran.out) == is_scored
    again = cli("rescore", "infilling")  # tests and the code around a gap are the task's, which is drawn again
    assert (again.code, ", 0 changed, 0 missing" in again.out) == (0, True), again.err
    (rows,) = folder.rglob("*.gz")
    rows.write_bytes(gzip.compress(gzip.decompress(rows.read_bytes()).replace(b"x = 1", b"y = 1")))
    assert "has other rows than the run read from" in cli("rescore", "infilling").error


GAPS: dict[str, tuple[Any, dict[str, str]]] = {
    "MultiLine": (
        MultiLineInfilling(),
        {
            "task_id": "MultiLineInfilling/made-up/0/L1_L2",
            "prompt": "def total(items):\n    found = 0\n",
            "suffix": "    return found\n",
            "canonical_solution": "    for item in items:\n        found += item\n",
        },
    ),
    "RandomSpan": (
        RandomSpanInfilling(),
        {
            "task_id": "RandomSpanInfilling/made-up/0/1",
            "prompt": "def total(items):\n    found = 0\n    for it",
            "suffix": "d += item\n    return found\n",
            "canonical_solution": "em in items:\n        foun",
        },
    ),
}
"""Kind of gap → its task, and a row: whole lines, or a span that begins and ends within them."""
TESTS = {"test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n", "entry_point": "total"}


@pytest.fixture
def every_kind(tmp_path: Path) -> Path:
    """All kinds beside each other, each with a row of its own, as the hub lays them out."""
    import pandas as pd

    for kind, row in {"SingleLine": PROBLEM, **{kind: row | TESTS for kind, (_, row) in GAPS.items()}}.items():
        folder = tmp_path / "all" / f"HumanEval-{kind}Infilling"
        folder.mkdir(parents=True)
        pd.DataFrame([row]).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "all"


@pytest.mark.parametrize("kind", GAPS)
def test_gaps_of_several_lines_and_within_lines_are_drawn_and_judged(
    every_kind: Path, marked: Any, words: Any, kind: str
) -> None:
    task, row = GAPS[kind]
    (sample,) = task.load(TaskRequest("infilling", str(every_kind), allow_code_execution=True), marked).samples
    before, after, answer = row["prompt"], row["suffix"], row["canonical_solution"]
    assert sample.sample_id == row["task_id"]
    assert marked.decode(sample.prompt_ids) == f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>"
    assert (sample.reference, sample.around) == (answer, (before, after))
    assert sample.tests == f"{TESTS['test']}\ncheck(total)"
    (left,) = task.load(TaskRequest("infilling-left", str(every_kind)), words).samples
    assert words.decode(left.prompt_ids) == before
    assert left.tests == ""

    def passed(protocol: str, text: str) -> float:
        cut = task.completion(protocol, text, sample.around)
        made = Completion(cut, sample.reference, (), (), "python", protocol, sample.around, sample.tests)
        return score_sample(made)["pass_at_1"]

    assert passed("infilling", f"{answer}<fim_pad>") == 1
    assert passed("infilling", answer.replace("items", "items[1:]")) == 0
    assert passed("infilling-left", f"{answer}{after}print(nothing)\n") == 1  # cut where the suffix begins
