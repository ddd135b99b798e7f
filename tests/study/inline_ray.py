"""Ray without processes or a network: what is asked of a node is done here, at once, by what a test puts there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.study.executors.ray_worker import Ended

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

HERE = "here"
"""Id of the driver's own node, which has no processors to hand out."""


class InlineRay:
    """Stands for the module ``ray``, connected.

    Attributes:
        table: rows of ``ray.nodes()``; names serve as ids.
        greetings: what a node answers when it is greeted; an exception is raised, ``None`` is silence.
        attempts: node, point and attempt of every measurement.
    """

    exceptions = ray.exceptions
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node_id, soft: node_id)
    )

    def __init__(self, *names: str, cpus: int = 1) -> None:
        self.table = [
            {"NodeID": name, "NodeManagerHostname": name, "Alive": True, "Resources": {"CPU": float(cpus)}}
            for name in names
        ]
        self.greetings: dict[str, Any] = {}
        self.attempts: list[tuple[str, str, int]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return self.table

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: HERE)

    def remote(self, what: Any = None, **_: Any) -> Any:
        return Remote(self, what) if what is not None else lambda function: Remote(self, function)

    def wait(self, asked: list[Answer], timeout: float) -> tuple[list[Answer], list[Answer]]:
        answered = [one for one in asked if one.value is not None]
        return answered[:1], [one for one in asked if one not in answered[:1]]

    def get(self, answer: Answer, timeout: float | None = None) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def kill(self, actor: Any, no_restart: bool) -> None: ...

    def shutdown(self) -> None: ...


class Answer:
    """What a call came to."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Remote:
    """A function or a class that is to run on a node."""

    def __init__(self, ray: InlineRay, what: Any, node: str = "") -> None:
        self._ray, self._what, self._node = ray, what, node

    def options(self, *, scheduling_strategy: str, **_: Any) -> Remote:
        return Remote(self._ray, self._what, scheduling_strategy)

    def remote(self, *arguments: Any) -> Any:
        if not isinstance(self._what, type):
            return Answer(self._ray.greetings.get(self._node, self._what()))
        made = self._what(*arguments)
        made.node = self._node
        return Actor(self._ray, made, self._node)


class Actor:
    """An object on a node."""

    def __init__(self, ray: InlineRay, it: Any, node: str) -> None:
        self._ray, self._it, self._node = ray, it, node

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Answer:
            if method == "measure":
                self._ray.attempts.append((self._node, arguments[1], arguments[0]))
                arguments = (self._node, *arguments)
            try:
                return Answer(getattr(self._it, method)(*arguments))
            except Exception as error:
                return Answer(error)

        return SimpleNamespace(remote=call)


class Scripted:
    """Stands for a process that measures; ``measures(node, point)`` says how that ends, or raises."""

    measures: Callable[[str, str], Ended]
    node = ""

    def __init__(self, cores: int) -> None: ...

    def measure(self, node: str, attempt: int, name: str, *_: Any) -> Ended:
        return type(self).measures(node, name)
