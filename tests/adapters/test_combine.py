"""The three ways to combine experts: where they agree, and where they do not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crossroads.adapters.bank import LoRA, ModuleBank
from crossroads.adapters.combine import averaged, combine, concatenated, merged_factors
from crossroads.adapters.contract import Mode, Routing
from crossroads.core.errors import InputError
from tests.adapters.by_hand import merged_delta_OI, mix
from tests.adapters.toys import lora, module_bank, rng

X = torch.randn(2, 5, 6, generator=rng(9), dtype=torch.float64)
banks = st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any)


def constant(weights: list[float] | Tensor, mode: Mode = "mix") -> Routing:
    values = torch.as_tensor(weights, dtype=torch.float64)
    return Routing(weights=values[None, None, None], mode=mode, normalised=False)


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=rng(seed), dtype=torch.float64)


@given(ranks=banks, seed=st.integers(0, 99))
def test_mix_and_merged_delta_agree_for_constant_weights(ranks: list[int], seed: int) -> None:
    bank = module_bank(ranks, dtype=torch.float32, seed=seed)
    weights = drawn(len(ranks), seed).float()
    by_mix = mix(X.float(), bank, weights[None, None, None])
    by_delta = X.float() @ merged_delta_OI(bank, weights).T
    torch.testing.assert_close(by_mix, by_delta, atol=1e-4, rtol=1e-4)
    by_mode = combine(X.float(), bank, constant(weights, "merge_delta"))
    torch.testing.assert_close(by_mode, by_delta, atol=1e-4, rtol=1e-4)


@given(ranks=banks, seed=st.integers(0, 99))
def test_concatenated_experts_are_the_merged_delta(ranks: list[int], seed: int) -> None:
    bank = module_bank(ranks, seed=seed)
    weights = drawn(len(ranks), seed) * torch.tensor([bool(r) for r in ranks])
    one = concatenated(bank, weights)
    assert one.rank == max(1, sum(ranks))
    torch.testing.assert_close(
        one.scale * one.b_OR @ one.a_RI, merged_delta_OI(bank, weights), atol=1e-5, rtol=1e-5
    )


def test_concatenated_experts_leave_out_those_without_weight() -> None:
    bank = module_bank([2, 3, 1])
    assert concatenated(bank, torch.tensor([1.0, 0.0, 1.0])).rank == 3


@pytest.mark.parametrize("mode", ["mix", "merge_delta", "merge_factors"])
@pytest.mark.parametrize("expert", [0, 1, 2])
def test_one_hot_weights_are_that_expert_in_every_mode(mode: Mode, expert: int) -> None:
    bank = module_bank([2, 2, 2])
    one = bank.lora(expert)
    assert one is not None
    added = combine(X, bank, constant(torch.eye(3)[expert], mode))
    by_hand = one.scale * (X @ one.a_RI.T) @ one.b_OR.T
    torch.testing.assert_close(added, by_hand, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weighting", ["root", "peft"])
def test_one_hot_factors_are_that_expert(weighting: str) -> None:
    bank = module_bank([2, 2, 2])
    one = merged_factors(bank, torch.eye(3, dtype=torch.float64)[1], weighting)  # type: ignore[arg-type]
    expected = bank.lora(1)
    assert expected is not None
    torch.testing.assert_close(one.delta_OI(), expected.delta_OI().float(), atol=1e-5, rtol=1e-5)


def test_averaged_factors_are_another_function_than_the_merged_delta() -> None:
    bank = module_bank([2, 2])
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    gap = (merged_factors(bank, half).delta_OI() - merged_delta_OI(bank, half).float()).norm()
    assert gap > 0.3 * merged_delta_OI(bank, half).norm()


def test_averaged_factors_have_cross_terms() -> None:
    bank = module_bank([2, 2], scales=[1.0, 1.0])
    w = torch.tensor([0.3, 0.7], dtype=torch.float64)
    expected = sum(w[e] * w[f] * bank.b_EOR[e] @ bank.a_ERI[f] for e in range(2) for f in range(2))
    torch.testing.assert_close(merged_factors(bank, w).delta_OI(), expected.float())


def test_averaged_factors_agree_with_the_delta_where_all_share_one_a() -> None:
    shared = lora(2, 6, 4)
    others = [LoRA(a_RI=shared.a_RI, b_OR=lora(2, 6, 4, seed=s).b_OR, scale=1.0) for s in (1, 2)]
    bank = ModuleBank("layer", others)
    w = torch.tensor([0.4, 0.6])
    torch.testing.assert_close(merged_factors(bank, w).delta_OI(), merged_delta_OI(bank, w))


@pytest.mark.parametrize("weighting", ["root", "peft"])
def test_the_degree_in_the_weights(weighting: str) -> None:
    bank = module_bank([2, 2], scales=[1.0, 2.0])
    w = torch.tensor([0.3, 0.5], dtype=torch.float64)
    once = merged_factors(bank, w, weighting).delta_OI()  # type: ignore[arg-type]
    twice = merged_factors(bank, 2 * w, weighting).delta_OI()  # type: ignore[arg-type]
    torch.testing.assert_close(twice, (4 if weighting == "root" else 2) * once)
    torch.testing.assert_close(
        combine(X, bank, constant(2 * w, "merge_factors")),
        4 * combine(X, bank, constant(w, "merge_factors")),
    )


@given(seed=st.integers(0, 99))
def test_a_rotation_of_one_expert_changes_averaged_factors_alone(seed: int) -> None:
    rotation, _ = torch.linalg.qr(torch.randn(2, 2, generator=rng(seed), dtype=torch.float64))
    bank, turned = module_bank([2, 2]), module_bank([2, 2])
    with torch.no_grad():
        turned.a_ERI[0] = rotation @ turned.a_ERI[0]
        turned.b_EOR[0] = turned.b_EOR[0] @ rotation.T
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        combine(X, turned, constant(half)), combine(X, bank, constant(half)), check_dtype=False
    )
    torch.testing.assert_close(merged_delta_OI(turned, half), merged_delta_OI(bank, half))
    moved = (rotation - torch.eye(2, dtype=torch.float64)).norm()
    gap = (merged_factors(turned, half).delta_OI() - merged_factors(bank, half).delta_OI()).norm()
    assert gap > 0.1 * moved


@pytest.mark.parametrize("mode", ["merge_factors"])
def test_averaged_factors_refuse_mixed_ranks_that_have_weight(mode: Mode) -> None:
    bank = module_bank([2, 3, 2])
    with pytest.raises(InputError, match=r"layer: ranks differ \(2 and 3\).*one rank, or a router"):
        combine(X, bank, constant([0.5, 0.5, 0.0], mode))
    with pytest.raises(InputError, match="ranks differ"):
        merged_factors(bank, torch.tensor([0.5, 0.5, 0.0]))
    combine(X, bank, constant([0.5, 0.0, 0.5], mode))  # the other one is not in


@given(seed=st.integers(0, 99), scales=st.sampled_from([(2.0, 2.0, 2.0), (1.0, 2.0, 0.5)]))
def test_factors_of_a_batch_are_those_of_its_sequences(
    seed: int, scales: tuple[float, ...]
) -> None:
    bank = module_bank([2, 2, 2], scales=scales, seed=seed)
    weights = torch.rand(2, 3, generator=rng(seed), dtype=torch.float64)
    together = averaged(bank, weights[:, None, None])(X)
    for row in range(2):
        alone = merged_factors(bank, weights[row])
        by_hand = alone.scale * (X[row] @ alone.a_RI.T) @ alone.b_OR.T
        torch.testing.assert_close(together[row], by_hand, atol=1e-5, rtol=1e-5)


def test_heads_choose_for_their_own_slices() -> None:
    bank = module_bank([2, 2, 2], heads=2)
    weights = torch.rand(1, 1, 2, 3, generator=rng(1), dtype=torch.float64)
    changed = weights.clone()
    changed[0, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    one, other = averaged(bank, weights), averaged(bank, changed)
    assert torch.equal(one.a_BRI[..., :3], other.a_BRI[..., :3])
    assert torch.equal(one.b_BOR[:, :2], other.b_BOR[:, :2])
    assert not torch.allclose(one.a_BRI[..., 3:], other.a_BRI[..., 3:])
    assert not torch.allclose(one.b_BOR[:, 2:], other.b_BOR[:, 2:])
    alike = averaged(bank, weights[:, :, :1].expand(1, 1, 2, 3))
    single = averaged(bank, weights[:, :, :1])
    torch.testing.assert_close(alike.a_BRI, single.a_BRI)
    torch.testing.assert_close(alike.b_BOR, single.b_BOR)


def test_heads_need_a_bank_made_for_them() -> None:
    with pytest.raises(InputError, match="merge_factors at layer: 3 heads, the bank has 2"):
        averaged(module_bank([2], heads=2), torch.ones(1, 1, 3, 1))
    with pytest.raises(InputError, match="weights by head need mode 'merge_factors'"):
        mix(X, module_bank([2], heads=2), torch.ones(1, 1, 2, 1))


@pytest.mark.parametrize("mode", ["mix", "merge_delta", "merge_factors"])
def test_every_mode_is_differentiable_in_weights_factors_and_input(mode: Mode) -> None:
    bank = module_bank([2, 2], inputs=4, outputs=2)

    def run(x: Tensor, weights: Tensor, a_ERI: Tensor, b_EOR: Tensor) -> Tensor:
        layer = _Combining(bank, constant(weights, mode))
        parts = {"bank.a_ERI": a_ERI, "bank.b_EOR": b_EOR}
        return torch.func.functional_call(layer, parts, (x,))

    leaves = (X[:1, :2, :4], drawn(2, 0), bank.a_ERI.detach(), bank.b_EOR.detach())
    torch.autograd.gradcheck(run, [leaf.clone().requires_grad_() for leaf in leaves])


class _Combining(torch.nn.Module):
    def __init__(self, bank: ModuleBank, routing: Routing) -> None:
        super().__init__()
        self.bank, self.routing = bank, routing

    def forward(self, x: Tensor) -> Tensor:
        return combine(x, self.bank, self.routing)


def test_peft_s_weighting_puts_the_sign_into_one_factor() -> None:
    bank = module_bank([2, 2], scales=[1.0, 2.0])
    minus = merged_factors(bank, torch.tensor([0.0, -0.5], dtype=torch.float64), "peft")
    expected = bank.lora(1)
    assert expected is not None
    torch.testing.assert_close(minus.delta_OI(), -0.5 * expected.delta_OI().float())


@pytest.mark.parametrize("expert", [0, 1])
def test_negative_scales_are_averaged_too(expert: int) -> None:
    bank = module_bank([2, 2], scales=[-1.0, 2.0])
    one_hot = torch.eye(2, dtype=torch.float64)[expert]
    one = bank.lora(expert)
    assert one is not None
    by_hand = one.scale * (X @ one.a_RI.T) @ one.b_OR.T
    torch.testing.assert_close(combine(X, bank, constant(one_hot, "merge_factors")), by_hand)
    merged = merged_factors(bank, one_hot).delta_OI()
    torch.testing.assert_close(merged, one.delta_OI().float(), atol=1e-6, rtol=1e-6)
