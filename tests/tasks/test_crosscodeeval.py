"""CrossCodeEval: pairs with what the authors' own scorer says of them, prompts by hand, rows in the released layout.

The expected values are those of amazon-science/cceval, commit 25f9cab, with python-Levenshtein at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Completion, Sample, TaskRequest
from harness.errors import ConfigError, DataError
from harness.running.scoring import score_sample
from tasks.crosscodeeval import CrossCodeEvalJava, CrossCodeEvalPython
from tasks.languages import CSHARP, JAVA, PYTHON, TYPESCRIPT
from tasks.protocols.crosscodeeval import CrossCodeEval
from tasks.rows import GapRow

ROW: dict[str, Any] = {
    "prompt": "from shop.prices import price\n\ndef pay(items):\n    return ",
    "groundtruth": "sum(map(price, items))",
    "right_context": "\n\ndef close():\n    pass\n",
    "metadata": {"task_id": "project_cc_python/7", "repository": "me-shop", "file": "shop/till.py"},
    "crossfile_context": {
        "text": "",
        "list": [
            {"retrieved_chunk": "def price(item):\n\n    return 3", "filename": "shop/prices.py", "score": 0.9},
            {"retrieved_chunk": "class Till:\n    pass", "filename": "shop/tills.py", "score": 0.5},
        ],
    },
}
HEAD = "# Here are some relevant code fragments from other files of the repo:\n\n"
FIRST = "# the below code fragment is found in shop/prices.py\n# def price(item):\n#     return 3\n\n"
SECOND = "# the below code fragment is found in shop/tills.py\n# class Till:\n#     pass\n\n"
FILE = "line_completion_rg1_unixcoder_cosine_sim.jsonl"
LANGUAGES = {language.name: language for language in (PYTHON, JAVA, CSHARP, TYPESCRIPT)}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*rows: dict[str, Any], language: str = "python") -> Path:
        file = tmp_path / "crosscodeeval_data" / language / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path

    return make


def drawn(source: object, tokenizer: Any, task: Any = None, **more: Any) -> Any:
    return (task or CrossCodeEvalPython()).load(TaskRequest("crosscodeeval", str(source), **more), tokenizer)


@pytest.mark.parametrize(
    ("language", "before", "generated", "answer", "text", "match", "similarity", "names", "f1"),
    [
        ("python", "def f(s):\n    return s.", "width * s.height\n\ndef g():\n", "width * s.height",
         "width * s.height", 1, 100, 1, 1),
        ("python", "def area(shape):\n    return shape.", "height * shape.width\n\ndef other():\n",
         "width * shape.height", "height * shape.width", 0, 65, 0, 1),
        ("python", "total = add(\n    first,\n", "    second,\n)\nprint(total)\n", "    second)",
         "    second,\n)", 0, 88, 1, 1),
        ("python", "url = ", "'http://a.b'  # where\nx = 1\n", "'http://a.b'", "'http:", 1, 100, 1, 1),
        ("python", "x = (", "1 +", "1 + 2)", "1 +", 0, 67, 1, 0),
        ("python", "    if ready:\n        self.", "start(True)\n", "start(False)", "start(True)", 0, 70, 0, 0.5),
        ("java", "int a = ", "list.size();\nint b = 2;", "list.size();", "list.size();", 1, 100, 1, 1),
        ("java", "int a = list", "{ }; x", "{ }", "{ }; x", 0, 67, 0, 0),
        ("java", "String s = ", '"a;b".trim();', '"a;b".trim();', '"a;', 0, 38, 0, 0),
        ("java", "foo", "(bar) // done\n  .baz();\n", "(bar)\n.baz();", "(bar) \n  .baz();", 1, 90, 1, 1),
        ("csharp", "var x = ", "items.Where(i => i != null).First();", "items.Where(item => item != null).First();",
         "items.Where(i => i != null).First();", 0, 92, 0, 0.75),
        ("typescript", "const n = ", "await this.load(id);\n", "await this.load(id);", "await this.load(id);",
         1, 100, 1, 1),
    ],
)  # fmt: skip
def test_pairs_score_as_officially(
    language: str, before: str, generated: str, answer: str, text: str, match: int, similarity: int, names: int,
    f1: float, words: Any,
) -> None:  # fmt: skip
    protocol = CrossCodeEval(LANGUAGES[language])
    sample = protocol.sample(GapRow(1, "a", before, answer), words, TaskRequest("crosscodeeval", "x"))
    assert isinstance(sample, Sample)
    cut = protocol.completion_between(before, generated, "")
    assert cut == text
    scores = score_sample(Completion(cut, sample.reference, (), (), language, "crosscodeeval"))
    assert scores["statement_match"] == match
    assert scores["edit_similarity"] == similarity / 100
    assert scores["identifier_match"] == names
    assert scores["identifier_f1"] == pytest.approx(f1)


def test_generation_stops_where_a_statement_of_braces_ends(words: Any) -> None:
    stop = CrossCodeEval(JAVA).stop_rule(words)
    ids = words.encode("size(); int b;")
    assert next(count for count in range(1, len(ids) + 1) if stop(ids[:count])) == len(words.encode("size();"))
    assert not stop(words.encode("{ a; "))  # the first character ends nothing, as officially
    assert not CrossCodeEval(PYTHON).stop_rule(words)(words.encode("a;\n\n"))


def test_other_files_come_first_and_as_long_as_they_fit(folder: Callable[..., Path], words: Any) -> None:
    source = folder(ROW)
    sample = drawn(source, words).samples[0]
    assert words.decode(sample.prompt_ids) == HEAD + FIRST + SECOND + ROW["prompt"]
    assert (sample.sample_id, sample.max_new_tokens) == ("project_cc_python/7", 50)
    assert sample.around == (ROW["prompt"], ROW["right_context"])
    head, first, second, own = (len(words.encode(text)) for text in (HEAD, FIRST, SECOND, ROW["prompt"]))
    room = 2 * (head + first + second) - 1  # half of it for other files, one token too few for the second
    sample = drawn(source, words, max_positions=room + 50).samples[0]
    assert words.decode(sample.prompt_ids) == HEAD + FIRST + ROW["prompt"]
    few = own // 2  # none of the pieces fits any longer, and the file loses its beginning
    sample = drawn(source, words, max_positions=few + 50).samples[0]
    assert list(sample.prompt_ids) == words.encode(ROW["prompt"])[-few:]


def test_rows_that_are_none_are_counted(folder: Callable[..., Path], words: Any) -> None:
    other = ROW | {"metadata": {"task_id": "project_cc_java/7"}}
    lists = ROW | {"metadata": {"task_id": "a"}, "crossfile_context": {"text": "x"}}
    comment = ROW | {"metadata": {"task_id": "b"}, "groundtruth": "// 2"}
    short = {name: value for name, value in ROW.items() if name != "groundtruth"}
    data = drawn(folder(ROW, other, lists, comment, short), words)
    assert len(data.samples) == 1
    assert sorted(row.reason for row in data.bad_rows) == [
        "row 2: 'project_cc_java/7' is a row of another language than python",
        "row 3: 'crossfile_context' has no 'list' of {filename, retrieved_chunk}",
        "row 4: 'groundtruth' holds nothing but a comment",
        "row 5: has no field 'groundtruth' of CrossCodeEval (python) (fields: prompt, right_context, metadata, "
        "crossfile_context)",
    ]  # fmt: skip


def test_refusals_say_what_to_get(folder: Callable[..., Path], words: Any) -> None:
    with pytest.raises(DataError, match=f"has no java/{FILE}; it has .*python/{FILE}. Download github.com/amazon"):
        drawn(folder(ROW), words, CrossCodeEvalJava())
    with pytest.raises(ConfigError, match=r"no fill-in-the-middle tokens.*or --protocol crosscodeeval: left context"):
        CrossCodeEvalPython().load(TaskRequest("crosscodeeval-fim", str(folder(ROW))), words)


def test_the_code_after_the_gap_stands_between_the_model_s_marks(folder: Callable[..., Path], marked: Any) -> None:
    request = TaskRequest("crosscodeeval-fim", str(folder(ROW)))
    (sample,) = CrossCodeEvalPython().load(request, marked).samples
    assert marked.decode(sample.prompt_ids) == (
        f"<fim_prefix>{HEAD}{FIRST}{SECOND}{ROW['prompt']}<fim_suffix>{ROW['right_context']}<fim_middle>"
    )
    text = CrossCodeEvalJava().completion("crosscodeeval-fim", "size()<fim_pad>", ("int a = ", ";"))
    assert text == "size()"


def test_a_language_without_a_grammar_runs_and_reports(
    folder: Callable[..., Path], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    row = ROW | {"metadata": {"task_id": "project_cc_csharp/7"}, "groundtruth": "items.Sum();"}
    source = folder(row, language="csharp")
    ran = tiny_run("--task", "crosscodeeval-csharp", "--source", source, "--strategy", "fixed:layer=6", "--out", "out")
    assert ran.code == 0, ran.err
    assert "crosscodeeval-csharp · crosscodeeval" in ran.out
    (sample, *_) = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {"statement_match", "identifier_match", "identifier_f1"} <= sample["scores"].keys()
