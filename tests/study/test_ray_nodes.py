"""Which node of a cluster takes which point, and what becomes of a study when one lacks something or all is lost."""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, StoreError
from harness.study.conduct import ATTEMPTS, Outcome, conduct
from harness.study.executors import ray as executor
from harness.study.executors import ray_nodes
from harness.study.executors.ray_nodes import Nodes, ahead_s
from harness.study.executors.ray_worker import Ended
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory, read_events

from .inline_ray import InlineRay, Scripted, ray
from .step_commands import open_steps
from .test_local import Watching

Declare = Callable[..., Path]
DONE = Ended("done", "", 1)
NO_MODEL = Ended("unfit", "--model /m does not exist. Copy it there.", 1, "model")
NO_ROOM = Ended("unfit", "it cannot write what it measures: /tmp: No space left on device", 1, "room")
NO_FOLDER = Ended("unfit", "/tmp/harness-steps-1 belongs to another user of full. Set TMPDIR there.", 1, "folder")


def raised(cause: Exception) -> Exception:
    """What Ray raises here for what was raised on a node."""
    error = ray.exceptions.RayTaskError("f", f"Traceback\n{type(cause).__name__}: {cause}", cause, "f()", 7, "1.2.3.4")
    return error.as_instanceof_cause()  # type: ignore[no-any-return]


ABSENT = raised(ModuleNotFoundError("No module named 'harness'"))
SAID = (
    "bare measures no more points: it cannot import the harness (ModuleNotFoundError: No module named 'harness'). "
    "Install it there: `pip install 'early-exit-harness[cluster]'`."
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "PointWorker", Scripted)
    monkeypatch.setattr(executor, "COMING_S", 0.0)
    monkeypatch.setattr(executor, "is_measured", lambda directory: True)
    monkeypatch.setattr(ray_nodes, "LOOK_S", 0.0)
    monkeypatch.setattr(ray_nodes, "GREETING_S", 0.0)
    monkeypatch.setattr(Nodes, "free_cpus", lambda self: {})


@pytest.fixture
def measure(declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """``measure(cluster, how, seed=[0, 1])`` conducts a study of these points; ``how(node, point)`` ends each."""

    def run(cluster: InlineRay, how: Callable[[str, str], Ended], more: str = "", **grid: Any) -> Outcome:
        monkeypatch.setattr(Scripted, "measures", staticmethod(how), raising=False)
        study = read_study(str(declare(more=more, **grid)))
        with (
            StudyDirectory(tmp_path / "s", study, expand(study)) as folder,
            executor.Ray(cluster, Nodes(cluster, 1, 0), 1, 0) as runs,
        ):
            return conduct(folder, runs, Watching(lambda event: None))

    return run


def whats(folder: Path) -> Counter[str]:
    return Counter(event.what for event in read_events(folder))


# --------------------------------------------------------------------------------- what a node says of itself


def test_a_node_without_the_package_is_left_out_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    cluster = InlineRay("bare", "whole")
    cluster.greetings["bare"] = ABSENT
    nodes = Nodes(cluster, 1, 0)
    for _ in range(2):
        assert [node.host for node in nodes.usable()] == ["whole"]
    assert caplog.messages == [SAID]

    cluster.table = cluster.table[:1]
    assert nodes.nowhere(("m",)) == ("stopped", f"no node is left: {SAID}")
    with pytest.raises(ConfigError, match="no node is left: bare measures no more points"):
        executor.Ray._on(cluster, {}, None)
    cluster.table = []
    how, text = nodes.nowhere(("m",))
    assert (how, text[:43]) == ("stopped", "the cluster has no node for a point any mor")


def test_a_silent_node_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cluster = InlineRay("silent", "whole")
    cluster.greetings["silent"] = None
    assert [node.host for node in Nodes(cluster, 1, 0).usable()] == ["whole"]
    assert caplog.messages == ["silent measures no more points: it did not answer within 0 s. Look at `ray status`."]


def test_a_node_that_comes_later_is_greeted_and_used() -> None:
    cluster = InlineRay("first")
    nodes = Nodes(cluster, 1, 0)
    assert [node.id for node in nodes.usable()] == ["first"]
    cluster.table = InlineRay("second").table
    assert [node.id for node in nodes.usable()] == ["second"]


@pytest.mark.parametrize(("cpus", "slots"), [(8, 2), (16, 1), (3, 4), (1, 8), (17, 0)])
def test_a_node_takes_as_many_points_as_it_has_physical_cores_for(cpus: int, slots: int) -> None:
    cluster = InlineRay("wide", cpus=16)
    cluster.greetings["wide"] = (time.time(), tuple((core, core + 8) for core in range(8)))
    (node,) = Nodes(cluster, cpus, 0).there()
    assert node.slots == slots


@pytest.mark.parametrize(
    ("clock", "ahead"),
    [(100.0, 0.0), (101.5, 0.0), (103.0, 0.0), (133.0, 30.0), (70.0, -30.0)],
)
def test_a_clock_is_compared_with_both_ends_of_the_call(clock: float, ahead: float) -> None:
    assert ahead_s(clock, began=100.0, ended=103.0) == ahead


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (0.0, []),
        (-30.4, ["the clock of there is 30 s behind; no duration depends on it"]),
        (30.4, ["the clock of there is 30 s ahead; no duration depends on it"]),
    ],
)
def test_a_clock_that_is_off_is_said_to_be(caplog: pytest.LogCaptureFixture, by: float, said: list[str]) -> None:
    cluster = InlineRay("there")
    cluster.greetings["there"] = (time.time() + by, ())
    assert len(Nodes(cluster, 1, 0).usable()) == 1
    assert caplog.messages == said


