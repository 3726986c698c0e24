"""Small banks and small models of transformers with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.contract import Routing
from crossroads.adapters.texts import TextBatch

LLAMA_LAYERS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lora(rank: int, inputs: int, outputs: int, *, scale: float = 1.0, seed: int = 0) -> LoRA:
    draw = rng(seed)
    return LoRA(
        a_RI=torch.randn(rank, inputs, generator=draw),
        b_OR=torch.randn(outputs, rank, generator=draw),
        scale=scale,
    )


def module_bank(
    ranks: Sequence[int],
    *,
    inputs: int = 6,
    outputs: int = 4,
    scales: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
    heads: int = 1,
    seed: int = 0,
) -> ModuleBank:
    """Return a layer's bank; an expert of rank 0 does not adapt it."""
    scales = scales or [1.0 + 0.5 * e for e in range(len(ranks))]
    found = [
        lora(rank, inputs, outputs, scale=scale, seed=100 * seed + e) if rank else None
        for e, (rank, scale) in enumerate(zip(ranks, scales, strict=True))
    ]
    bank = ModuleBank("layer", found, heads=heads)
    bank.a_ERI.data, bank.b_EOR.data = bank.a_ERI.data.to(dtype), bank.b_EOR.data.to(dtype)
    return bank


def mix_by_hand(
    x_BTI: Tensor, bank: ModuleBank, routing: Routing, *, sizes: bool = False
) -> Tensor:
    """Return sum_e w_e s_e B_e (A_e x), one expert after the other, in float64.

    With ``sizes``, the same sum of the sizes of all numbers: what rounding errors are measured by.
    """
    keep = torch.abs if sizes else torch.clone
    weights_BTHE = routing.dense(bank.n_experts).double()
    total = x_BTI.new_zeros(*x_BTI.shape[:2], bank.outputs, dtype=torch.float64)
    for e in range(bank.n_experts):
        one = bank.lora(e)
        if one is not None:
            delta = one.scale * keep(one.b_OR.double()) @ keep(one.a_RI.double())
            weights = keep(weights_BTHE[:, :, 0, e, None])
            total = total + weights * (keep(x_BTI.double()) @ delta.T)
    return total


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_t5(seed: int = 0) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=None, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval().requires_grad_(False)


def tiny_bert(seed: int = 0) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config).eval().requires_grad_(False)


def tiny_gpt2(seed: int = 0) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def tiny_opt(seed: int = 0) -> Any:
    """Its feed-forward layers get the tokens of all sequences as rows."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16,
    )  # fmt: skip
    return OPTForCausalLM(config).eval().requires_grad_(False)


def linear_layers(model: nn.Module, ends: Sequence[str] = LLAMA_LAYERS) -> list[str]:
    """Return the names of the layers whose last part is one of ``ends``."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends]


def experts(
    model: nn.Module,
    names: Sequence[str],
    *,
    ends: Sequence[str] = LLAMA_LAYERS,
    rank: int = 2,
    size: float = 0.3,
    scale: float = 2.0,
    kinds: Sequence[str] = ("gate",),
    seed: int = 1000,
) -> list[Expert]:
    """Return random experts for some layers of a model, with random side data of some kinds."""
    from crossroads.adapters.base_layers import layer_size

    layers = dict(model.named_modules())
    made = []
    for e, name in enumerate(names):
        draw = rng(seed + e)
        modules: dict[str, LoRA] = {}
        artifacts: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for layer in linear_layers(model, ends):
            found = layer_size(layers[layer])
            assert found is not None
            inputs, outputs = found
            modules[layer] = LoRA(
                a_RI=size * torch.randn(rank, inputs, generator=draw),
                b_OR=size * torch.randn(outputs, rank, generator=draw),
                scale=scale,
            )
            for kind in kinds:
                artifacts[kind][layer] = torch.randn(inputs, generator=draw)
        made.append(Expert(name=name, modules=modules, artifacts=artifacts))
    return made


def strangers(model: nn.Module, count: int, **options: Any) -> list[Expert]:
    """Return the experts e0, e1, ... without side data, as strangers hand them out."""
    return experts(model, [f"e{i}" for i in range(count)], **{"kinds": (), **options})


def bank_for(model: nn.Module, count: int = 4, **options: Any) -> AdapterBank:
    return AdapterBank(experts(model, [f"e{i}" for i in range(count)], **options))


def ids(rows: int = 3, positions: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(2, 32, (rows, positions), generator=rng(seed))


def batch(ids_BT: Tensor) -> TextBatch:
    """All tokens real and scored."""
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return TextBatch(ids_BT=ids_BT, mask_BT=real_BT, answer_BT=real_BT)
