"""Tables of routes: what a router decided by task, and which tasks are alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.adapters.routers.poly import Poly
from crossroads.adapters.routers.task_moe import TaskMoE
from crossroads.adapters.routes import RouteTable, route_table
from crossroads.core.errors import InputError
from tests.adapters import toys


def table(weights_TLE: np.ndarray) -> RouteTable:
    tasks, places, experts = weights_TLE.shape
    return RouteTable(
        tasks=tuple(f"t{t}" for t in range(tasks)),
        places=tuple(f"l{place}" for place in range(places)),
        experts=tuple(f"e{e}" for e in range(experts)),
        weights_TLE=weights_TLE,
    )


ONE_HOT = np.eye(3)[np.array([[0, 0], [0, 0], [1, 2], [1, 1]])]  # 4 tasks, 2 places, 3 experts


def test_one_hot_routes_are_alike_by_the_share_of_places_they_share() -> None:
    found = table(ONE_HOT)
    wanted = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]])
    np.testing.assert_allclose(found.similarity_TT, wanted)
    np.testing.assert_allclose(found.distance_TT, 1 - wanted)
    families = found.families(["x", "x", "y", "y"])
    assert (families.same, families.across) == (0.75, 0.0)
    assert families.gap == 0.75


@given(seed=st.integers(0, 100), tasks=st.integers(2, 6))
@settings(deadline=None, max_examples=20)
def test_distances_are_a_metric_and_the_order_of_tasks_changes_nothing(
    seed: int, tasks: int
) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), size=(tasks, 4))
    found = table(weights)
    distance = found.distance_TT
    assert (np.diag(distance) == 0).all()
    np.testing.assert_allclose(distance, distance.T)
    assert (distance <= 1 + 1e-12).all()
    through = distance[:, :, None] + distance[None, :, :]  # from a over b to c
    assert (distance[:, None, :] <= through + 1e-9).all()
    order = np.random.default_rng(seed + 1).permutation(tasks)
    np.testing.assert_allclose(table(weights[order]).distance_TT, distance[np.ix_(order, order)])


def test_clusters_join_tasks_that_route_alike_first() -> None:
    found = table(ONE_HOT)
    tree = found.clusters()
    assert tree.shape == (3, 4)
    assert {int(tree[0, 0]), int(tree[0, 1])} == {0, 1}
    assert tree[0, 2] == 0
    assert {int(tree[1, 0]), int(tree[1, 1])} == {2, 3}


def test_a_table_is_written_as_plain_data(tmp_path: Path) -> None:
    found = table(ONE_HOT)
    found.write(tmp_path / "routes.json")
    read = json.loads((tmp_path / "routes.json").read_text("utf-8"))
    assert np.array(read["weights"]).shape == (4, 2, 3)
    assert sorted(read["order"]) == sorted(found.tasks)
    assert len(read["clusters"]) == 3
    assert read["similarity"][2][3] == 0.5


def test_plots_have_the_tasks_in_the_order_of_clusters() -> None:
    found = table(ONE_HOT[[0, 2, 1, 3]])
    alike, routes = found.plots()
    order = [found.tasks.index(name) for name in alike.rows]
    assert abs(order.index(0) - order.index(2)) == 1  # the two alike stand together
    assert len(routes.columns) == 6
    assert np.array(routes.values).shape == (4, 6)
    assert alike.values[0][0] is not None
    assert alike.values[0][0] > 0


def test_a_table_of_one_task_has_no_clusters_and_yet_a_page() -> None:
    found = table(ONE_HOT[:1])
    assert found.to_dict()["clusters"] == []
    assert len(found.plots()) == 2
    with pytest.raises(InputError, match="need two tasks"):
        found.clusters()


def test_families_need_pairs_of_both_kinds() -> None:
    found = table(ONE_HOT)
    with pytest.raises(InputError, match="family of 4 tasks, got 1"):
        found.families(["x"])
    for same in (["x"] * 4, ["a", "b", "c", "d"]):
        with pytest.raises(InputError, match="a pair of tasks within one and one across"):
            found.families(same)


def test_routers_by_task_are_read_block_by_block_and_head_by_head() -> None:
    model = toys.tiny_llama()
    bank = AdapterBank(toys.experts(model, ["a", "b", "c"]), heads=2)
    poly = Poly(tasks=4)
    poly.prepare(bank)
    for z in poly.logits:
        z.data.normal_(generator=toys.rng(len(z)))
    found = route_table(poly, bank, ["w", "x", "y", "z"])
    assert found.weights_TLE.shape == (4, 10 * 2, 3)  # 5 layers of 2 blocks, 2 heads
    assert found.places[1].endswith("head 1")
    gates_HE = torch.sigmoid(poly.logits[0][2])
    wanted = (gates_HE / gates_HE.sum(-1, keepdim=True)).detach().numpy()
    np.testing.assert_allclose(found.weights_TLE[2, :2], wanted, rtol=1e-5)
    moe = TaskMoE(tasks=4)
    moe.prepare(bank)
    by_block = route_table(moe, bank, ["w", "x", "y", "z"])
    assert by_block.places == ("model.layers.0", "model.layers.1")
    assert set(by_block.weights_TLE.flatten()) == {0.0, 1.0}


def test_routers_that_read_tokens_have_no_table() -> None:
    bank = toys.bank_for(toys.tiny_llama(), 2)
    with pytest.raises(InputError, match="'phatgoose' does not decide by task"):
        route_table(Phatgoose(), bank, ["a"])
