"""Hashes of what measured figures depend on, so that none outlives what it is of."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from crossroads.core import fingerprints


def code_fingerprint() -> str:
    """Return a hash of this room's source."""
    return fingerprints.code_fingerprint("adapters")


@torch.no_grad()
def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's parameters: their names, shapes, sums and sizes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in model.state_dict().items():
        sums = (float(values.sum()), float(values.abs().sum()))
        digest.update(repr((name, tuple(values.shape), sums)).encode())
    return digest.hexdigest()
