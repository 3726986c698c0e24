"""The universal properties, for settings that change how a router decides."""

from __future__ import annotations

import pytest
import torch

from crossroads.core.routed import RouteContext
from crossroads.moe.contract import Router
from crossroads.moe.routers import build_router, parse_router, router_names
from tests.moe.test_properties import build, context, run, some_padding, stream

VARIANTS = [
    "adamoe:n_null=3:k=4:init=copy",
    "attention:renorm=false:v_gain=3:bias=true",
    "da-moe:importance=self:k_max=3",
    "da-moe:importance=entropy:heads=max",
    "da-moe:normalise=minmax:queries=sum",
    "hyper:k_schedule=cosine-decrease:hidden=7",
    "omni:share=2x5-2x5:bias=true",
    "promoe:choice=expert:k=2",
    "promoe:choice=expert:score=softmax:uncond=false",
    "promoe:score=sigmoid:k=2:balance=0.01",
    "promoe:null_label=1",
    "top-p:p=0.7:k_max=3:noise_std=0.1",
    "vqmoe:codebook=balanced:k=2",
    "vqmoe:codebook=cosine:branches=discrete:n_codes=9",
    "vqmoe:branches=continuous",
    "vqmoe:compat_frozen_gate=true:compat_blend=true",
]


@pytest.mark.parametrize("spec", VARIANTS)
def test_a_name_with_settings_builds_a_layer_that_runs_and_trains(spec: str) -> None:
    name, settings = parse_router(spec)
    assert spec.startswith(name)
    assert len(settings) == spec.count("=")
    for dtype in (torch.float32, torch.bfloat16):
        layer, h_BTD = build(spec).to(dtype), stream(dtype=dtype).requires_grad_()
        answer = run(layer, h_BTD, context(training=True, progress=0.4))
        assert answer.delta.dtype == dtype
        loss = answer.delta.float().square().sum()
        loss = sum((term.weighted for term in answer.aux.values()), loss)
        loss.backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(grad).all()) for grad in (h_BTD.grad, *grads))
        layer.commit(layer.stats(answer.decisions), answer.new_state)


@pytest.mark.parametrize("spec", VARIANTS)
def test_padding_changes_nothing_and_gets_nothing(spec: str) -> None:
    layer, mask_BT, h_BTD = build(spec), some_padding(), stream()
    other = torch.where(mask_BT.unsqueeze(-1), h_BTD, torch.nan)
    first = run(layer, h_BTD, context(mask_BT=mask_BT)).delta
    second = run(layer, other, context(mask_BT=mask_BT)).delta
    assert bool((first[~mask_BT] == 0).all())
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("spec", VARIANTS)
def test_sparse_execution_equals_the_dense_einsum(spec: str, training: bool) -> None:
    layer = build(spec)
    given: RouteContext = context(training=training, mask_BT=some_padding(), progress=0.5)
    outputs = []
    for path in ("sparse", "dense"):
        layer.path = path
        outputs.append(run(layer, stream(), given).delta)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", router_names())
def test_a_router_that_a_decoder_refuses_says_what_to_do(name: str) -> None:
    router = build_router(name, 8, 8)
    assert router.causal_safe or router.remedy != Router.remedy
    if name == "da-moe":
        assert router.remedy == "set importance to self or entropy"
        remedied = build_router("da-moe:importance=self", 8, 8)
        assert remedied.causal_safe
