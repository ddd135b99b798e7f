"""What a client writes becomes the right job, or one clear line in its own dialect."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from harness.appearance.visible_text import is_hidden
from harness.serving.failures import DrainingError, LoadingError, OverloadedError, ServingError
from harness.serving.http.app import make_app
from harness.serving.http.refusals import MAX_DEPTH, refusal
from harness.serving.http.requests import MAX_STOPS
from harness.serving.http.schemas import limit_of, seed_of, texts, whole_number
from harness.serving.jobs import Job, Ticket

PROMPT = "def add(a, b):\n"


class Desk:
    """Takes jobs down and refuses them, so that a test sees what a request became without waiting for it."""

    def __init__(self, url: str) -> None:
        self.url, self.jobs = url, list[Job]()

    def submit(self, job: Job) -> Ticket:
        self.jobs.append(job)
        raise OverloadedError("taken down.")

    def job(self, path: str, body: Any, **request: Any) -> Job:
        answer = httpx.post(self.url + path, json=body, **request)
        assert answer.status_code == 429, answer.text
        return self.jobs[-1]


@pytest.fixture
def desk(server: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    taken = Desk(server.url)
    monkeypatch.setattr(server.service, "submit", taken.submit)
    return taken


def refused(server: Any, path: str, content: bytes, **headers: str) -> str:
    """Return the one line of a 422, from where the dialect of the path has it."""
    answer = httpx.post(server.url + path, content=content, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    message = error["message"] if path == "/v1/completions" else error
    assert (error["type"] if path == "/v1/completions" else answer.json()["error_type"]) == "validation"
    assert isinstance(message, str)
    assert "\n" not in message
    return message


def other_setting(server: Any) -> tuple[str, dict[str, float]]:
    """Return a loaded strategy other than the default, and a value for an option of it that is not its default."""
    for loaded in server.service.settings.loaded:
        if not loaded.default:
            for option, (least, _) in loaded.limits.items():
                if loaded.options[option] != least:
                    return loaded.name, {option: least}
    raise AssertionError("no strategy with an option")


# --- where early exit is taken from ---


def test_early_exit_is_taken_from_the_body_then_header_then_query_then_the_server(server: Any, desk: Desk) -> None:
    name, options = other_setting(server)
    ((option, value),) = options.items()
    body = {"inputs": PROMPT}
    query, header = {"early_exit": "full"}, {"X-Early-Exit": f"{name}:{option}={value}"}
    default = server.service.settings.default

    assert desk.job("/generate", body).setting.name == default.name
    assert desk.job("/generate", body, params=query).setting.name == "full"
    from_header = desk.job("/generate", body, params=query, headers=header).setting
    assert (from_header.name, from_header.options[option]) == (name, value)
    ours = desk.job("/generate", {**body, "early_exit": "full"}, headers=header).setting
    assert ours.name == "full"
    assert desk.job("/generate", {**body, "early_exit": None}, headers=header).setting.name == name


@pytest.mark.parametrize("nest", [lambda c: c, lambda c: {"parameters": c}, lambda c: {"parameters": {"parameters": c}},
                                  lambda c: {"options": c}])  # fmt: skip
def test_early_exit_stands_at_the_top_or_inside(desk: Desk, nest: Any) -> None:
    assert (
        desk.job("/generate", {"inputs": PROMPT, **nest({"early_exit": {"strategy": "full"}})}).setting.name == "full"
    )


@pytest.mark.parametrize("nest", [lambda c: c, lambda c: {"parameters": c}, lambda c: {"options": c}])
def test_early_exit_stands_at_the_top_or_inside_for_openai(desk: Desk, nest: Any) -> None:
    body = {"prompt": PROMPT, **nest({"early_exit": {"strategy": "full"}})}
    assert desk.job("/v1/completions", body).setting.name == "full"


def test_the_top_wins(server: Any, desk: Desk) -> None:
    name, _ = other_setting(server)
    body = {"inputs": PROMPT, "early_exit": "full", "parameters": {"early_exit": name}, "options": {"early_exit": name}}
    assert desk.job("/generate", body).setting.name == "full"


def test_early_exit_is_an_object_its_json_or_the_mini_language(server: Any, desk: Desk) -> None:
    name, options = other_setting(server)
    ((option, value),) = options.items()
    said = {"strategy": name, option: value}
    for given in (said, json.dumps(said), f"{name}:{option}={value}", f" {name} : {option} = {value} "):
        setting = desk.job("/generate", {"inputs": PROMPT, "early_exit": given}).setting
        assert (setting.name, setting.options[option]) == (name, value)
    for given in ({}, {"strategy": None}, "{}"):
        setting = desk.job("/generate", {"inputs": PROMPT, "early_exit": given}).setting
        assert setting.name == server.service.settings.default.name


@pytest.mark.parametrize(
    "given",
    [5, True, [], ["full"], "", " ", ":", "full:", "full:x", "full:x=", "full:=1", "{", "[1]", '{"strategy": [1]}',
     {"strategy": 5}, {"strategy": ["full"]}, {"strategy": "no such thing"}, {"strategy": ""}, {"no such option": 1},
     {"threshold": [0.9]}, {"threshold": {"a": 1}}, {"": 1}, {"strategy": "full", "x\ny": 1}, "a\nb", "\ud7ff" * 999,
     {"threshold": 10**4000}, {"threshold": "9" * 4000}, {"x" * 4000: 1}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_bad_early_exit_is_one_line(server: Any, path: str, given: Any) -> None:
    body = {"inputs": PROMPT, "prompt": PROMPT, "early_exit": given}
    assert len(refused(server, path, json.dumps(body).encode())) < 500


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/api/generate", "/infill", "/no/route\u202e\x9b"])
def test_no_refusal_hides_anything_of_what_was_sent(server: Any, path: str) -> None:
    hostile = "a\x1b[2J\x9b\u202e\u200b\u2028\nb"
    body = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT, "early_exit": {"strategy": hostile, hostile: 1}}
    answer = httpx.post(server.url + path, json=body)
    assert answer.status_code in (404, 422)
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert not any(map(is_hidden, message))
    assert r"\u202e" in message
    assert not any(map(is_hidden, answer.text))


@pytest.mark.parametrize("where", [{"headers": {"X-Early-Exit": "{"}}, {"params": {"early_exit": "no such thing"}}])
def test_a_bad_header_or_query_is_refused_too(server: Any, where: Any) -> None:
    assert httpx.post(f"{server.url}/generate", json={"inputs": PROMPT}, **where).status_code == 422


# --- what else becomes of a request ---


def test_limits_are_capped(server: Any, desk: Desk) -> None:
    cap = server.service.config.max_new_tokens
    for said, limit in ((None, cap), (1, 1), (cap + 1, cap), (10**30, cap), ("3", 3)):
        tgi = desk.job("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": said}})
        openai = desk.job("/v1/completions", {"prompt": PROMPT, "max_tokens": said})
        assert tgi.max_new_tokens == openai.max_new_tokens == limit, said


NO_LIMITS = (0, -3, -(10**30), True, False, 3.0, 2.5, 1e300, "many", "", "0", "1.5", " 7", [], [5], {}, {"a": 1})
"""What no dialect takes for a limit of tokens."""


def refused_limit(server: Any, path: str, body: dict[str, Any]) -> str:
    """Return the message of a 422, wherever a dialect has it."""
    answer = httpx.post(server.url + path, json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("said", [*NO_LIMITS, -1, -2], ids=repr)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/v1/completions", "/completions"])
def test_a_limit_that_is_none_is_refused_and_never_becomes_the_cap(server: Any, path: str, said: Any) -> None:
    body = {"inputs": PROMPT, "prompt": PROMPT, "max_tokens": said, "parameters": {"max_new_tokens": said}}
    line = refused_limit(server, path, body)
    assert "max_tokens = " in line or "max_new_tokens = " in line
    assert "Send an integer from 1." in line


@pytest.mark.parametrize("said", NO_LIMITS, ids=repr)
@pytest.mark.parametrize("path", ["/api/generate", "/infill", "/completion"])
def test_nor_where_a_negative_number_means_no_limit(server: Any, path: str, said: Any) -> None:
    if path != "/api/generate" and said in (0, "0") and not isinstance(said, bool):
        return  # llama.vim warms a cache with it
    body = {"input_prefix": PROMPT, "prompt": PROMPT, "n_predict": said, "options": {"num_predict": said}}
    line = refused_limit(server, path, body)
    assert "Send an integer from 1, or -1 or -2 for the server's limit." in line


def test_stop_texts(server: Any, desk: Desk) -> None:
    job = desk.job("/generate", {"inputs": PROMPT, "parameters": {"stop": ["b", "", "a", "b", None]}})
    assert (job.stop, job.keep_stop) == (("b", "a"), True)
    many = [str(number) for number in range(MAX_STOPS + 1)]
    assert desk.job("/v1/completions", {"prompt": PROMPT, "stop": many[1:]}).stop == tuple(many[1:])
    body = {"inputs": PROMPT, "parameters": {"stop": many}}
    assert str(MAX_STOPS) in refused(server, "/generate", json.dumps(body).encode())


NO_WHOLE, NO_TEXT, NO_FLAG = (1.5, "x", True, [1], {}), (5, True, ["a"], {}), (1, "yes", [], {})
NO_TEXTS, NO_OBJECT = (5, True, [1], ["a", {}], {}), (5, "x", [1])
USED: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/completions": {
        "suffix": NO_TEXT, "stop": NO_TEXTS, "stream": NO_FLAG, "stream_options": NO_OBJECT, "echo": NO_FLAG,
        "logprobs": (1.5, "x", [1], {}), "seed": NO_WHOLE, "n": (*NO_WHOLE, 0, -1),
    },
    "/": {"parameters": NO_OBJECT, "stream": NO_FLAG},
    "/infill": {
        "input_prefix": NO_TEXT, "prompt": NO_TEXT, "input_suffix": NO_TEXT, "stop": NO_TEXTS, "stream": NO_FLAG,
        "t_max_predict_ms": ("soon", True, [1]), "response_fields": NO_TEXTS, "seed": NO_WHOLE,
        "cache_prompt": NO_FLAG, "parameters": NO_OBJECT, "options": NO_OBJECT,
    },
    "/api/generate": {"suffix": NO_TEXT, "stream": NO_FLAG, "truncate": NO_FLAG, "options": NO_OBJECT},
}  # fmt: skip
"""Path → field that its documentation says is used → values that it cannot have."""
INSIDE: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {
    "/generate": (
        "parameters",
        {"stop": NO_TEXTS, "seed": NO_WHOLE, "truncate": NO_WHOLE, "details": NO_FLAG, "return_full_text": NO_FLAG},
    ),
    "/api/generate": ("options", {"stop": NO_TEXTS, "seed": NO_WHOLE}),
    "/v1/completions": ("stream_options", {"include_usage": NO_FLAG}),
}


@pytest.mark.parametrize("path", USED)
def test_a_field_that_is_used_and_cannot_be_read_is_refused(server: Any, desk: Desk, path: str) -> None:
    good = {"inputs": PROMPT, "prompt": PROMPT, "input_prefix": PROMPT}
    for name, values in USED[path].items():
        for value in values:
            assert f"{name} = " in refused_limit(server, path, {**good, name: value})
        desk.job(path, {**good, name: None})


@pytest.mark.parametrize("path", INSIDE)
def test_so_is_one_inside_of_another(server: Any, path: str) -> None:
    holder, fields = INSIDE[path]
    for name, values in fields.items():
        for value in values:
            body = {"inputs": PROMPT, "prompt": PROMPT, holder: {name: value}}
            assert f"{name} = " in refused_limit(server, path, body)


def test_several_prompts_are_submitted_all_or_none(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled, submit = [], server.service.submit

    def two(job: Job) -> Ticket:
        if len(cancelled) == 2:
            raise OverloadedError("the queue is full.")
        ticket = submit(job)
        cancelled.append(False)
        place, cancel = len(cancelled) - 1, ticket.cancel

        def noted() -> None:
            cancelled[place] = True
            cancel()

        monkeypatch.setattr(ticket, "cancel", noted)
        return ticket

    monkeypatch.setattr(server.service, "submit", two)
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": [PROMPT] * 3, "max_tokens": 1})
    assert answer.status_code == 429
    assert cancelled == [True, True]


def test_values_as_clients_write_them() -> None:
    read = [5, -1, 5.0, "5", "-5", 5.5, "5.0", "²", "", "5" * 30, True, None, [], {}, float("inf"), float("nan")]
    assert [whole_number(value) for value in read] == [5, -1, 5, 5, -5] + [None] * 11
    assert [limit_of("x", value, endless=(-1,)) for value in (1, "7", -1, None)] == [1, 7, None, None]
    assert [seed_of(value) for value in (None, 7.0, "7", 2**63 + 7)] == [0, 7, 7, 7]
    assert 0 <= seed_of(-1) < 2**63
    assert [texts("stop", value) for value in (None, "a", ["a", None, "", "b"])] == [(), ("a",), ("a", "b")]


# --- bodies that cannot be read ---

NESTED = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)

UNREADABLE = {
    "empty": (b"", "empty"),
    "cut short": (b'{"inputs": "a"', "not JSON"),
    "array": (b"[1]", "array"),
    "number": (b"5", "number"),
    "null": (b"null", "null"),
    "text": (b'"a"', "string"),
    "no UTF-8": (b'{"inputs": "\xff"}', "UTF-8"),
    "nested": (NESTED, "nested"),
    "nested beyond the parser": (b"[" * 100_000, "nested"),
    "lone surrogate": (b'{"inputs": "\\ud800", "prompt": "\\udfff"}', "surrogate"),
    "lone surrogate as a key": (b'{"inputs": "a", "prompt": "a", "\\ud800": 1}', "surrogate"),
    "NaN": (b'{"inputs": "a", "prompt": "a", "x": NaN}', "finite"),
    "infinity": (b'{"inputs": "a", "prompt": "a", "x": [-Infinity]}', "finite"),
    "too many digits": (b'{"inputs": "a", "prompt": "a", "x": ' + b"1" * 5000 + b"}", "digits"),
    "no prompt": (b"{}", "is missing"),
    "a prompt of another type": (b'{"inputs": {"a": 1}, "prompt": {"a": 1}}', "prompt"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_body_that_cannot_be_read_is_one_line(server: Any, case: str) -> None:
    content, word = UNREADABLE[case]
    for path in ("/generate", "/generate_stream", "/", "/models/a", "/v1/completions"):
        expected = "inputs" if word == "prompt" and path != "/v1/completions" else word
        assert expected in refused(server, path, content)


def test_every_dialect_refuses_what_is_no_json(server: Any) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    with_body = [path for path, item in paths.items() if "requestBody" in item.get("post", {})]
    assert {"/generate", "/v1/completions"} <= set(with_body)
    for path in with_body:
        for content in (b"{", b"[]", b'{"a": "\xff"}', b'{"a": NaN}', b"[" * 100_000):
            answer = httpx.post(server.url + path.replace("{model}", "a"), content=content)
            assert answer.status_code == 422, (path, content[:10], answer.text)
            assert answer.json()["error"]


def test_what_is_nested_as_deeply_as_allowed_is_read(server: Any, desk: Desk) -> None:
    inside: Any = 1
    for _ in range(MAX_DEPTH - 1):
        inside = {"a": inside}
    assert desk.job("/generate", {"inputs": "ä\U0001f600", "unknown": inside})


@pytest.mark.parametrize(
    "kind", [None, "application/x-www-form-urlencoded", "text/plain", "application/json; charset=latin-1", "nonsense"]
)
def test_a_body_is_json_whatever_its_header_says(server: Any, kind: str | None) -> None:
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": 1}}).encode()
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{server.url}/generate", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


# --- other refusals ---


def test_there_is_no_such_route_in_each_dialect(server: Any) -> None:
    assert httpx.post(f"{server.url}/nope").json()["error_type"] == "not_found"
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


def test_a_wrong_method_names_the_right_one(server: Any) -> None:
    answer = httpx.get(f"{server.url}/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": answer.json()["error"], "error_type": "method_not_allowed"}
    assert "POST" in answer.json()["error"]


@pytest.mark.parametrize(("error", "retry"), [(LoadingError("it loads."), "5"), (DrainingError("it goes."), None)])
def test_a_server_that_is_not_there_says_when_to_come_back(
    server: Any, monkeypatch: pytest.MonkeyPatch, error: ServingError, retry: str | None
) -> None:
    def submit(job: Job) -> Ticket:
        raise error

    monkeypatch.setattr(server.service, "submit", submit)
    answer = httpx.post(f"{server.url}/generate", json={"inputs": PROMPT})
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, retry)
    assert answer.json() == {"error": str(error), "error_type": error.kind}


def test_a_defect_is_a_500_without_a_traceback(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    def submit(job: Job) -> Ticket:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.service, "submit", submit)

    async def ask(path: str) -> httpx.Response:
        app = httpx.ASGITransport(make_app(server.service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=app, base_url="http://here") as client:
            return await client.post(path, json={"inputs": PROMPT, "prompt": PROMPT})

    for path in ("/generate", "/v1/completions"):
        answer = asyncio.run(ask(path))
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        assert "log" in str(answer.json()["error"])


def test_a_refusal_is_one_line_that_can_be_sent() -> None:
    for path in ("/generate", "/v1/completions", "/infill"):
        body = refusal(path, ServingError("two\nlines \ud800 \U0001f600"))
        assert "two lines \\\\ud800 \U0001f600" in json.dumps(body, ensure_ascii=False).encode().decode()


def test_stop_texts_are_short_in_all(server: Any) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1, "stop": ["~" * 1000 + str(n) for n in range(5)]}}
    answer = httpx.post(f"{server.url}/generate", json=body)
    assert answer.status_code == 422
    assert "5 stop texts of 5005 characters" in answer.json()["error"]


def test_a_prompt_of_a_hundred_thousand_characters_is_refused_or_loses_its_beginning(server: Any) -> None:
    text = "def load_path(items):\n" * 4546
    for path, body in {
        "/generate": {"inputs": text},
        "/v1/completions": {"prompt": text},
        "/api/generate": {"prompt": text, "truncate": False},
    }.items():
        answer = httpx.post(f"{server.url}{path}", json=body)
        assert answer.status_code == 422
        assert "are allowed" in answer.text or "more than" in answer.text
    for path, body in {
        "/infill": {"input_prefix": text, "n_predict": 2},
        "/generate": {"inputs": text, "parameters": {"truncate": 100, "max_new_tokens": 2}},
    }.items():
        report = httpx.post(f"{server.url}{path}", json=body, timeout=30).json()["x_early_exit"]
        assert report["prompt_tokens"] == server.service.max_prompt_tokens
        assert report["prompt_tokens_truncated"] > 0
