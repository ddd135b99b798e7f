"""The way to a Ray cluster: refused in one line where nobody answers, instead of minutes later."""

from __future__ import annotations

import logging
import os
import socket
from importlib import import_module
from typing import Any

from harness.errors import ConfigError, reason
from harness.host.extras import require

__all__ = ["connect"]

ANSWER_S = 5.0


def connect(address: str | None) -> Any:
    """Connect to a cluster, or start one on this machine, and return the module ``ray``.

    Args:
        address: ``auto`` or ``HOST:PORT``; ``None`` for that of RAY_ADDRESS or ``ray start``, if there is one.

    Raises:
        ConfigError: Ray is not installed, nobody answers there, or results could not be written from there.
    """
    require("cluster", "ray")
    ray: Any = import_module("ray")
    import_module("ray.util.scheduling_strategies")
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        _refuse_client(address)
    try:
        _require_answer(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        noted, remedy = "the address that `ray start` noted", "forget it (`ray stop`)"
        if address is not None:
            noted, remedy = address, "leave --address and RAY_ADDRESS out"
        raise ConfigError(
            f"no Ray cluster answers at {noted}: {reason(error)}. Start one (`ray start --head`), or {remedy} for one "
            "on this machine."
        ) from None
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


def _require_answer(address: str | None) -> None:
    """Knock at a cluster's port: Ray itself waits for minutes before it says that nobody is there.

    Raises:
        OSError: nobody answers.
        ValueError: it is no address.
    """
    services: Any = import_module("ray._private.services")
    found = services.canonicalize_bootstrap_address(address)  # what `ray start` noted included, as Ray itself finds it
    if found is not None:
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
