"""The rival that somebody else runs: a server of completions, measured from outside."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from harness.appearance.visible_text import one_line
from harness.contracts import Answer, BlackBox
from harness.errors import EndpointError, OptionError, reason

MOST_BYTES = 16 << 20
"""Of one answer; a completion has some thousands."""

_LEAVING_S = 1.0  # that a local server has to notice that nobody listens
_SHOWN = 200  # characters of what a server says that does not answer
_TELLING = 16  # characters of a key that no completion holds by chance; local servers are given keys such as ``test``
_DONE = b"[DONE]"
_ENDINGS: Mapping[object, Literal["eos", "length"]] = {
    "stop": "eos",
    "length": "length",  # OpenAI's finish_reason
    "eos": "eos",
    "limit": "length",
    "word": "eos",  # llama.cpp's stop_type
}


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError("write http://HOST:PORT or https://HOST, with the path where it is another than /v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL with a user, a password or a query would be recorded; name the key with key_env")
    return url


@dataclass(frozen=True)
class Endpoint(BlackBox):
    """A server that completes text, as a black box: what it runs on, and how, is its own affair.

    Rule: the prompt of a sample is sent as text, greedy (``temperature = 0``) and with the same limit of new tokens,
    and the answer is read as a stream: latency and time to the first token are this client's. The server makes tokens
    of the text itself, and may put a token before it. A path that ends in ``/completion`` is asked in llama.cpp's
    dialect, any other as OpenAI's completions; without a path, ``/v1/completions``.

    Not known of it, and missing in its row: tokens, their layers, what the engine counts. Energy is this machine's
    where a sensor measures and the address is a loopback one; a server there is not told from a tunnel to another
    machine. Scores of tokens are of the text, as the run's tokenizer spells it.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (``POST /completion``) and
    https://platform.openai.com/docs/api-reference/completions. Cost per check: none, it has no exits.
    """

    url: Annotated[str, AfterValidator(_checked), Field(description="the server, as http://HOST:PORT[/PATH]")] = (
        "http://127.0.0.1:8080/completion"
    )
    model: Annotated[str, Field(description="name that the server wants to be given; empty for none")] = ""
    key_env: Annotated[
        str, Field(description="environment variable that holds the API key, which is sent and never recorded")
    ] = ""
    timeout_s: Annotated[float, Field(gt=0, le=3600, description="seconds that an answer may take")] = 60.0

    @property
    def local(self) -> bool:
        """Whether the address is a loopback one."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def connect(self) -> _Client:
        """Make an HTTP client.

        Raises:
            OptionError: there is no such environment variable, or what it holds can be no key.
        """
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""  # files of keys end with a newline
        if self.key_env and not key:
            raise OptionError(f"endpoint:key_env={self.key_env}: that environment variable is not set. Export it.")
        if not (key.isascii() and key.isprintable()):
            raise OptionError(
                f"endpoint:key_env={self.key_env}: that environment variable holds characters that no HTTP header can, "
                "so it is no key. Export it again."
            )
        return _Client(self, key)

    def remedy(self) -> str:
        """Say how to start one."""
        return (
            "Start the server (for example `llama-server -m MODEL.gguf --port 8080`), give its address with "
            "--strategy endpoint:url=URL, or leave that strategy out."
        )