# --------------------------------------------------------------------------------- what becomes of points


def test_a_point_is_tried_on_every_node_that_may_have_its_model(
    measure: Callable[..., Outcome], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = [f"empty{number}" for number in range(ATTEMPTS + 1)]  # more than a point has attempts
    cluster = InlineRay(*empty, "whole")
    outcome = measure(cluster, lambda node, name: DONE if node == "whole" else NO_MODEL, seed=[0])
    assert (outcome.finished, outcome.failed) == (1, {})
    assert [node for node, _, _ in cluster.attempts] == [*empty, "whole"]
    assert sorted(caplog.messages) == [
        f"{node} measures no more points of this model: --model /m does not exist. Copy it there." for node in empty
    ]
    retried = [event.reason for event in read_events(tmp_path / "s") if event.what == "retried"]
    assert sorted(retried) == sorted(caplog.messages)


def test_where_no_node_has_a_model_its_points_fail_and_the_others_go_on(
    measure: Callable[..., Outcome], tmp_path: Path, tiny_opt: Path
) -> None:
    other = f"[[include]]\nmodel = {json.dumps(str(tiny_opt))}"
    cluster = InlineRay("a", "b")
    outcome = measure(cluster, lambda node, name: DONE if "opt" in name else NO_MODEL, other, seed=[0, 1])
    assert outcome.finished == 1
    assert {text.partition(" of this model: ")[2] for text in outcome.failed.values()} == {NO_MODEL.text}
    assert whats(tmp_path / "s")["failed"] == 2
    assert len(cluster.attempts) == 3  # the first one is not even begun again


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (NO_ROOM, f"{NO_ROOM.text}. Make room there; the next command uses it again."),
        (NO_FOLDER, NO_FOLDER.text),
    ],
)
def test_a_node_that_cannot_write_is_left_out(
    measure: Callable[..., Outcome], caplog: pytest.LogCaptureFixture, ended: Ended, said: str
) -> None:
    cluster = InlineRay("full", "whole")
    outcome = measure(cluster, lambda node, name: ended if node == "full" else DONE, seed=[0, 1, 2])
    assert (outcome.finished, outcome.failed) == (3, {})
    assert [node for node, _, _ in cluster.attempts].count("full") == 1
    assert caplog.messages == [f"full measures no more points: {said}"]


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (NO_ROOM, "no node is left: one measures no more points: it cannot write what it measures: /tmp: No space"),
        (Ended("stopped", "cannot write to /s: No space left on device. Make room.", 1), "cannot write to /s: No"),
    ],
)
def test_a_full_disk_stops_a_study_and_no_point_fails_for_it(
    measure: Callable[..., Outcome], tmp_path: Path, ended: Ended, said: str
) -> None:
    with pytest.raises(StoreError, match="The study stops; give the same command again to go on") as refused:
        measure(InlineRay("one"), lambda node, name: ended, seed=[0, 1])
    assert str(refused.value).startswith(said)
    assert whats(tmp_path / "s") == {"started": 1}
    assert measure(InlineRay("one"), lambda node, name: DONE, seed=[0, 1]).finished == 2


def test_a_step_that_is_too_large_for_a_node_leaves_it_out_for_that_step_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []

    def make(self: Any, attempt: int, directory: str, *_: Any) -> Ended:
        made.append((self.node, Path(directory).name.rpartition("-")[0]))
        return NO_ROOM if made[-1] in no_room else DONE

    monkeypatch.setattr(Scripted, "make", make, raising=False)
    monkeypatch.setattr(executor, "read_step", lambda directory, identity: object())
    no_room = {("full", "large")}
    large, small = {"name": "large", "command": "trace"}, {"name": "small", "command": "trace --length 9"}
    with (
        open_steps(tmp_path / "s", large, small) as folder,
        executor.Ray(cluster := InlineRay("full", "whole"), Nodes(cluster, 1, 0), 1, 0) as runs,
    ):
        outcome = conduct(folder, runs, Watching(lambda event: None))
    assert (outcome.made, outcome.failed) == (2, {})
    assert Counter(made)["full", "large"] == 1
    assert Counter(made)["whole", "large"] == 1
    said = f"full does not make step large: {NO_ROOM.text}. Make room there; the next command uses it again."
    assert caplog.messages == [said]

    with (
        open_steps(tmp_path / "t", large, small) as folder,
        executor.Ray(cluster := InlineRay("full"), Nodes(cluster, 1, 0), 1, 0) as runs,
    ):
        outcome = conduct(folder, runs, Watching(lambda event: None))
    assert (outcome.made, outcome.failed) == (1, {"step large": said})
    assert made[-1] == ("full", "small")


