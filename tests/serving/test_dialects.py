"""The four dialects over HTTP: one completion in the words of each, whole and streamed, refused and failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from harness.serving.completions import EarlyExitReport, Finished, Job
from harness.serving.dialects import DIALECTS as ALL
from tests.serving.conftest import Piece, fails_at

PROMPT = "def add(a, b):\n    "
OTHER = "import os\n\nfor name in"


@dataclass(frozen=True)
class Spoken:
    """How one dialect asks and answers.

    Attributes:
        path: of a whole answer. streams: of a stream.
        prompt: name of that field. holder: of the field in which options stand, if any.
        limit: name of the limit of tokens.
        text: where the text of a whole answer is. piece: where that of an event is.
        reason: where it says how it ended, and its words for eos, stop, length, strategy and deadline.
    """

    path: str
    streams: str
    prompt: str
    holder: str
    limit: str
    text: Callable[[Any], str]
    piece: Callable[[Any], str]
    reason: Callable[[Any], str]
    words: tuple[str, str, str, str, str]

    def body(self, prompt: Any = PROMPT, tokens: Any = 6, **options: Any) -> dict[str, Any]:
        options = {self.limit: tokens, **options}
        if self.holder and "stream" in options:
            return {self.prompt: prompt, "stream": options.pop("stream"), self.holder: options}
        return {self.prompt: prompt} | ({self.holder: options} if self.holder else options)


def choice(answer: Any) -> Any:
    return answer["choices"][0]


DIALECTS = {
    "tgi": Spoken(
        "/generate", "/generate_stream", "inputs", "parameters", "max_new_tokens", lambda a: a["generated_text"],
        lambda e: e["token"]["text"], lambda a: a["details"]["finish_reason"],
        ("eos_token", "stop_sequence", "length", "stop_sequence", "length"),
    ),
    "openai": Spoken(
        "/v1/completions", "/v1/completions", "prompt", "", "max_tokens", lambda a: choice(a)["text"],
        lambda e: choice(e)["text"], lambda a: choice(a)["finish_reason"],
        ("stop", "stop", "length", "stop", "length"),
    ),
    "ollama": Spoken(
        "/api/generate", "/api/generate", "prompt", "options", "num_predict", lambda a: a["response"],
        lambda e: e["response"], lambda a: a["done_reason"], ("stop", "stop", "length", "stop", "length"),
    ),
    "llama.cpp": Spoken(
        "/completion", "/completion", "prompt", "", "n_predict", lambda a: a["content"], lambda e: e["content"],
        lambda a: a["stop_type"], ("eos", "word", "limit", "word", "limit"),
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", DIALECTS)


def post(server: Any, path: str, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60, **more)


def whole(server: Any, name: str, **asked: Any) -> Any:
    details = {"details": True} if name == "tgi" else {}
    answer = post(server, DIALECTS[name].path, DIALECTS[name].body(**{"stream": False, **details, **asked}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: Any, name: str, **asked: Any) -> list[Any]:
    """The events of a stream; ``[DONE]`` as a text."""
    answer = post(server, DIALECTS[name].streams, DIALECTS[name].body(**{"stream": True, **asked}))
    assert answer.status_code == 200, answer.text
    if name == "ollama":
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"].startswith("text/event-stream")
    *blocks, last = answer.text.split("\n\n")
    assert last == ""
    assert all(block.startswith("data:") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data:").strip() for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def events_of(server: Any, name: str, **asked: Any) -> list[Any]:
    events = stream(server, name, **asked)
    return events[:-1] if events[-1] == "[DONE]" else events


@every
@pytest.mark.parametrize("decode", ["lossy", "lossless+lookup:min_n=1"])
def test_a_stream_spells_the_whole_answer_and_says_the_same_of_it(server: Any, name: str, decode: str) -> None:
    early = {"strategy": "fixed", "decode": decode} | ({} if decode == "lossy" else {"draft_max": 6})
    asked = {"tokens": 16, "early_exit": early}
    whole(server, name, **asked)
    answer = whole(server, name, **asked)
    report = EarlyExitReport.model_validate(answer["x_early_exit"])
    *tokens, last = events_of(server, name, **asked)
    assert "".join(map(DIALECTS[name].piece, [*tokens, last])) == DIALECTS[name].text(answer) != ""
    said = [event.get("token") or (event.get("choices") or [event])[0] for event in [*tokens, last]]
    told = [(one["exit_layer"], one["drafted_at"], one["accepted"]) for one in said if one.get("exit_layer")]
    assert all("x_early_exit" not in event for event in tokens)
    again = EarlyExitReport.model_validate(last["x_early_exit"])
    assert (again.exit_layers, again.counts, again.drafts) == (report.exit_layers, report.counts, report.drafts)
    assert DIALECTS[name].reason(last) == DIALECTS[name].reason(answer)
    drafts = report.drafts
    if drafts is None:
        assert (report.decode, report.draft_max, report.draft_head) == ("lossy", None, None)
        assert told == [(layer, None, None) for layer in report.exit_layers]
        return
    assert (report.decode, report.draft_max, report.draft_head) == (decode, 6, "full")
    assert told == list(zip(report.exit_layers, drafts.drafted_at, drafts.accepted, strict=True))
    assert set(report.exit_layers) == {report.num_layers}
    assert drafts.accepted_tokens == sum(drafts.accepted) <= drafts.drafted_tokens
    full = whole(server, name, tokens=16, early_exit={"strategy": "full", "decode": "lossy"})
    assert DIALECTS[name].text(full) == DIALECTS[name].text(answer)


@every
def test_every_ending_has_its_word(server: Any, changed: Any, name: str) -> None:
    for ending, word in zip(("eos", "stop", "length", "strategy", "deadline"), DIALECTS[name].words, strict=True):
        changed(lambda piece, to=ending: replace(piece, ending=to) if isinstance(piece, Finished) else piece)
        answer = events_of(server, name, tokens=1)[-1]
        assert (DIALECTS[name].reason(answer), answer["x_early_exit"]["ending"]) == (word, ending)


@every
def test_what_was_held_back_is_not_lost(server: Any, changed: Any, name: str) -> None:
    def hold_back(piece: Piece) -> Piece:
        if isinstance(piece, Finished):
            return replace(piece, rest=piece.text, tokens=tuple(replace(token, text="") for token in piece.tokens))
        return replace(piece, text="")

    more = {"logprobs": 1} if name == "openai" else {}
    text = DIALECTS[name].text(whole(server, name))
    changed(hold_back)
    held = whole(server, name, **more)
    assert DIALECTS[name].text(held) == "".join(map(DIALECTS[name].piece, events_of(server, name))) == text
    if name == "tgi":
        assert "".join(token["text"] for token in held["details"]["tokens"]) == text
    if name == "openai":
        assert "".join(choice(held)["logprobs"]["tokens"]) == text


@every
def test_a_stop_text_ends_it_and_belongs_to_it_with_tgi_alone(server: Any, jobs: list[Job], name: str) -> None:
    free = DIALECTS[name].text(whole(server, name))
    stop = free.strip()[1:3]
    for given in (stop, ["\0never", "", stop, None]):
        answer = whole(server, name, stop=given)
        assert DIALECTS[name].reason(answer) == DIALECTS[name].words[1]
        end = free.index(stop) + (len(stop) if name == "tgi" else 0)
        assert DIALECTS[name].text(answer) == free[:end]
    assert [one.stop for one in jobs[1:]] == [(stop,), ("\0never", stop)]


@every
def test_a_failure_has_a_status_before_the_first_token_and_is_the_last_event_after_it(
    server: Any, changed: Any, name: str
) -> None:
    changed(fails_at(0))
    for path, streams in ((DIALECTS[name].path, False), (DIALECTS[name].streams, True)):
        assert post(server, path, DIALECTS[name].body(stream=streams)).status_code == 424
    changed(fails_at(2))
    *tokens, last = stream(server, name)
    assert len(tokens) == 2
    error = {"type": "generation", "message": "the engine failed."}
    assert (
        last
        == {
            "tgi": {"error": "the engine failed.", "error_type": "generation"},
            "ollama": {"error": "the engine failed.", "error_type": "generation"},
            "llama.cpp": {"error": error | {"code": 424}},
            "openai": {
                "error": error | {"param": None, "code": None},
                "detail": [{"loc": "body", "msg": "the engine failed.", "type": "generation"}],
            },
        }[name]
    )


@every
def test_values_as_clients_write_them(server: Any, jobs: list[Job], name: str) -> None:
    cap = server.service.config.max_new_tokens
    for said, limit in ((None, cap), (1, 1), (cap + 1, cap), (10**30, cap), ("3", 3)):
        whole(server, name, tokens=said, stop=["\n", " "])
        assert jobs[-1].max_new_tokens == limit, said
    for seed in (None, 7.0, "7", 2**80, -5):
        whole(server, name, tokens=1, seed=seed)
        assert 0 <= jobs[-1].seed < 2**63
    odd = {"user": "hot", "metadata": [None, 3], "mirostat_tau": 10**400, "keep_alive": None}
    whole(server, name, tokens=1, seed="7", stop=None, **odd)  # what changes nothing may be anything
    assert (jobs[-1].seed, jobs[-1].stop, jobs[-1].keep_stop) == (7, (), name == "tgi")


@every
def test_a_prompt_that_is_too_long_loses_its_beginning_where_the_dialect_says_so(server: Any, name: str) -> None:
    long = "def load_path(items):\n" * 4546
    truncates = {"tgi": {"truncate": 1000.0}}.get(name, {})
    path, spoken = DIALECTS[name].path, DIALECTS[name]
    if name != "openai":
        report = whole(server, name, prompt=long, tokens=1, **truncates)["x_early_exit"]
        assert report["prompt_tokens"] == server.service.max_prompt_tokens
        assert report["prompt_tokens_truncated"] > 0
    if name != "llama.cpp":
        refusing = {"truncate": False} if name == "ollama" else {}
        assert post(server, path, spoken.body(long, stream=False) | refusing).status_code == 400


# ------------------------------------------------------------------------------------------------ what is read and not

NO_PROMPT = ("", [], [[]], ["a", ""], [True], [-1], [1.5], 5, None, {"a": 1})
WHOLE, FLAG, OBJECT, TEXTS = (1.5, "x", [1]), ("yes", []), (5, [1]), (5, [1], ["a", {}])
READ: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/completions": {
        "prompt": NO_PROMPT, "suffix": (5,), "stop": TEXTS, "stream": FLAG, "stream_options": OBJECT,
        "stream_options.include_usage": FLAG, "echo": FLAG, "logprobs": WHOLE, "seed": WHOLE, "n": (*WHOLE, 0),
        "max_tokens": WHOLE,
    },
    "/generate": {
        "inputs": ("", None, 5), "parameters": OBJECT, "parameters.stop": TEXTS, "parameters.seed": WHOLE,
        "parameters.truncate": WHOLE, "parameters.details": FLAG, "parameters.max_new_tokens": WHOLE,
    },
    "/": {"stream": FLAG},
    "/infill": {
        "input_prefix": (5,), "input_suffix": (5,), "stop": TEXTS, "t_max_predict_ms": ("soon",), "seed": WHOLE,
        "response_fields": (5, [1]), "cache_prompt": FLAG, "n_predict": WHOLE,
    },
    "/completion": {"prompt": (*NO_PROMPT, ["a", "b"])},
    "/api/generate": {
        "prompt": ("", None), "suffix": (5,), "stream": FLAG, "truncate": FLAG, "options": OBJECT,
        "options.stop": TEXTS, "options.seed": WHOLE, "options.num_predict": WHOLE,
    },
}  # fmt: skip
"""Path → field that is read → values that it cannot have; behind a dot, within an object."""


def test_a_field_that_is_read_and_cannot_be_is_refused_in_one_line(server: Any) -> None:
    good = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT, "early_exit": {"strategy": "no such"}}
    wrong = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, fields in READ.items():
            for name, values in fields.items():
                holder, _, field = name.rpartition(".")
                for value in values:
                    changes = {holder: {field: value}} if holder else {field: value}
                    answer = client.post(path, content=json.dumps({**good, **changes}))
                    error = answer.json()["error"]
                    line = error if isinstance(error, str) else error["message"]
                    if answer.status_code != 400 or field not in line or "\n" in line or len(line) > 300:
                        wrong.append((path, name, value, answer.text))
        for path, name in (("/v1/completions", "max_tokens"), ("/completion", "n_predict")):
            answer = client.post(path, json={"prompt": PROMPT, name: -3})
            assert (answer.status_code, "Send 1 or more, or no limit" in answer.text) == (400, True)
        assert client.post("/api/generate", json={"prompt": PROMPT, "options": {"num_predict": 0}}).status_code == 400
    assert not wrong


def test_a_megabyte_of_bad_items_is_refused_in_one_line(server: Any) -> None:
    for field, bad in (("prompt", "-1"), ("prompt", '""'), ("stop", "1.5"), ("response_fields", "true")):
        body = f'{{"prompt": "a", "{field}":[' + ",".join([bad] * (900_000 // (len(bad) + 1))) + "]}"
        answer = httpx.post(f"{server.url}/completion", content=body, timeout=30)
        assert answer.status_code == 400
        assert len(answer.content) < 500


UNDONE: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/completions": {
        "temperature": (0.7, "0.2", 1), "top_p": (0.9,), "top_k": (40,), "min_p": (0.1,), "best_of": (2, 10**400),
        "frequency_penalty": (0.5, -1), "presence_penalty": (1,), "logit_bias": ({"5": 1},), "logprobs": (2, 5, -1),
        "model": ("another/model",), "n": (17,),
    },
    "/v1/chat/completions": {
        "temperature": (0.7,), "top_p": (0.9,), "tools": ([{"type": "function"}],), "logprobs": (True,),
        "top_logprobs": (3,), "response_format": ({"type": "json_object"},), "model": ("another/model",),
    },
    "/generate": {
        "parameters.temperature": (0.2,), "parameters.top_p": (0.95,), "parameters.do_sample": (True,),
        "parameters.best_of": (2,), "parameters.repetition_penalty": (1.1,), "parameters.typical_p": (0.5,),
        "parameters.decoder_input_details": (True,), "model": ("another/model",),
    },
    "/models/another": {"inputs": ("x = ",)},
    "/infill": {"temperature": (0.8,), "repeat_penalty": (1.1,), "grammar": ("root ::= x",), "model": ("another",)},
    "/completion": {"temperature": (0.8,), "top_k": (40,), "top_p": (0.95,), "n_probs": (3,), "model": ("another",)},
    "/api/generate": {
        "options.temperature": (0.8,), "options.top_p": (0.9,), "options.repeat_penalty": (1.1,),
        "system": ("Be brief.",), "format": ("json",), "images": (["x"],), "model": ("another",),
    },
}  # fmt: skip
"""Path → parameter that would change a completion, and that no engine here follows → values that do."""


def test_what_would_change_a_completion_is_refused_by_its_name_and_what_would_not_is_taken(
    server: Any, jobs: list[Job]
) -> None:
    good = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT, "messages": [{"role": "user", "content": "x"}]}
    wrong = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, parameters in UNDONE.items():
            for name, values in parameters.items():
                holder, _, field = name.rpartition(".")
                for value in values:
                    changes = {holder: {field: value}} if holder else {field: value}
                    answer = client.post(path, content=json.dumps({**good, **changes}))
                    error = answer.json()["error"]
                    line = error if isinstance(error, str) else error["message"]
                    said = "model" if path == "/models/another" else field
                    if (answer.status_code, said in line, len(line) < 300) != (400, True, True):
                        wrong.append((path, name, value, answer.text))
                    if path.startswith("/v1/") and (error["type"], error["param"]) != ("invalid_request_error", field):
                        wrong.append((path, name, value, answer.text))
    assert not wrong
    assert not jobs
    for path, spoken in ((spoken.path, spoken) for spoken in DIALECTS.values()):
        dialect = next(one for one in ALL if path in one.paths)
        held = dialect.model_fields[spoken.holder].annotation if spoken.holder else dialect
        for place in (0, -1):
            body = spoken.body(
                tokens=1, stream=False, **{name: accepted[place] for name, accepted in held.unchanging.items()}
            )
            outer = {} if held is dialect else {name: values[place] for name, values in dialect.unchanging.items()}
            answer = post(server, path, body | outer | {"model": server.service.model_name})
            assert answer.status_code == 200, answer.text
        greedy = spoken.body(tokens=1, stream=False, temperature=0, top_p=0.5, top_k=40, seed=3)
        assert post(server, path, greedy).status_code == 200, "nothing is sampled at temperature 0"


# ----------------------------------------------------------------------------------------------------------------- TGI


def test_tgi_has_its_keys(server: Any, changed: Any) -> None:
    plain = post(server, "/generate", DIALECTS["tgi"].body(tokens=2)).json()
    assert plain.keys() == {"generated_text", "x_early_exit"}
    answer = whole(server, "tgi", tokens=3, seed=7)
    details = answer["details"]
    assert details.keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["seed"], details["prefill"], details["generated_tokens"]) == (7, [], 3)
    keys = {"id", "text", "logprob", "special", "exit_layer", "drafted_at", "accepted"}
    assert all(token.keys() == keys for token in details["tokens"])
    *before, last = events_of(server, "tgi", return_full_text=True)
    assert all(event.keys() == {"index", "token", "generated_text", "details"} for event in before)
    assert last["generated_text"].startswith(PROMPT)
    assert last["details"].keys() == {"finish_reason", "generated_tokens", "input_length", "seed"}
    changed(
        lambda piece: (
            replace(piece, tokens=tuple(replace(token, logprob=float("-inf")) for token in piece.tokens))
            if isinstance(piece, Finished)
            else replace(piece, logprob=float("nan"))
        )
    )
    assert {token["logprob"] for token in whole(server, "tgi")["details"]["tokens"]} == {None}
    assert {event["token"]["logprob"] for event in events_of(server, "tgi")} == {None}


def test_tgi_repeats_the_index_without_its_text_where_a_strategy_ends_a_stream(server: Any, changed: Any) -> None:
    """Its last token was sent before it was known to be that."""
    changed(
        lambda piece: replace(piece, ending="strategy") if isinstance(piece, Finished) else replace(piece, last=False)
    )
    *tokens, last = events_of(server, "tgi", tokens=3)
    assert [event["index"] for event in [*tokens, last]] == [1, 2, 3, 3]
    assert "".join(event["token"]["text"] for event in [*tokens, last]) == last["generated_text"]
    assert (last["token"]["text"], last["details"]["generated_tokens"]) == ("", 3)


def test_tgi_s_other_addresses_answer_a_list_or_stream_where_asked(server: Any) -> None:
    asked = DIALECTS["tgi"].body(tokens=2)
    text = post(server, "/generate", asked).json()["generated_text"]
    for path in ("/", f"/models/{server.service.model_name}", "/models/"):
        (answer,) = post(server, path, asked).json()
        assert answer["generated_text"] == text
        events = post(server, path, {**asked, "stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data:"))["generated_text"] == text
    assert post(server, "/models/a%0Ab", asked).status_code == 404


# -------------------------------------------------------------------------------------------------------------- OpenAI


def test_openai_has_its_keys_and_usage_comes_last_where_asked(server: Any) -> None:
    answer = whole(server, "openai", tokens=3)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage", "x_early_exit"}
    assert choice(answer).keys() == {"text", "index", "finish_reason", "logprobs", "exit_layers", "x_early_exit"}
    assert choice(answer)["x_early_exit"] == answer["x_early_exit"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    *chunks, done = stream(server, "openai", tokens=3)
    assert done == "[DONE]"
    head = {"id", "object", "created", "model", "choices"}
    assert all(chunk.keys() - {"x_early_exit"} == head for chunk in chunks)
    assert choice(chunks[-1]) == {
        "text": "", "index": 0, "finish_reason": "length", "logprobs": None, "exit_layer": None, "drafted_at": None,
        "accepted": None,
    }  # fmt: skip
    *before, last, done = stream(server, "openai", tokens=3, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in before)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    root = post(server, "/completions", DIALECTS["openai"].body(tokens=3)).json()
    assert choice(root)["text"] == choice(answer)["text"]


def test_openai_s_prompts_have_a_choice_each_and_copies_are_the_same(server: Any) -> None:
    alone = [choice(whole(server, "openai", prompt=prompt))["text"] for prompt in (PROMPT, OTHER)]
    for copies in (1, 3, "3"):
        both = whole(server, "openai", prompt=[PROMPT, OTHER], n=copies)
        count = int(copies)
        assert [one["index"] for one in both["choices"]] == list(range(2 * count))
        assert [one["text"] for one in both["choices"]] == [text for text in alone for _ in range(count)]
        assert both["x_early_exit"] is None
        layers = [len(one["exit_layers"]) for one in both["choices"]]
        assert both["usage"]["completion_tokens"] == sum(layers)
        texts, ended = [""] * 2 * count, []
        for event in events_of(server, "openai", prompt=[PROMPT, OTHER], n=copies):
            texts[choice(event)["index"]] += choice(event)["text"]
            ended += [choice(event)["index"]] if choice(event)["finish_reason"] else []
        assert texts == [one["text"] for one in both["choices"]]
        assert sorted(ended) == list(range(2 * count))
    for prompt in ([1, 2, 3], [[1, 2, 3]], [PROMPT]):
        assert len(whole(server, "openai", prompt=prompt, tokens=2)["choices"]) == 1


@pytest.mark.parametrize("echo", [False, True])
def test_openai_s_logprobs_say_where_each_token_is(server: Any, echo: bool) -> None:
    plain = choice(whole(server, "openai", tokens=5))
    said = choice(whole(server, "openai", tokens=5, logprobs=1, echo=echo))
    assert said["text"] == (PROMPT if echo else "") + plain["text"]
    probable, text = said["logprobs"], said["text"]
    assert len(probable["tokens"]) == len(said["exit_layers"]) + (said["x_early_exit"]["prompt_tokens"] if echo else 0)
    assert "".join(probable["tokens"]) == text if echo else True
    assert all(
        text[at:].startswith(token) for at, token in zip(probable["text_offset"], probable["tokens"], strict=True)
    )
    values, tops = probable["token_logprobs"], probable["top_logprobs"]
    made = [(value, top) for value, top in zip(values, tops, strict=True) if top is not None]
    assert len(values) - len(made) == echo, "of the first token of all nothing is said"
    assert all(value <= max(top.values()) <= 0 and value in top.values() for value, top in made)
    new = slice(len(values) - len(said["exit_layers"]), None)
    pairs = zip(probable["tokens"][new], values[new], strict=True)
    assert tops[new] == [{token: value} for token, value in pairs]
    refused = post(server, "/v1/completions", {"prompt": PROMPT, "echo": True, "logprobs": 0, "stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")
    if echo:
        return
    events = events_of(server, "openai", tokens=5, logprobs=0)
    assert "".join(choice(event)["text"] for event in events) == text
    streamed = [choice(event)["logprobs"] for event in events if choice(event)["logprobs"] is not None]
    assert all(one["top_logprobs"] is None for one in streamed)
    for key in ("tokens", "text_offset"):
        assert [value for one in streamed for value in one[key]] == probable[key]
    assert plain["logprobs"] is None
    spelled = [choice(event)["text"] for event in events_of(server, "openai", tokens=5, echo=True)]
    assert "".join(spelled) == PROMPT + plain["text"]


def test_openai_s_echo_is_the_same_of_text_and_token_ids_and_may_be_all(server: Any) -> None:
    """Nothing of an earlier prompt is reused."""
    ids = list(server.service.encode(PROMPT * 12, None, truncate=False).token_ids)
    asked = {"echo": True, "logprobs": 1, "early_exit": "fixed:layer=4"}
    answers = [
        whole(server, "openai", prompt=prompt, tokens=tokens, **asked)
        for prompt, tokens in ((PROMPT * 12, 1), (ids, 1), (ids, 0), ([ids, ids[:7]], 0))
    ]
    text, by_ids, alone, several = answers
    assert choice(text)["text"] == choice(by_ids)["text"]
    assert choice(text)["logprobs"] == choice(by_ids)["logprobs"]
    assert choice(alone)["text"] == PROMPT * 12
    assert choice(alone)["logprobs"]["token_logprobs"] == choice(text)["logprobs"]["token_logprobs"][:-1]
    assert (alone["usage"]["completion_tokens"], choice(alone)["finish_reason"]) == (0, "length")
    first, second = (one["logprobs"]["token_logprobs"] for one in several["choices"])
    assert (len(first), len(second)) == (len(ids), 7)
    assert second[1:] == pytest.approx(first[1:7], abs=1e-4)
    assert choice(whole(server, "openai", prompt=ids, tokens=2, echo=True))["text"].startswith(PROMPT * 12)


def test_what_keeps_no_cache_scores_no_prompt(start: Callable[..., Any]) -> None:
    refused = post(start(kv="none"), "/v1/completions", {"prompt": PROMPT, "echo": True, "logprobs": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")


# ----------------------------------------------------------------------------------------------- Ollama and llama.cpp


def test_ollama_s_numbers_add_up_and_it_streams_unless_told_not_to(server: Any, jobs: list[Job]) -> None:
    answer = whole(server, "ollama", tokens=5)
    report = answer["x_early_exit"]
    assert (answer["model"], answer["done"], answer["load_duration"]) == (server.service.model_name, True, 0)
    assert answer["eval_count"] == len(report["exit_layers"])
    assert answer["prompt_eval_count"] == report["prompt_tokens"]
    spent = answer["prompt_eval_duration"] + answer["eval_duration"]
    assert spent == pytest.approx(answer["total_duration"] - report["queue_s"] * 1e9, abs=5e3)
    assert datetime.fromisoformat(answer["created_at"]).utcoffset() is not None
    for asked in ({}, {"stream": None}, {"stream": True}):
        answer = post(server, "/api/generate", {"prompt": PROMPT, "options": {"num_predict": 2}, **asked})
        assert [json.loads(line)["done"] for line in answer.text.splitlines()] == [False, False, True]
    for endless in (-1, -2):
        whole(server, "ollama", tokens=endless, stop=["\n", " "])
        assert jobs[-1].max_new_tokens == server.service.config.max_new_tokens


def test_llama_cpp_s_numbers_add_up(server: Any) -> None:
    for tokens in (1, 5):
        answer = whole(server, "llama.cpp", tokens=tokens)
        report, timings = answer["x_early_exit"], answer["timings"]
        assert answer["tokens_predicted"] == timings["predicted_n"] == len(report["exit_layers"]) == tokens
        assert answer["tokens_evaluated"] == timings["prompt_n"] + timings["cache_n"] == report["prompt_tokens"]
        assert answer["tokens_cached"] == timings["cache_n"] == report["prompt_tokens_reused"]
        assert timings["prompt_ms"] + timings["predicted_ms"] == pytest.approx(
            (report["total_s"] - report["queue_s"]) * 1e3, abs=5e-3
        )
        assert ("predicted_per_second" in timings) == ("predicted_per_token_ms" in timings) == (tokens > 1)
    assert timings["predicted_per_token_ms"] * 4 == pytest.approx(timings["predicted_ms"], abs=2e-3)
    assert timings["predicted_per_second"] * timings["predicted_per_token_ms"] == pytest.approx(1000)
    tokens = events_of(server, "llama.cpp", tokens=3)[:-1]
    assert [event["tokens_predicted"] for event in tokens] == [1, 2, 3]
    assert all(len(event["tokens"]) == 1 and event["stop"] is False for event in tokens)


INFILL = {"input_prefix": "import math\n\n", "prompt": "def area(r):\n    ", "n_predict": 3}


def test_limits_of_time_and_nothing_to_predict_are_llama_cpp_s(server: Any, jobs: list[Job]) -> None:
    warm = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "t_max_predict_ms": 1}
    answer = post(server, "/infill", warm).json()
    assert (answer["content"], answer["stop"], answer["tokens_predicted"], answer["tokens_evaluated"]) == (
        "", True, 0, 0,
    )  # fmt: skip
    assert post(server, "/infill", warm | {"response_fields": [""]}).json() == {}
    assert not jobs
    for limit_ms in (250, 1500.0, 0, -5, None):
        post(server, "/infill", {**INFILL, "n_predict": 1, "t_max_predict_ms": limit_ms, "t_max_prompt_ms": 1})
    assert [one.generate_s for one in jobs] == [0.25, 1.5, None, None, None]


def test_infill_reads_prefix_and_line_as_one_text_and_a_blank_suffix_as_none(server: Any, jobs: list[Job]) -> None:
    service = server.service
    for prefix, line, suffix in (("a = 1\n", "b = ", "\n\n"), (None, "a = 1\nb = ", None)):
        post(server, "/infill", {"input_prefix": prefix, "prompt": line, "input_suffix": suffix, "n_predict": 1})
        assert jobs[-1].prompt == service.encode("a = 1\nb = ", None, truncate=False)
    for suffix in ("x = 1", None):
        assert post(server, "/infill", {"prompt": "", "input_suffix": suffix}).status_code == 400
