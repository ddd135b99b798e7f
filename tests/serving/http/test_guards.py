"""Who may pass: the right key, from here, from pages that were allowed, and with a body that is not too big."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families

from harness.errors import ConfigError
from harness.serving.binding import SHORTEST_KEY, allowed_key, is_loopback, listen, read_key, url_of
from harness.serving.config import ServeConfig
from harness.serving.http.guards import counted, guarded
from harness.serving.metrics import Metrics

KEY = "correct-horse-battery"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of bytes that came through."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message.get("more_body", False)
    body = json.dumps({"size": size}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


def ask(
    method: str = "POST",
    path: str = "/generate",
    *,
    key: str | None = None,
    app: Any = echo,
    content: Any = None,
    headers: Any = None,
    base: str = "http://127.0.0.1:8080",
    **config: Any,
) -> httpx.Response:
    """One request to a guarded application in this process."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(guarded(app, ServeConfig(**config), key))
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"X-Api-Key": KEY},
        [("Authorization", "Bearer wrong"), ("X-Api-Key", KEY)],
    ],
)
def test_the_key_opens(headers: Any) -> None:
    assert ask(key=KEY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"X-Api-Key": ""},
        {"Authorization": "Bearer schlüssel-ß-ключ".encode()},
        {"X-Api-Key": b"\xff\xfe\x80"},
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/infill", "/metrics", "/nowhere", "//", "/healthz"])
def test_nothing_else_does(headers: Any, path: str) -> None:
    answer = ask(path=path, key=KEY, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


def test_a_refusal_speaks_the_dialect_of_its_route() -> None:
    assert ask(path="/v1/completions", key=KEY).json()["error"]["type"] == "unauthorized"
    assert ask(path="/infill", key=KEY).json()["error"]["code"] == 401
    assert isinstance(ask(path="/generate", key=KEY).json()["error"], str)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("GET", "/", 200),
        ("GET", "/static/page.css", 200),
        ("POST", "/", 401),
        ("POST", "/health", 401),
        ("DELETE", "/static/page.css", 401),
        ("GET", "/info", 401),
        ("GET", "/static", 401),
        ("OPTIONS", "/generate", 401),
    ],
)
def test_open_without_a_key(method: str, path: str, status: int) -> None:
    assert ask(method, path, key=KEY).status_code == status


def test_bodies_up_to_the_cap_pass_and_one_byte_more_does_not() -> None:
    assert ask(content=b"x" * 2048, max_body_bytes=2048).json()["size"] == 2048
    answer = ask(path="/v1/completions", content=b"x" * 2049, max_body_bytes=2048)
    assert answer.status_code == 413
    assert "2048 bytes" in answer.json()["error"]["message"]


def test_an_announced_body_is_refused_before_it_is_read() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("handed on")

    assert ask(app=never, headers={"Content-Length": "10000000"}).status_code == 413
    assert ask(app=never, headers={"Content-Length": "9" * 5000}).status_code == 413


def test_a_body_that_was_not_announced_is_refused_as_soon_as_it_is_too_big() -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 100 << 20:
            given += 1024
            yield b"x" * 1024

    answer = ask(content=endless(), max_body_bytes=4096)
    assert answer.status_code == 413
    assert given <= 4096 + 2 * 1024


def test_too_big_is_413_whatever_the_application_makes_of_it() -> None:
    """Frameworks turn a broken body into a 400 of their own, or raise."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b"[" * 1024

    app = FastAPI()

    @app.post("/generate")
    async def read(body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise RuntimeError("gone")

    for inner in (app, breaks):
        answer = ask(app=inner, content=chunks(), max_body_bytes=2048, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413, answer.text


def test_a_body_that_does_not_end_is_given_up() -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" "
            await asyncio.sleep(0.05)

    begun = time.monotonic()
    answer = ask(content=drip(), deadline_s=0.3)
    assert (answer.status_code, answer.json()["error_type"]) == (408, "timeout")
    assert 0.2 < time.monotonic() - begun < 2


def test_once_the_body_is_there_the_answer_may_take_longer() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        """Waits for the client's end beside its work, as routes do."""
        while (await receive()).get("more_body"):
            pass
        gone = asyncio.ensure_future(receive())
        await asyncio.sleep(0.3)
        assert not gone.done()
        gone.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    assert ask(app=slow, content=b"{}", deadline_s=0.1).content == b"done"


def test_defects_are_not_swallowed() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(app=broken)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST.:8080", 200),
        ("code.localhost:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("attacker.example:8080", 403),
        ("localhost.attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("notlocalhost", 403),
        ("[::1", 403),
        ("", 403),
        ("localhost@attacker.example", 403),
    ],
)
def test_a_name_that_somebody_pointed_here_is_refused(host: str, status: int) -> None:
    assert ask(headers={"Host": host}).status_code == status


