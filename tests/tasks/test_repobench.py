"""RepoBench: rows in the hub's layout, the official prompt by hand, pairs as officially scored, and refusals.

Prompts, lines and scores were also held against the authors' own code (docs/tasks.md says on how many); some pairs
stand here with what that code said of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Completion, Sample, TaskRequest
from harness.errors import ConfigError, DataError
from harness.running.scoring import score_sample
from tasks.languages import JAVA, PYTHON
from tasks.protocols.repobench import RepoBench, repository_prompt
from tasks.repobench import RepoBenchJava, RepoBenchPython
from tasks.rows import Fragment, GapRow

ROW: dict[str, Any] = {
    "repo_name": "me/shop",
    "file_path": "shop/till.py",
    "context": [
        {"identifier": "price", "path": "shop/prices.py", "snippet": "def price(item):\n    return 3"},
        {"identifier": "Till", "path": "shop/tills.py", "snippet": "class Till:\n    pass"},
    ],
    "import_statement": "from shop.prices import price",
    "token_num": 700,
    "cropped_code": "def pay(items):\n",
    "all_code": "def pay(items):\n    return sum(map(price, items))\n",
    "next_line": "    return sum(map(price, items))",
    "gold_snippet_index": 0,
    "created_at": "2023-12-05 10:00:00",
    "level": "2k",
}
PROMPT = (
    "# Repo Name: me/shop\n"
    "# Path: shop/prices.py\ndef price(item):\n    return 3\n\n"
    "# Path: shop/tills.py\nclass Till:\n    pass\n\n"
    "# Path: shop/till.py\nfrom shop.prices import price\ndef pay(items):\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder(cross_file_first=rows, …)`` is a folder as the hub has it."""

    def make(**settings: list[dict[str, Any]]) -> Path:
        import pandas as pd

        (tmp_path / "data").mkdir()
        for setting in ("cross_file_first", "cross_file_random", "in_file"):
            file = tmp_path / "data" / f"{setting}-00000-of-00001.parquet"
            pd.DataFrame(settings.get(setting, [ROW])).to_parquet(file)
        return tmp_path

    return make


def drawn(task: Any, source: object, tokenizer: Any, **more: Any) -> Any:
    return task.load(TaskRequest(task.default_protocol, str(source), **more), tokenizer)


def test_all_settings_are_drawn_from_and_one_file_is_one_setting(folder: Callable[..., Path], words: Any) -> None:
    source = folder(in_file=[ROW, ROW])
    data = drawn(RepoBenchPython(), source, words)
    assert sorted(sample.sample_id for sample in data.samples) == [
        "cross_file_first-0", "cross_file_random-0", "in_file-0", "in_file-1",
    ]  # fmt: skip
    assert data.source.detail["published"] == "tianyang/repobench_python_v1.1 (hub)"
    one = drawn(RepoBenchPython(), source / "data" / "in_file-00000-of-00001.parquet", words)
    assert {sample.sample_id for sample in one.samples} == {"in_file-0", "in_file-1"}
    sample = data.samples[0]
    assert words.decode(sample.prompt_ids) == PROMPT
    assert sample.reference == ROW["next_line"]
    assert sample.max_new_tokens == 128


def test_rows_outside_the_official_selection_are_skipped(folder: Callable[..., Path], words: Any) -> None:
    rows = [ROW, ROW | {"level": "24k"}, ROW | {"created_at": "2023-11-30 23:59:59"}]
    data = drawn(RepoBenchPython(), folder(in_file=rows), words)
    assert len(data.samples) == 3
    assert data.source.detail["skipped"] == "1 × beyond level 16k; 1 × not of December 2023"


def test_other_files_give_way_line_by_line_from_the_end() -> None:
    row = GapRow(
        1,
        "a",
        before="x = (\n\n",
        answer="1)",
        fragments=(Fragment("b", "one two\nthree four"),),
        facts={"repo_name": "r", "file_path": "f", "import_statement": "import b"},
    )

    def prompt(limit: int) -> str:
        return repository_prompt(row, "//", lambda text: len(text.split()), limit)

    own = "// Path: f\nimport b\nx = (\n"
    assert prompt(19) == "// Repo Name: r\n// Path: b\none two\nthree four\n\n" + own  # 11 words and 8
    # one too many: a line goes only once fewer than none are too many, so two empty ones, "three four" and no more
    assert prompt(18) == "// Repo Name: r\n// Path: b\none two\n\n" + own
    assert prompt(8) == "\n\n" + own  # 11 too many, and all there is are 11


def test_the_file_alone_keeps_its_end_and_the_model_s_positions_count(words: Any) -> None:
    row = GapRow(1, "a", "one two three four five\n", "six", facts={
        "repo_name": "r", "file_path": "f", "import_statement": "", "level": "2k", "created_at": "2023-12-01",
    })  # fmt: skip
    request = TaskRequest("repobench", "x", max_new_tokens=4, max_positions=8)
    sample = RepoBench(PYTHON).sample(row, words, request)
    assert isinstance(sample, Sample)
    assert words.decode(sample.prompt_ids) == " three four five\n"


