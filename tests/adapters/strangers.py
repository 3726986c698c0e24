"""A tiny random Llama and random experts of it, as if strangers had made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from crossroads.adapters.bank import Expert, LoRA
from crossroads.adapters.texts import TextBatch

WORDS = 40
QUERY = ("q_proj", "v_proj")


def tiny_llama(seed: int = 0) -> Any:
    """Two blocks of width 32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def targets(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    return {
        full: layer
        for full, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and full.rpartition(".")[2] in names
    }


def stranger(
    model: nn.Module,
    name: str,
    *,
    seed: int,
    rank: int = 2,
    scale: float = 2.0,
    names: Sequence[str] = QUERY,
    kinds: Sequence[str] = (),
) -> Expert:
    """An expert with random factors, and random side data of the kinds asked for."""
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(*shape, generator=random)

    found = targets(model, names)
    modules = {
        layer: LoRA(
            a_RI=drawn(rank, one.in_features, size=one.in_features**-0.5),
            b_OR=drawn(one.out_features, rank, size=0.5),
            scale=scale,
        )
        for layer, one in found.items()
    }
    artifacts = {
        kind: {layer: drawn(one.in_features, size=0.1) for layer, one in found.items()}
        for kind in kinds
    }
    return Expert(name=name, modules=modules, artifacts=artifacts)


def strangers(model: nn.Module, n: int, **facts: Any) -> list[Expert]:
    return [stranger(model, f"e{seed}", seed=seed, **facts) for seed in range(n)]


def tokens(sequences: int = 3, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(
        0, WORDS, (sequences, length), generator=torch.Generator().manual_seed(seed)
    )


def batch(ids_BT: Tensor) -> TextBatch:
    """All tokens real and scored."""
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return TextBatch(ids_BT=ids_BT, mask_BT=real_BT, answer_BT=real_BT)