class _Client:
    """Implements :class:`harness.contracts.Connection` over HTTP."""

    def __init__(self, asked: Endpoint, key: str) -> None:
        import httpx

        path = urlsplit(asked.url).path.rstrip("/")
        behind = {"": "/v1/completions", "/v1": "/completions"}.get(path, "")
        self._url, self._key = asked.url.rstrip("/") + behind, key
        self._model, self._timeout_s = asked.model, asked.timeout_s
        self._llama_cpp, self._local = path.endswith("/completion"), asked.local
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=asked.timeout_s,
            trust_env=not asked.local,  # a proxy is not asked for what is here
        )

    def complete(self, prompt: str, max_new_tokens: int, is_over: Callable[[str], bool]) -> Answer:
        """Send the prompt and read the stream; an answer that is over for the client is not read to its end."""
        import httpx

        began = time.perf_counter()
        try:
            with self._http.stream("POST", self._url, json=self._body(prompt, max_new_tokens)) as response:
                chunks = self._on_time(response.iter_bytes(), began + self._timeout_s)
                if response.status_code != httpx.codes.OK:
                    raise self._error(f"answers {response.status_code}: {self._beginning(chunks)}")
                answer = self._read(chunks, began, is_over)
                if answer.finish_reason == "stop" and self._local:
                    _leave(response.extensions["network_stream"].get_extra_info("socket"))
        except httpx.TimeoutException:
            raise self._late() from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError) as error:  # a host may be no name
            raise self._error(f"cannot be reached: {reason(error)}") from None
        if answer.tokens is not None and answer.tokens > max_new_tokens:
            raise self._error(f"made {answer.tokens} tokens where {max_new_tokens} were asked for")
        if len(self._key) >= _TELLING and (self._key in answer.text or self._key in answer.model):
            raise self._error("answers with the API key it was sent, which is not recorded: use another server or key")
        return answer

    def close(self) -> None:
        self._http.close()

    def _body(self, prompt: str, max_new_tokens: int) -> dict[str, Any]:
        named = {"model": self._model} if self._model else {}
        body = {"prompt": prompt, "temperature": 0, "stream": True, **named}
        if self._llama_cpp:  # every prompt is read anew, as the engine reads it
            return {**body, "n_predict": max_new_tokens, "cache_prompt": False, "repeat_penalty": 1.0}
        return {**body, "max_tokens": max_new_tokens, "stream_options": {"include_usage": True}}

    def _read(self, chunks: Iterable[bytes], began: float, is_over: Callable[[str], bool]) -> Answer:
        text, first, model = "", None, ""
        tokens: int | None = None
        ended: object = None
        for event in self._events(chunks):
            now = time.perf_counter() - began
            piece, ending = self._piece(event)
            tokens, model = _tokens(event, tokens), str(event.get("model") or model)
            ended = ended or ending
            if piece:
                text, first = text + piece, now if first is None else first
                if is_over(text):
                    return Answer(text, now, first, "stop", tokens, model)
        if ended is None:
            raise self._error("ended its answer before the completion was over")
        return Answer(text, time.perf_counter() - began, first, _ENDINGS.get(ended), tokens, model)

    def _on_time(self, chunks: Iterable[bytes], deadline: float) -> Iterator[bytes]:
        """Yield what comes until the deadline, however slowly it comes."""
        for chunk in chunks:
            if time.perf_counter() > deadline:
                raise self._late()
            yield chunk

    def _events(self, chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the objects of a stream of server-sent events."""
        pending, read = b"", 0
        for chunk in chunks:
            read += len(chunk)
            if read > MOST_BYTES:
                raise self._error(f"answers more than {MOST_BYTES >> 20} MiB")
            *lines, pending = (pending + chunk).split(b"\n")
            yield from self._objects(lines)
        yield from self._objects([pending])

    def _objects(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for line in map(bytes.strip, lines):
            kind, _, data = line.partition(b":")
            if not line or kind in (b"", b"event", b"id", b"retry") or data.strip() == _DONE:
                continue
            try:
                event = json.loads(data) if kind in (b"data", b"error") else None
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise self._error(f"answers what is no stream of completions: {self._beginning([line])}")
            if event.get("error") or kind == b"error":
                raise self._error(f"fails: {self._beginning([data])}")
            yield event

    def _piece(self, event: Mapping[str, Any]) -> tuple[str, object]:
        """Return what an event adds, and how the completion ended where it says so."""
        if self._llama_cpp:
            piece, ending = event.get("content"), (event.get("stop_type") or "stop") if event.get("stop") else None
        else:
            choices = event.get("choices")
            if choices == []:  # the last event of some, which has the usage
                return "", None
            choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
            piece, ending = choice.get("text"), choice.get("finish_reason")
            piece = "" if piece is None and ending else piece
        if ending is not None and not isinstance(ending, str):
            raise self._error(f"ends a completion by what is no word: {self._beginning([json.dumps(ending).encode()])}")
        if not isinstance(piece, str):
            raise self._error(f"answers an event without text: {self._beginning([json.dumps(event).encode()])}")
        return piece, ending

    def _beginning(self, chunks: Iterable[bytes]) -> str:
        """Return what a server says, as far as one line shows it, without the key or the beginning of one."""
        said = b""
        for chunk in chunks:
            said += chunk
            if len(said) > _SHOWN + len(self._key):
                break
        text = " ".join(self._without_key(said.decode(errors="replace")).split())
        cut = next((n for n in range(len(self._key) - 1, 3, -1) if text.endswith(self._key[:n])), 0)
        text = text[: len(text) - cut]
        return f"{text[:_SHOWN]}…" if cut or len(text) > _SHOWN else text or "nothing"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text

    def _late(self) -> EndpointError:
        return self._error(f"was not done after {self._timeout_s:g} s (timeout_s)")

    def _error(self, what: str) -> EndpointError:
        said = self._without_key(one_line(f"the endpoint {self._url} {what}"))
        return EndpointError(f"{said.rstrip('.')}.")


def _leave(connection: socket.socket) -> None:
    """Say that no more is wanted, and wait until the server has stopped: what is measured next has the same cores."""
    until = time.perf_counter() + _LEAVING_S
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := until - time.perf_counter()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return


def _tokens(event: Mapping[str, Any], before: int | None) -> int | None:
    usage = event.get("usage")
    told = usage.get("completion_tokens") if isinstance(usage, dict) else event.get("tokens_predicted")
    return told if type(told) is int and told >= 0 else before
