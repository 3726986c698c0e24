"""What the survey's scheme does to its inventory: shares, and which methods it tells apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

from crossroads.adapters.survey.inventory import Method
from crossroads.adapters.survey.schema import AXES

SETTING = ("expert_training", "expert_data", "routing_dataset", "generalization", "user_dataset")
"""The axes that say what a method is given and what for; the others say how it works."""


def shares(methods: Collection[Method]) -> dict[str, dict[str, float]]:
    """Return, by axis, the share of the methods that have each value; 0 where none has it."""
    counts = {axis: Counter(getattr(m.cells, axis) for m in methods) for axis in AXES}
    total = max(len(methods), 1)
    return {
        name: {value: counts[name][value] / total for value in axis.values}
        for name, axis in AXES.items()
    }


def same_on(methods: Iterable[Method], axes: Collection[str]) -> list[tuple[str, ...]]:
    """Return the groups of two methods or more, by name, that agree on all of these axes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for method in methods:
        key = tuple(getattr(method.cells, axis) for axis in axes)
        groups.setdefault(key, []).append(method.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def num_pairs(groups: Iterable[Sequence[str]]) -> int:
    """Return how many pairs lie within the groups."""
    return sum(len(names) * (len(names) - 1) // 2 for names in groups)


def fewest_axes(methods: Collection[Method]) -> list[tuple[str, ...]]:
    """Return the smallest sets of axes that tell all methods apart; empty where all nine do not."""
    for size in range(len(AXES) + 1):
        enough = [axes for axes in combinations(AXES, size) if not same_on(methods, axes)]
        if enough:
            return enough
    return []
