"""Mixtures of other libraries compute here what they compute there, or are refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import (
    Mixture,
    read_adapter,
    read_hydralora,
    read_mixlora,
    read_poly,
)
from crossroads.adapters.routers.poly import Poly
from crossroads.core.errors import InputError
from tests.adapters.layout.tiny import base, change_config, change_tensors, inputs, logits

TASKS = torch.tensor([0, 2])  # of the two sequences
Q0 = "model.layers.0.self_attn.q_proj"


class ByGate(Router):
    """Softmax of gate times input, over all experts."""

    name = "by-gate"

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def route(self, given: RouteInput) -> Routing:
        scores_BTE = given.x_BTI @ self.mixture.gates[given.module].T
        return Routing(weights=scores_BTE.softmax(-1).unsqueeze(2))


def save_poly(folder: Path, **settings: Any) -> Tensor:
    """Write a Poly adapter with PEFT; return the logits PEFT computes."""
    import peft

    sizes = {"r": 3, "n_tasks": 4, "n_skills": 5, "n_splits": 2, **settings}
    config = peft.PolyConfig(
        target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", poly_type="poly", **sizes
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(), config).eval()
        generator = torch.Generator().manual_seed(3)
        for name, values in model.named_parameters():
            if "poly_" in name:
                values.data.normal_(std=0.8, generator=generator)
        model.save_pretrained(str(folder))
        with torch.no_grad():
            found: Tensor = model(**inputs(), task_ids=TASKS).logits
    return found


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_poly_of_peft_computes_the_same(tmp_path: Path, splits: int) -> None:
    expected = save_poly(tmp_path, n_splits=splits)
    mixture = read_poly(tmp_path)
    assert mixture.bank.heads == splits
    assert mixture.bank.names == tuple(f"skill-{e}" for e in range(5))
    assert mixture.gates[Q0].shape == (4, splits, 5)
    router = Poly(tasks=4)
    routed = RoutedModel(base(), mixture.bank, router)
    for layer, logits_THE in mixture.gates.items():
        router.logits_of(layer).data.copy_(logits_THE)
    assert (expected - logits(base())).abs().max() > 1e-2
    with calling(task_ids=TASKS):
        torch.testing.assert_close(logits(routed.model), expected, atol=1e-4, rtol=1e-4)


def test_poly_of_other_sizes_than_it_says_is_refused(tmp_path: Path) -> None:
    save_poly(tmp_path)
    change_config(tmp_path, n_skills=4)
    words = r"down_proj\.poly_lora_A: expected shape \(2, 4, any, 3\), found \(2, 5, 12, 3\)"
    with pytest.raises(InputError, match=words):
        read_poly(tmp_path)
    change_config(tmp_path, n_skills=5)
    key = f"base_model.model.{Q0}"
    change_tensors(tmp_path, {f"{key}.poly_router.module_logits": None})
    with pytest.raises(InputError, match=f"{Q0}: expected a tensor poly_router.module_logits"):
        read_poly(tmp_path)
    change_tensors(tmp_path, {f"{key}.lora_A.weight": torch.ones(3, 16)})
    with pytest.raises(InputError, match=r"lora_A\.weight: a tensor of shape \(3, 16\)"):
        read_poly(tmp_path)


def write(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {key: torch.randn(shape, generator=generator) / 3 for key, shape in shapes.items()}


HYDRA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "lora_nums": 3, "bias": "none"}


def save_hydra(folder: Path) -> dict[str, Tensor]:
    tensors = drawn(
        {
            f"base_model.model.{Q0}.lora_A.weight": (3, 16),
            f"base_model.model.{Q0}.lora_route.weight": (3, 16),
            **{f"base_model.model.{Q0}.lora_B{i}.weight": (16, 3) for i in range(3)},
        }
    )
    write(folder, HYDRA, tensors)
    return {key.removeprefix(f"base_model.model.{Q0}."): v for key, v in tensors.items()}


def test_hydralora_computes_its_equation(tmp_path: Path) -> None:
    parts = save_hydra(tmp_path)
    mixture = read_hydralora(tmp_path)
    routed = RoutedModel(base(), mixture.bank, ByGate(mixture))
    layer = routed.model.get_submodule(Q0)
    x_BTI = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    weights_BTE = (x_BTI @ parts["lora_route.weight"].T).softmax(-1)
    expected = base().get_submodule(Q0)(x_BTI)
    for i in range(3):
        added = x_BTI @ parts["lora_A.weight"].T @ parts[f"lora_B{i}.weight"].T
        expected = expected + weights_BTE[..., i : i + 1] * added * 2
    with torch.no_grad():
        torch.testing.assert_close(layer(x_BTI), expected, atol=1e-5, rtol=1e-5)


def test_hydralora_is_no_plain_adapter(tmp_path: Path) -> None:
    save_hydra(tmp_path)
    with pytest.raises(InputError, match=r"lora_nums.*read_hydralora"):
        read_adapter(tmp_path)


def test_hydralora_of_other_sizes_than_it_says_is_refused(tmp_path: Path) -> None:
    save_hydra(tmp_path)
    change_config(tmp_path, lora_nums=2)
    with pytest.raises(InputError, match=r"lora_route: expected shape \(2, 16\), found \(3, 16\)"):
        read_hydralora(tmp_path)
    change_config(tmp_path, lora_nums=3)
    change_tensors(tmp_path, {f"base_model.model.{Q0}.lora_B3.weight": torch.ones(16, 3)})
    with pytest.raises(InputError, match=r"lora_B3: expected 3 factors B"):
        read_hydralora(tmp_path)
    change_tensors(tmp_path, {f"base_model.model.{Q0}.lora_B3.weight": None,
                              f"base_model.model.{Q0}.lora_B1.weight": None})  # fmt: skip
    with pytest.raises(InputError, match="expected a tensor B1, found none"):
        read_hydralora(tmp_path)
    change_config(tmp_path, lora_nums=None)
    with pytest.raises(InputError, match="lora_nums: expected a whole number above 0"):
        read_hydralora(tmp_path)


MIXLORA = {"peft_type": "MIXLORA", "r": 2, "lora_alpha": 4, "num_experts": 3, "top_k": 2}


def save_mixlora(folder: Path, *, own_gates: bool = False, **settings: Any) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        start = f"mixlora.layers.{layer}"
        shapes[f"{start}.self_attn.q_proj.lora_A.weight"] = (2, 16)
        shapes[f"{start}.self_attn.q_proj.lora_B.weight"] = (16, 2)
        for name in ("up_proj", "gate_proj"):
            for e in range(3):
                shapes[f"{start}.mlp.{name}.experts.{e}.lora_A.weight"] = (2, 16)
                shapes[f"{start}.mlp.{name}.experts.{e}.lora_B.weight"] = (24, 2)
            if own_gates:
                shapes[f"{start}.mlp.{name}.moe_gate.weight"] = (3, 16)
        if not own_gates:
            shapes[f"{start}.mlp.moe_gate.weight"] = (3, 16)
    tensors = drawn(shapes)
    write(folder, {**MIXLORA, **settings}, tensors)
    return tensors


@pytest.mark.parametrize("own_gates", [False, True])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4 / 2**0.5)])
def test_mixlora_becomes_a_bank_gates_and_a_plain_part(
    tmp_path: Path, own_gates: bool, rslora: bool, scale: float
) -> None:
    tensors = save_mixlora(tmp_path, own_gates=own_gates, use_rslora=rslora)
    mixture = read_mixlora(tmp_path)
    up = "model.layers.1.mlp.up_proj"
    gate = "mlp.up_proj.moe_gate" if own_gates else "mlp.moe_gate"
    assert torch.equal(mixture.gates[up], tensors[f"mixlora.layers.1.{gate}.weight"])
    assert mixture.bank.names == ("expert-0", "expert-1", "expert-2")
    lora = mixture.bank.expert("expert-2").modules[up]
    assert torch.equal(lora.a_RI, tensors["mixlora.layers.1.mlp.up_proj.experts.2.lora_A.weight"])
    assert lora.scale == pytest.approx(scale)
    assert mixture.plain is not None
    assert set(mixture.plain.modules) == {f"model.layers.{n}.self_attn.q_proj" for n in range(2)}
    RoutedModel(base(), mixture.bank, ByGate(mixture)).unwrap()  # its names and sizes fit


def test_the_pickled_file_of_moe_peft_is_read(tmp_path: Path) -> None:
    tensors = save_mixlora(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert read_mixlora(tmp_path).bank.n_experts == 3


def test_a_broken_mixlora_is_refused_by_name(tmp_path: Path) -> None:
    save_mixlora(tmp_path)
    name = "mixlora.layers.1.mlp.up_proj.experts.{}.lora_{}.weight"
    good = load_file(tmp_path / "adapter_model.safetensors")
    for change, words in (
        ({name.format(2, "A"): None, name.format(2, "B"): None}, "expected experts 0 to 2"),
        ({name.format(2, "B"): None}, r"up_proj: expected a tensor B, found none"),
        ({name.format(2, "A"): torch.ones(3, 16)}, r"expected shape \(2, any\), found \(3, 16\)"),
        ({"mixlora.layers.1.mlp.moe_gate.weight": None}, "expected a moe_gate"),
        ({"mixlora.layers.1.mlp.up_proj.bias": torch.ones(24)}, "such a mixture does not have"),
    ):
        save_file(good, tmp_path / "adapter_model.safetensors")
        change_tensors(tmp_path, change)
        with pytest.raises(InputError, match=words):
            read_mixlora(tmp_path)
    save_file(good, tmp_path / "adapter_model.safetensors")
    change_config(tmp_path, use_dora=True)
    with pytest.raises(InputError, match="use_dora"):
        read_mixlora(tmp_path)


def test_each_reader_names_the_kind_it_reads(tmp_path: Path) -> None:
    save_mixlora(tmp_path)
    with pytest.raises(InputError, match="peft_type: expected POLY, got MIXLORA"):
        read_poly(tmp_path)
    with pytest.raises(InputError, match=r"MIXLORA is a mixture of experts.*read_mixlora"):
        read_adapter(tmp_path)
