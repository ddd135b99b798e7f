"""The door between the harness and exit rules of other projects: what those are lent, and what of theirs stays theirs.

A rule of a plug-in sees copies, so that writing into them changes no state that decoding goes on with, and an exit of
the process that it asks for is its failure. Rules of this project are asked directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar, cast

from torch import Tensor

from harness.contracts.strategies import ExitRule, ExitView
from harness.errors import OptionError
from harness.registry import is_plugin, package_of, without_exit

V = TypeVar("V", bound=ExitView)

is_foreign: Callable[[type], bool] = cache(is_plugin)
"""Whether a class is of another project's code."""


def ask_rule(rule: ExitRule, view: ExitView) -> Tensor:
    """Return what a rule answers, unchecked; a plug-in's is lent a copy of the view.

    Raises:
        RuntimeError: it asked for an exit of the process.
        OptionError: it gave the view what that cannot take.
    """
    if not is_foreign(type(rule)):
        return rule.should_exit(view)
    try:
        with without_exit():
            return rule.should_exit(lent(rule, view))
    except OptionError as error:
        package = package_of(type(rule))
        raise OptionError(f"{type(rule).__name__} of {package}: {error}" if package else str(error)) from error


def lent(rule: Any, view: V) -> V:
    """Return what a rule may see of a view: the view, or copies of what it holds if the rule is a plug-in's."""
    return cast("V", _Lent(view)) if is_foreign(type(rule)) else view


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
