"""The way to a Ray cluster: refused in one line where nobody answers, instead of minutes later."""

from __future__ import annotations

import logging
import os
import socket
from importlib import import_module
from typing import Any

from harness.errors import ConfigError
from harness.host.extras import require
from harness.host.libraries import library_border

__all__ = ["connect"]

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
