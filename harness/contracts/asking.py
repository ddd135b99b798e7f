"""The door between the harness and exit rules of other projects: what those are lent, and what of theirs stays theirs.

A rule of a plug-in sees copies, so that writing into them changes no state that decoding goes on with; an exit of the
process that it asks for is its failure; and while one does not answer, a warning names it. Rules of this project are
asked directly. Not promised: anything of a plug-in that goes round the tensors it is given (their storage, the
interpreter).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar, cast

from torch import Tensor

from harness.contracts.strategies import ExitRule, ExitView
from harness.errors import OptionError
from harness.registry import is_plugin, package_of, without_exit

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""Seconds that a plug-in's rule may take for one answer before a warning names it."""

V = TypeVar("V", bound=ExitView)

_is_plugin: Callable[[type], bool] = cache(is_plugin)


def ask_rule(rule: ExitRule, view: ExitView) -> Tensor:
    """Return what a rule answers, unchecked; a plug-in's is lent a copy of the view.

    Raises:
        RuntimeError: it asked for an exit of the process.
        OptionError: it gave the view what that cannot take.
    """
    if not _is_plugin(type(rule)):
        return rule.should_exit(view)
    asked = _clock.begin(type(rule))
    try:
        with without_exit():
            return rule.should_exit(lent(rule, view))
    except OptionError as error:
        package = package_of(type(rule))
        raise OptionError(f"{type(rule).__name__} of {package}: {error}" if package else str(error)) from error
    finally:
        _clock.end(asked)


def lent(rule: Any, view: V) -> V:
    """Return what a rule may see of a view: the view, or copies of what it holds if the rule is a plug-in's."""
    return cast("V", _Lent(view)) if _is_plugin(type(rule)) else view


class _Lent:
    """A view, or a reading of it, whose tensors are copies; views that it hands out are lent, too."""

    def __init__(self, view: object) -> None:
        self._view = view
        self._copies: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._copies:
            found = getattr(self._view, name)
            self._copies[name] = _method(found) if callable(found) else _copied(found)
        return self._copies[name]


def _method(of_view: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        return _copied(of_view(*map(_own, given), **{name: _own(one) for name, one in named.items()}))

    return call


_PLAIN: Final = (int, float, str, type(None))


def _copied(found: Any) -> Any:
    if isinstance(found, _PLAIN):
        return found
    if isinstance(found, Tensor):
        return found.clone()
    if isinstance(found, Sequence):
        return [list(one) if isinstance(one, Sequence) else one for one in found]
    return _Lent(found)


def _own(given: Any) -> Any:
    """Return an argument as a view takes it: lent views as what they stand for."""
    if isinstance(given, _Lent):
        return given._view
    return type(given)(map(_own, given)) if type(given) in (list, tuple) else given


class _Clock:
    """Looks from a thread of its own, once there is a plug-in's rule, at how long the answers that it waits for take.

    In a measured window it sleeps.
    """

    def __init__(self) -> None:
        self._asked: dict[int, tuple[type, float]] = {}
        self._thread: threading.Thread | None = None

    def begin(self, kind: type) -> int:
        if self._thread is None or not self._thread.is_alive():  # a fork has none
            self._thread = threading.Thread(target=self._look, name="asked plug-ins", daemon=True)
            self._thread.start()
        caller = threading.get_ident()
        self._asked[caller] = kind, time.monotonic()
        return caller

    def end(self, caller: int) -> None:
        self._asked.pop(caller, None)

    def _look(self) -> None:
        told: set[tuple[type, float]] = set()
        while True:
            time.sleep(PATIENCE_S / 4)
            waiting = list(self._asked.values())
            told.intersection_update(waiting)
            for kind, since in waiting:
                if (kind, since) not in told and (taken := time.monotonic() - since) >= PATIENCE_S:
                    told.add((kind, since))
                    logger.warning(
                        "%s.should_exit of %s has been deciding about one token for %.0f s; interrupt the run, or mend "
                        "or uninstall that package",
                        kind.__name__,
                        package_of(kind) or kind.__module__,
                        taken,
                    )


_clock = _Clock()
