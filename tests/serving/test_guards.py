"""Who may pass: the right key, from here, from pages that were allowed, and with a body that is not too big."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.errors import ConfigError
from harness.serving.app import make_app
from harness.serving.config import ServeConfig
from harness.serving.guards import SHORTEST_KEY, SWALLOWED_BODIES, allowed_key, guarded, listen, read_key
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
    for headers in bearing:
        answer = ask(key=KEY, headers=headers)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    wrong = (
        b"",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}",
        KEY,
        f"Basic {KEY}",
        b"Bearer \xff\x80",
    )
    for value in wrong:
        for path in ("/generate", "/infill", "/metrics", "/nowhere", "//", "/healthz"):
            answer = ask(path=path, key=KEY, headers=[("Authorization", value), ("X-Api-Key", "")])
            assert answer.status_code == 401, (value, path)
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
    """A body of so many bytes that names no strategy: it is read, and refused with 400."""
    return b'{"prompt": "", "x": "' + b"x" * (size - 23) + b'"}'


def hears_at_once(app: Any, headers: dict[str, str]) -> int:
    """Announce a body, and send nothing of it; return the status of the first answer."""

    async def talk() -> int:
        heard: asyncio.Queue[Any] = asyncio.Queue()
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {**scope_of(), "headers": [(b"host", b"localhost"), *pairs], "query_string": b""}
        task = asyncio.ensure_future(app(scope, asyncio.Event().wait, heard.put))
        status: int = (await asyncio.wait_for(heard.get(), 5))["status"]
        body = await asyncio.wait_for(heard.get(), 5)
        assert b"4096 bytes" in body["body"]
        task.cancel()
        return status

    return asyncio.run(talk())


def test_bodies_are_capped_in_size_and_time(server: Any) -> None:
    app, given, before = make_app(server.service), 0, server.service.config

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 100 << 20:
            given += 1024
            yield b"x" * 1024

    async def late() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    server.service.config = before.model_copy(update={"max_body_bytes": 4096, "deadline_s": 0.5})
    try:
        assert ask(app=app, path="/v1/completions", content=of_size(4096)).status_code == 400
        answer = ask(app=app, path="/v1/completions", content=of_size(4097))
        assert (answer.status_code, "4096 bytes" in answer.json()["error"]["message"]) == (413, True)
        assert ask(app=app, content=endless()).status_code == 413
        assert given <= (SWALLOWED_BODIES + 2) * 4096
        begun = time.monotonic()
        waits = {"Content-Length": "4097"}  # and sends nothing before it hears that it may
        assert hears_at_once(app, waits) == 413
        assert time.monotonic() - begun < 0.4
        begun = time.monotonic()
        answer = ask(app=app, content=late())
        assert (answer.status_code, answer.json()["error_type"]) == (408, "timeout")
        assert 0.4 < time.monotonic() - begun < 3
    finally:
        server.service.config = before


def test_a_name_that_somebody_pointed_here_is_refused() -> None:
    here = ("127.0.0.1:8080", "localhost", "LOCALHOST.:8080", "code.localhost:8080", "[::1]:8080", "192.168.1.7:8080")
    foreign = ("attacker.example:8080", "localhost.attacker.example", "127.0.0.1.attacker.example", "notlocalhost",
               "[::1", "", "localhost@attacker.example")  # fmt: skip
    answers = {host: ask(headers={"Host": host}).status_code for host in (*here, *foreign)}
    assert answers == dict.fromkeys(here, 200) | dict.fromkeys(foreign, 403)
    own = socket.gethostname()
    for host, status in ((foreign[0], 403), (own, 200), (f"{own}.local:8080", 200), ("10.1.2.3", 200)):
        assert ask(host="0.0.0.0", insecure=True, headers={"Host": host}).status_code == status
    assert ask(key=KEY, headers={"X-Api-Key": KEY, "Host": "code.example.com"}).status_code == 200  # a proxy's name


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
    config = {"cors_origins": ("HTTPS://Ide.example",), "key": KEY}
    preflight = {"Origin": "https://ide.example", "Access-Control-Request-Method": "POST"}
    wants = {
        **preflight,
        "Access-Control-Request-Headers": "authorization,x-early-exit",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = ask("OPTIONS", headers=wants, **config)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://ide.example")
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert answer.headers["access-control-allow-private-network"] == "true"
    refused = ask(headers={"Origin": "https://ide.example"}, **config)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://ide.example")
    taken = ask(headers={"Origin": "https://ide.example", "X-Api-Key": KEY}, **config)
    assert (taken.status_code, taken.headers["access-control-allow-origin"]) == (200, "https://ide.example")
    foreign = ask(headers={"Origin": "https://ide.example.attacker.example", "X-Api-Key": KEY}, **config)
    assert (foreign.status_code, foreign.headers.get("access-control-allow-origin")) == (403, None)


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

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        await receive()  # a client that has its answer may leave

    incoming = iter([{"type": "http.disconnect"}])
    asyncio.run(guarded(answered, ServeConfig(), None, metrics)(scope_of(), receive, send))  # type: ignore[arg-type]
    assert statuses(metrics) == {("other", "499"): 1, ("other", "200"): 1}


def test_websockets_are_closed() -> None:
    """No guard checks what they say."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append("let in")

    async def send(message: Any) -> None:
        seen.append(message["type"])

    asyncio.run(guarded(app, ServeConfig(), None, Metrics())(scope_of("websocket"), None, send))  # type: ignore[arg-type]
    assert seen == ["websocket.close"]


