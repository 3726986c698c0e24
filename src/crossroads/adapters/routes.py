"""What routers by task have learnt: a table of routes, and which tasks travel together.

The table is (tasks, places, experts): a place is one decision, a block of ``task-moe`` or a head
of a layer of ``poly``. Two tasks are alike where they use the same experts at the same places:

    similarity(a, b) = mean over places of sum_e w_a,e w_b,e
    distance(a, b)   = mean over places of 1/2 sum_e |w_a,e - w_b,e|

Source: Eliciting and Understanding Cross-Task Skills with Task-Level Mixture-of-Experts (Ye et al.
2022), section 5. Axes: T tasks, L places, H heads, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router
from crossroads.adapters.scopes import owner
from crossroads.core.errors import InputError
from crossroads.core.files import write_atomically
from crossroads.core.report import HeatMap

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteTable:
    """The weights of every task at every place.

    Attributes
    ----------
    tasks, places, experts : names along the axes
    weights_TLE : non-negative
    """

    tasks: tuple[str, ...]
    places: tuple[str, ...]
    experts: tuple[str, ...]
    weights_TLE: _Floats

    @cached_property
    def similarity_TT(self) -> _Floats:
        """Mean over places of the product of two tasks' weights; 1 for equal one-hot routes."""
        found: _Floats = np.einsum("ale,ble->ab", self.weights_TLE, self.weights_TLE)
        return found / len(self.places)

    @cached_property
    def distance_TT(self) -> _Floats:
        """Mean over places of the total variation of two tasks' weights, in [0, 1]."""
        apart = np.abs(self.weights_TLE[:, None] - self.weights_TLE[None])
        found: _Floats = apart.sum(-1).mean(-1) / 2
        return found

    def clusters(self) -> _Floats:
        """Return the tree of the tasks by average linkage of distances, (T - 1, 4), as scipy's.

        Raises InputError for a single task.
        """
        if len(self.tasks) < 2:
            raise InputError("routes: clusters need two tasks or more")
        found: _Floats = linkage(squareform(self.distance_TT, checks=False), method="average")
        return found

    def families(self, family: Sequence[str]) -> Families:
        """Compare routes of tasks of one family with those of different ones.

        ``family`` has one name a task. Raises InputError where there is no pair of one kind.
        """
        if len(family) != len(self.tasks):
            raise InputError(
                f"routes: expected the family of {len(self.tasks)} tasks, got {len(family)}"
            )
        same: list[float] = []
        across: list[float] = []
        for a, b in combinations(range(len(self.tasks)), 2):
            (same if family[a] == family[b] else across).append(float(self.similarity_TT[a, b]))
        if not same or not across:
            raise InputError("routes: families need a pair of tasks within one and one across")
        return Families(same=float(np.mean(same)), across=float(np.mean(across)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: names, weights, similarities, the tree and the order of its leaves."""
        tree = self.clusters() if len(self.tasks) > 1 else np.zeros((0, 4))
        return {
            "tasks": list(self.tasks),
            "places": list(self.places),
            "experts": list(self.experts),
            "weights": _rounded(self.weights_TLE),
            "similarity": _rounded(self.similarity_TT),
            "clusters": _rounded(tree),
            "order": [self.tasks[t] for t in self._order()],
        }

    def write(self, path: Path | str) -> None:
        """Write ``to_dict`` as JSON, all at once."""
        write_atomically(Path(path), json.dumps(self.to_dict()) + "\n")

    def plots(self) -> list[HeatMap]:
        """Return the similarities and the routes as plots of a report, tasks by cluster."""
        order = self._order()
        names = [self.tasks[t] for t in order]
        between = self.distance_TT[~np.eye(len(self.tasks), dtype=bool)]
        middle = float(between.mean()) if len(between) else 0.0
        alike = middle - self.distance_TT[np.ix_(order, order)]
        n_experts = len(self.experts)
        routes = self.weights_TLE[order] - 1 / n_experts
        return [
            HeatMap(
                title="Tasks that route alike",
                caption=(
                    "Mean distance of two tasks' routes minus theirs: positive where they are "
                    "nearer to each other than tasks are on average. In the order of clusters."
                ),
                unit="share",
                rows=names,
                columns=names,
                row_label="task",
                column_label="task",
                values=_rounded(alike),
                limit=max(float(np.abs(alike).max()), 1e-6),
            ),
            HeatMap(
                title="Routes",
                caption=(
                    "Weight of every expert at every place, above or below an equal share of "
                    f"{1 / n_experts:.3f}. In the order of clusters."
                ),
                unit="share",
                rows=names,
                columns=[f"{place}: {expert}" for place in self.places for expert in self.experts],
                row_label="task",
                column_label="place and expert",
                values=_rounded(routes.reshape(len(order), -1)),
                limit=max(float(np.abs(routes).max()), 1e-6),
            ),
        ]

    def _order(self) -> list[int]:
        if len(self.tasks) < 2:
            return list(range(len(self.tasks)))
        return [int(t) for t in leaves_list(self.clusters())]


@dataclass(frozen=True, kw_only=True, slots=True)
class Families:
    """Mean similarity of routes within families and across them."""

    same: float
    across: float

    @property
    def gap(self) -> float:
        return self.same - self.across


@torch.no_grad()
def route_table(router: Router, bank: AdapterBank, tasks: Sequence[str]) -> RouteTable:
    """Return the routes of tasks 0, 1, ... of a router that reads the task alone, prepared.

    Raises InputError for a router that reads something else.
    """
    if router.call_data != {"task_ids_B"}:
        raise InputError(f"routes: router {router.name!r} does not decide by task; see its traces")
    call = Call(task_ids_B=torch.arange(len(tasks)))
    places: list[str] = []
    found: list[_Floats] = []
    alive = bank.alive_by_owner(router.scope)
    for layer, module in bank.layers.items():
        place = owner(router.scope, layer)
        alive_E = alive.pop(place, None)
        if alive_E is None:
            continue  # decided for an earlier layer
        given = RouteInput(
            module=layer,
            x_BTI=module.a_ERI.new_zeros(len(tasks), 1, module.inputs),
            bank=module,
            call=call,
            any_alive_E=alive_E,
        )
        routing = router.route(given)
        dense = routing.dense(bank.n_experts)[:, 0].double()
        weights_THE = dense.expand(len(tasks), -1, -1).cpu().numpy()
        heads = weights_THE.shape[1]
        places += [place if heads == 1 else f"{place} head {q}" for q in range(heads)]
        found.append(weights_THE)
    return RouteTable(
        tasks=tuple(tasks),
        places=tuple(places),
        experts=bank.names,
        weights_TLE=np.concatenate(found, axis=1),
    )


def _rounded(values: _Floats) -> Any:
    return np.round(values, 6).tolist()
