from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.core.losses import switch_balance
from crossroads.moe.routers import build_router
from crossroads.moe.routers.top_p import TopP
from tests.moe.routers.inputs import places, tokens, value, view, with_logits


def of_probabilities(*rows: list[float], p: float = 0.4, **more: object) -> tuple[TopP, Tensor]:
    probs_NE = torch.tensor(rows, dtype=torch.float64)
    router = TopP(probs_NE.shape[0], probs_NE.shape[1], p=p, **more)
    return router, with_logits(router, probs_NE.log())


def chosen(router: TopP, x_BTD: Tensor, **fields: object) -> tuple[Tensor, Tensor]:
    return places(router.decide(view(x_BTD, **fields)).decision)


def test_the_expert_that_crosses_the_threshold_is_in() -> None:
    idx_NK, w_NK = chosen(*of_probabilities([0.1, 0.2, 0.3, 0.15, 0.25]))
    assert idx_NK.tolist() == [[2, 4, -1, -1, -1]]
    torch.testing.assert_close(w_NK, torch.tensor([[0.3, 0.25, 0, 0, 0]], dtype=torch.float64))


def test_uniform_over_sixteen_at_04_takes_seven() -> None:
    idx_NK, _ = chosen(*of_probabilities([1 / 16] * 16))
    assert idx_NK.tolist() == [[*range(7), *[-1] * 9]]


def test_p_zero_is_top_1_with_the_largest_probability() -> None:
    router, x_BTD = TopP(6, 5, p=0.0), tokens(2, 9, 6)
    idx_NK, w_NK = chosen(router, x_BTD)
    probs_NE = router.decide(view(x_BTD)).decision.probs_NE
    assert probs_NE is not None
    assert (idx_NK[:, 0] == probs_NE.argmax(-1)).all()
    assert (idx_NK[:, 1:] == -1).all()
    assert torch.equal(w_NK[:, 0], probs_NE.amax(-1))


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_p_one_is_the_dense_mixture(p: float) -> None:
    # A float32 prefix sum of the second row passes 1 before its last experts.
    router, x_BTD = of_probabilities([0.25] * 4, [0.9, 0.1 - 2e-9, 1e-9, 1e-9], p=p)
    idx_NK, w_NK = chosen(router.float(), x_BTD.float())
    assert (idx_NK >= 0).all()
    torch.testing.assert_close(w_NK.sum(-1), torch.ones(2))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=9),
    st.floats(0.0, 0.999),
    st.floats(0.0, 0.999),
)
def test_the_choice_is_the_smallest_prefix_above_p_and_grows_with_p(
    logits: list[float], p: float, q: float
) -> None:
    probs = torch.softmax(torch.tensor(logits, dtype=torch.float64), -1)
    smaller, larger = sorted((p, q))
    counts = []
    for share in (smaller, larger):
        idx_NK, w_NK = chosen(*of_probabilities(probs.tolist(), p=share))
        w_NK = w_NK.detach()
        picked = idx_NK[0][idx_NK[0] >= 0].tolist()
        order = sorted(range(len(logits)), key=lambda e: (-float(probs[e]), e))
        sums = [float(probs[order[:t]].sum()) for t in range(1, len(order) + 1)]
        above = [t for t, total in enumerate(sums, 1) if total > share]
        if min(abs(total - share) for total in sums) > 1e-9:  # rounding decides at equality
            assert len(picked) == (above[0] if above else len(order))
            total = float(w_NK.sum())
            assert total > share
            assert total - float(w_NK[0, len(picked) - 1]) <= share
        assert sorted(float(probs[e]) for e in picked) == sorted(
            sorted(probs.tolist())[-len(picked) :]
        )
        counts.append(len(picked))
    assert counts[0] <= counts[1]


def test_a_cap_keeps_the_best_and_drops_the_rest() -> None:
    idx_NK, w_NK = chosen(*of_probabilities([0.1, 0.2, 0.3, 0.15, 0.25], p=0.9, k_max=2))
    assert idx_NK.tolist() == [[2, 4]]
    assert float(w_NK.detach().sum()) == pytest.approx(0.55)


