"""A hash of the code that figures of trained layers depend on."""

from __future__ import annotations

from crossroads.core import fingerprints

# Layers and trainer, the kernels that run them, backbones, and the arithmetic they share.
SOURCES = (
    "moe",
    "models",
    "core/dispatch",
    "core/gating.py",
    "core/losses.py",
    "core/routed.py",
)


def code_fingerprint() -> str:
    """Return a hash of the source of routed layers, their training and their backbones."""
    return fingerprints.code_fingerprint(*SOURCES)
