"""A Llama of a few thousand random weights, and a tokenizer of single characters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

NUM_WORDS = 128


class Characters:
    """One token a character, by its code modulo the vocabulary."""

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        return SimpleNamespace(ids=[ord(c) % NUM_WORDS for c in text])


def tiny_llama(seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=NUM_WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval().requires_grad_(False)
