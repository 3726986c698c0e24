"""The layer: sparse equals dense, loops, shared experts, given decisions, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.moe.contract import (
    Branch,
    Dense,
    ExpertChoice,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
)
from crossroads.moe.execution import apply_decision, apply_to_sequences
from crossroads.moe.experts import FFNBank, ModuleExperts
from crossroads.moe.layer import MoELayer
from crossroads.moe.routers import build_router

D, E = 8, 4


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def decision(choice: Any, *, shape: tuple[int, int], **more: Any) -> RoutingDecision:
    mask_N = more.pop("mask_N", torch.ones(shape[0] * shape[1], dtype=torch.bool))
    return RoutingDecision(choice=choice, n_experts=E, shape=shape, mask_N=mask_N, **more)


def layer(router: str = "switch", **settings_of_layer: Any) -> MoELayer:
    torch.manual_seed(0)
    made = build_router(router, D, E)
    return MoELayer(made, FFNBank(D, 12, made.kinds), **settings_of_layer)


def by_loop(experts: FFNBank, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
    out = torch.zeros_like(x_ND)
    for n in range(x_ND.shape[0]):
        for k in range(idx_NK.shape[1]):
            if idx_NK[n, k] >= 0:
                out[n] += w_NK[n, k] * experts.expert(int(idx_NK[n, k]), x_ND[n])
    return out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kinds=st.lists(st.sampled_from(["ffn", "null", "identity", "const"]), min_size=E, max_size=E),
    activation=st.sampled_from(["swiglu", "gelu", "relu"]),
)
def test_sparse_and_dense_path_equal_a_loop_over_pairs(
    seed: int, kinds: list[Any], activation: Any
) -> None:
    gen = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    experts = FFNBank(D, 12, kinds, activation=activation)
    if experts.const is not None:
        experts.const.data.normal_(generator=gen)
    x_BTD = tokens(2, 5, seed=seed)
    idx_NK = torch.stack([torch.randperm(E, generator=gen)[:2] for _ in range(10)])
    idx_NK[torch.rand(10, 2, generator=gen) < 0.2] = -1
    w_NK = torch.randn(10, 2, generator=gen)
    made = decision(TokenChoice(idx_NK=idx_NK, w_NK=w_NK), shape=(2, 5))
    expected = by_loop(experts, x_BTD.reshape(10, D), idx_NK, w_NK).reshape(2, 5, D)
    for path in ("sparse", "dense"):
        torch.testing.assert_close(
            apply_decision(experts, x_BTD, made, path=path), expected, atol=1e-5, rtol=1e-5
        )


def test_expert_choice_adds_up_what_every_expert_took() -> None:
    torch.manual_seed(0)
    experts = FFNBank(D, 12, E)
    x_BTD = tokens(2, 5)
    tok_GEC = torch.randint(-1, 5, (2, E, 3), generator=torch.Generator().manual_seed(1))
    w_GEC = torch.rand(2, E, 3)
    made = decision(ExpertChoice(tok_GEC=tok_GEC, w_GEC=w_GEC, group_size=5), shape=(2, 5))
    expected = torch.zeros(2, 5, D)
    for g in range(2):
        for e in range(E):
            for c in range(3):
                if (t := int(tok_GEC[g, e, c])) >= 0:
                    expected[g, t] += w_GEC[g, e, c] * experts.expert(e, x_BTD[g, t])
    for path in ("sparse", "dense"):
        torch.testing.assert_close(apply_decision(experts, x_BTD, made, path=path), expected)


def test_dense_decision_mixes_tokens_into_slots() -> None:
    torch.manual_seed(0)
    experts = FFNBank(D, 12, E)
    x_BTD = tokens(2, 5)
    dispatch, combine = torch.rand(2, 5, E, 2), torch.rand(2, 5, E, 2)
    made = decision(Dense(dispatch_GSEC=dispatch, combine_GSEC=combine), shape=(2, 5))
    expected = torch.zeros(2, 5, D)
    for g in range(2):
        for e in range(E):
            for c in range(2):
                y = experts.expert(e, (dispatch[g, :, e, c, None] * x_BTD[g]).sum(0))
                expected[g] += combine[g, :, e, c, None] * y
    torch.testing.assert_close(apply_decision(experts, x_BTD, made), expected)


def test_dropped_places_keep_their_id_and_are_not_run() -> None:
    torch.manual_seed(0)
    experts = FFNBank(D, 12, E)
    x_BTD = tokens(1, 2)
    choice = TokenChoice(
        idx_NK=torch.tensor([[0, 1], [1, 2]]),
        w_NK=torch.ones(2, 2),
        dropped_NK=torch.tensor([[False, True], [False, False]]),
    )
    out = apply_decision(experts, x_BTD, decision(choice, shape=(1, 2)))
    torch.testing.assert_close(out[0, 0], experts.expert(0, x_BTD[0, 0]))


def test_branches_run_the_same_experts_on_different_inputs() -> None:
    torch.manual_seed(0)
    experts = FFNBank(D, 12, E)
    x_BTD = tokens(1, 3)
    choice = TokenChoice(idx_NK=torch.tensor([[0], [1], [2]]), w_NK=torch.ones(3, 1))
    other_ND = tokens(3, seed=1)
    gate_N1 = torch.tensor([[0.25], [0.5], [1.0]])
    made = decision(
        None,
        shape=(1, 3),
        branches=(
            Branch(name="a", choice=choice, x_ND=x_BTD[0], gate_N1=gate_N1),
            Branch(name="b", choice=choice, x_ND=other_ND, gate_N1=1 - gate_N1, post=torch.tanh),
        ),
    )
    first = torch.stack([experts.expert(e, x_BTD[0, e]) for e in range(3)])
    second = torch.stack([experts.expert(e, other_ND[e]) for e in range(3)]).tanh()
    torch.testing.assert_close(
        apply_decision(experts, x_BTD, made)[0], gate_N1 * first + (1 - gate_N1) * second
    )


def test_a_decision_about_sequences_holds_for_all_their_tokens() -> None:
    torch.manual_seed(0)
    experts = FFNBank(D, 12, E)
    x_BTD = tokens(2, 3)
    choice = TokenChoice(idx_NK=torch.tensor([[1], [3]]), w_NK=torch.tensor([[0.5], [2.0]]))
    out = apply_decision(experts, x_BTD, decision(choice, shape=(2, 3), granularity="sequence"))
    torch.testing.assert_close(out[0], 0.5 * experts.expert(1, x_BTD[0]))
    torch.testing.assert_close(out[1], 2.0 * experts.expert(3, x_BTD[1]))


def test_modules_of_any_kind_run_on_their_tokens_and_may_be_shared() -> None:
    torch.manual_seed(0)
    twin = nn.Linear(D, D)
    experts = ModuleExperts(
        [twin, nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, D)), twin],
        D,
        kinds=("module", "null", "module", "module"),
    )
    x_BTD = tokens(2, 5)
    gen = torch.Generator().manual_seed(1)
    idx_NK = torch.stack([torch.randperm(E, generator=gen)[:2] for _ in range(10)])
    w_NK = torch.randn(10, 2, generator=gen)
    made = decision(TokenChoice(idx_NK=idx_NK, w_NK=w_NK), shape=(2, 5))
    expected = torch.zeros(2, 5, D)
    for n in range(10):
        for k in range(2):
            y = experts.expert(int(idx_NK[n, k]), x_BTD.reshape(10, D)[n])
            expected[n // 5, n % 5] += w_NK[n, k] * y
    for path in ("sparse", "dense"):
        out = apply_decision(experts, x_BTD, made, path=path)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert experts.flops_E().tolist() == [2.0 * D * D, 0.0, 2.0 * 6 * D, 2.0 * D * D]


class RunningSum(nn.Module):
    """A sequence-view expert: the sum of the tokens so far, and of their positions."""

    def forward(self, x: Tensor, mask_BT: Tensor, pos_BT: Tensor, causal: bool) -> Tensor:
        kept = x * mask_BT.unsqueeze(-1) + pos_BT.unsqueeze(-1)
        return (kept * mask_BT.unsqueeze(-1)).cumsum(1)


def sequence_decision(shape: tuple[int, int]) -> RoutingDecision:
    choice = TokenChoice(
        idx_NK=torch.tensor([[0], [1], [0], [1]]), w_NK=torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    )
    return RoutingDecision(
        choice=choice, n_experts=2, shape=shape, mask_N=torch.ones(4, dtype=torch.bool)
    )


def test_sequence_experts_see_whole_sequences_and_answer_for_their_tokens() -> None:
    experts = ModuleExperts([RunningSum(), RunningSum()], 1, view="sequence")
    x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    pos = torch.zeros(1, 4, dtype=torch.int64)
    out = apply_to_sequences(experts, x, sequence_decision((1, 4)), pos_BT=pos, causal=True)
    assert out.flatten().tolist() == [1.0, 22.0, 333.0, 4444.0]


def test_packed_sequence_experts_see_their_own_tokens_at_their_own_positions() -> None:
    experts = ModuleExperts([RunningSum(), RunningSum()], 1, view="sequence", pack=True)
    x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    pos = torch.arange(4)[None]
    out = apply_to_sequences(experts, x, sequence_decision((1, 4)), pos_BT=pos, causal=True)
    # Expert 0 has positions 0 and 2, expert 1 positions 1 and 3.
    assert out.flatten().tolist() == [1.0, 2 * 11.0, 3 * 103.0, 4 * 1014.0]


def test_each_sequence_comes_with_its_own_positions() -> None:
    experts = ModuleExperts([RunningSum(), RunningSum()], 1, view="sequence")
    x = torch.zeros(2, 2, 1)
    pos = torch.tensor([[0, 1], [10, 20]])
    choice = TokenChoice(idx_NK=torch.tensor([[0], [0], [1], [1]]), w_NK=torch.ones(4, 1))
    made = RoutingDecision(
        choice=choice, n_experts=2, shape=(2, 2), mask_N=torch.ones(4, dtype=torch.bool)
    )
    out = apply_to_sequences(experts, x, made, pos_BT=pos, causal=True)
    assert out.flatten().tolist() == [0.0, 1.0, 10.0, 30.0]


@pytest.mark.parametrize(("pack", "tokens_run"), [(False, 3 + 3 + 2), (True, 3 + 2)])
def test_flops_of_sequence_experts_count_the_tokens_they_see(pack: bool, tokens_run: int) -> None:
    experts = ModuleExperts(
        [RunningSum(), RunningSum()], D, view="sequence", pack=pack, flops_per_token=[1.0, 1.0]
    )
    mask_BT = torch.tensor([[True] * 3, [True, True, False]])
    choice = TokenChoice(
        idx_NK=torch.tensor([[0], [1], [0], [1], [1], [-1]]), w_NK=torch.ones(6, 1)
    )
    fixed = RoutingDecision(choice=choice, n_experts=2, shape=(2, 3), mask_N=mask_BT.flatten())
    router = build_router("switch", D, 2, kinds=("module", "module"))
    answer = MoELayer(router, experts)(
        tokens(2, 3), RouteContext(mask_BT=mask_BT, decisions={0: fixed})
    )
    assert answer.flops == tokens_run


class Pooled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, mask_BT: Tensor, pos_BT: Tensor, causal: bool) -> Tensor:
        return self.factor * (x * mask_BT.unsqueeze(-1)).sum(1)


def test_pooled_experts_answer_once_per_sequence() -> None:
    experts = ModuleExperts([Pooled(1.0), Pooled(-1.0)], D, view="pooled")
    x_BTD = tokens(2, 3)
    made = RoutingDecision(
        choice=TokenChoice(idx_NK=torch.tensor([[1], [0]]), w_NK=torch.tensor([[1.0], [0.5]])),
        n_experts=2,
        shape=(2, 3),
        mask_N=torch.ones(6, dtype=torch.bool),
        granularity="sequence",
    )
    pos = torch.arange(3).expand(2, 3)
    out = apply_to_sequences(experts, x_BTD, made, pos_BT=pos, causal=False)
    torch.testing.assert_close(out, torch.stack([-x_BTD[0].sum(0), 0.5 * x_BTD[1].sum(0)]))


def test_prenorm_loop_adds_every_iteration_to_the_stream() -> None:
    made = build_router("switch", D, E)
    again = build_router("switch", D, E)
    looped = MoELayer((made, again), FFNBank(D, 12, E), norm=nn.LayerNorm(D), n_iter=2)
    first = MoELayer(made, looped.experts, norm=looped.norm)
    second = MoELayer(again, looped.experts, norm=looped.norm)
    h_BTD = tokens(2, 5)
    middle = h_BTD + first(h_BTD).delta
    torch.testing.assert_close(
        looped(h_BTD).delta, middle + second(middle).delta - h_BTD, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("n_iter", [1, 3])
@pytest.mark.parametrize(("inner", "outer"), [(1, 0), (1, 1), (0, 0), (0, 1)])
def test_the_released_loop_norms_once_and_adds_inside_or_outside(
    n_iter: int, inner: int, outer: int
) -> None:
    residuals = {"inner_residual": bool(inner), "outer_residual": bool(outer)}
    looped = layer(
        norm=nn.LayerNorm(D), n_iter=n_iter, gate_sharing="module", loop="released", **residuals
    )
    nn.init.constant_(looped.norm.bias, 0.3)
    plain = MoELayer(looped.routers[0], looped.experts)
    h_BTD, mask_BT = tokens(2, 5), torch.ones(2, 5, dtype=torch.bool)
    mask_BT[1, 3:] = False
    x_BTD = looped.norm(h_BTD)
    for _ in range(n_iter):
        x_BTD = inner * x_BTD + plain(x_BTD).delta
    out = h_BTD + looped(h_BTD, RouteContext(mask_BT=mask_BT)).delta  # what a block makes of it
    expected = outer * h_BTD + x_BTD
    torch.testing.assert_close(out[mask_BT], expected[mask_BT], atol=1e-5, rtol=1e-5)
    assert torch.equal(out[~mask_BT], h_BTD[~mask_BT])


def test_shared_decision_routes_every_iteration_alike_and_sums_losses_per_iteration() -> None:
    made = build_router("switch", D, E)
    looped = MoELayer(made, FFNBank(D, 12, E), n_iter=2, gate_sharing="decision")
    answer = looped(tokens(2, 5), RouteContext(training=True))
    assert len(answer.decisions) == 2
    assert answer.decisions[0] is answer.decisions[1]
    assert list(answer.aux) == ["balance/0"]


def test_shared_experts_serve_every_real_token() -> None:
    shared = nn.Linear(D, D)
    with_shared = layer(shared=shared, shared_scale=0.5, out_scale=0.5, shared_flops=2.0 * D * D)
    h_BTD = tokens(1, 4)
    mask_BT = torch.tensor([[True, True, True, False]])
    plain = MoELayer(with_shared.routers[0], with_shared.experts)
    context = RouteContext(mask_BT=mask_BT)
    expected = 0.5 * plain(h_BTD, context).delta + 0.5 * shared(h_BTD)
    out = with_shared(h_BTD, context).delta
    torch.testing.assert_close(out[0, :3], expected[0, :3])
    assert out[0, 3].abs().max() == 0


def test_flops_count_router_shared_and_executed_pairs() -> None:
    made = layer("top2", shared=nn.Linear(D, D), shared_flops=100.0)
    mask_BT = torch.tensor([[True, True, False]])
    flops = made(tokens(1, 3), RouteContext(mask_BT=mask_BT)).flops
    one_expert = 2 * (2 * 12 * D + 12 * D)
    assert flops == 2 * (2 * one_expert + 100 + 2 * D * E)


def test_a_given_decision_takes_the_routers_place() -> None:
    made = layer()
    h_BTD = tokens(2, 3)
    fixed = decision(TokenChoice(idx_NK=torch.full((6, 1), 2), w_NK=torch.ones(6, 1)), shape=(2, 3))
    expected = made.experts.expert(2, h_BTD)
    torch.testing.assert_close(made(h_BTD, decision=fixed).delta, expected)
    by_context = made(h_BTD, RouteContext(decisions={0: fixed}))
    torch.testing.assert_close(by_context.delta, expected)
    assert by_context.decisions == (fixed,)


def test_a_decision_for_other_tokens_is_refused() -> None:
    fixed = decision(
        TokenChoice(idx_NK=torch.zeros(6, 1, dtype=torch.int64), w_NK=torch.ones(6, 1)),
        shape=(2, 3),
    )
    with pytest.raises(InputError, match="decision: made for 4 experts and tokens"):
        layer()(tokens(2, 4), decision=fixed)


def test_noise_is_a_function_of_the_place_in_the_run() -> None:
    noisy = layer("switch:noise_std=5")
    h_BTD = tokens(4, 16)
    base = RouteContext(training=True, seed=1, step=3)

    def picks(context: RouteContext) -> list[int]:
        return noisy(h_BTD, context).decisions[0].choice.idx_NK.flatten().tolist()

    torch.manual_seed(0)
    first = picks(base)
    torch.manual_seed(1)
    assert picks(base) == first
    for change in ({"seed": 2}, {"step": 4}, {"micro_batch": 1}, {"pass_id": 1}):
        assert picks(replace(base, **change)) != first


def test_layers_and_iterations_of_a_loop_draw_noise_of_their_own() -> None:
    spec = "switch:noise_std=5"
    torch.manual_seed(0)
    router = build_router(spec, D, E)
    h_BTD, training = tokens(4, 16), RouteContext(training=True)
    first, second = (
        MoELayer(router, FFNBank(D, 12, E), layer=n)(h_BTD, training).decisions[0] for n in (0, 1)
    )
    assert not torch.equal(first.choice.idx_NK, second.choice.idx_NK)
    still = FFNBank(D, 12, E)
    nn.init.zeros_(still.down)  # both iterations see the same stream
    looped = MoELayer(router, still, n_iter=2, gate_sharing="module")(h_BTD, training)
    one, two = looped.decisions
    assert not torch.equal(one.choice.idx_NK, two.choice.idx_NK)


def test_draws_of_an_evaluation_are_those_of_its_seed_whatever_the_step() -> None:
    drawing = layer("top2:later=random:threshold=1:draw_in_eval=true")
    h_BTD = tokens(4, 16)

    def picks(**fields: int) -> Tensor:
        return drawing(h_BTD, RouteContext(**fields)).decisions[0].choice.idx_NK

    assert torch.equal(picks(seed=1, step=3), picks(seed=1, step=4))
    assert not torch.equal(picks(seed=1), picks(seed=2))


class Remembering(Router):
    """Sends everybody to expert 0 and keeps what it was shown."""

    def decide(self, inp: RouterInput) -> RouterOutput:
        self.seen = inp
        n_tokens = inp.mask_N.shape[0]
        choice = TokenChoice(
            idx_NK=torch.zeros(n_tokens, 1, dtype=torch.int64), w_NK=torch.ones(n_tokens, 1)
        )
        batch, length = inp.mask_BT.shape
        return RouterOutput(decision=decision(choice, shape=(batch, length)))


def test_a_router_sees_normed_tokens_and_the_stream_before_the_norm() -> None:
    made = MoELayer(Remembering(E), FFNBank(D, 12, E), norm=nn.LayerNorm(D))
    h_BTD = 3 + tokens(2, 5)
    made(h_BTD)
    assert torch.equal(made.routers[0].seen.resid_BTD, h_BTD)
    torch.testing.assert_close(made.routers[0].seen.x_BTD, made.norm(h_BTD))


class Lookahead(Router):
    causal_safe = False
    name = "lookahead"

    def decide(self, inp: RouterInput) -> RouterOutput:
        raise AssertionError("must not be asked")


def test_a_router_that_looks_ahead_is_refused_in_a_decoder() -> None:
    made = MoELayer(Lookahead(E), FFNBank(D, 12, E))
    with pytest.raises(UsageError, match="'lookahead' looks at later tokens"):
        made(tokens(1, 3), RouteContext(causal=True))


@pytest.mark.parametrize(
    ("h_BTD", "context", "message"),
    [
        (torch.zeros(3, D), RouteContext(), "expected a floating tensor"),
        (torch.zeros(1, 3, D, dtype=torch.int64), RouteContext(), "got torch.int64"),
        (torch.zeros(1, 3, D + 1), RouteContext(), "tokens are 9 wide"),
        (torch.zeros(0, 3, D), RouteContext(), "expected at least one token"),
        (torch.zeros(2, 0, D), RouteContext(), "expected at least one token"),
        (torch.zeros(1, 3, D), RouteContext(mask_BT=torch.ones(1, 4, dtype=torch.bool)), "mask: "),
        (torch.zeros(1, 3, D), RouteContext(mask_BT=torch.ones(1, 3)), "mask: expected bool"),
        (torch.zeros(1, 3, D), RouteContext(mask_BT=[[True] * 3]), "mask: .*got list"),  # type: ignore[arg-type]
        (torch.full((1, 3, D), torch.nan), RouteContext(), "router .*layer 0: logits hold NaN"),
    ],
)
def test_bad_calls_name_the_argument(h_BTD: Tensor, context: RouteContext, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer()(h_BTD, context)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MoELayer(build_router("switch", D, E), FFNBank(D, 12, 3)), "chooses among 4"),
        (lambda: MoELayer(build_router("switch", D, E), FFNBank(D, 12, E), n_iter=2), "expected 2"),
        (lambda: build_router("switch:k=9", D, E), "k: expected between 1 and 4"),
        (lambda: build_router("swich", D, E), "switch"),
        (lambda: build_router("switch:kk=1", D, E), "setting of router 'switch'"),
        (lambda: build_router("switch:k=a", D, E), "a whole number"),
        (lambda: build_router("switch:capacity=0", D, E), "capacity factor: expected a positive"),
        (lambda: layer(gate_sharing="modul"), "gate_sharing: expected one of independent, module"),
        (lambda: layer(loop="pre-norm"), "loop: expected one of prenorm, released"),
        (lambda: layer(outer_residual=True), "inner_residual and outer_residual: .* released"),
        (lambda: FFNBank(D, 0, E), "hidden: expected at least 1"),
        (lambda: FFNBank(D, 4, ["ffn", "lora"]), "no lora experts"),
    ],
)
def test_bad_settings_name_the_setting(build: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize("router", ["switch", "softmax-ec", "soft"])
@pytest.mark.parametrize("of_experts", [torch.float64, torch.bfloat16])
def test_experts_of_another_type_than_the_stream_are_refused(
    router: str, of_experts: torch.dtype
) -> None:
    made = layer(router)
    made.experts.to(of_experts)
    with pytest.raises(InputError, match=r"cast one of them, or use autocast"):
        made(tokens(1, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(torch.isfinite(made.bfloat16()(tokens(1, 3)).delta).all())


@pytest.mark.parametrize("view", ["sequence", "pooled"])
def test_experts_of_whole_sequences_keep_no_cache_and_say_so(view: Any) -> None:
    router = build_router("switch", D, 2, kinds=("module", "module"))
    made = MoELayer(router, ModuleExperts([RunningSum(), RunningSum()], D, view=view), layer=3)
    with pytest.raises(UsageError, match=f"layer 3: a {view} view .*decode without a cache"):
        made.init_cache(2)
