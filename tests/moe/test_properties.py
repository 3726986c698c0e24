"""What every router promises, shipped or added by another package.

A router declares on its class (or object) whether it is ``per_token`` and ``causal_safe`` and what
it ``needs``; the few other exceptions stand in the tables below, each with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from crossroads.core.errors import InputError, UsageError  # noqa: E402
from crossroads.core.routed import RouteContext, SublayerOutput  # noqa: E402
from crossroads.moe.contract import Dense, Router, TokenChoice  # noqa: E402
from crossroads.moe.conversions import executed, to_dense, to_token_choice  # noqa: E402
from crossroads.moe.experts import FFNBank  # noqa: E402
from crossroads.moe.layer import MoELayer  # noqa: E402
from crossroads.moe.routers import (  # noqa: E402
    build_router,
    known_settings,
    router_class,
    router_names,
)

Tensor = torch.Tensor
BATCH, LENGTH, WIDTH, EXPERTS, HIDDEN = 3, 10, 16, 5, 12
NAMES = router_names()

NO_EXPERT_ROWS = {"hash": "a fixed function of the id", "position": "a fixed function of the place"}
CHOICES_ALONE = {"promoe": {"uncond": False}}  # its unconditional expert is not chosen by scores
NOT_THE_NUMERICAL_GRADIENT = {"vqmoe": "its codes are passed straight through"}
NOT_ONE_GATED_FFN = {
    "soft": "the slot sees a mixture of tokens",
    "vqmoe": "two branches, one of them normed",
}


def build(name: str, *, seed: int = 0, n_experts: int = EXPERTS, **settings: Any) -> MoELayer:
    """Return a layer with the router's own defaults, as far as ``n_experts`` allows them."""
    torch.manual_seed(seed)
    router = build_router(name, WIDTH, n_experts, **settings)
    return MoELayer(router, FFNBank(WIDTH, HIDDEN, router.kinds))


def stream(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, LENGTH, WIDTH, generator=generator).to(dtype)


def some_padding() -> Tensor:
    """Lengths 10, 7 (padded right) and 4 (padded left)."""
    mask_BT = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask_BT[1, 7:] = False
    mask_BT[2, :6] = False
    return mask_BT


def side_information(length: int = LENGTH) -> dict[str, Tensor]:
    """Everything any router may ask for; values repeat over the batch rows in a fixed way."""
    place_T = torch.arange(length)
    row_B1 = torch.arange(BATCH).unsqueeze(1)
    return {
        "token_id": (7 * place_T + 3 * row_B1) % 11,
        "pos": place_T.expand(BATCH, length),
        "label": torch.arange(BATCH),
        "null": torch.tensor([False, True, False]),
    }


def context(**fields: Any) -> RouteContext:
    return RouteContext(**{"cond": side_information(), "seed": 5, **fields})


