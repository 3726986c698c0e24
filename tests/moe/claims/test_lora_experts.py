from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.core.routed import RouteContext
from crossroads.moe.claims import lora_experts
from crossroads.moe.claims.adamoe import freedom
from crossroads.moe.claims.arms import Arm, run_arm
from crossroads.moe.claims.lora_experts import AdapterBed, LoRABank, write_prefix


@dataclass(frozen=True)
class Encoded:
    ids: list[int]


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text: str) -> Encoded:
        return Encoded([ord(letter) % 32 for letter in text])


def tiny_llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config).eval()


TEXTS = ["balance", "what now", "pay my bill today", "hi"] * 8


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterBed:
    label_N = torch.arange(len(TEXTS)) % 4
    path = tmp_path / "tail.safetensors"
    parts = {"train": (TEXTS, label_N), "test": (TEXTS, label_N)}
    write_prefix(tiny_llama(), Letters(), parts, path)
    monkeypatch.setattr(lora_experts, "clinc_classes", lambda: 4)
    return AdapterBed(path=str(path), rank=2)


def test_before_training_the_adapted_model_is_the_frozen_one(bed: AdapterBed) -> None:
    model = bed.build(bed.spec("adamoe:n_null=4:k=3")).eval()
    h_BTD, mask_BT, _ = bed.batch(bed.config("quick"), 0, 0)
    found = model(h_BTD, mask_BT, context=RouteContext()).hidden_BTD
    llama = tiny_llama()
    for text in ("balance", "pay my bill today"):
        row = TEXTS.index(text)
        stream, mask, _ = lora_experts._prepared(bed.path)[2]["train"]
        whole = model(stream[row : row + 1], mask[row : row + 1]).hidden_BTD
        ids = torch.tensor([Letters().encode(text).ids[: lora_experts.LONGEST]])
        wanted = llama.model(ids).last_hidden_state
        real = int(mask[row].sum())
        assert torch.allclose(model.norm(whole)[0, :real], wanted[0], atol=1e-5)
    assert found.shape == h_BTD.shape


def test_training_moves_experts_routers_and_head_alone(bed: AdapterBed) -> None:
    model = bed.build(bed.spec("top2"))
    names = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"routed", "head"}


def test_null_experts_hold_no_adapter_and_are_free(bed: AdapterBed) -> None:
    model = bed.build(bed.spec("adamoe:n_null=4:k=3")).eval()
    assert len(model.routed[0].experts.up) == 4
    output, label_N = bed.probe(model)
    assert freedom(output, model)["exact"] == 1.0
    assert len(label_N) == int(output.records[0].decisions[0].mask_N.sum())


def test_a_bank_is_the_weighted_sum_of_its_experts() -> None:
    torch.manual_seed(0)
    bank = LoRABank(6, 2, ("ffn", "ffn", "null"))
    torch.nn.init.normal_(bank.up)
    x_ND, w_NK = torch.randn(4, 6), torch.rand(4, 2)
    idx_NK = torch.tensor([[0, 1], [1, -1], [2, 0], [-1, -1]])
    wanted = torch.zeros(4, 6)
    for row, places in enumerate(idx_NK.tolist()):
        for place, expert in enumerate(places):
            if expert >= 0:
                wanted[row] += w_NK[row, place] * bank.expert(expert, x_ND[row])
    assert torch.allclose(bank.run_tokens(x_ND, idx_NK, w_NK), wanted, atol=1e-6)


def test_an_arm_trains_and_is_judged(bed: AdapterBed) -> None:
    config = replace(bed.config("quick"), steps=3, batch_size=8)
    found = run_arm(bed, Arm(router="adamoe:n_null=4:k=3"), config)
    assert 0 <= found["accuracy"] <= 1
    assert 0 < found["active_experts"] < 3
