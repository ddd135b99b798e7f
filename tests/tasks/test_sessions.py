"""Editor sessions: what the model of typing draws, how windows move, what recorded traces are made of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.contracts import Sample, SessionRequest, TaskData, TaskRequest, common_prefix
from harness.errors import ConfigError, DataError
from harness.models.model import resolve
from harness.registry import PROTOCOLS
from harness.running.plan import registered_draw
from tasks.crosscodeeval import CrossCodeEvalPython
from tasks.draw import draw, fingerprint
from tasks.javacorpus import JavaCorpus
from tasks.languages import JAVA, PYTHON, Language
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.py150 import Py150
from tasks.sessions import MOST_OVERTAKEN, START, typed
from tests.tasks.test_duplicates import function

LINES = CodexglueLine(PYTHON)
PYTHON_CODE = [function(number, 40) for number in range(6)]
JAVA_CODE = [text.replace(":\n", " {\n").replace("\n    ", "\n\t") for text in PYTHON_CODE]


def asked(limit: int | None = None, seed: int = 0, **options: int) -> TaskRequest:
    return TaskRequest("codexglue-line", "x", limit=limit, seed=seed, session=SessionRequest(**options))


@pytest.fixture
def code_rows(make_rows: Callable[..., Any]) -> Any:
    return make_rows([{"id": f"doc-{number}", "code": text} for number, text in enumerate(PYTHON_CODE)])


def sessions(data: TaskData) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in data.samples:
        found.setdefault(sample.session, []).append(sample)
    return found


def prompts(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [one for sample in samples for one in (*(each.prompt_ids for each in sample.overtaken_requests),
                                                  sample.prompt_ids)]  # fmt: skip


# ------------------------------------------------------------------------------------------ order


def test_the_seed_alone_decides_and_a_limit_counts_documents(code_rows: Any, words: Any) -> None:
    first, again, other = (draw(code_rows, LINES, words, asked(None, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.source.fingerprint != other.source.fingerprint
    some = draw(code_rows, LINES, words, asked(2, 1))
    assert some.samples == first.samples[: len(some.samples)]
    assert list(sessions(some)) == list(sessions(first))[:2]
    ids = [sample.sample_id for sample in first.samples]  # those of one session follow one another
    assert ids == [f"{name}#{place}" for name, made in sessions(first).items() for place in range(1, len(made) + 1)]
    assert {len(made) for made in sessions(first).values()} == {8}


def test_the_fingerprint_covers_what_is_overtaken_and_when(code_rows: Any, words: Any) -> None:
    from dataclasses import replace

    samples = draw(code_rows, LINES, words, asked(1)).samples
    place = next(place for place, sample in enumerate(samples) if sample.overtaken_requests)
    one = samples[place].overtaken_requests[0]
    for changed in (
        replace(samples[place], typing_s=0.5),
        replace(samples[place], overtaken_requests=(replace(one, after_s=9.0), *samples[place].overtaken_requests[1:])),
        replace(samples[place], overtaken_requests=(replace(one, prompt_ids=(0,)),)),
    ):
        assert fingerprint([*samples[:place], changed, *samples[place + 1 :]]) != fingerprint(samples)


# ----------------------------------------------------------------------------------------- places


def kind_of(prompt: str, text: str, language: Language) -> str:
    """Return what stands before a cursor, by the text alone."""
    if prompt.rstrip(" \t").endswith("\n"):
        line, _, behind = text[prompt.rindex("\n") + 1 :].partition(line_code(text[prompt.rindex("\n") + 1 :]))
        assert prompt[prompt.rindex("\n") + 1 :] == line[:-1], "all of the indentation but its last space"
        return "line" if behind is not None else ""
    ends = {token.end for token in language.tokens(text)}
    assert len(prompt) in ends, "behind a token"
    return "bracket" if prompt[-1] in "([{" else "inside"


def line_code(text: str) -> str:
    return text.splitlines()[0].strip()


@pytest.mark.parametrize(("language", "texts"), [(PYTHON, PYTHON_CODE), (JAVA, JAVA_CODE)])
def test_a_place_is_one_of_three_kinds_and_its_reference_is_the_rest_of_the_line(
    language: Language, texts: list[str], make_rows: Callable[..., Any], words: Any
) -> None:
    rows = make_rows([{"id": number, "code": text} for number, text in enumerate(texts)])
    kinds = set()
    protocol = CodexglueLine(language)
    is_over = protocol.stop_rule(words)
    for name, samples in sessions(draw(rows, protocol, words, asked(window=2**20))).items():
        text = texts[int(name)]
        for place, sample in enumerate(samples):
            prompt = words.decode(sample.prompt_ids)
            assert text.startswith(prompt)
            assert place or START * len(text) <= len(prompt) < (START + 0.1) * len(text)
            rest = text[len(prompt) :]
            assert sample.reference == protocol.completion(rest)
            assert any(character.isalnum() for character in sample.reference)
            assert words.decode(sample.reference_ids).strip() == sample.reference
            assert not is_over(sample.reference_ids[:-1])
            kinds.add(kind_of(prompt, text, language))
    assert kinds == {"inside", "bracket", "line"}


def test_typing_goes_on_from_the_front_with_jumps_back_and_ahead() -> None:
    text = function(1, 200)
    backs = aheads = steps = 0
    for seed in range(40):
        cursors = [len(one.prompt) for one in typed(text, PYTHON, 12, random.Random(seed)) if one.after_s is None]
        front = cursors[0]
        for before, cursor in pairwise(cursors):
            backs += cursor < front
            aheads += cursor > front + 400
            steps += cursor >= front
            assert cursor != before or cursor < front
            front = max(front, cursor)
    assert 0.05 < backs / (backs + steps) < 0.2
    assert 0.01 < aheads / steps < 0.1


# --------------------------------------------------------------------------------------- windows


def test_windows_are_bounded_and_their_beginnings_move_in_steps(code_rows: Any, words: Any) -> None:
    data = draw(code_rows, LINES, words, asked(window=64, step=20, requests=20))
    whole = {f"doc-{number}": words.encode(text) for number, text in enumerate(PYTHON_CODE)}
    begins = set()
    for name, samples in sessions(data).items():
        for sample in samples:
            token_ids, prompt = whole[name], list(sample.prompt_ids)
            found = [at for at in range(0, len(token_ids), 20) if token_ids[at : at + len(prompt) - 1] == prompt[:-1]]
            assert len(found) == 1  # the last token may be the beginning of a longer one
            assert (64 - 20 if found[0] else 0) < len(prompt) <= 64
            begins.add(found[0])
    assert len(begins) > 5
    assert "windows of at most 64 tokens whose beginning moves by 20" in data.source.detail["sessions"]


def test_prompts_share_their_beginnings(code_rows: Any, tiny_tokenizer: Any) -> None:
    """With a tokenizer that merges across the cursor, too."""
    from harness.models.tokenizer import TransformersTokenizer

    data = draw(code_rows, LINES, TransformersTokenizer(tiny_tokenizer, frozenset()), asked(window=2**20))
    shares = []
    for samples in sessions(data).values():
        read: list[tuple[int, ...]] = []
        for prompt in prompts(samples):
            if read:
                shares.append(max(common_prefix(prompt, one) for one in read) / len(prompt))
            read.append(prompt)
    assert len(shares) > 60
    assert sum(shares) / len(shares) > 0.9


def test_a_model_of_few_positions_has_shorter_windows_and_begins_each_as_it_was_trained(
    code_rows: Any, words: Any
) -> None:
    words.start_ids = (7, 9)
    request = TaskRequest(
        "codexglue-line", "x", session=SessionRequest(), max_positions=60, max_new_tokens=18, vocab_size=10**6
    )
    data = draw(code_rows, LINES, words, request)
    assert max(map(len, prompts(data.samples))) == 42
    for prompt in prompts(data.samples):
        assert prompt[:2] == (7, 9)
    with pytest.raises(DataError, match="leave 0 beside 60 new tokens"):
        draw(
            code_rows,
            LINES,
            words,
            TaskRequest("x", "x", session=SessionRequest(), max_positions=60, max_new_tokens=60),
        )


# -------------------------------------------------------------------------------------- overtaken


def test_typing_overtakes_requests_of_the_text_and_of_what_is_deleted_again(code_rows: Any, words: Any) -> None:
    wrong = right = 0
    for seed in range(4):
        data = draw(code_rows, LINES, words, asked(None, seed, window=2**20))
        for name, samples in sessions(data).items():
            text, waited = PYTHON_CODE[int(name[-1])], {sample.prompt_ids for sample in samples}
            assert not samples[0].overtaken_requests
            assert samples[0].typing_s == 0
            for sample in samples:
                assert len(sample.overtaken_requests) <= MOST_OVERTAKEN
                assert sample.typing_s >= sum(one.after_s for one in sample.overtaken_requests)
                for one in sample.overtaken_requests:
                    assert one.after_s > 0
                    assert one.prompt_ids not in waited
                    if text.startswith(words.decode(one.prompt_ids)):
                        right += 1
                    else:
                        wrong += 1
                        typed_of_it = common_prefix(words.encode(text), one.prompt_ids)
                        assert len(one.prompt_ids) - typed_of_it <= 2
    assert right > 3 * wrong > 30


# ----------------------------------------------------------------------------------------- traces

TRACE = {
    "id": "t",
    "project": "p",
    "requests": [
        {"prompt": "import os\nx", "after_s": 0.2},
        {"prompt": "import os\nx =", "reference": " os.name\ny = 2", "typing_s": 1.5},
        {"prompt": "import os\nx = os.name\ny", "after_s": 0.1, "typing_s": 2},
        {"prompt": "import os\nx = os.name\nyy", "after_s": 0.3, "typing_s": 0.5},
        {"prompt": "import os\nx = os.name\ny = ", "reference": "2", "typing_s": 4},
    ],
}


def test_a_recorded_trace_is_read(tmp_path: Path, words: Any, line: Any) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(TRACE))
    data = Py150().load(line(file, session=SessionRequest()), words)
    first, second = data.samples
    assert [words.decode(sample.prompt_ids) for sample in data.samples] == [
        "import os\nx =",
        "import os\nx = os.name\ny = ",
    ]
    assert [sample.reference for sample in data.samples] == ["os.name", "2"]
    assert [sample.sample_id for sample in data.samples] == ["t#1", "t#2"]
    assert [words.decode(one.prompt_ids) for one in second.overtaken_requests] == [
        "import os\nx = os.name\ny",
        "import os\nx = os.name\nyy",
    ]
    assert [one.after_s for one in (*first.overtaken_requests, *second.overtaken_requests)] == [0.2, 0.1, 0.3]
    assert (first.typing_s, second.typing_s) == pytest.approx((1.7, 6.9))
    assert {sample.project for sample in data.samples} == {"p"}
    assert data.source.detail["samples_from"] == "1 × recorded trace"
    window = Py150().load(
        line(file, session=SessionRequest(window=16, step=1), max_positions=5, max_new_tokens=1), words
    )
    assert [len(sample.prompt_ids) for sample in window.samples] == [4, 4]


def test_a_trace_from_a_table_is_the_same(tmp_path: Path, words: Any, line: Any) -> None:
    import pandas

    (tmp_path / "a.jsonl").write_text(json.dumps(TRACE))
    pandas.DataFrame([TRACE]).to_parquet(tmp_path / "a.parquet")  # with nulls where a request has no such field
    loaded = [Py150().load(line(tmp_path / name, session=SessionRequest()), words) for name in ("a.jsonl", "a.parquet")]
    assert loaded[0].samples == loaded[1].samples


GOOD = TRACE["requests"][1]
MALFORMED: tuple[tuple[object, str], ...] = (
    (3, "'requests' is a number, not a list"),
    ([], "'requests' has none that is waited for, without 'after_s'"),
    ([{"prompt": "x", "after_s": 1}], "'requests' has none that is waited for"),
    ([GOOD, 1], "'requests[1]' is a number, not an object"),
    ([{}], "'requests[0].prompt' is null, not a string"),
    ([{"prompt": " ", "reference": "y"}], "'requests[0].prompt' is empty"),
    ([{"prompt": "x"}], "'requests[0].reference' is null, not a string"),
    ([{"prompt": "x", "reference": "\n y"}], "the line of requests[0].reference is empty"),
    ([{"prompt": "x", "reference": "\ud800"}], "'requests[0].reference' holds a lone surrogate"),
    ([GOOD, {"prompt": "x", "after_s": "1"}], "'requests[1].after_s' is a string, not a number"),
    ([GOOD, {"prompt": "x", "after_s": True}], "'requests[1].after_s' is a boolean, not a number"),
    ([GOOD, {"prompt": "x", "after_s": -1}], "'requests[1].after_s' is -1; it lies between 0 and 86400 seconds"),
    ([{**GOOD, "typing_s": float("nan")}], "'requests[0].typing_s' is nan; it lies between"),  # type: ignore[dict-item]
    ([{**GOOD, "typing_s": 10**400}], "'requests[0].typing_s' is 1000"),  # type: ignore[dict-item]
    ([GOOD] * 10_001, "'requests' has 10001 items; 10000 are the most"),
)


def test_a_malformed_trace_is_a_bad_row(tmp_path: Path, words: Any, line: Any) -> None:
    rows = [{"id": number, "requests": requests} for number, (requests, _) in enumerate(MALFORMED)]
    rows.append({"id": "x" * 511, "requests": [GOOD]})
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (*rows, TRACE)))
    data = Py150().load(line(file, session=SessionRequest()), words)
    assert {sample.session for sample in data.samples} == {"t"}
    reasons = {int(bad.reason.partition(":")[0].removeprefix("row ")): bad.reason for bad in data.bad_rows}
    for number, (_, said) in enumerate(MALFORMED, start=1):
        assert said in reasons[number]
    assert "its id is too long" in reasons[len(rows)]
    assert all("\n" not in reason and len(reason) <= 500 for reason in reasons.values())


def test_a_trace_is_for_sessions_alone(tmp_path: Path, words: Any, line: Any) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(TRACE))
    with pytest.raises(DataError, match=r"holds the requests of an editor session\. Use --scenario session"):
        Py150().load(line(file), words)
    with pytest.raises(DataError, match="holds an editor session, which is no document"):
        Py150().corpus(str(file), "train")


# --------------------------------------------------------------------------------------- refusals


def test_a_protocol_that_completes_no_lines_has_no_sessions(
    code_rows: Any, words: Any, make_rows: Callable[..., Any]
) -> None:
    for name in PROTOCOLS.names():
        if name != "codexglue-line":
            request = TaskRequest(name, "x", session=SessionRequest())
            with pytest.raises(ConfigError, match=f"the protocol '{name}' has no editor sessions.*--scenario requests"):
                draw(code_rows, PROTOCOLS.load(name)(PYTHON), words, request)
    short = make_rows([{"id": 0, "code": "pass\n" * 9}])
    with pytest.raises(DataError, match="1 × document with too few lines for a session"):
        draw(short, LINES, words, asked())
    assert Py150().session_protocol == JavaCorpus().session_protocol == "codexglue-line"
    assert CrossCodeEvalPython().session_protocol == "crosscodeeval"


def test_what_tuning_has_read_is_left_out_of_its_session_or_marked(code_rows: Any, words: Any) -> None:
    def read(*, duplicates: Any) -> TaskData:
        def was_read(token_ids: Sequence[int]) -> bool:
            return sum(token_ids) % 3 == 0

        request = TaskRequest("x", "x", session=SessionRequest(), was_read=was_read, duplicates=duplicates)
        return draw(code_rows, LINES, words, request)

    kept, skipped = read(duplicates="keep"), read(duplicates="skip")
    marked = [sample for sample in kept.samples if sample.duplicate]
    assert kept.duplicates == skipped.duplicates == len(marked) > 5
    assert {one.sample_id for one in skipped.samples} == {one.sample_id for one in kept.samples} - {
        one.sample_id for one in marked
    }
    for name, samples in sessions(skipped).items():  # the time of what is left out is that before the next
        whole = sessions(kept)[name]
        last = next(place for place, one in enumerate(whole) if one.sample_id == samples[-1].sample_id)
        assert sum(one.typing_s for one in samples) == pytest.approx(sum(one.typing_s for one in whole[: last + 1]))


def test_two_rows_of_one_id_are_not_one_session(make_rows: Callable[..., Any], words: Any) -> None:
    data = draw(make_rows([{"id": "a", "code": text} for text in PYTHON_CODE[:2]]), LINES, words, asked())
    assert len(sessions(data)["a"]) == len(data.samples)
    assert "was used before" in data.bad_rows[0].reason


# --------------------------------------------------------------------------------- sources and runs


@pytest.mark.parametrize("task", [Py150(), JavaCorpus()])
def test_embedded_files_and_official_rows_make_sessions(task: Any, words: Any, line: Any, data: Path) -> None:
    for source in ("embedded", data / "codexglue_line"):
        drawn = task.load(line(source, limit=2, session=SessionRequest(requests=4)), words)
        assert [2 <= len(made) <= 4 for made in sessions(drawn).values()] == [True, True]


def test_a_run_draws_sessions_and_skips_whole_ones(tiny_llama: Path, rows_file: Path) -> None:
    config = RunConfig(
        model=str(tiny_llama), source=str(rows_file), scenario="session:requests=3:window=64", limit=3, max_new_tokens=8
    )
    model = resolve(config.request())
    (every,) = registered_draw(config)(model)
    (later,) = registered_draw(config.replace(skip=2, limit=1))(model)
    assert every.record.protocol == "codexglue-line"
    assert [sample.session for sample in later.data.samples] == list(sessions(every.data))[2:] * 3
    assert later.data.samples == every.data.samples[-3:]
    assert later.record.fingerprint != every.record.fingerprint
    with pytest.raises(DataError, match="has 8 sessions, and --skip 8 leaves none"):
        registered_draw(config.replace(skip=8, limit=1))(model)
    with pytest.raises(ConfigError, match="'green-code' has no editor sessions"):
        registered_draw(config.replace(protocol="green-code"))(model)