def test_a_process_that_cannot_begin_makes_its_node_unfit(measure: Callable[..., Outcome]) -> None:
    def begin(node: str, name: str) -> Ended:
        if node == "broken":
            error = ImportError("libx.so")
            failed = ray.exceptions.RayTaskError("f", "Traceback\nImportError: libx.so", error, "f()", 7, "1.2.3.4")
            raise ray.exceptions.ActorDiedError(failed)
        return DONE

    cluster = InlineRay("broken", "whole")
    assert measure(cluster, begin, seed=[0, 1]).finished == 2
    assert [node for node, _, _ in cluster.attempts].count("broken") == 1


def test_what_did_not_arrive_is_never_said_to_be_finished(
    measure: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "is_measured", lambda directory: False)
    outcome = measure(InlineRay("one"), lambda node, name: DONE, seed=[0])
    assert outcome.finished == 0
    (text,) = outcome.failed.values()
    assert text.startswith("what it measured did not arrive in ")
    assert whats(tmp_path / "s") == {"started": ATTEMPTS, "retried": ATTEMPTS - 1, "failed": 1}


def test_a_cluster_that_is_gone_stops_the_study_in_one_line(
    measure: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(self: Any) -> Any:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(executor.Collector, "told", told)
    with pytest.raises(StoreError, match=r"^the Ray cluster does not answer any more: .*\. Every window that arrived"):
        measure(InlineRay("one"), lambda node, name: DONE, seed=[0, 1])
    assert whats(tmp_path / "s") == {"started": 1}


def test_every_attempt_is_over_as_soon_as_its_end_is_known(
    measure: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(executor.Collector, "end", lambda self, attempt: calls.append(("end", attempt)))
    cluster = InlineRay("one")
    measure(cluster, lambda node, name: DONE, seed=[0, 1])
    assert calls == [("end", attempt) for _, _, attempt in cluster.attempts]
    assert len({attempt for _, attempt in calls}) == 2


# --------------------------------------------------------------------------------- the way to a cluster


def test_a_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"ray://lab:10001 leads into the cluster from outside, .*`ray start --address=lab:6379 --num-cpus=0`"
    with pytest.raises(ConfigError, match=said):
        executor.Ray.open({"address": "ray://lab:10001"})
    monkeypatch.setenv("RAY_ADDRESS", "ray://lab:10001")
    with pytest.raises(ConfigError, match=said):
        executor.Ray.open({})


@pytest.mark.parametrize(
    ("given", "environment", "noted", "said"),
    [
        ("127.0.0.1:1", "", "", r"at 127\.0\.0\.1:1: .*leave --address and RAY_ADDRESS out"),
        ("", "127.0.0.1:1", "", r"at 127\.0\.0\.1:1: .*leave --address and RAY_ADDRESS out"),
        ("auto", "127.0.0.1:1", "", r"at auto: "),
        ("auto", "", "127.0.0.1:1", r"at auto: "),
        ("", "", "127.0.0.1:1", r"at the address that `ray start` noted: .*forget it \(`ray stop`\)"),
    ],
)
def test_a_cluster_that_does_not_answer_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, environment: str, noted: str, said: str
) -> None:
    services = pytest.importorskip("ray._private.services")
    monkeypatch.setenv("RAY_ADDRESS", environment)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda *_: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda *_: noted or None)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked to wait"))
    with pytest.raises(ConfigError, match=f"^no Ray cluster answers {said}"):
        executor.Ray.open({"address": given} if given else {})


def test_a_ray_that_does_not_start_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    services = pytest.importorskip("ray._private.services")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda address: None)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=r"^Ray does not start on this machine: .*timed out.*`ray start") as refused:
        executor.Ray.open({})
    assert len(str(refused.value).splitlines()) == 1


def test_a_sender_raises_what_the_collector_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    full = raised(OSError(errno.ENOSPC, "No space left on device"))

    class Collector:
        class grow:  # noqa: N801
            remote = staticmethod(lambda *arguments: arguments)

    def get(asked: Any) -> None:
        assert asked == (1, "samples.jsonl", 0, b"")
        raise full

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(OSError, match="No space left") as found:
        executor._Sender(Collector)("grow", 1, "samples.jsonl", 0, b"")
    assert type(found.value) is OSError
    assert found.value.errno == errno.ENOSPC
