"""The nodes of a Ray cluster: who can take how many points, and who is left out and why.

The way to a Ray cluster: refused in one line where nobody answers, instead of minutes later.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from harness.contracts.executors import How
from harness.errors import ConfigError, reason
from harness.host.libraries import library_border, require
from harness.study.executors.sharing import points_on

logger = logging.getLogger(__name__)

LOOK_S = 1.0
GREETING_S = 60.0
"""Seconds in which a node starts a process and answers from it."""
SKEW_S = 5.0
"""Difference of two clocks that is worth a line."""
INSTALL = "Install it there: `pip install 'early-exit-harness[cluster]'`."

Model = tuple[str, ...]
"""As :class:`harness.contracts.executors.Job` has it; or what stands for one job alone."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's; a node that is started again has another one.
        host: its name.
        cpus: logical CPUs that Ray hands out.
        slots: measured points at once.
    """

    id: str
    host: str
    cpus: float
    slots: int


class Nodes:
    """The nodes of a study's cluster, which come and go.

    Args:
        ray: the module, connected.
        cpus: logical CPUs that a measured point owns.
        gpus: accelerators that it owns.
    """

    def __init__(self, ray: Any, cpus: int, gpus: int) -> None:
        self._ray, self._cpus, self._gpus = ray, cpus, gpus
        self._met: dict[str, Node] = {}
        self._there: list[Node] = []
        self._looked = -math.inf
        self._left_out: dict[tuple[str, Model | None], str] = {}

    def there(self) -> list[Node]:
        """Return the nodes with processors that are alive, each greeted when it is seen first."""
        if time.monotonic() - self._looked > LOOK_S:
            rows = with_processors(self._ray)
            self._greet([row for row in rows if row["NodeID"] not in self._met])
            self._there = [self._met[row["NodeID"]] for row in rows if row["NodeID"] in self._met]
            self._looked = time.monotonic()
        return self._there

    def usable(self, *models: Model) -> list[Node]:
        """Return the nodes that can take points; those of models, where some are given."""
        return [
            node
            for node in self.there()
            if node.slots and not {(node.id, model) for model in (None, *models)} & self._left_out.keys()
        ]

    def lacks(self, *models: Model) -> bool:
        """Whether there are nodes for others, and none for these."""
        return bool(self.usable()) and not self.usable(*models)

    def free_cpus(self) -> Mapping[str, float]:
        """Return the logical CPUs of each node that Ray had handed out to nobody a moment ago."""
        state: Any = import_module("ray._private.state")
        return {node: free.get("CPU", 0.0) for node, free in state.available_resources_per_node().items()}

    def on(self, node_id: str) -> Any:
        """Return what tells Ray to start something on this node and on no other."""
        return self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)

    def leave_out(self, node: Node, why: str, model: Model | None = None, does: str = "") -> str:
        """Give a node no more points, of a model or at all, and say so once.

        Args:
            node: which.
            why: ends with the remedy.
            model: of the points; ``None`` for all.
            does: what becomes of that, to be said.

        Returns:
            What was said.
        """
        does = does or f"measures no more points{'' if model is None else ' of this model'}"
        said = f"{node.host} {does}: {why}"
        if (node.id, model) not in self._left_out:
            self._left_out[node.id, model] = said
            logger.warning("%s", said)
        return said

    def nowhere(self, *models: Model) -> tuple[How, str]:
        """Return what becomes of a point that no node can take, and why."""
        lacking = [said for (_, of), said in self._left_out.items() if of in models]
        if lacking and self.lacks(*models):
            return "refused", lacking[-1]
        lines = [said for node in self.there() if (said := self._left_out.get((node.id, None)))]
        none = "the cluster has no node for a point any more. Add one: `ray start --address=HOST:6379`."
        return "stopped", f"no node is left: {lines[-1]}" if lines else none

    def _greet(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ask nodes for their clock and cores, and learn whether they have this package."""

        def greeting() -> tuple[float, tuple[tuple[int, ...], ...]]:  # inside, so that its code is sent, not its name
            return time.time(), import_module("harness.host.processor").sibling_sets()

        # max_calls ends its process: a point that got it later would keep the single thread that it begins with
        asked = self._ray.remote(num_cpus=0, max_calls=1, max_retries=0)(greeting)
        began, deadline = time.time(), time.monotonic() + GREETING_S
        waiting = {asked.options(scheduling_strategy=self.on(row["NodeID"])).remote(): row for row in rows}
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            answered, _ = self._ray.wait(list(waiting), timeout=left)
            for answer in answered or list(waiting):
                self._meet(waiting.pop(answer), answer if answered else None, began)

    def _meet(self, row: Mapping[str, Any], answer: Any, began: float) -> None:
        """Take in what a node answered; ``None`` where it is silent."""
        errors, why = self._ray.exceptions, ""
        sets: tuple[tuple[int, ...], ...] = ()
        try:
            if answer is None:
                why = f"it did not answer within {GREETING_S:g} s. Look at `ray status`."
            else:
                clock, sets = self._ray.get(answer)
                _warn_of_skew(row["NodeManagerHostname"], ahead_s(clock, began, time.time()))
        except errors.RayTaskError as error:
            why = f"it cannot import the harness ({reason(error.cause)}). {INSTALL}"
        except errors.RayError:  # it died meanwhile; one that is there still is greeted at the next look
            return
        cpus, gpus = int(row["Resources"]["CPU"]), int(row["Resources"].get("GPU", 0))
        slots = [cpus // self._cpus]
        slots += [points_on(sets, self._cpus)] if sets else []
        slots += [gpus // self._gpus] if self._gpus else []
        node = self._met[row["NodeID"]] = Node(row["NodeID"], row["NodeManagerHostname"], cpus, min(slots))
        if why:
            self.leave_out(node, why)


def with_processors(ray: Any) -> list[dict[str, Any]]:
    """Return Ray's rows of the nodes that are alive and have processors to hand out."""
    return [row for row in ray.nodes() if row["Alive"] and row["Resources"].get("CPU")]


def ahead_s(clock: float, began: float, ended: float) -> float:
    """Return by how many seconds a clock that was read between two moments of ours is ahead at least.

    Negative where it is behind.
    """
    return max(clock - ended, 0.0) + min(clock - began, 0.0)


def _warn_of_skew(host: str, ahead: float) -> None:
    if abs(ahead) > SKEW_S:
        which = "ahead" if ahead > 0 else "behind"
        logger.warning("the clock of %s is %.0f s %s; no duration depends on it", host, abs(ahead), which)


ANSWER_S = 5.0


def connect(address: str | None) -> Any:
    """Connect to a cluster, or start one on this machine, and return the module ``ray``.

    Args:
        address: ``auto`` or ``HOST:PORT``; ``None`` for that of RAY_ADDRESS or ``ray start``, if there is one.

    Raises:
        ConfigError: Ray is not installed or does not start, nobody answers there, or results could not be written
            from there.
    """
    require("cluster", "ray")
    ray: Any = import_module("ray")
    import_module("ray.util.scheduling_strategies")
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        _refuse_client(address)
    what = "no Ray cluster answers at the address that `ray start` noted"
    remedy = "Start one (`ray start --head`), or forget it (`ray stop`) for one on this machine."
    if address is not None:
        what = f"no Ray cluster answers at {address}"
        remedy = "Start one (`ray start --head`), or leave --address and RAY_ADDRESS out for one on this machine."
    with library_border(what, remedy, ConfigError):
        begun = _require_answer(address)
    if not begun:
        what, remedy = "Ray does not start on this machine", "Start it (`ray start --head`), which says why it cannot."
    with library_border(what, remedy, ConfigError):
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    return ray


def _refuse_client(address: str) -> None:
    """Refuse Ray's way in from outside of a cluster: what collects would run there, and write to that machine.

    Raises:
        ConfigError: says how to join the cluster instead.
    """
    host = address.removeprefix("ray://").rpartition(":")[0] or "HOST"
    raise ConfigError(
        f"{address} leads into the cluster from outside, where results cannot be written to this machine. Let this "
        "machine join, which measures nothing then, and use --address auto:",
        [f"ray start --address={host}:6379 --num-cpus=0"],
    )


def _require_answer(address: str | None) -> bool:
    """Knock at a cluster's port: Ray itself waits for minutes before it says that nobody is there.

    Returns:
        Whether there is a cluster; without one, Ray starts one here.

    Raises:
        OSError: nobody answers.
        ValueError: it is no address.
    """
    services: Any = import_module("ray._private.services")
    found = services.canonicalize_bootstrap_address(address)  # what `ray start` noted included, as Ray itself finds it
    if found is not None:
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    return found is not None
