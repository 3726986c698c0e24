"""Ensembles of decision trees as plain arrays: nothing to parse, nothing to execute.

Trees are grown by LightGBM and read once from its dump. Prediction walks all trees of all models
for all prompts at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.router import Arrays

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

_LEAF = -1  # in ``feature``
_DAMAGED = "the saved trees of the router are damaged; fit it again"
_ARRAYS = ("feature", "threshold", "left", "right", "value", "root", "owner")


@dataclass(frozen=True, kw_only=True)
class Forest:
    """T trees with V nodes in all; tree t adds its leaf's value to the output ``owner[t]``.

    Attributes
    ----------
    feature : (V,) column that a node asks, -1 for a leaf
    threshold : (V,) go left where the column is at most this
    left, right : (V,) children, always behind their parent
    value : (V,) of a leaf
    root, owner : (T,)
    """

    feature: Int32
    threshold: Float64
    left: Int32
    right: Int32
    value: Float64
    root: Int32
    owner: Int32

    @classmethod
    def of(cls, dumps: Sequence[Mapping[str, Any]]) -> Self:
        """Read one LightGBM dump (``Booster.dump_model()``) for each output."""
        nodes: list[tuple[int, float, int, int, float]] = []
        roots: list[int] = []
        owners: list[int] = []

        def add(structure: Mapping[str, Any]) -> int:
            place = len(nodes)
            if "split_feature" not in structure:
                nodes.append((_LEAF, 0.0, 0, 0, float(structure["leaf_value"])))
                return place
            nodes.append((0, 0.0, 0, 0, 0.0))
            left, right = add(structure["left_child"]), add(structure["right_child"])
            column, threshold = int(structure["split_feature"]), float(structure["threshold"])
            nodes[place] = (column, threshold, left, right, 0.0)
            return place

        for owner, dump in enumerate(dumps):
            for tree in dump["tree_info"]:
                roots.append(add(tree["tree_structure"]))
                owners.append(owner)
        columns = list(zip(*nodes, strict=True)) or [()] * 5
        kinds = (np.int32, np.float64, np.int32, np.int32, np.float64)
        arrays = [np.array(c, dtype=kind) for c, kind in zip(columns, kinds, strict=True)]
        places = (np.array(roots, dtype=np.int32), np.array(owners, dtype=np.int32))
        return cls(**dict(zip(_ARRAYS, (*arrays, *places), strict=True)))

    def predict(self, features_NP: Float64, num_outputs: int) -> Float64:
        """Return the sums of leaf values, shape (N, num_outputs)."""
        num_rows = len(features_NP)
        total = np.zeros((num_rows, num_outputs))
        if not len(self.root) or not num_rows:
            return total
        node_NT = np.tile(self.root, (num_rows, 1))
        row_N1 = np.arange(num_rows)[:, None]
        while True:
            column = self.feature[node_NT]
            inner = column != _LEAF
            if not inner.any():
                break
            goes_left = features_NP[row_N1, np.maximum(column, 0)] <= self.threshold[node_NT]
            child = np.where(goes_left, self.left[node_NT], self.right[node_NT])
            node_NT = np.where(inner, child, node_NT)
        # Trees stand in the order of their owners: one sum for each run of them.
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        total[:, self.owner[starts]] = np.add.reduceat(self.value[node_NT], starts, axis=1)
        return total

    def state(self) -> Arrays:
        """Return the arrays, named ``trees_...``."""
        return {f"trees_{name}": getattr(self, name) for name in _ARRAYS}

    @classmethod
    def restore(cls, arrays: Arrays, *, num_features: int, num_outputs: int) -> Self:
        """Rebuild from ``state``. Raises InputError for trees that lead nowhere."""
        forest = cls(**{name: arrays[f"trees_{name}"] for name in _ARRAYS})
        sizes = {len(getattr(forest, name)) for name in _ARRAYS[:5]}
        if len(sizes) > 1 or len(forest.root) != len(forest.owner):
            raise InputError(_DAMAGED)
        num_nodes = len(forest.feature)
        inner = forest.feature != _LEAF
        place = np.arange(num_nodes)
        children = np.stack([forest.left, forest.right])[:, inner]
        is_sound = (
            bool(((forest.feature >= _LEAF) & (forest.feature < num_features)).all())
            and bool(((children > place[inner]) & (children < num_nodes)).all())
            and bool(((forest.root >= 0) & (forest.root < num_nodes)).all())
            and bool(((forest.owner >= 0) & (forest.owner < num_outputs)).all())
            and bool((np.diff(forest.owner) >= 0).all())
        )
        if not is_sound:
            raise InputError(_DAMAGED)
        return forest
