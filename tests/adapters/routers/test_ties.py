"""TIES: against PEFT's, and against what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.ties import Ties
from crossroads.core.errors import UsageError
from tests.adapters import toys
from tests.adapters.routers.test_arrow import as_peft, base


def logits(spec: str, experts: list[Expert]) -> Tensor:
    model = toys.tiny_llama()
    RoutedModel(model, AdapterBank(experts), build_router(spec))
    found: Tensor = model(toys.ids()).logits
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's use of transformers
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("ties:density=0.5", {"combination_type": "ties", "density": 0.5}),
        (
            "ties:density=0.3:weight=0.5:elect=frequency",
            {"combination_type": "ties", "density": 0.3, "majority_sign_method": "frequency"},
        ),
        ("ties:density=0.5:on=delta", {"combination_type": "ties_svd", "density": 0.5}),
    ],
)
def test_logits_equal_peft_s(spec: str, theirs: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    experts = toys.strangers(toys.tiny_llama(), 3)
    paths = [as_peft(peft, expert, tmp_path) for expert in experts]
    model = peft.PeftModel.from_pretrained(toys.tiny_llama(), paths[0], adapter_name="e0")
    model.load_adapter(paths[1], "e1")
    model.load_adapter(paths[2], "e2")
    weight = 0.5 if "weight" in spec else 1.0
    model.add_weighted_adapter(["e0", "e1", "e2"], [weight] * 3, "merged", **theirs)
    model.set_adapter("merged")
    ours = logits(spec, experts)
    torch.testing.assert_close(model(toys.ids()).logits, ours, atol=1e-4, rtol=0)
    assert (ours - base(toys.ids())).abs().max() > 0.01


def test_electing_keeps_what_agrees_in_sign() -> None:
    def lora(*values: float) -> LoRA:
        return LoRA(a_RI=torch.tensor([values]), b_OR=torch.ones(1, 1), scale=1.0)

    bank = ModuleBank("layer", [lora(3.0, 1.0, 0.1), lora(-1.0, 2.0, 0.2)])
    found = Ties(density=0.67, on="delta").merged(bank).delta_OI()
    # Places 1 and 2 are kept of each; at place 1 the sign of 3 wins over that of -1.
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.5, 0.0]]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ties:density=0", "density: expected above 0 and at most 1, got 0.0; .*1 keeps all"),
        ("dare:density=1.5", "density: expected above 0 and at most 1, got 1.5; .*1 keeps all"),
        ("dare:rank=-1", "rank: expected 0 or more, got -1; 0 takes the experts' largest"),
        ("ties:on=delt", "that router ties merges on 'delt'; did you mean 'delta'"),
        ("ties:elect=totl", "election of signs of router ties 'totl'; did you mean 'total'"),
        ("ties:densty=1", "did you mean 'density'"),
        ("ties:weight=nan", "router ties: weight: expected a finite number, got nan"),
        ("dare:weight=inf", "router dare: weight: expected a finite number, got inf"),
        ("dare:weight=much", "router dare: weight: expected a finite number, got 'much'"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_router(spec)