def statuses(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(metrics.page()[0].decode())
        for sample in family.samples
        if sample.name == "early_exit_http_requests_total"
    }


def test_requests_are_counted_by_their_route_never_by_their_path(server: Any) -> None:
    metrics = Metrics()
    guard = guarded(make_app(server.service), ServeConfig(), KEY, metrics)

    async def send() -> None:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        headers = {"X-Api-Key": KEY}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            for path in ("/models/a", "/models/b/c", "/secret-path"):
                await client.post(path)
            await client.post("/models/a", headers={"X-Api-Key": "wrong"})

    asyncio.run(send())
    assert statuses(metrics) == {("/models/{model:path}", "400"): 2, ("other", "404"): 1, ("other", "401"): 1}
    assert b"secret" not in metrics.page()[0]


# What is settled before anything listens.


@pytest.mark.skipif("os.name != 'posix'")
def test_the_key_is_the_first_line_and_unusable_ones_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_bytes(f"  {KEY}\t\r\nsecond line\n".encode())
    assert read_key(file) == KEY
    assert not caplog.records
    file.chmod(0o644)
    assert read_key(file) == KEY
    assert "chmod 600" in caplog.text
    assert KEY not in caplog.text
    for content in (
        b"",
        b"\n" + KEY.encode(),
        b"k" * (SHORTEST_KEY - 1),
        b"\xff\xfe" * 20,
        b"two words, and long enough",
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="is no key"):
            read_key(file)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="cannot read --api-key-file"):
            read_key(path)


@pytest.fixture
def begun() -> Iterator[Callable[..., list[Any]]]:
    """``begun(key, **config)``: the addresses at which a server listens until the test is done."""
    with contextlib.ExitStack() as stack:
        yield lambda key=None, **config: [
            stack.enter_context(listener).getsockname() for listener in listen(ServeConfig(port=0, **config), key)
        ]


def test_every_address_of_a_name_listens_at_one_port(
    begun: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [(socket.AF_INET, 0, 6, "", (f"127.0.0.{number}", 0)) for number in (2, 1)]
    there.append((socket.AF_INET6, 0, 6, "", ("2001:db8::1", 0, 0, 0)))  # type: ignore[arg-type]  # not of this machine
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: there)
    with pytest.raises(ConfigError, match="open to other machines"):  # one of its addresses is
        begun(host="localhost")
    (first, port), (second, other) = begun(KEY, host="localhost")
    assert (first, second, port) == ("127.0.0.1", "127.0.0.2", other)


def test_no_token_waits_for_an_acknowledgement() -> None:
    (listener,) = listen(ServeConfig(host="127.0.0.1", port=0), None)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_beyond_loopback_needs_a_key_or_the_word(begun: Callable[..., list[Any]]) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "localhost"):
        assert begun(host=host)[0][0].startswith("127.")
    for host in ("0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "0"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            listen(ServeConfig(host=host), None)
    for key, insecure in ((None, True), (KEY, False)):
        ((_, port),) = begun(key, host="0.0.0.0", insecure=insecure)
        with pytest.raises(ConfigError, match=rf"cannot listen at 127\.0\.0\.1, port {port}: Address already in use"):
            listen(ServeConfig(port=port), None)
    for host in ("no-such-host.invalid", "a" * 300, "a..b", "192.0.2.1"):
        with pytest.raises(ConfigError, match="cannot listen at"):
            listen(ServeConfig(host=host, port=0, insecure=True), None)


def test_every_web_page_needs_a_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with pytest.raises(ConfigError, match="every web page"):
        allowed_key(ServeConfig(cors_origins=("*",), insecure=True))
    for origins in (("*",), ("http://[::1]:8080", "https://ide.example:8", "vscode-webview://x")):
        assert allowed_key(ServeConfig(cors_origins=origins, api_key_file=tmp_path / "key")) == KEY
    for origin in ("ide.example", "https://ide.example/", "https://a@b", "null", "", "http://["):
        with pytest.raises(ConfigError, match="no web origin"):
            allowed_key(ServeConfig(cors_origins=(origin,)))