def test_with_a_key_any_name_is_served_and_without_one_this_machines() -> None:
    bears = {"X-Api-Key": KEY, "Host": "code.example.com"}
    assert ask(key=KEY, headers=bears).status_code == 200
    own = socket.gethostname()
    for host, status in (("code.example.com", 403), (own, 200), (f"{own}.local:8080", 200), ("10.1.2.3", 200)):
        assert ask(host="0.0.0.0", insecure=True, headers={"Host": host}).status_code == status


def test_a_listed_origin_may_come_from_another_network_and_however_it_is_written() -> None:
    asked = {
        "Origin": "http://editor.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = ask("OPTIONS", headers=asked, cors_origins=("HTTP://Editor.example",))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://editor.example"
    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://attacker.example",
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1",
        "https://127.0.0.1.attacker.example:8080",
        "ftp://127.0.0.1:8080",
        "vscode-webview://127.0.0.1:8080",
        "http://[",
        "",
    ],
)
def test_foreign_pages_are_refused(method: str, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = ask(method, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost", "localhost:80"),
        ("HTTP://LocalHost:8080", "localhost:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_own_page_passes(origin: str, host: str) -> None:
    answer = ask(headers={"Origin": origin, "Host": host})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_listed_origins_and_only_those_may_read() -> None:
    config = {"cors_origins": ("https://ide.example",), "key": KEY}
    preflight = {"Origin": "https://ide.example", "Access-Control-Request-Method": "POST"}
    wants = {**preflight, "Access-Control-Request-Headers": "authorization,x-early-exit"}
    answer = ask("OPTIONS", headers=wants, **config)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://ide.example")
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    refused = ask(headers={"Origin": "https://ide.example"}, **config)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://ide.example")
    taken = ask(headers={"Origin": "https://ide.example", "X-Api-Key": KEY}, **config)
    assert (taken.status_code, taken.headers["access-control-allow-origin"]) == (200, "https://ide.example")
    foreign = ask(headers={"Origin": "https://ide.example.attacker.example", "X-Api-Key": KEY}, **config)
    assert (foreign.status_code, foreign.headers.get("access-control-allow-origin")) == (403, None)


def test_every_answer_may_be_neither_framed_nor_guessed_at() -> None:
    for answer in (ask(), ask(key=KEY), ask(headers={"Origin": "null"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_page_keeps_its_own_policy() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        policy = (b"content-security-policy", b"default-src 'self'")
        await send({"type": "http.response.start", "status": 200, "headers": [policy]})
        await send({"type": "http.response.body", "body": b""})

    assert ask("GET", "/", app=page).headers.get_list("content-security-policy") == ["default-src 'self'"]


def scope_of(kind: str = "http", path: str = "/generate") -> dict[str, Any]:
    return {"type": kind, "method": "POST", "path": path, "headers": [(b"host", b"localhost")], "query_string": b"k=v"}


def test_streams_pass_piece_by_piece_and_the_clients_end_is_seen() -> None:
    """Nothing in between waits for an answer to be complete, or hides that nobody reads it."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            events.append("made")
        events.append((await receive())["type"])

    incoming = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        events.append(message["type"].rpartition(".")[2])

    metrics = Metrics()
    guard = counted(guarded(app, ServeConfig(), None), metrics)
    asyncio.run(guard(scope_of(), receive, send))  # type: ignore[arg-type]
    assert events == ["start", "body", "made", "body", "made", "http.disconnect"]
    assert statuses(metrics) == {("other", "499"): 1}


def test_one_piece_that_was_not_announced_is_capped_and_a_client_that_has_its_answer_may_leave() -> None:
    """An application that listens on after its answer, as streams do, has not lost a client."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    async def drop(message: Any) -> None:
        pass

    metrics = Metrics()
    guard = counted(guarded(app, ServeConfig(max_body_bytes=1024), None), metrics)
    for size in (1024, 1025):
        pieces = iter([{"type": "http.request", "body": b"x" * size, "more_body": False}, {"type": "http.disconnect"}])

        async def receive(pieces: Any = pieces) -> Any:
            return next(pieces)

        asyncio.run(guard(scope_of(), receive, drop))
    assert statuses(metrics) == {("other", "200"): 1, ("other", "413"): 1}


def test_websockets_are_closed_and_the_lifespan_is_handed_on() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        seen.append(message["type"])

    guard = counted(guarded(app, ServeConfig(), KEY), Metrics())
    asyncio.run(guard(scope_of("websocket"), None, send))  # type: ignore[arg-type]
    asyncio.run(guard(scope_of("lifespan"), None, send))  # type: ignore[arg-type]
    assert seen == ["websocket.close", "lifespan"]


def statuses(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(metrics.page().content.decode())
        for sample in family.samples
        if sample.name == "early_exit_http_requests_total"
    }


def test_requests_are_counted_by_their_route_never_by_their_path() -> None:
    app = FastAPI()

    @app.post("/models/{name:path}")
    async def taken(request: Request, name: str) -> None:
        await request.body()
        if name == "broken":
            raise ZeroDivisionError

    metrics = Metrics()
    guard = counted(guarded(app, ServeConfig(max_body_bytes=1024), KEY), metrics)

    async def send() -> None:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        headers = {"X-Api-Key": KEY}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            for name in ("a", "b/c", "broken"):
                await client.post(f"/models/{name}")
            await client.post("/secret-path")
            await client.post("/models/a", content=b"x" * 2000)
            await client.post("/models/a", headers={"X-Api-Key": "wrong"})

    asyncio.run(send())
    route = "/models/{name:path}"
    assert statuses(metrics) == {
        (route, "200"): 2,
        (route, "500"): 1,
        ("other", "404"): 1,
        ("other", "413"): 1,
        ("other", "401"): 1,
    }
    assert b"secret" not in metrics.page().content


# What is settled before anything listens.


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        file = tmp_path / "key"
        file.write_bytes(content)
        file.chmod(0o600)
        return file

    return write


def test_the_key_is_the_first_line_stripped(
    key_file: Callable[[bytes], Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_key(key_file(f"  {KEY}\t\r\nsecond line\n".encode())) == KEY
    assert not caplog.records


@pytest.mark.skipif("os.name != 'posix'")
def test_a_key_that_others_can_read_is_warned_of(
    key_file: Callable[[bytes], Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = key_file(KEY.encode())
    file.chmod(0o644)
    assert read_key(file) == KEY
    assert "chmod 600" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n" + KEY.encode(), "is empty"),
        (b"k" * (SHORTEST_KEY - 1), f"has {SHORTEST_KEY - 1} characters"),
        ("schlüssel-der-lang-genug-ist".encode(), "printable ASCII"),
        (b"\xff\xfe" * 20, "printable ASCII"),
        (b"two words, and long enough", "printable ASCII"),
    ],
)
def test_unusable_keys_are_refused(key_file: Callable[[bytes], Path], content: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_key(key_file(content))


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="cannot read --api-key-file"):
            read_key(path)


def test_a_key_may_come_out_of_a_pipe_and_a_silent_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.serving.binding.PATIENCE_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a pipe that nobody wrote to"):
        read_key(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, f"{KEY}\n".encode())
    assert read_key(tmp_path / "pipe") == KEY
    os.close(writer)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert allowed_key(ServeConfig(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "0"])
def test_beyond_loopback_needs_a_key_or_the_word(host: str, key_file: Callable[[bytes], Path]) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        allowed_key(ServeConfig(host=host))
    assert allowed_key(ServeConfig(host=host, insecure=True)) is None
    assert allowed_key(ServeConfig(host=host, api_key_file=key_file(KEY.encode()))) == KEY


def test_all_origins_need_a_key_even_with_the_word(key_file: Callable[[bytes], Path]) -> None:
    with pytest.raises(ConfigError, match="every web page"):
        allowed_key(ServeConfig(cors_origins=("*",), insecure=True))
    assert allowed_key(ServeConfig(cors_origins=("*",), api_key_file=key_file(KEY.encode()))) == KEY


@pytest.mark.parametrize("origin", ["ide.example", "https://ide.example/", "https://a@b", "null", "", "http://["])
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="no web origin"):
        allowed_key(ServeConfig(cors_origins=(origin,)))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "a..b"])
def test_a_host_that_nobody_knows_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot be resolved"):
        listen(ServeConfig(host=host))


def test_all_addresses_of_a_name_listen_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", 0)) for number in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: two)
    listeners = listen(ServeConfig(host="localhost", port=0))
    assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1", "127.0.0.2"]
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    with pytest.raises(ConfigError, match=f"port {min(ports)} of localhost is in use"):
        listen(ServeConfig(host="localhost", port=ports.pop()))
    for listener in listeners:
        listener.close()


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address of this machine"):
        listen(ServeConfig(host="192.0.2.1", port=0))


def test_the_url_is_one_that_works_here() -> None:
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"
    assert url_of("[::1]", 80) == url_of("::1", 80) == "http://[::1]:80"
    assert url_of("code.example", 80) == "http://code.example:80"
