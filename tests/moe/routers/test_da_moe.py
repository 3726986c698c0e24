from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.moe.contract import RouterInput
from crossroads.moe.routers.da_moe import DAMoE
from crossroads.moe.routers.switch import Switch
from tests.moe.routers.inputs import layer_of, places, tokens, view

WIDTH = 6


def attention(
    batch: int, length: int, *, seed: int = 0, causal: bool = False, mask_BT: Tensor | None = None
) -> Tensor:
    logits = 2 * tokens(batch, 2, length, length, seed=seed)
    if causal:
        logits = logits.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
    if mask_BT is not None:
        logits = logits.masked_fill(~mask_BT[:, None, None, :], -torch.inf)
    return torch.softmax(logits, -1)


def with_attention(attn: Tensor, **fields: object) -> RouterInput:
    return view(tokens(attn.shape[0], attn.shape[2], WIDTH, seed=1), attn=attn, **fields)


def received(rows: list[list[float]]) -> RouterInput:
    """A single head whose rows are given."""
    return with_attention(torch.tensor([[rows]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 8), st.data())
def test_more_attention_is_never_fewer_experts_and_the_most_attended_gets_all(
    seed: int, length: int, n_experts: int, data: st.DataObject
) -> None:
    k_max = data.draw(st.integers(1, n_experts))
    router = DAMoE(WIDTH, n_experts, k_max=k_max)
    inp = with_attention(attention(2, length, seed=seed))
    importance_BT, experts_BT = router.importance(inp), router.experts_per_token(inp)
    for row in range(2):
        order_T = importance_BT[row].argsort()
        assert (experts_BT[row][order_T].diff() >= 0).all()
        assert int(experts_BT[row][importance_BT[row].argmax()]) == k_max
    assert (experts_BT >= 1).all()
    exact = (importance_BT * n_experts - 1e-6).ceil().clamp(1, k_max)
    assert torch.equal(exact, experts_BT.to(exact.dtype))


def test_importance_is_received_attention_over_the_maximum() -> None:
    inp = received([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    importance_BT = DAMoE(WIDTH, 4).importance(inp)
    torch.testing.assert_close(importance_BT, torch.tensor([[0.8 / 1.4, 1.0, 0.8 / 1.4]]))
    assert DAMoE(WIDTH, 4).experts_per_token(inp).tolist() == [[3, 4, 3]]
    stretched = DAMoE(WIDTH, 4, normalise="minmax").importance(inp)
    torch.testing.assert_close(stretched, torch.tensor([[0.0, 1.0, 0.0]]))


def test_heads_and_queries_are_reduced_as_asked() -> None:
    attn = attention(2, 5)
    inp = with_attention(attn)
    column_BHT = attn.mean(2)
    for heads, reduced_BT in (("mean", column_BHT.mean(1)), ("max", column_BHT.amax(1))):
        expected = reduced_BT / reduced_BT.amax(-1, keepdim=True)
        for queries in ("mean", "sum"):  # the same without padding, since all keys see as many
            router = DAMoE(WIDTH, 4, heads=heads, queries=queries)
            torch.testing.assert_close(router.importance(inp), expected)


@pytest.mark.parametrize("normalise", ["max", "minmax"])
def test_even_attention_gives_every_token_the_same_number(normalise: str) -> None:
    inp = with_attention(torch.full((2, 3, 7, 7), 1 / 7))
    experts_BT = DAMoE(WIDTH, 5, k_max=3, normalise=normalise).experts_per_token(inp)
    assert (experts_BT == 3).all()


def test_rounding_of_the_importance_adds_no_expert() -> None:
    router = DAMoE(WIDTH, 10)
    inp = received([[0.1 * 3, 0.7]] * 2)  # 0.3 / 0.7 * 10 = 4.29, and 1 * 10
    assert router.experts_per_token(inp).tolist() == [[5, 10]]
    inp = received([[0.3, 0.1, 0.6]] * 3)  # 0.3 / 0.6 is a little above 1/2 in float32
    assert router.experts_per_token(inp).tolist() == [[5, 2, 10]]


def test_padding_gives_and_takes_no_attention() -> None:
    mask_BT = torch.tensor([[True] * 4 + [False] * 3])
    attn = attention(1, 7, mask_BT=mask_BT)
    router = DAMoE(WIDTH, 5)
    inp = with_attention(attn, mask_BT=mask_BT)
    alone = with_attention(attn[:, :, :4, :4])
    torch.testing.assert_close(router.importance(inp)[:, :4], router.importance(alone))
    assert (router.importance(inp)[:, 4:] == 0).all()
    noisy = attn.clone()
    noisy[:, :, 4:] = 5.0  # rows of padded queries mean nothing
    again = with_attention(noisy, mask_BT=mask_BT)
    assert torch.equal(router.importance(again), router.importance(inp))
    idx_NK, _ = places(router.decide(inp).decision)
    assert (idx_NK[4:] == -1).all()
    assert (idx_NK[:4, 0] >= 0).all()


def test_executed_pairs_are_the_sum_of_the_experts_per_token() -> None:
    attn = attention(2, 8)
    router = DAMoE(WIDTH, 6)
    layer = layer_of(router, WIDTH)
    x_BTD = tokens(2, 8, WIDTH, seed=1)
    answer = layer(x_BTD, attn=attn)
    wanted = int(router.experts_per_token(with_attention(attn)).sum())
    idx_NK, _ = places(answer.decisions[0])
    assert int((idx_NK >= 0).sum()) == wanted
    one = float(layer.experts.flops_E(8)[0])
    assert answer.flops == pytest.approx(one * wanted + router.router_flops(16))


def test_at_most_one_expert_is_switch() -> None:
    router, switch = DAMoE(WIDTH, 5, k_max=1), Switch(WIDTH, 5)
    switch.load_state_dict(router.state_dict())
    inp = with_attention(attention(2, 8))
    first, second = router.decide(inp).decision, switch.decide(inp).decision
    assert torch.equal(places(first)[0], places(second)[0])
    assert torch.equal(places(first)[1], places(second)[1])


def test_a_decoder_refuses_received_attention() -> None:
    inp = with_attention(attention(1, 5, causal=True), causal=True)
    with pytest.raises(UsageError, match="importance"):
        DAMoE(WIDTH, 4).decide(inp)
    assert not DAMoE.causal_safe
    assert DAMoE(WIDTH, 4, importance="self").causal_safe
    layer = layer_of(DAMoE(WIDTH, 4), WIDTH)
    with pytest.raises(UsageError, match="decoder"):
        layer(tokens(1, 5, WIDTH), RouteContext(causal=True), attn=attention(1, 5))


@pytest.mark.parametrize("source", ["self", "entropy"])
def test_the_causal_forms_do_not_look_ahead(source: str) -> None:
    router = DAMoE(WIDTH, 6, importance=source)
    attn = attention(2, 9, causal=True)
    whole = router.importance(with_attention(attn, causal=True))
    for seen in (1, 4, 8):
        cut = router.importance(with_attention(attn[:, :, :seen, :seen], causal=True))
        torch.testing.assert_close(whole[:, :seen], cut)
    assert float(whole.amax()) <= 1 + 1e-6
    assert not torch.equal(whole[:, 1:], whole[:, :-1])


def test_one_row_at_a_time_gives_the_same_importance_as_the_whole_decoder() -> None:
    attn = attention(2, 9, causal=True)
    for source in ("self", "entropy"):
        router = DAMoE(WIDTH, 6, importance=source)
        whole = router.importance(with_attention(attn, causal=True))
        for row in range(9):
            pos_BT = torch.full((2, 1), row)
            last = with_attention(
                attn[:, :, row : row + 1, : row + 1], causal=True, cond={"pos": pos_BT}
            )
            torch.testing.assert_close(router.importance(last)[:, 0], whole[:, row])
            last = with_attention(attn[:, :, row : row + 1, : row + 1], causal=True)
            torch.testing.assert_close(router.importance(last)[:, 0], whole[:, row])


def test_own_attention_and_relative_entropy_are_what_they_say() -> None:
    rows = [[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    inp = view(tokens(1, 3, WIDTH), attn=torch.tensor([[rows]]), causal=True)
    own = DAMoE(WIDTH, 4, importance="self").importance(inp)
    torch.testing.assert_close(own, torch.tensor([[1.0, 0.5, 0.5]]))
    relative = DAMoE(WIDTH, 4, importance="entropy").importance(inp)
    third = 1.5 * math.log(2) / math.log(3)
    torch.testing.assert_close(relative, torch.tensor([[1.0, 1.0, third]]))


def test_packed_documents_are_as_good_as_apart() -> None:
    one, two = attention(1, 4, seed=1), attention(1, 3, seed=2)
    packed = torch.zeros(1, 2, 7, 7)
    packed[:, :, :4, :4], packed[:, :, 4:, 4:] = one, two
    doc_id = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    for normalise in ("max", "minmax"):
        router = DAMoE(WIDTH, 5, normalise=normalise)
        together = router.importance(with_attention(packed, cond={"doc_id": doc_id}))
        apart = [router.importance(with_attention(part)) for part in (one, two)]
        torch.testing.assert_close(together, torch.cat(apart, 1))


def test_a_marked_sink_gets_one_expert_and_sets_no_maximum() -> None:
    inp = received([[0.8, 0.15, 0.05]] * 3)
    marked = with_attention(
        torch.tensor([[[[0.8, 0.15, 0.05]] * 3]]),
        cond={"special": torch.tensor([[True, False, False]])},
    )
    router = DAMoE(WIDTH, 6)
    assert router.experts_per_token(inp).tolist() == [[6, 2, 1]]
    assert router.experts_per_token(marked).tolist() == [[1, 6, 2]]


def test_no_gradient_reaches_the_attention() -> None:
    attn = attention(1, 5).requires_grad_()
    router = DAMoE(WIDTH, 4)
    _, w_NK = places(router.decide(with_attention(attn, training=True)).decision)
    w_NK.sum().backward()
    assert attn.grad is None
    assert float(router.gate.weight.grad.abs().max()) > 0


def test_important_tokens_queue_first_when_capacity_goes_by_gate() -> None:
    from crossroads.moe.capacity import Capacity

    router = DAMoE(WIDTH, 1, capacity=Capacity(factor=0.5, priority="gate"))
    inp = with_attention(attention(1, 8))
    choice = router.decide(inp).decision.choice
    assert choice.dropped_NK is not None
    served_T = ~choice.dropped_NK[:, 0]
    importance_T = router.importance(inp)[0]
    assert int(served_T.sum()) == 4
    assert float(importance_T[served_T].min()) >= float(importance_T[~served_T].max())


def test_missing_or_misshapen_attention_is_refused() -> None:
    router = DAMoE(WIDTH, 4)
    with pytest.raises(InputError, match="attn: router da-moe"):
        router.decide(view(tokens(1, 5, WIDTH)))
    with pytest.raises(InputError, match="attn: expected shape"):
        router.decide(view(tokens(1, 5, WIDTH), attn=attention(1, 4)))
    with pytest.raises(InputError, match="as many queries as keys"):
        router.decide(view(tokens(1, 1, WIDTH), attn=attention(1, 4)[:, :, 3:]))
    with pytest.raises(UsageError, match="normalise"):
        DAMoE(WIDTH, 4, normalise="sum")
    with pytest.raises(UsageError, match="k_max"):
        DAMoE(WIDTH, 4, k_max=5)


def test_experts_are_sized_for_uniform_importance() -> None:
    assert DAMoE(WIDTH, 8, k_max=4).nominal_active == (1 + 2 + 3 + 5 * 4) / 8
    assert DAMoE(WIDTH, 8, k_max=1).nominal_active == 1
    assert DAMoE.needs == {"attn"}


@pytest.mark.parametrize("importance", ["received", "self", "entropy"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.5])
def test_attention_that_is_no_probability_is_refused_at_real_tokens_only(
    importance: str, wrong: float
) -> None:
    router = DAMoE(WIDTH, 4, importance=importance)
    attn = attention(2, 5)
    attn[1, 0, 3, 3] = wrong
    with pytest.raises(InputError, match=f"attn: expected probabilities .*, got {wrong}"):
        router.decide(with_attention(attn))
    mask_BT = torch.ones(2, 5, dtype=torch.bool)
    mask_BT[1, 3:] = False
    wanted_BT = router.experts_per_token(with_attention(attn, mask_BT=mask_BT))
    assert bool((wanted_BT >= 1).all())