def test_balance_is_the_mean_number_of_experts_at_uniform_probability_and_entropy_its_log() -> None:
    router, x_BTD = of_probabilities([1 / 8] * 8, [1 / 8] * 8)
    aux = router.decide(view(x_BTD, training=True)).aux
    assert value(aux["balance"]) == pytest.approx(4)  # 3/8 is not above 0.4, 4/8 is
    assert aux["balance"].coefficient == 0.01
    assert value(aux["entropy"]) == pytest.approx(float(torch.tensor(8.0).log()))
    assert aux["entropy"].coefficient == 1e-4
    assert router.decide(view(x_BTD)).aux == {}


def test_counts_of_the_balance_loss_may_be_divided_by_picks() -> None:
    router, x_BTD = of_probabilities([0.5, 0.3, 0.2], [0.3, 0.3, 0.4], p=0.6, f_norm="picks")
    answer = router.decide(view(x_BTD, training=True))
    idx_NK, _ = places(answer.decision)
    probs_NE = answer.decision.probs_NE
    assert probs_NE is not None
    expected = switch_balance(probs_NE, idx_NK, torch.ones(2, dtype=torch.bool), f_norm="picks")
    assert torch.equal(answer.aux["balance"].value, expected)


def test_only_chosen_probabilities_carry_the_task_gradient() -> None:
    router, x_BTD = of_probabilities([0.5, 0.3, 0.2], p=0.6)
    idx_NK, w_NK = chosen(router, x_BTD)
    probs_NE = torch.softmax(router.gate.weight.T, -1)
    (grad,) = torch.autograd.grad(w_NK.sum(), router.gate.weight)
    (expected,) = torch.autograd.grad(probs_NE[0, :2].sum(), router.gate.weight)
    torch.testing.assert_close(grad, expected)
    assert idx_NK.tolist() == [[0, 1, -1]]


def test_a_target_moves_p_one_step_per_commit_and_is_state() -> None:
    router, x_BTD = of_probabilities(
        [0.25] * 4, [0.7, 0.1, 0.1, 0.1], p=0.65, target=1.5, p_step=0.1
    )
    means = []
    for _ in range(6):
        decision = router.decide(view(x_BTD)).decision
        means.append(float(decision.stats["count_E"].sum() / 2))
        before = router.current_p
        router.commit(decision.stats, {})
        wanted = (means[-1] < 1.5) - (means[-1] > 1.5)
        assert router.current_p == pytest.approx(before + 0.1 * wanted)
    assert means == [2.0, 2.0, 1.5, 1.5, 1.5, 1.5]  # p = 0.65, 0.55, 0.45 and stays
    other = TopP(2, 4, p=0.65, target=1.5, p_step=0.1)
    other.load_state_dict(router.state_dict())
    assert other.current_p == router.current_p
    assert other.bfloat16().current_p == router.current_p
    assert router.nominal_active == 1.5


def test_the_controller_stays_between_top_1_and_all() -> None:
    router = TopP(4, 4, p=0.95, target=4.0, p_step=0.1)
    few = {"count_E": torch.ones(4), "tokens": torch.tensor(4.0)}
    for _ in range(3):
        router.commit(few, {})
    assert router.current_p == 0.95
    fixed = TopP(4, 4, p=0.5)
    fixed.commit(few, {})
    assert fixed.current_p == 0.5


@pytest.mark.parametrize("reason", ["forbidden", "far below"])
def test_an_expert_without_probability_gives_finite_gradients(reason: str) -> None:
    router = TopP(6, 4)
    fields: dict[str, object] = {}
    if reason == "forbidden":
        fields["allow"] = torch.tensor([False, True, True, True])
    else:
        router.gate.weight.data.mul_(300)
    answer = router.decide(view(tokens(2, 9, 6), training=True, **fields))
    assert float(answer.decision.probs_NE.detach().amin()) == 0
    loss = sum((term.weighted for term in answer.aux.values()), places(answer.decision)[1].sum())
    loss.backward()
    assert bool(torch.isfinite(router.gate.weight.grad).all())


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="p: expected 0 or more"):
        TopP(4, 4, p=-0.1)
    with pytest.raises(UsageError, match="k_max: expected 1 to 4"):
        TopP(4, 4, k_max=5)
    with pytest.raises(UsageError, match="target: expected 1 to 4"):
        TopP(4, 4, target=0.5)
    with pytest.raises(UsageError, match="p: expected at most 1"):
        TopP(4, 4, p=1.2, target=2.0)


def test_the_name_and_a_setting_build_it() -> None:
    router = build_router("top-p:p=0.3", 4, 8)
    assert isinstance(router, TopP)
    assert router.p == 0.3
    assert router.nominal_active == 2.0
