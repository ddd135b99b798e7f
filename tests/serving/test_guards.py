"""Who may pass: the right key, from here, from pages that were allowed, and with a body that is not too big."""

from __future__ import annotations

import asyncio
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
from harness.serving.app import make_app
from harness.serving.config import ServeConfig
from harness.serving.guards import SHORTEST_KEY, allowed_key, guarded, is_loopback, listen, read_key
from harness.serving.metrics import Metrics

KEY = "correct-horse-battery"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with 200."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"here"})


def ask(
    method: str = "POST",
    path: str = "/generate",
    *,
    key: str | None = None,
    app: Any = echo,
    content: Any = None,
    headers: Any = None,
    **config: Any,
) -> httpx.Response:
    """One request to a guarded application in this process."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(guarded(app, ServeConfig(**config), key, Metrics()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send())


def test_the_key_opens_and_nothing_else_does() -> None:
    bearing = (
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"X-Api-Key": KEY},
        [("Authorization", "Bearer wrong"), ("X-Api-Key", KEY)],
    )
    assert [ask(key=KEY, headers=headers).status_code for headers in bearing] == [200] * 4
    wrong: tuple[Any, ...] = (
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
    )
    for headers in wrong:
        for path in ("/generate", "/v1/completions", "/infill", "/metrics", "/nowhere", "//", "/healthz"):
            answer = ask(path=path, key=KEY, headers=headers)
            assert answer.status_code == 401, (headers, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
    assert ask(path="/v1/completions", key=KEY).json()["error"]["type"] == "unauthorized"
    assert ask(path="/infill", key=KEY).json()["error"]["code"] == 401
    assert isinstance(ask(path="/generate", key=KEY).json()["error"], str)


def test_health_and_the_page_are_open_without_a_key() -> None:
    asked = {
        ("GET", "/health"): 200, ("HEAD", "/health"): 200, ("GET", "/"): 200, ("GET", "/static/page.css"): 200,
        ("POST", "/"): 401, ("POST", "/health"): 401, ("DELETE", "/static/page.css"): 401, ("GET", "/info"): 401,
        ("GET", "/static"): 401, ("OPTIONS", "/generate"): 401,
    }  # fmt: skip
    assert {call: ask(*call, key=KEY).status_code for call in asked} == asked


def of_size(size: int) -> bytes:
    """A body of so many bytes that names no strategy: it is read, and refused with 422."""
    return b'{"prompt": "", "x": "' + b"x" * (size - 23) + b'"}'


def test_bodies_are_capped_in_size_and_time(server: Any) -> None:
    app, given = make_app(server.service), 0
    server.service.config, before = (
        server.service.config.model_copy(update={"max_body_bytes": 4096}),
        server.service.config,
    )

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 100 << 20:
            given += 1024
            yield b"x" * 1024

    async def late() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    try:
        assert ask(app=app, path="/v1/completions", content=of_size(4096)).status_code == 422
        answer = ask(app=app, path="/v1/completions", content=of_size(4097))
        assert (answer.status_code, "4096 bytes" in answer.json()["error"]["message"]) == (413, True)
        for announced in ("10000000", "9" * 5000, "-1"):
            assert ask(app=app, headers={"Content-Length": announced}).status_code == 413
        assert ask(app=app, content=endless()).status_code == 413
        assert given <= 4096 + 2 * 1024
        server.service.config = server.service.config.model_copy(update={"deadline_s": 0.3})
        begun = time.monotonic()
        answer = ask(app=app, content=late())
        assert (answer.status_code, answer.json()["error_type"]) == (408, "timeout")
        assert 0.2 < time.monotonic() - begun < 2
    finally:
        server.service.config = before


def test_defects_are_not_swallowed() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(app=broken)


def test_a_name_that_somebody_pointed_here_is_refused() -> None:
    here = ("127.0.0.1:8080", "localhost", "LOCALHOST.:8080", "code.localhost:8080", "[::1]:8080", "192.168.1.7:8080")
    foreign = ("attacker.example:8080", "localhost.attacker.example", "127.0.0.1.attacker.example", "notlocalhost",
               "[::1", "", "localhost@attacker.example")  # fmt: skip
    answers = {host: ask(headers={"Host": host}).status_code for host in (*here, *foreign)}
    assert answers == dict.fromkeys(here, 200) | dict.fromkeys(foreign, 403)


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


def test_foreign_pages_are_refused_and_the_own_passes() -> None:
    foreign = ("https://attacker.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1", "ftp://127.0.0.1:8080",
               "https://127.0.0.1.attacker.example:8080", "vscode-webview://127.0.0.1:80", "http://[", "")  # fmt: skip
    for origin in foreign:
        for method in ("GET", "POST", "OPTIONS"):
            answer = ask(method, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
            assert answer.status_code == 403, origin
            assert "access-control-allow-origin" not in answer.headers
    for origin, host in (
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost", "localhost:80"),
        ("HTTP://LocalHost:8080", "localhost:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ):
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
    guard = guarded(app, ServeConfig(), None, metrics)
    asyncio.run(guard(scope_of(), receive, send))  # type: ignore[arg-type]
    assert events == ["start", "body", "made", "body", "made", "http.disconnect"]
    assert statuses(metrics) == {("other", "499"): 1}


def test_a_client_that_has_its_answer_may_leave() -> None:
    """An application that listens on after its answer, as streams do, has not lost a client."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    async def drop(message: Any) -> None:
        pass

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    metrics = Metrics()
    asyncio.run(guarded(app, ServeConfig(), None, metrics)(scope_of(), gone, drop))
    assert statuses(metrics) == {("other", "200"): 1}


