"""Task arithmetic: the weighted sum of what experts do."""

from __future__ import annotations

from dataclasses import replace

import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from tests.adapters import toys


def test_task_arithmetic_is_the_weighted_sum_of_what_experts_do() -> None:
    model = toys.tiny_llama()
    experts = toys.strangers(model, 3)
    layer = next(iter(experts[0].modules))
    experts[1] = replace(
        experts[1], modules={k: v for k, v in experts[1].modules.items() if k != layer}
    )
    bank = AdapterBank(experts)
    router = build_router("task-arithmetic:weight=0.7")
    routed = RoutedModel(model, bank, router, kernel="dense")
    routed.checks = True
    found = model(toys.ids()).logits
    weights = routed.last_routings[layer].weights.flatten()
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.0, 0.7]))
    merged = toys.tiny_llama()
    with torch.no_grad():
        for expert in experts:
            for name, lora in expert.modules.items():
                merged.get_submodule(name).weight += 0.7 * lora.delta_OI()
    torch.testing.assert_close(found, merged(toys.ids()).logits, atol=1e-4, rtol=0)