def block_tensors(needs: frozenset[str], h_BTD: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Return what a block hands over besides the stream, made up but a fixed function of place."""
    extra: dict[str, Tensor] = {}
    batch, length, _ = h_BTD.shape
    if "attn" in needs:
        place_T = torch.arange(length, dtype=h_BTD.dtype)
        wish_TT = torch.sin(1.7 * place_T[:, None] + 0.9 * place_T[None, :])
        wish = wish_TT.expand(batch, 2, length, length)
        hidden = ~mask_BT[:, None, None, :]
        extra["attn"] = torch.softmax(wish.masked_fill(hidden, -1e9), -1).masked_fill(hidden, 0.0)
    if "attn_out" in needs:
        extra["attn_out"] = 0.5 * h_BTD
    return extra


def run(layer: MoELayer, h_BTD: Tensor, given: RouteContext | None = None) -> SublayerOutput:
    given = context() if given is None else given
    mask_BT = given.mask_BT
    if mask_BT is None:
        mask_BT = torch.ones(h_BTD.shape[:2], dtype=torch.bool)
    return layer(h_BTD, given, **block_tensors(layer.needs, h_BTD, mask_BT))


def of(router: Router, setting: str) -> bool:
    return setting in known_settings(type(router))


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


@pytest.mark.parametrize("name", NAMES)
def test_in_a_decoder_no_token_sees_a_later_one_or_the_layer_refuses(name: str) -> None:
    layer, h_BTD = build(name), stream()
    given = context(causal=True)
    if not all(router.causal_safe for router in layer.routers):
        with pytest.raises((UsageError, InputError), match=r"decoder|causal"):
            run(layer, h_BTD, given)
        return
    changed = h_BTD.clone()
    changed[:, 6:] = stream(seed=9)[:, 6:]
    first, second = run(layer, h_BTD, given).delta, run(layer, changed, given).delta
    torch.testing.assert_close(first[:, :6], second[:, :6], atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------- P5


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NOT_THE_NUMERICAL_GRADIENT])
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
    given = context(training=training, mask_BT=some_padding(), progress=0.5)
    outputs, grads = {}, {}
    for path in ("sparse", "dense"):
        layer.path = path
        layer.zero_grad()
        answer = run(layer, stream(), given)
        answer.delta.square().sum().backward()
        outputs[path] = answer.delta.detach()
        grads[path] = layer.experts.up.grad.clone()
    torch.testing.assert_close(outputs["sparse"], outputs["dense"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grads["sparse"], grads["dense"], atol=1e-4, rtol=1e-4)
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


# ---------------------------------------------------------------------------- what a call may ask


@pytest.mark.parametrize("name", NAMES)
def test_a_forbidden_expert_never_runs(name: str) -> None:
    layer = build(name)
    allow_BE = torch.ones(BATCH, layer.experts.n_experts, dtype=torch.bool)
    allow_BE[0, 1] = allow_BE[1, 0] = allow_BE[1, 3] = False
    for training in (False, True):
        answer = run(layer, stream(), context(allow=allow_BE, training=training))
        assert bool(torch.isfinite(answer.delta).all())
        for choice in answer.decisions[0].choices:
            if isinstance(choice, Dense):
                use_BE = choice.combine_GSEC.sum((1, 3)) + choice.dispatch_GSEC.sum((1, 3))
            else:
                pairs = to_token_choice(choice)
                idx_NK = executed(pairs, layer.experts.kinds).reshape(BATCH, -1)
                use_BE = torch.nn.functional.one_hot(idx_NK + 1, layer.experts.n_experts + 1)
                use_BE = use_BE.sum(1)[:, 1:]
            assert bool((use_BE[~allow_BE] == 0).all())
            assert bool((use_BE.sum(1) > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_forcing_an_expert_puts_it_among_those_of_the_token(name: str) -> None:
    layer = build(name)
    force_BT = torch.full((BATCH, LENGTH), -1)
    force_BT[0, 3] = 2
    given = context(force_BT=force_BT, training=True)
    if name == "soft":
        with pytest.raises(InputError, match="force"):
            run(layer, stream(), given)
        return
    for choice in run(layer, stream(), given).decisions[0].choices:
        assert 2 in to_token_choice(choice).idx_NK[3].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_logit_bias_carries_gradient_in_evaluation(name: str) -> None:
    layer = build(name)
    bias_E = torch.zeros(layer.experts.n_experts, requires_grad=True)
    answer = run(layer, stream(), context(logit_bias=bias_E))
    if answer.decisions[0].logits_NE is None:
        pytest.skip("has no logits")
    (grad_E,) = torch.autograd.grad(answer.delta.square().sum(), bias_E)
    assert bool(torch.isfinite(grad_E).all())
    assert float(grad_E.abs().max()) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_are_not_finite_stop_the_layer(name: str) -> None:
    layer = build(name)
    if run(layer, stream()).decisions[0].logits_NE is None:
        pytest.skip("has no logits")
    h_BTD = stream()
    h_BTD[1, 2, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        run(layer, h_BTD)


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_keeps_its_form(name: str) -> None:
    layer, mask_BT = build(name), some_padding()
    for training in (False, True):
        decision = run(layer, stream(), context(training=training, mask_BT=mask_BT)).decisions[0]
        assert decision.n_experts == layer.experts.n_experts
        assert decision.shape == (BATCH, LENGTH)
        assert all(not value.requires_grad for value in decision.stats.values())
        if decision.probs_NE is not None:
            probs = decision.probs_NE[decision.mask_N]
            assert bool((probs >= 0).all())
        for choice in decision.choices:
            if isinstance(choice, TokenChoice) and decision.granularity == "token":
                assert bool((choice.idx_NK[~decision.mask_N] == -1).all())
                assert bool((choice.w_NK[choice.idx_NK < 0] == 0).all())
                for picked in choice.idx_NK.tolist():
                    real = [expert for expert in picked if expert >= 0]
                    assert len(set(real)) == len(real)
