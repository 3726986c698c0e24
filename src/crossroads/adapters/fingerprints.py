"""Hashes of what measured figures depend on, so that none outlives what it is of."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.base_models import BaseModel
from crossroads.core import fingerprints

# The room, and the arithmetic and draws it shares with others.
SOURCES = (
    "adapters",
    "core/dispatch",
    "core/gating.py",
    "core/losses.py",
    "core/routed.py",
    "datasets/batches.py",
)


def code_fingerprint() -> str:
    """Return a hash of the source that learning and scoring depend on, and of torch's version."""
    told = f"{fingerprints.code_fingerprint(*SOURCES)} torch {torch.__version__}"
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


@torch.no_grad()
def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's parameters: their names, shapes, sums and sizes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in model.state_dict().items():
        sums = (float(values.sum()), float(values.abs().sum()))
        digest.update(repr((name, tuple(values.shape), sums)).encode())
    return digest.hexdigest()


@torch.no_grad()
def bank_fingerprint(bank: AdapterBank) -> str:
    """Return a hash of all numbers of experts, scales and side data too, and of what names them."""
    digest = hashlib.blake2b(digest_size=10)
    about = [(card.name, card.description, card.base_model) for card in bank.cards]
    digest.update(repr((about, tuple(bank.layers), bank.heads)).encode())
    vectors = {
        f"{place} {kind}": values
        for place, card in enumerate(bank.cards)
        for kind, values in (("embedding", card.embedding_G), ("examples", card.examples_JG))
        if values is not None
    }
    for name, values in (*bank.state_dict().items(), *vectors.items()):
        digest.update(repr((name, values.dtype, tuple(values.shape))).encode())
        digest.update(values.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def base_fingerprint(base: BaseModel) -> str:
    """Return a hash of a model and of the tokenizer that comes with it."""
    return f"{model_fingerprint(base.model)} {tokenizer_fingerprint(base.tokenizer)}"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of a ``tokenizers.Tokenizer``: its words and how it parts texts."""
    return hashlib.blake2b(tokenizer.to_str().encode(), digest_size=8).hexdigest()
