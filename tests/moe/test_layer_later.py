"""What a call leaves until it is read: FLOPs, counts and generators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossroads.core import losses
from crossroads.core.routed import RouteContext
from crossroads.moe import layer as module
from crossroads.moe.contract import RouterInput
from crossroads.moe.layer import GateSharing
from tests.moe.test_layer import D, E, layer, tokens


def test_what_nobody_reads_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer("top2", norm=nn.LayerNorm(D))
    seen: list[str] = []

    def note(name: str, value: Any) -> Any:
        def call(*arguments: Any) -> Any:
            seen.append(name)
            return value(*arguments)

        return call

    for name in ("generator", "executed_counts"):
        monkeypatch.setattr(module, name, note(name, getattr(module, name)))
    monkeypatch.setattr(losses, "pick_counts", note("pick_counts", losses.pick_counts))
    answer = made(tokens(1, 3))
    assert not seen
    one_expert = 2 * (2 * 12 * D + 12 * D)
    assert answer.flops == 3 * (2 * one_expert + 2 * D * E)
    assert answer.decisions[0].stats["count_E"].sum() == 6
    assert seen == ["executed_counts", "pick_counts"]


def test_a_router_that_draws_finds_the_generator_of_its_call() -> None:
    made = layer("random:k=1")
    context = RouteContext(training=True, seed=5, step=2)
    drawn: list[Tensor] = []

    def draws(_: Any, given: tuple[RouterInput]) -> None:
        drawn.append(torch.rand(3, generator=given[0].rng))

    made.routers[0].register_forward_pre_hook(draws)
    made(tokens(1, 3), context)
    assert torch.equal(drawn[0], torch.rand(3, generator=module.generator(context, 0, 0)))


def test_flops_do_not_follow_a_mask_that_is_filled_anew() -> None:
    made = layer("top2")
    mask_BT = torch.tensor([[True, True, False]])
    answer = made(tokens(1, 3), RouteContext(mask_BT=mask_BT))
    mask_BT.fill_(False)
    assert answer.flops == 2 * (2 * 2 * (2 * 12 * D + 12 * D) + 2 * D * E)


@pytest.mark.parametrize("mask", [None, [True, True, False]])
@pytest.mark.parametrize(("sharing", "asked"), [("module", 3), ("decision", 1)])
def test_a_chain_runs_its_shared_expert_in_every_iteration(
    sharing: GateSharing, asked: int, mask: list[bool] | None
) -> None:
    shared = nn.Linear(D, D)
    runs: list[Any] = []
    shared.register_forward_hook(lambda *call: runs.append(call))
    made = layer("top2", shared=shared, shared_flops=100.0, n_iter=3, gate_sharing=sharing)
    context = RouteContext(mask_BT=None if mask is None else torch.tensor([mask]))
    answer = made(tokens(1, 3), context)
    assert len(runs) == 3
    one_expert = 2 * (2 * 12 * D + 12 * D)
    n_tokens = 3 if mask is None else 2
    assert answer.flops == n_tokens * (3 * (2 * one_expert + 100) + asked * 2 * D * E)
