"""Soft routing's two mixtures from one exponential."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.moe.contract import RouterInput
from crossroads.moe.routers import build_router

D, E = 8, 4


@pytest.mark.parametrize("padded", [False, True])
def test_soft_mixtures_are_two_softmaxes_of_the_logits_with_their_gradients(padded: bool) -> None:
    torch.manual_seed(0)
    router = build_router("soft", D, E, slots=3)
    mask_BT = torch.ones(2, 6, dtype=torch.bool)
    if padded:
        mask_BT[1, 4:] = False
    x = torch.randn(2, 6, D, requires_grad=True)
    inp = RouterInput(x_BTD=x, mask_BT=mask_BT, training=True)
    decision = router.decide(inp).decision
    logits_GSF = router.score(inp).reshape(2, 6, -1)
    real_GS1 = mask_BT.unsqueeze(-1)
    dispatch = torch.softmax(logits_GSF.masked_fill(~real_GS1, -torch.inf), 1)
    combine = torch.softmax(logits_GSF, 2) * real_GS1
    logits_NE = logits_GSF.reshape(12, E, 3).logsumexp(-1)
    found = (
        decision.choice.dispatch_GSEC.flatten(2),
        decision.choice.combine_GSEC.flatten(2),
        decision.logits_NE,
        decision.probs_NE,
    )
    wanted = (dispatch, combine, logits_NE, combine.reshape(12, E, 3).sum(-1))
    torch.testing.assert_close(found, wanted)
    inputs = (x, router.mu_DEC, router.scale)
    weight = [torch.randn_like(part) for part in wanted]

    def gradients(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        total = sum((part * w).sum() for part, w in zip(parts, weight, strict=True))
        return torch.autograd.grad(total, inputs, retain_graph=True)

    torch.testing.assert_close(gradients(found), gradients(wanted), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        judged = router.decide(inp).decision.choice
    torch.testing.assert_close(judged.combine_GSEC, decision.choice.combine_GSEC.detach())
    torch.testing.assert_close(judged.dispatch_GSEC, decision.choice.dispatch_GSEC.detach())


def test_a_large_scale_of_soft_routing_does_not_overflow() -> None:
    router = build_router("soft", D, E, slots=2, scale_init=500.0)
    x = torch.randn(2, 6, D)
    choice = router.decide(RouterInput(x_BTD=x, mask_BT=torch.ones(2, 6, dtype=torch.bool)))
    combine_GS = choice.decision.choice.combine_GSEC.sum((2, 3))
    torch.testing.assert_close(combine_GS, torch.ones(2, 6))


def test_slots_and_scale_start_as_published() -> None:
    torch.manual_seed(0)
    router = build_router("soft", 256, 8, slots=16)
    length_EC = router.mu_DEC.detach().norm(dim=0)
    assert float(length_EC.mean()) == pytest.approx(1.0, rel=0.02)
    assert float(router.scale.detach()) == 1.0


def test_tokens_and_slots_are_compared_by_their_direction() -> None:
    router = build_router("soft", D, E, slots=2)
    x = torch.randn(1, 5, D, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(1, 5, dtype=torch.bool)
    logits_NF = router.score(RouterInput(x_BTD=x, mask_BT=seen))
    cosine_NF = torch.cosine_similarity(
        x.reshape(5, D, 1), router.mu_DEC.flatten(1).unsqueeze(0), dim=1
    )
    torch.testing.assert_close(logits_NF, cosine_NF, atol=1e-4, rtol=0)


def test_a_second_derivative_is_refused_also_of_a_sum() -> None:
    router = build_router("soft", D, E, slots=2)
    x = torch.randn(1, 5, D, requires_grad=True)
    inp = RouterInput(x_BTD=x, mask_BT=torch.ones(1, 5, dtype=torch.bool), training=True)
    dispatch_GSEC = router.decide(inp).decision.choice.dispatch_GSEC
    (grad,) = torch.autograd.grad(dispatch_GSEC[:, 0].sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="second derivatives"):
        grad.square().sum().backward()
