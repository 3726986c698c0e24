from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossroads.core.errors import InputError
from crossroads.prompts.preferences.lora import LoraLinear, add_lora, load_lora, save_lora
from tests.prompts.preferences.tiny import tiny_llama

IDS = torch.arange(12).reshape(2, 6)
FACTS = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"], "first_layer": 1}


def adapted(seed: int = 0) -> torch.nn.Module:
    model: torch.nn.Module = tiny_llama()
    add_lora(model, rank=2, alpha=4.0, targets=FACTS["targets"], first_layer=1, seed=seed)  # type: ignore[arg-type]
    return model


def test_a_new_adapter_changes_nothing() -> None:
    assert torch.equal(adapted()(IDS).logits, tiny_llama()(IDS).logits)


def test_the_output_is_the_frozen_one_and_the_scaled_product() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 3)
    layer = LoraLinear(base, rank=2, alpha=6.0)
    torch.nn.init.normal_(layer.down_RD)
    torch.nn.init.normal_(layer.up_FR)
    x_ND = torch.randn(4, 5)
    wanted = base(x_ND) + 3.0 * x_ND @ layer.down_RD.T @ layer.up_FR.T
    torch.testing.assert_close(layer(x_ND), wanted)


def test_only_the_adapter_asks_for_gradients_and_only_from_the_first_layer_on() -> None:
    trained = [name for name, p in adapted().named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all("layers.1" in name and "_proj." in name for name in trained)


def test_a_saved_adapter_gives_the_same_outputs_in_half_precision(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter).half().float())
    save_lora(tmp_path / "a.npz", model, FACTS)
    other = tiny_llama()
    assert load_lora(tmp_path / "a.npz", other) == FACTS
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert not torch.equal(other(IDS).logits, tiny_llama()(IDS).logits)


def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.npz: not an adapter of this model"):
        load_lora(path, tiny_llama())


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no linear layer is named w"):
        add_lora(tiny_llama(), targets=["w"], first_layer=0)
