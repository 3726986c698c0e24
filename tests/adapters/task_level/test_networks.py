"""Networks from task vectors to logits: shapes, seeds, and the default written out."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.task_level.networks import TaskNetwork
from crossroads.core.errors import UsageError
from tests.adapters import toys

FORMS = ("layer", "joint", "recurrent", "transformer")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_logits_for_each_layer_from_the_seed(form: str) -> None:
    made = [
        TaskNetwork(form, width=5, hidden=8, layers=3, experts=4, seed=seed)  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    ]
    e_BD = torch.randn(2, 5, generator=toys.rng(0))
    first, same, other = (network(e_BD) for network in made)
    assert first.shape == (2, 3, 4)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_default_is_an_mlp_of_its_own_for_every_layer() -> None:
    network = TaskNetwork("layer", width=5, hidden=8, layers=3, experts=4)
    e_BD = torch.randn(2, 5, generator=toys.rng(0))
    found_BLE = network(e_BD)
    for layer in range(3):
        rows = slice(8 * layer, 8 * layer + 8)
        u_BH = torch.nn.functional.gelu(
            e_BD @ network.into.weight[rows].T + network.into.bias[rows]
        )
        wanted_BE = u_BH @ network.last_LEH[layer].T + network.bias_LE[layer]
        torch.testing.assert_close(found_BLE[:, layer], wanted_BE)


@pytest.mark.parametrize("form", ["recurrent", "transformer"])
def test_layers_hear_of_each_other_where_the_form_says_so(form: str) -> None:
    network = TaskNetwork(form, width=5, hidden=8, layers=3, experts=4)  # type: ignore[arg-type]
    e_BD = torch.randn(1, 5, generator=toys.rng(0))
    before = network(e_BD)
    network.into.bias.data[:8] += torch.randn(8, generator=toys.rng(1))  # the first layer's alone
    changed_L = (network(e_BD) - before).abs().amax((0, 2)) > 1e-6
    assert changed_L.tolist() == [True, True, True]


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="recurrent"):
        TaskNetwork("recurrrent", width=1, hidden=4, layers=1, experts=1)  # type: ignore[arg-type]