@pytest.mark.parametrize(
    ("language", "text", "line", "over"),
    [
        (PYTHON, "\n\n    return 1\nx", "    return 1", True),
        (PYTHON, "# a comment\n  \nx = 1", "x = 1", False),
        (PYTHON, '"""Title.\n\nText."""\nx = 1\n', "x = 1", True),
        (PYTHON, '"""One line."""\nx = 1\n', '"""One line."""', False),  # as officially: it hides what follows
        (JAVA, "/* a\n * b */\nint x;\n", "int x;", True),
        (JAVA, "// only\n", "// only", False),
    ],
)
def test_the_line_is_the_first_that_is_no_comment(language: Any, text: str, line: str, over: bool, words: Any) -> None:
    protocol = RepoBench(language)
    assert protocol.completion(text) == line
    stop, ids = protocol.stop_rule(words), words.encode(text)
    ends = [count for count in range(1, len(ids) + 1) if stop(ids[:count])]
    assert bool(ends) == over
    if ends:
        assert protocol.completion(words.decode(ids[: ends[0]])) == line


@pytest.mark.parametrize(
    ("language", "generated", "answer", "line", "match", "similarity"),
    [
        (PYTHON, "    return sum(map(price, items))\n\ndef", "    return sum(map(price, items))",
         "    return sum(map(price, items))", 1, 100),
        (PYTHON, "return sum(map(price, items))\n", "    return sum(map(price, items))",
         "return sum(map(price, items))", 1, 94),
        (PYTHON, "\tself.till.add(item)\n", "        self.till.add(item)", "\tself.till.add(item)", 1, 81),
        (PYTHON, "\n    # what is due\n    due = price(item)\n", "    due = price(item, today)",
         "    due = price(item)", 0, 86),
        (PYTHON, '    """Pay."""\n    return 1\n', "    return 1", '    """Pay."""', 0, 31),
        (PYTHON, "    x=total+1  \n", "    x = total + 1", "    x=total+1  ", 0, 81),
        (PYTHON, "    raise ValueError(name)\n", "    for key, value in sorted(found.items()):",
         "    raise ValueError(name)", 0, 49),  # difflib, in place of python-Levenshtein, says 40
        (PYTHON, "", "    pass", "", 0, 0),
        (PYTHON, "abcdefgh\n", "abcxdyez", "abcdefgh", 0, 62),  # 62.5, halves to even
        (PYTHON, "    größe = 'weiß'\n", "    größe = 'weiss'", "    größe = 'weiß'", 0, 92),
        (JAVA, "    /* what\n     * is due */\n    return total(items);\n", "    return total(item);",
         "    return total(items);", 0, 98),
        (JAVA, "// later\n}\n", "        }", "}", 1, 20),
        (JAVA, "        List<String> names = new ArrayList<>();\n", "        names.add(new ArrayList<String>());",
         "        List<String> names = new ArrayList<>();", 0, 69),
    ],
)  # fmt: skip
def test_pairs_are_cut_and_score_as_officially(
    language: Any, generated: str, answer: str, line: str, match: int, similarity: int
) -> None:
    """Expected is what ``get_first_line_not_comment``, ``exact_match_score`` and ``edit_similarity_score`` returned.

    Those of Leolty/repobench, commit 630c865, with fuzzywuzzy 0.18.0 on Levenshtein 0.27.5, a pair at a time.
    """
    text = RepoBench(language).completion(generated)
    assert text == line
    scores = score_sample(Completion(text, answer, (), (), language.name, "repobench"))
    assert scores["exact_match"] == match
    assert scores["edit_similarity_indented"] == similarity / 100


def test_refusals_say_what_is_missing_and_what_to_get(folder: Callable[..., Path], words: Any) -> None:
    task = RepoBenchPython()
    without = {name: value for name, value in ROW.items() if name != "next_line"}
    source = folder(in_file=[without])
    for wrong, message in [
        (source, "in_file-00000-of-00001.parquet has no column next_line; it has repo_name, file_path"),
        (source / "data", "has no column next_line"),
        ("embedded", "neither ships with the harness nor is fetched by it"),
        ("hub", "neither ships with the harness"),
        (source / "nowhere", "neither a file nor a folder"),
        ("~nobody-of-this-name/x", "cannot read --source '~nobody-of-this-name/x'"),
    ]:
        with pytest.raises(DataError, match=message) as refused:
            drawn(task, wrong, words)
        assert "hf download tianyang/repobench_python_v1.1 --repo-type dataset" in str(refused.value)
    (source / "data" / "in_file-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has no data/in_file-.*; it has data/cross_file_first-00000-of-00001.parquet"):
        drawn(task, source, words)
    with pytest.raises(DataError, match="for evaluation: nothing is learned from it"):
        task.corpus(str(source), "train")
    with pytest.raises(ConfigError, match=r"'green-code' does not fit the task 'repobench-java'.*one of: repobench"):
        RepoBenchJava().load(TaskRequest("green-code", str(source)), words)
