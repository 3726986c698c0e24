"""What a call may ask of every router: experts allowed, forced and favoured; faults refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from crossroads.core.errors import InputError  # noqa: E402
from crossroads.moe.contract import Dense, TokenChoice  # noqa: E402
from crossroads.moe.conversions import executed, to_token_choice  # noqa: E402
from tests.moe.conformance import (  # noqa: E402
    BATCH,
    LENGTH,
    NAMES,
    build,
    context,
    run,
    some_padding,
    stream,
)


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


@pytest.mark.parametrize("kept", [0, 1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_finite_where_few_experts_or_none_are_allowed(name: str, kept: int) -> None:
    layer, h_BTD = build(name), stream().requires_grad_()
    allow_BE = (torch.arange(layer.experts.n_experts) < kept).expand(BATCH, -1)
    answer = run(layer, h_BTD, context(allow=allow_BE, training=True, progress=0.5))
    loss = answer.delta.square().sum() + h_BTD.sum()
    loss = sum((term.weighted for term in answer.aux.values()), loss)
    loss.backward()
    for grad in (h_BTD.grad, *(p.grad for p in layer.parameters())):
        assert grad is None or bool(torch.isfinite(grad).all())


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
def test_logits_stay_float32_under_autocast(name: str) -> None:
    layer = build(name)
    plain = run(layer, stream()).decisions[0]
    if plain.logits_NE is None:
        pytest.skip("has no logits")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(layer, stream()).decisions[0]
    torch.testing.assert_close(mixed.logits_NE, plain.logits_NE, atol=1e-5, rtol=1e-5)


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
