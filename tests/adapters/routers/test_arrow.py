"""Arrow: blind to sign, equal to PEFT's, experts without effect left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.contract import Call, RouteInput
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.arrow import Arrow
from tests.adapters import toys

LAYER = "layer"


def axis(place: int, size: float = 1.0) -> Expert:
    """An expert whose only direction is one axis of three."""
    lora = LoRA(a_RI=torch.eye(3)[[place]], b_OR=size * torch.ones(2, 1), scale=1.0)
    return Expert(name=f"e{place}", modules={LAYER: lora})


def weights(router: Arrow, experts: list[Expert], x_BTI: Tensor) -> Tensor:
    bank = AdapterBank(experts)
    router.prepare(bank)
    layer = bank.layers[LAYER]
    found = router.route(RouteInput(module=LAYER, x_BTI=x_BTI, bank=layer, call=Call()))
    return found.dense(len(experts))[0, :, 0]


def test_tokens_go_to_the_expert_they_point_along_whatever_the_sign() -> None:
    x_BTI = torch.tensor([[[3.0, 1.0, 0.0], [-3.0, 1.0, 0.0], [0.0, 0.1, -9.0]]])
    found = weights(Arrow(k=1), [axis(n) for n in range(3)], x_BTI)
    assert found.argmax(-1).tolist() == [0, 0, 2]
    torch.testing.assert_close(
        weights(Arrow(), [axis(n) for n in range(3)], x_BTI),
        weights(Arrow(), [axis(n) for n in range(3)], -x_BTI),
    )


def test_all_experts_by_the_whole_softmax() -> None:
    x_BTI = torch.tensor([[[3.0, -1.0, 0.5]]])
    found = weights(Arrow(k=0, temperature=2.0), [axis(n) for n in range(3)], x_BTI)
    torch.testing.assert_close(found[0], torch.softmax(x_BTI[0, 0].abs() / 2, -1))


def test_an_expert_without_effect_gets_no_weight() -> None:
    experts = [axis(0, size=0.0), axis(1), axis(2)]
    found = weights(Arrow(k=3), experts, torch.tensor([[[9.0, 1.0, 1.0]]]))
    assert found[0].tolist() == [0.0, 0.5, 0.5]
    nothing = weights(Arrow(k=2), [axis(0, size=0.0)], torch.ones(1, 1, 3))
    assert nothing.tolist() == [[0.0]]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's use of transformers
def test_logits_equal_peft_s(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, ids, rank = toys.tiny_llama(), toys.ids(), 2
    experts = [pointed(expert) for expert in toys.strangers(model, 4, rank=rank)]
    paths = [as_peft(peft, expert, tmp_path) for expert in experts]
    routed = RoutedModel(model, AdapterBank(experts), build_router("arrow:k=2"))
    ours = model(ids).logits
    routed.unwrap()
    theirs = peft.tuners.lora.create_arrow_model(
        base_model=model,
        task_specific_adapter_paths=paths,
        arrow_config=peft.ArrowConfig(top_k=2),
    )
    torch.testing.assert_close(theirs.eval()(ids).logits, ours, atol=1e-4, rtol=0)
    assert (theirs(ids).logits - base(ids)).abs().max() > 0.05


def pointed(expert: Expert) -> Expert:
    """The expert with one direction far ahead of the other, which PEFT's 15 iterations find."""
    damp_R1 = torch.tensor([[1.0], [0.05]])
    modules = {
        layer: replace(lora, a_RI=lora.a_RI * damp_R1) for layer, lora in expert.modules.items()
    }
    return replace(expert, modules=modules)


def base(ids: Tensor) -> Tensor:
    found: Tensor = toys.tiny_llama()(ids).logits
    return found


def as_peft(peft: object, expert: Expert, folder: Path) -> str:
    """Write an expert with PEFT itself."""
    rank = next(iter(expert.modules.values())).rank
    config = peft.LoraConfig(  # type: ignore[attr-defined]
        r=rank, lora_alpha=int(2 * rank), target_modules=list(toys.LLAMA_LAYERS)
    )
    wrapped: nn.Module = peft.get_peft_model(toys.tiny_llama(), config)  # type: ignore[attr-defined]
    with torch.no_grad():
        for layer, lora in expert.modules.items():
            target = wrapped.get_submodule(f"base_model.model.{layer}")
            target.lora_A["default"].weight.copy_(lora.a_RI)
            target.lora_B["default"].weight.copy_(lora.b_OR)
    wrapped.save_pretrained(folder / expert.name)  # type: ignore[operator]
    return str(folder / expert.name)
