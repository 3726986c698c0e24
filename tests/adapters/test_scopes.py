"""Who shares a decision, by the names of layers in common models."""

from __future__ import annotations

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.scopes import Scope, owner, reads_encoder
from tests.adapters import toys
from tests.adapters.gated import Gated

BLOCK = "model.layers.3"


@pytest.mark.parametrize(
    ("scope", "together"),
    [
        ("input", [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                   ["self_attn.o_proj"], ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]),
        ("group", [["self_attn.q_proj", "self_attn.o_proj"], ["mlp.up_proj", "mlp.down_proj"]]),
        ("layer", [["self_attn.q_proj", "mlp.down_proj"]]),
        ("module", [["self_attn.q_proj"], ["self_attn.k_proj"], ["mlp.up_proj"]]),
    ],
)  # fmt: skip
def test_layers_of_a_block_share_by_scope(scope: Scope, together: list[list[str]]) -> None:
    keys = [{owner(scope, f"{BLOCK}.{name}") for name in group} for group in together]
    assert all(len(key) == 1 for key in keys)
    assert len(set.union(*keys)) == len(together)
    other = {owner(scope, f"model.layers.30.{name}") for group in together for name in group}
    assert not other & set.union(*keys)  # blocks do not share


def test_one_decision_for_the_model() -> None:
    assert owner("model", f"{BLOCK}.mlp.up_proj") == owner("model", "lm_head") == ""


@pytest.mark.parametrize(
    "names",
    [
        ("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value"),
        ("encoder.block.1.layer.0.SelfAttention.q", "encoder.block.1.layer.0.SelfAttention.k"),
        ("encoder.block.1.layer.1.DenseReluDense.wi_0",
         "encoder.block.1.layer.1.DenseReluDense.wi_1"),
        ("layers.0.feed_forward.w1", "layers.0.feed_forward.w3"),
    ],
)  # fmt: skip
def test_other_families_name_layers_of_one_input_too(names: tuple[str, str]) -> None:
    one, other = (owner("input", name) for name in names)
    assert one == other != names[0]


def test_layers_outside_of_blocks_decide_alone() -> None:
    assert owner("layer", "lm_head") == owner("input", "lm_head") == "lm_head"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q", True),
        ("decoder.block.0.layer.1.EncDecAttention.v", True),
        ("decoder.block.0.layer.1.EncDecAttention.o", False),
        ("model.decoder.layers.0.encoder_attn.k_proj", True),
        ("model.decoder.layers.0.encoder_attn.q_proj", False),
        ("model.decoder.layers.0.self_attn.k_proj", False),
        ("decoder.block.0.layer.2.DenseReluDense.wi", False),
    ],
)
def test_keys_and_values_of_cross_attention_read_the_encoder(name: str, expected: bool) -> None:
    assert reads_encoder(name) is expected


def test_who_decides_for_several_layers_may_choose_experts_of_any_of_them() -> None:
    model = toys.tiny_llama(num_hidden_layers=1)
    early, late, both = (
        toys.experts(model, [name], ends=ends)[0]
        for name, ends in (("a", ["q_proj"]), ("b", ["v_proj"]), ("c", ["q_proj", "v_proj"]))
    )
    router = Gated("input", experts=3)
    routed = RoutedModel(model, AdapterBank([early, late, both]), router)
    with torch.no_grad():
        model(toys.ids())
    assert [given.alive_E.tolist() for given in router.asked] == [[True, True, True]]
    used = {
        layer.rpartition(".")[2]: (routing.dense(3) != 0).any(0).any(0)[0].tolist()
        for layer, routing in routed.last_routings.items()
    }
    assert used == {"q_proj": [True, False, True], "v_proj": [False, True, True]}