def test_websockets_are_closed_and_the_lifespan_is_handed_on() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        seen.append(message["type"])

    guard = guarded(app, ServeConfig(), KEY, Metrics())
    asyncio.run(guard(scope_of("websocket"), None, send))  # type: ignore[arg-type]
    asyncio.run(guard(scope_of("lifespan"), None, send))  # type: ignore[arg-type]
    assert seen == ["websocket.close", "lifespan"]


def statuses(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(metrics.page()[0].decode())
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
    guard = guarded(app, ServeConfig(), KEY, metrics)

    async def send() -> None:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        headers = {"X-Api-Key": KEY}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            for name in ("a", "b/c", "broken"):
                await client.post(f"/models/{name}")
            await client.post("/secret-path")
            await client.post("/models/a", headers={"X-Api-Key": "wrong"})

    asyncio.run(send())
    route = "/models/{name:path}"
    assert statuses(metrics) == {
        (route, "200"): 2,
        (route, "500"): 1,
        ("other", "404"): 1,
        ("other", "401"): 1,
    }
    assert b"secret" not in metrics.page()[0]


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


def test_unusable_keys_are_refused(key_file: Callable[[bytes], Path], tmp_path: Path) -> None:
    for content, said in (
        (b"", "is empty"),
        (b"\n" + KEY.encode(), "is empty"),
        (b"k" * (SHORTEST_KEY - 1), f"has {SHORTEST_KEY - 1} characters"),
        ("schlüssel-der-lang-genug-ist".encode(), "printable ASCII"),
        (b"\xff\xfe" * 20, "printable ASCII"),
        (b"two words, and long enough", "printable ASCII"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_key(key_file(content))
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="cannot read --api-key-file"):
            read_key(path)


def test_beyond_loopback_needs_a_key_or_the_word(key_file: Callable[[bytes], Path]) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"):
        assert is_loopback(host)
        assert allowed_key(ServeConfig(host=host)) is None
    file = key_file(KEY.encode())
    for host in ("0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "0"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            allowed_key(ServeConfig(host=host))
        assert allowed_key(ServeConfig(host=host, insecure=True)) is None
        assert allowed_key(ServeConfig(host=host, api_key_file=file)) == KEY
    with pytest.raises(ConfigError, match="every web page"):
        allowed_key(ServeConfig(cors_origins=("*",), insecure=True))
    assert allowed_key(ServeConfig(cors_origins=("*",), api_key_file=file)) == KEY
    for origin in ("ide.example", "https://ide.example/", "https://a@b", "null", "", "http://["):
        with pytest.raises(ConfigError, match="no web origin"):
            allowed_key(ServeConfig(cors_origins=(origin,)))


def test_a_host_where_nothing_can_listen_is_refused() -> None:
    for host in ("no-such-host.invalid", "a" * 300, "a..b"):
        with pytest.raises(ConfigError, match="cannot be resolved"):
            listen(ServeConfig(host=host))
    with pytest.raises(ConfigError, match="no address of this machine"):
        listen(ServeConfig(host="192.0.2.1", port=0))


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


def test_the_url_is_one_that_works_here() -> None:
    urls = {host: ServeConfig(host=host).url(80) for host in ("0.0.0.0", "::", "[::1]", "::1", "code.example")}
    assert urls == {
        "0.0.0.0": "http://127.0.0.1:80", "::": "http://[::1]:80", "[::1]": "http://[::1]:80",
        "::1": "http://[::1]:80", "code.example": "http://code.example:80",
    }  # fmt: skip
