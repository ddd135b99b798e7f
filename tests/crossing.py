"""Which combinations of parametrised lists are tried, and where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest

FIXTURES = {"case", "put"}
"""Names of lists that go to the fixture of that name."""


def in_turn(*, rounds: int = 1, **lists: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise with the values of some lists side by side: the longest once, the others over and over.

    Every further round begins each list one place on from the list before it, so that other values meet; the matrix
    alone tries it.
    """
    longest = max(map(len, lists.values()))
    sets = []
    for number in range(rounds * longest):
        turn, place = divmod(number, longest)
        values = [each[(place + turn * shift) % len(each)] for shift, each in enumerate(lists.values())]
        marks = [pytest.mark.matrix] if turn else []
        sets.append(
            pytest.param(*values, id="-".join(getattr(value, "__name__", str(value)) for value in values), marks=marks)
        )
    return pytest.mark.parametrize(list(lists), sets, indirect=[name for name in lists if name in FIXTURES])


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out what only crosses lists: every model family × KV policy, and the tests marked ``crossed``.

    Their diagonal, each value at least once, is in ``make test``. The rest is marked ``matrix``: of two lists every
    combination, of three and more as many as it takes for every value to meet every value of each other list.
    """
    crossed: dict[str, list[tuple[pytest.Item, dict[str, Any]]]] = {}
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if {"case", "kv"} <= given.keys() or (given and item.get_closest_marker("crossed")):
            crossed.setdefault(item.nodeid.partition("[")[0], []).append((item, given))
    spare: set[pytest.Item] = set()
    for group in crossed.values():
        axes: dict[str, list[Any]] = {axis: [] for axis in group[0][1]}
        for _, given in group:
            for axis, values in axes.items():
                if given[axis] not in values:
                    values.append(given[axis])
        places = {item: tuple(values.index(given[axis]) for axis, values in axes.items()) for item, given in group}
        longest = max(range(len(axes)), key=lambda axis: len(list(axes.values())[axis]))
        sizes = [len(values) for values in axes.values()]
        diagonal = {
            item for item, at in places.items()
            if all(place == at[longest] % size for place, size in zip(at, sizes, strict=True))
        }  # fmt: skip
        for item in places.keys() - diagonal:
            item.add_marker("matrix")
        if len(axes) > 2 and len(places) == math.prod(sizes):
            spare |= places.keys() - diagonal - pairwise(places, diagonal)
    if spare and not any("::" in argument for argument in config.args):  # a test asked for by name is run
        items[:] = [item for item in items if item not in spare]


def pairwise(places: dict[pytest.Item, tuple[int, ...]], chosen: set[pytest.Item]) -> set[pytest.Item]:
    """Return items that, beside those chosen, let every value of an axis meet every value of each other one."""
    pairs = {item: set(itertools.combinations(enumerate(at), 2)) for item, at in places.items()}
    missing = set().union(*pairs.values()).difference(*(pairs[item] for item in chosen))
    added: set[pytest.Item] = set()
    while missing:
        best = max(pairs, key=lambda item: len(pairs[item] & missing))  # the first of the best: the same each time
        added.add(best)
        missing -= pairs[best]
    return added
