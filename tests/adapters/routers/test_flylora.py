"""FlyLoRA: frozen sparse projections, ranks that fire, and what balances them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.combine import mix
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.fly import (
    delta_average,
    factor_average,
    fly_bank,
    sparse_projection,
    union,
)
from crossroads.adapters.routers.flylora import FlyLoRA
from crossroads.core.errors import InputError, UsageError

LAYER, INPUTS, OUTPUTS = "layers.0.proj", 48, 12
SIZES = {LAYER: (INPUTS, OUTPUTS)}
Tensor = torch.Tensor


def trained(seed: int = 0, ranks: int = 8, name: str = "fly") -> AdapterBank:
    """Return an adapter whose B is random instead of zero."""
    bank = fly_bank(SIZES, ranks=ranks, k=2, seed=seed, name=name)
    b_EOR = bank.layers[LAYER].b_EOR
    b_EOR.data = torch.randn(b_EOR.shape, generator=torch.Generator().manual_seed(seed + 50))
    return bank


def routed(bank: AdapterBank, router: FlyLoRA, x_BTI: Tensor, *, training: bool = False):  # type: ignore[no-untyped-def]
    call = Call(training=training)
    return router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=bank.layers[LAYER], call=call))


def inputs(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 100), ranks=st.sampled_from([4, 16, 32]), share=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=20)
def test_every_row_has_exactly_its_nonzeros_and_comes_back_from_the_seed(
    seed: int, ranks: int, share: float
) -> None:
    nonzeros = max(1, round(share * INPUTS))
    a_RI = sparse_projection(LAYER, INPUTS, ranks=ranks, nonzeros=nonzeros, seed=seed)
    assert (a_RI != 0).sum(-1).tolist() == [nonzeros] * ranks
    again = sparse_projection(LAYER, INPUTS, ranks=ranks, nonzeros=nonzeros, seed=seed)
    assert torch.equal(a_RI, again)


def test_the_entries_have_the_standard_deviation_of_one_over_the_ranks() -> None:
    a_RI = sparse_projection(LAYER, 4000, ranks=32, nonzeros=1000, seed=3)
    assert a_RI[a_RI != 0].std().item() == pytest.approx(1 / 32, rel=0.05)


def test_projections_of_two_seeds_are_nearly_orthogonal() -> None:
    ranks, width = 32, 576
    found = [
        sparse_projection(LAYER, width, ranks=ranks, nonzeros=144, seed=seed).flatten()
        for seed in range(12)
    ]
    cosines = [
        torch.cosine_similarity(a, b, dim=0).item()
        for place, a in enumerate(found) for b in found[:place]
    ]  # fmt: skip
    assert max(map(abs, cosines)) < 4 / math.sqrt(ranks * width)
    assert torch.tensor(cosines).std().item() == pytest.approx(
        1 / math.sqrt(ranks * width), rel=0.4
    )


def test_with_every_rank_firing_it_is_lora_with_a_frozen_projection() -> None:
    bank, router = trained(), FlyLoRA(k=8)
    router.prepare(bank)
    x_BTI = inputs(1, 2, 5, INPUTS)
    module = bank.layers[LAYER]
    routing = routed(bank, router, x_BTI)
    found = mix(x_BTI, module, routing.dense(8))
    a_RI, b_OR = module.a_ERI[:, 0], module.b_EOR[:, :, 0].T
    torch.testing.assert_close(found, 2.0 * x_BTI @ a_RI.T @ b_OR.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("select", ["abs_biased", "magnitude", "signed"])
def test_the_largest_by_the_rule_fire_and_the_bias_never_enters_the_sum(select: str) -> None:
    bank, router = trained(), FlyLoRA(k=3, select=select)
    router.prepare(bank)
    bias_E = inputs(9, 8) * 0.05
    router.bias_LE[0] = bias_E
    x_BTI = inputs(2, 1, 6, INPUTS)
    z_TE = (x_BTI @ bank.layers[LAYER].a_ERI[:, 0].T)[0]
    score = {"abs_biased": (z_TE + bias_E).abs(), "magnitude": z_TE.abs() + bias_E,
             "signed": z_TE + bias_E}[select]  # fmt: skip
    weights_TE = routed(bank, router, x_BTI).weights[0, :, 0]
    assert set(weights_TE.unique().tolist()) == {0.0, 1.0}
    for t in range(6):
        assert set(weights_TE[t].nonzero().flatten().tolist()) == set(
            score[t].topk(3).indices.tolist()
        )


def test_only_the_columns_of_ranks_that_fired_get_gradient() -> None:
    bank, router = trained(), FlyLoRA(k=2)
    router.prepare(bank)
    module = bank.layers[LAYER]
    module.b_EOR.requires_grad_(True)
    x_BTI = inputs(3, 1, 1, INPUTS)
    routing = routed(bank, router, x_BTI, training=True)
    mix(x_BTI, module, routing.dense(8)).square().sum().backward()
    assert module.b_EOR.grad is not None
    assert (module.b_EOR.grad.abs().sum((1, 2)) > 0).tolist() == (
        routing.weights[0, 0, 0] > 0
    ).tolist()
    assert module.a_ERI.grad is None
    assert not router.bias_LE.requires_grad


def coefficient_of_variation(select: str, rate: float, shift: float, seed: int) -> float:
    """Return the spread of how often ranks fire after 200 updates on the same inputs."""
    bank = fly_bank({LAYER: (576, 4)}, ranks=32, k=8, seed=seed)
    router = FlyLoRA(k=8, select=select, rate=rate)
    router.prepare(bank)
    draw = torch.Generator().manual_seed(seed)
    x_BTI = torch.randn(1, 512, 576, generator=draw) + shift * torch.randn(576, generator=draw)
    for _ in range(200):
        routed(bank, router, x_BTI, training=True)
        router.update()
    count_E = routed(bank, router, x_BTI).weights.sum((0, 1, 2))
    return (count_E.std(unbiased=False) / count_E.mean()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_selection_by_magnitude_is_balanced_by_its_bias_where_inputs_have_a_mean(seed: int) -> None:
    plain = coefficient_of_variation("magnitude", 0.0, 1.0, seed)
    assert coefficient_of_variation("magnitude", 1e-2, 1.0, seed) <= 0.25 * plain
    # The printed rule, |z + d|, makes it worse: a falling d that is negative raises |z + d|.
    assert coefficient_of_variation("abs_biased", 1e-2, 1.0, seed) > plain


def test_the_bias_moves_once_an_update_in_training_alone() -> None:
    bank, router = trained(), FlyLoRA(k=2, rate=0.5)
    router.prepare(bank)
    routed(bank, router, inputs(4, 1, 7, INPUTS))
    router.update()
    assert not router.bias_LE.any()
    counts = torch.zeros(8)
    for micro in range(2):  # one optimiser step of two batches
        counts += routed(bank, router, inputs(micro, 1, 7, INPUTS), training=True).weights.sum(
            (0, 1, 2)
        )
    router.update()
    assert torch.equal(router.bias_LE[0], 0.5 * torch.sign(counts.mean() - counts))


def test_padding_is_not_counted() -> None:
    bank, router = trained(), FlyLoRA(k=2, rate=0.5)
    router.prepare(bank)
    x_BTI = inputs(5, 1, 6, INPUTS)
    mask_BT = torch.tensor([[True, True, True, False, False, False]])
    call = Call(training=True, mask_BT=mask_BT)
    router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=bank.layers[LAYER], call=call))
    router.update()
    padded = router.bias_LE.clone()
    router.bias_LE.zero_()
    routed(bank, router, x_BTI[:, :3], training=True)
    router.update()
    assert torch.equal(router.bias_LE, padded)


def test_a_union_lets_every_adapter_fire_its_own_ranks() -> None:
    first, second = trained(1, name="a"), trained(2, name="b")
    both, x_BTI = union([first, second]), inputs(6, 2, 3, INPUTS)
    router = FlyLoRA(k=2, ranks=8)
    router.prepare(both)
    whole = mix(x_BTI, both.layers[LAYER], routed(both, router, x_BTI).dense(16))
    apart = torch.zeros_like(whole)
    for bank in (first, second):
        alone = FlyLoRA(k=2)
        alone.prepare(bank)
        apart += mix(x_BTI, bank.layers[LAYER], routed(bank, alone, x_BTI).dense(8))
    torch.testing.assert_close(whole, apart, atol=1e-5, rtol=1e-5)


def test_merges_are_the_average_of_deltas_and_the_average_of_factors() -> None:
    banks = [trained(1), trained(2)]

    def delta(bank: AdapterBank) -> Tensor:
        experts = [bank.layers[LAYER].lora(e) for e in range(8)]
        return sum((one.delta_OI() for one in experts if one), torch.zeros(OUTPUTS, INPUTS))

    merged = delta_average(banks).modules[LAYER].delta_OI()
    torch.testing.assert_close(merged, (delta(banks[0]) + delta(banks[1])) / 2)
    crossed = delta(factor_average(banks))
    assert (crossed - merged).abs().max() > 0.1 * merged.abs().max()
    torch.testing.assert_close(delta(factor_average([banks[0]] * 2)), delta(banks[0]))


def test_wrong_settings_and_banks_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="select is abs_biased"):
        FlyLoRA(select="loudest")
    with pytest.raises(InputError, match="k = 9"):
        FlyLoRA(k=9).prepare(trained())
    with pytest.raises(InputError, match="k is 0"):
        fly_bank(SIZES, ranks=8, k=0)
    with pytest.raises(InputError, match="density is 0"):
        fly_bank(SIZES, ranks=8, k=2, density=0.0)
    wide = LoRA(a_RI=torch.ones(2, INPUTS), b_OR=torch.ones(OUTPUTS, 2), scale=1.0)
    plain = Expert(name="x", modules={LAYER: wide})
    with pytest.raises(InputError, match="rank one"):
        FlyLoRA(k=1).prepare(AdapterBank([plain]))
