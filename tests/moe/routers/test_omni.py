from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from crossroads.core.errors import UsageError
from crossroads.core.routed import RouteContext, routed_layers
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.routers.omni import OmniRouter
from crossroads.moe.routers.switch import Switch
from crossroads.moe.sharing import sharing_groups
from tests.moe.routers.inputs import layer_of, places, tokens, view

TRAINING = RouteContext(training=True, seed=3)


class TwoLayers(torch.nn.Module):
    """Registers the router once, as a model does; its layers refer to it."""

    def __init__(self, first: OmniRouter, second: OmniRouter) -> None:
        super().__init__()
        self.shared = torch.nn.ModuleList(dict.fromkeys([first, second]))
        self.layers = torch.nn.ModuleList(
            layer_of(router, 6, layer=index, own_router=False)
            for index, router in enumerate((first, second))
        )

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD, TRAINING).delta
        return x_BTD


def routers() -> tuple[OmniRouter, OmniRouter]:
    first, second = OmniRouter(6, 4), OmniRouter(6, 4)
    second.load_state_dict(first.state_dict())
    return first, second


def test_layers_use_one_parameter_that_the_state_names_once(tmp_path: object) -> None:
    router, _ = routers()
    model = TwoLayers(router, router)
    assert model.layers[0].routers[0].gate.weight is model.layers[1].routers[0].gate.weight
    assert sum(p is router.gate.weight for p in model.parameters()) == 1
    gates = [key for key in model.state_dict() if key.endswith("gate.weight")]
    assert gates == ["shared.0.gate.weight"]
    save_file(model.state_dict(), f"{tmp_path}/model.safetensors")  # refuses tensors named twice


def test_a_model_of_many_layers_holds_one_router() -> None:
    config = DecoderConfig(vocab_size=11, width=8, num_layers=3, num_heads=2, max_length=8)
    spec = MoESpec(router="omni", n_experts=4, dense_hidden=16)
    model = DecoderLM(config, sublayer=MoEFactory(spec, 3))
    assert len({id(layer.routers[0]) for layer in routed_layers(model)}) == 1
    assert sum(key.endswith("gate.weight") for key in model.state_dict()) == 1
    assert sum(tuple(p.shape) == (4, 8) for p in model.parameters()) == 1


def test_its_gradient_is_the_sum_over_layers() -> None:
    first, second = routers()
    x_BTD = tokens(2, 9, 6)
    apart = TwoLayers(first, second)
    apart(x_BTD).square().sum().backward()
    expected = first.gate.weight.grad + second.gate.weight.grad
    first.zero_grad()
    shared = TwoLayers(first, first)
    shared(x_BTD).square().sum().backward()
    torch.testing.assert_close(first.gate.weight.grad, expected)
    assert float(second.gate.weight.grad.abs().max()) > 0


def test_equal_copies_give_the_same_first_forward() -> None:
    first, second = routers()
    x_BTD = tokens(2, 9, 6)
    assert torch.equal(TwoLayers(first, first)(x_BTD), TwoLayers(first, second)(x_BTD))


def test_outside_training_it_is_switch() -> None:
    omni, switch = OmniRouter(6, 4), Switch(6, 4)
    switch.load_state_dict(omni.state_dict())
    x_BTD = tokens(2, 9, 6)
    first, second = omni.decide(view(x_BTD)).decision, switch.decide(view(x_BTD)).decision
    assert torch.equal(places(first)[0], places(second)[0])
    assert torch.equal(places(first)[1], places(second)[1])


def test_noise_of_a_tenth_serves_choice_weight_and_balance_alike() -> None:
    omni = OmniRouter(6, 8)
    x_BTD = torch.zeros(1, 4000, 6)
    answer = omni.decide(view(x_BTD, training=True))
    probs_NE, logits_NE = answer.decision.probs_NE, answer.decision.logits_NE
    assert probs_NE is not None
    assert logits_NE is not None
    assert (logits_NE == 0).all()
    noise_NE = probs_NE.detach().log() - probs_NE.detach().log().mean(-1, keepdim=True)
    assert float(noise_NE.std()) == pytest.approx(0.1 * (7 / 8) ** 0.5, rel=0.05)
    idx_NK, w_NK = places(answer.decision)
    assert torch.equal(idx_NK[:, 0], probs_NE.argmax(-1))
    assert torch.equal(w_NK, probs_NE.gather(-1, idx_NK))
    f_E = answer.decision.stats["count_E"] / 4000
    expected = 8 * (f_E * probs_NE.mean(0)).sum()
    torch.testing.assert_close(answer.aux["balance"].value, expected)


def test_a_plan_gives_every_group_its_own_number_of_experts() -> None:
    groups = sharing_groups("4x2-4x4-4x8", 12, 99)
    assert [(g.layers.start, g.layers.stop, g.n_experts) for g in groups] == [
        (0, 4, 2),
        (4, 8, 4),
        (8, 12, 8),
    ]
    (every,) = sharing_groups("all", 3, 6)
    assert (list(every.layers), every.n_experts) == ([0, 1, 2], 6)


@pytest.mark.parametrize("share", ["4x2-", "four", "4x0", "2x2 1x4", ""])
def test_a_plan_that_cannot_be_read_is_refused(share: str) -> None:
    with pytest.raises(UsageError, match="share"):
        OmniRouter(6, 4, share=share)


def test_a_plan_must_cover_the_routed_layers() -> None:
    with pytest.raises(UsageError, match="covers 3 layers, the model routes 4"):
        sharing_groups("2x2-1x4", 4, 8)


def test_the_class_says_that_layers_share_it() -> None:
    assert OmniRouter.shared_across_layers
