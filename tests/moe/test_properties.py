"""What every router promises, shipped or added by another package.

A router declares on its class (or object) whether it is ``per_token`` and ``causal_safe`` and what
it ``needs``; the few other exceptions stand in the tables below, each with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.core.routed import SublayerOutput  # noqa: E402
from crossroads.moe.capacity import Capacity  # noqa: E402
from crossroads.moe.contract import TokenChoice  # noqa: E402
from crossroads.moe.conversions import to_dense  # noqa: E402
from crossroads.moe.layer import MoELayer  # noqa: E402
from crossroads.moe.routers import known_settings, router_class  # noqa: E402
from tests.moe.conformance import (  # noqa: E402
    BATCH,
    EXPERTS,
    LENGTH,
    NAMES,
    block_tensors,
    build,
    context,
    of,
    run,
    side_information,
    some_padding,
    stream,
)

Tensor = torch.Tensor
NO_EXPERT_ROWS = {"hash": "a fixed function of the id", "position": "a fixed function of the place"}
CHOICES_ALONE = {"promoe": {"uncond": False}}  # its unconditional expert is not chosen by scores
QUEUING = [n for n in NAMES if "capacity" in known_settings(router_class(n))]
CAUSAL_VARIANT = {"da-moe": {"importance": "self"}}
IN_ORDER = Capacity(factor=0.4, eval_factor=math.inf)
NOT_ONE_GATED_FFN = {
    "soft": "the slot sees a mixture of tokens",
    "vqmoe": "two branches, one of them normed",
}


# ---------------------------------------------------------------------------- P1 and P2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_output_has_the_shape_and_dtype_of_the_stream(name: str, dtype: torch.dtype) -> None:
    layer = build(name).to(dtype)
    h_BTD = stream(dtype=dtype)
    for training in (False, True):
        delta = run(layer, h_BTD, context(training=training)).delta
        assert delta.shape == h_BTD.shape
        assert delta.dtype == dtype
        assert bool(torch.isfinite(delta).all())


@pytest.mark.parametrize("name", NAMES)
def test_padding_gives_zero_and_changes_no_real_token(name: str) -> None:
    layer, mask_BT = build(name), some_padding()
    h_BTD = stream()
    other = torch.where(mask_BT.unsqueeze(-1), h_BTD, 50 * stream(seed=9))
    first = run(layer, h_BTD, context(mask_BT=mask_BT)).delta
    second = run(layer, other, context(mask_BT=mask_BT)).delta
    assert bool((first[~mask_BT] == 0).all())
    assert bool((second[~mask_BT] == 0).all())
    assert bool((first[mask_BT] != 0).any())
    torch.testing.assert_close(first[mask_BT], second[mask_BT], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_padding_reaches_neither_outputs_nor_gradients(name: str) -> None:
    layer, mask_BT = build(name), some_padding()
    h_BTD = stream()
    spoilt = torch.where(mask_BT.unsqueeze(-1), h_BTD, torch.nan)
    given = context(mask_BT=mask_BT, training=True, progress=0.5)
    extra = block_tensors(layer.needs, h_BTD, mask_BT)
    first, second = (layer(h, given, **extra) for h in (h_BTD, spoilt))
    assert torch.equal(first.delta, second.delta)
    loss = second.delta.square().sum()
    loss = sum((term.weighted for term in second.aux.values()), loss)
    loss.backward()
    for parameter in layer.parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_padding_alone_is_zero_with_finite_losses(name: str) -> None:
    layer, nobody = build(name), torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    for training in (False, True):
        answer = run(layer, stream(), context(mask_BT=nobody, training=training))
        assert bool((answer.delta == 0).all())
        assert all(bool(torch.isfinite(term.value)) for term in answer.aux.values())
        layer.commit(layer.stats(answer.decisions), answer.new_state)
    assert all(bool(torch.isfinite(value).all()) for value in layer.state_dict().values())


@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_sequence_is_routed_like_the_same_sequence_alone(name: str, row: int) -> None:
    layer, mask_BT = build(name), some_padding()
    h_BTD = stream()
    padded = context(mask_BT=mask_BT)
    kept_T = mask_BT[row]
    alone = replace(
        padded,
        mask_BT=None,
        cond={
            key: value[row : row + 1] if value.ndim == 1 else value[row : row + 1][:, kept_T]
            for key, value in padded.cond.items()
        },
    )
    extra = block_tensors(layer.needs, h_BTD, mask_BT)
    cut = {
        key: value[row : row + 1][:, :, kept_T][..., kept_T]
        if key == "attn"
        else value[row : row + 1][:, kept_T]
        for key, value in extra.items()
    }
    whole = layer(h_BTD, padded, **extra).delta[row][kept_T]
    short = layer(h_BTD[row : row + 1][:, kept_T], alone, **cut).delta[0]
    torch.testing.assert_close(whole, short, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------- P3


def permuted(layer: MoELayer, order_E: Tensor) -> dict[str, Tensor]:
    """Return the state dict with everything indexed by expert in another order.

    ``order_E`` holds all selectable experts; those of another kind than ``ffn`` stay in place. In
    the sizes of this file an axis divisible by their number holds them, or a block of each.
    """
    n_selectable = len(order_E)
    state: dict[str, Tensor] = {}
    for key, value in layer.state_dict().items():
        if key.startswith("experts."):
            state[key] = value[order_E[: value.shape[0]]]
            continue
        moved = value
        for axis, size in enumerate(value.shape):
            if size % n_selectable == 0:
                blocks = moved.unflatten(axis, (n_selectable, -1))
                moved = blocks.index_select(axis, order_E).flatten(axis, axis + 1)
        state[key] = moved
    return state


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_EXPERT_ROWS])
def test_renumbering_experts_and_router_rows_together_changes_nothing(name: str) -> None:
    settings = CHOICES_ALONE.get(name, {})
    layer = build(name, **settings)
    n_selectable = layer.experts.n_experts
    order_E = torch.arange(n_selectable)
    order_E[:EXPERTS] = torch.tensor([3, 0, 4, 1, 2])
    other = build(name, seed=1, **settings)
    other.load_state_dict(permuted(layer, order_E))
    first, second = run(layer, stream()), run(other, stream())
    torch.testing.assert_close(first.delta, second.delta, atol=1e-5, rtol=1e-4)
    probs = first.decisions[0].probs_NE
    assert probs is None or not torch.equal(probs, second.decisions[0].probs_NE)


# ---------------------------------------------------------------------------- P4


@pytest.mark.parametrize("name", NAMES)
def test_a_per_token_router_lets_no_token_touch_another(name: str) -> None:
    layer = build(name)
    if not all(router.per_token for router in layer.routers):
        pytest.skip("declared per_token = False")
    h_BTD = stream()
    changed = h_BTD.clone()
    changed[1, 4] = 3 * stream(seed=9)[1, 4]
    first, second = run(layer, h_BTD).delta, run(layer, changed).delta
    elsewhere = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    elsewhere[1, 4] = False
    torch.testing.assert_close(first[elsewhere], second[elsewhere], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(first[1, 4], second[1, 4])


@pytest.mark.parametrize("name", QUEUING)
def test_a_router_with_a_capacity_says_that_tokens_touch_each_other(name: str) -> None:
    (router,) = build(name, capacity=1.0).routers
    assert not router.per_token
    assert not router.causal_safe


@pytest.mark.parametrize(
    ("name", "capacity"), [(n, None) for n in NAMES] + [(n, c) for n in QUEUING for c in (0.15, 1)]
)
def test_in_a_decoder_no_token_sees_a_later_one_or_the_layer_refuses(
    name: str, capacity: float | None
) -> None:
    layer = build(name) if capacity is None else build(name, capacity=capacity)
    h_BTD, given = stream(), context(causal=True)
    if not all(router.causal_safe for router in layer.routers):
        with pytest.raises((UsageError, InputError), match=r"decoder|causal"):
            run(layer, h_BTD, given)
        return
    changed = h_BTD.clone()
    changed[:, 6:] = stream(seed=9)[:, 6:]
    first, second = run(layer, h_BTD, given).delta, run(layer, changed, given).delta
    torch.testing.assert_close(first[:, :6], second[:, :6], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", QUEUING)
def test_one_queue_in_order_of_position_serves_a_decoder_and_loses_nobody_in_evaluation(
    name: str,
) -> None:
    known = known_settings(router_class(name))
    one = {setting: 1 for setting in ("k", "k_min", "k_max", "k_eval") if setting in known}
    layer = build(name, capacity=IN_ORDER, **one, **CAUSAL_VARIANT.get(name, {}))
    if not all(router.causal_safe for router in layer.routers):
        pytest.skip("looks at later tokens without a capacity too")
    h_BTD = stream()
    changed = h_BTD.clone()
    changed[:, 6:] = stream(seed=9)[:, 6:]
    for training in (False, True):
        given = context(causal=True, training=training)
        first, second = run(layer, h_BTD, given), run(layer, changed, given)
        torch.testing.assert_close(first.delta[:, :6], second.delta[:, :6], atol=1e-6, rtol=1e-5)
        lost = [c.dropped_NK for c in first.decisions[0].choices if isinstance(c, TokenChoice)]
        assert any(bool(dropped.any()) for dropped in lost) == training


# ---------------------------------------------------------------------------- P5


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_numerical_one_away_from_ties(name: str) -> None:
    layer = build(name).double()
    h_BTD = stream(dtype=torch.float64)[:, :4].requires_grad_()
    given = context(cond=side_information(4))
    seen = torch.ones(BATCH, 4, dtype=torch.bool)
    extra = {k: v.detach() for k, v in block_tensors(layer.needs, h_BTD, seen).items()}

    def forward(x: Tensor) -> Tensor:
        return layer(x, given, **extra).delta

    assert torch.autograd.gradcheck(forward, h_BTD, eps=1e-6, atol=1e-5, fast_mode=True)


# ---------------------------------------------------------------------------- P6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_gives_the_same_numbers(name: str, training: bool) -> None:
    layer = build(name)
    given = context(training=training, step=3, progress=0.3)
    torch.manual_seed(1)
    first = run(layer, stream(), given)
    torch.manual_seed(2)  # nothing may come from the global generator
    second = run(layer, stream(), given)
    assert torch.equal(first.delta, second.delta)
    assert first.aux.keys() == second.aux.keys()
    for key, term in first.aux.items():
        assert torch.equal(term.value, second.aux[key].value)


# ---------------------------------------------------------------------------- P7


def outcome(layer: MoELayer, path: str, dtype: torch.dtype) -> tuple[SublayerOutput, Any]:
    """Return the answer of a path, and what it computed: output and all gradients by name."""
    layer.path = path
    layer.zero_grad()
    h_BTD = stream(dtype=dtype).requires_grad_()
    given = context(training=layer.training, mask_BT=some_padding(), progress=0.5)
    answer = run(layer, h_BTD, given)
    loss = answer.delta.square().sum()
    sum((term.weighted for term in answer.aux.values()), loss).backward()
    grads = {k: p.grad for k, p in layer.named_parameters() if p.grad is not None}
    return answer, {"output": answer.delta.detach(), "stream": h_BTD.grad, **grads}


@pytest.mark.parametrize("capacity", [None, 0.15])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sparse_execution_equals_the_dense_einsum(
    name: str, training: bool, capacity: float | None
) -> None:
    layer = build(name)
    if capacity is not None:
        if not of(layer.routers[0], "capacity"):
            pytest.skip("has no capacity")
        layer = build(name, capacity=capacity)
    layer.train(training)
    # Of gradients float32 keeps fewer digits, by as much as their sums cancel.
    for dtype, near, seen in ((torch.float32, 1e-5, ["output"]), (torch.float64, 1e-10, None)):
        layer.to(dtype)
        (answer, sparse), (_, dense) = (outcome(layer, p, dtype) for p in ("sparse", "dense"))
        assert sparse.keys() == dense.keys()
        assert {"output", "stream", "experts.up", "experts.down"} <= sparse.keys()
        for key in seen or sparse:
            size = float(dense[key].abs().max())
            torch.testing.assert_close(
                sparse[key], dense[key], rtol=0, atol=near * size, msg=lambda m, k=key: f"{k}: {m}"
            )
    dropped = getattr(answer.decisions[0].choices[0], "dropped_NK", None)
    assert capacity is None or answer.decisions[0].branches or bool(dropped.any())


# ---------------------------------------------------------------------------- P8


@pytest.mark.parametrize("name", NAMES)
def test_the_state_dict_carries_everything_that_decisions_depend_on(name: str) -> None:
    layer = build(name)
    answer = run(layer, stream(), context(training=True))
    layer.commit(layer.stats(answer.decisions), answer.new_state)
    other = build(name, seed=1)
    assert not torch.equal(run(layer, stream()).delta, run(other, stream()).delta)
    other.load_state_dict(layer.state_dict())
    for training in (False, True):
        given = context(training=training, step=1)
        assert torch.equal(run(layer, stream(), given).delta, run(other, stream(), given).delta)


# ---------------------------------------------------------------------------- P9


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NOT_ONE_GATED_FFN])
def test_one_expert_is_a_plain_ffn_times_the_gate_weight(name: str) -> None:
    one = {"k": 1} if "k" in known_settings(router_class(name)) else {}
    layer = build(name, n_experts=1, **one, **CHOICES_ALONE.get(name, {}))
    answer = run(layer, stream())
    choice = answer.decisions[0].choice
    assert choice is not None
    weight_N1 = to_dense(choice, layer.experts.n_experts).combine_GSEC[..., 0, :].sum(-1)
    expected = layer.experts.expert(0, stream()) * weight_N1.reshape(BATCH, LENGTH, 1)
    torch.testing.assert_close(answer.delta, expected, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------- P10


def state_of(layer: MoELayer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in layer.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_writes_no_state(name: str, training: bool) -> None:
    layer = build(name)
    before = state_of(layer)
    run(layer, stream(), context(training=training))
    assert same(before, layer.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_neither_outputs_nor_gradients_nor_state(name: str) -> None:
    given = context(training=True, mask_BT=some_padding(), progress=0.5)
    results = []
    for is_checkpointed in (False, True):
        layer, h_BTD = build(name), stream().requires_grad_()
        kept: list[SublayerOutput] = []

        def forward(
            x: Tensor, layer: MoELayer = layer, kept: list[SublayerOutput] = kept
        ) -> Tensor:
            answer = run(layer, x, given)
            kept.append(answer)
            aux = sum((term.weighted for term in answer.aux.values()), x.new_zeros(()))
            return answer.delta.square().sum() + aux

        if is_checkpointed:
            loss = checkpoint(forward, h_BTD, use_reentrant=False)
        else:
            loss = forward(h_BTD)
        loss.backward()
        layer.commit(layer.stats(kept[0].decisions), kept[0].new_state)
        grads = {k: p.grad for k, p in layer.named_parameters() if p.grad is not None}
        results.append((loss.detach(), h_BTD.grad, grads, state_of(layer)))
    plain, recomputed = results
    assert torch.equal(plain[0], recomputed[0])
    assert torch.equal(plain[1], recomputed[1])
    assert same(plain[2], recomputed[2])
    assert same(plain[3], recomputed[3])
