from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.core.errors import UsageError
from crossroads.moe.routers.attention import AttentionRouter, expert_attention
from tests.moe.routers.inputs import places, tokens, view


def logits_of(router: AttentionRouter, x_BTD: torch.Tensor) -> torch.Tensor:
    logits_NE = router.decide(view(x_BTD)).decision.logits_NE
    assert logits_NE is not None
    return logits_NE


def by_loops(q: list[float], k: list[float], v: list[float]) -> list[float]:
    out = []
    for q_i in q:
        weights = [math.exp(q_i * k_j) for k_j in k]
        out.append(sum(w * v_j for w, v_j in zip(weights, v, strict=True)) / sum(weights))
    return out


def test_logits_of_three_experts_are_the_worked_example_and_not_its_transpose() -> None:
    q, k, v = torch.tensor([[1.0, 0, -1], [1, 2, 0], [0.5, -1, 2]], dtype=torch.float64)
    found = expert_attention(q[None], k[None], v[None])[0]
    expected = torch.tensor([-0.362816, 0.5, 1.362816], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    swapped = expert_attention(k[None], q[None], v[None])[0]
    expected = torch.tensor([0.267953, 0.347849, 0.5], dtype=torch.float64)
    torch.testing.assert_close(swapped, expected, atol=1e-6, rtol=0)


def test_the_router_equals_a_loop_over_experts_and_tokens() -> None:
    router, x_BTD = AttentionRouter(6, 5).double(), tokens(2, 7, 6, dtype=torch.float64)
    rows = []
    for x in x_BTD.reshape(-1, 6):
        q, k, v = (part.weight @ x for part in (router.query, router.key, router.value))
        rows.append(by_loops(q.tolist(), k.tolist(), v.tolist()))
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(logits_of(router, x_BTD), expected, atol=1e-6, rtol=0)


number = st.floats(-5, 5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=6))
def test_logits_lie_between_the_least_and_the_largest_value(
    rows: list[tuple[float, float, float]],
) -> None:
    q, k, v = torch.tensor(rows, dtype=torch.float64).T.unsqueeze(1)
    found = expert_attention(q, k, v)
    assert (found >= v.amin() - 1e-9).all()
    assert (found <= v.amax() + 1e-9).all()


@pytest.mark.parametrize("part", ["query", "key"])
def test_without_queries_or_keys_all_logits_are_the_mean_value_and_the_first_experts_win(
    part: str,
) -> None:
    router, x_BTD = AttentionRouter(6, 4).double(), tokens(1, 5, 6, dtype=torch.float64)
    torch.nn.init.zeros_(getattr(router, part).weight)
    mean_N1 = torch.nn.functional.linear(x_BTD[0], router.value.weight).mean(-1, keepdim=True)
    torch.testing.assert_close(logits_of(router, x_BTD), mean_N1.expand(-1, 4))
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    if part == "query":  # rows of A are bitwise the same, so this is the rule of ties
        assert idx_NK.tolist() == [[0, 1]] * 5
    torch.testing.assert_close(w_NK, torch.full_like(w_NK, 0.5))


def test_experts_with_equal_queries_have_equal_logits() -> None:
    router, x_BTD = AttentionRouter(6, 4), tokens(1, 5, 6)
    with torch.no_grad():
        router.query.weight[3] = router.query.weight[1]
    logits_NE = logits_of(router, x_BTD)
    torch.testing.assert_close(logits_NE[:, 3], logits_NE[:, 1])
    assert not torch.allclose(logits_NE[:, 0], logits_NE[:, 1])


def test_a_token_is_routed_the_same_in_any_company() -> None:
    router, x_BTD = AttentionRouter(6, 4), tokens(1, 5, 6)
    together = logits_of(router, x_BTD)
    alone = torch.cat([logits_of(router, x_BTD[:, i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_weights_are_a_softmax_over_the_chosen_or_over_all() -> None:
    x_BTD = tokens(1, 5, 6)
    torch.manual_seed(0)
    router = AttentionRouter(6, 4)
    idx_NK, w_NK = places(router.decide(view(x_BTD)).decision)
    logits_NE = logits_of(router, x_BTD)
    torch.testing.assert_close(w_NK, torch.softmax(logits_NE.gather(-1, idx_NK), -1))
    router.renorm = False
    _, w_NK = places(router.decide(view(x_BTD)).decision)
    torch.testing.assert_close(w_NK, torch.softmax(logits_NE, -1).gather(-1, idx_NK))


def test_weights_start_at_one_over_root_d_and_the_gain_scales_values_alone() -> None:
    torch.manual_seed(0)
    plain = AttentionRouter(400, 16)
    torch.manual_seed(0)
    wide = AttentionRouter(400, 16, v_gain=3.0)
    for part in (plain.query, plain.key, plain.value):
        assert float(part.weight.detach().std()) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(wide.query.weight, plain.query.weight)
    assert torch.equal(wide.value.weight, 3 * plain.value.weight)


def test_nothing_is_balanced_unless_asked_for() -> None:
    x_BTD = tokens(1, 5, 6)
    assert AttentionRouter(6, 4).decide(view(x_BTD, training=True)).aux == {}
    aux = AttentionRouter(6, 4, balance=0.01).decide(view(x_BTD, training=True)).aux
    assert set(aux) == {"balance"}


def test_costs_three_gates_of_parameters() -> None:
    router = AttentionRouter(6, 4)
    assert sum(p.numel() for p in router.parameters()) == 3 * 6 * 4
    assert router.nominal_active == 2.0
    with pytest.raises(UsageError, match="v_gain"):
        AttentionRouter(6, 4, v_gain=0.0)
