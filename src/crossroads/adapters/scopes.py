"""Which layers share one decision, by their names in the base model."""

from __future__ import annotations

import re
from typing import Literal

Scope = Literal["module", "input", "layer", "group", "model"]
_LAYER = re.compile(r"(.*?\.\d+)\.")
_ATTENTION = re.compile(r"attn|attention|\.(q|k|v|o)(_proj)?$", re.IGNORECASE)
# Layers of a block that are handed the very same tensor.
_ONE_INPUT = (
    re.compile(r"^(q|k|v|q_proj|k_proj|v_proj|query|key|value)$"),
    re.compile(r"^(gate_proj|up_proj|wi_0|wi_1|w1|w3)$"),
)
# Of models with two stacks: the encoder's own layers, and keys and values of cross-attention.
_ENCODER = re.compile(
    r"(^|\.)encoder(\.|$)|(EncDecAttention|encoder_attn|cross_?attn|cross_?attention).*"
    r"\.(k|v|key|value)(_proj)?$",
    re.IGNORECASE,
)


def owner(scope: Scope, module: str) -> str:
    """Return the key under which layers share a decision; equal keys share.

    >>> owner("input", "model.layers.3.self_attn.k_proj")
    'model.layers.3.self_attn 0'
    >>> owner("group", "model.layers.3.self_attn.k_proj")
    'model.layers.3 attention'
    >>> owner("layer", "model.layers.3.mlp.up_proj")
    'model.layers.3'
    """
    if scope == "module":
        return module
    if scope == "model":
        return ""
    if scope == "input":
        parent, _, last = module.rpartition(".")
        for number, pattern in enumerate(_ONE_INPUT):
            if pattern.match(last):
                return f"{parent} {number}"
        return module
    found = _LAYER.match(module)
    layer = found.group(1) if found else module
    if scope == "layer":
        return layer
    return f"{layer} {'attention' if _ATTENTION.search(module) else 'feed-forward'}"


def reads_encoder(module: str) -> bool:
    """Return whether a layer of a model with two stacks runs over the encoder's tokens.

    >>> reads_encoder("decoder.block.0.layer.1.EncDecAttention.k")
    True
    >>> reads_encoder("decoder.block.0.layer.1.EncDecAttention.q")
    False
    """
    return _ENCODER.search(module) is not None
