"""What a model can say about itself in the metadata of a trace, for those who read it alone.

=====================  =============================================================================
of the trace           ``n_layers``, ``dense_layers`` (those without experts), ``width``,
                       ``bytes_per_token`` (a token's activations between two layers)
of a column            ``router`` (its name), ``bytes_per_expert`` (one number, or one an expert
                       where they differ), ``shared_bytes`` (of the experts that every token runs)
=====================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from crossroads.core.routed import routed_layers

_STACKED = ("up", "down", "up_bias", "down_bias")  # of a bank, the first axis being the expert


def trace_facts(model: nn.Module) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return what is so in the whole model, and what is so in each routed layer, by its index."""
    layers: list[Any] = list(routed_layers(model))
    if not layers:
        return {}, {}
    config = getattr(model, "config", None)
    n_layers = max(layer.n_layers for layer in layers)
    n_layers = max(n_layers, getattr(config, "num_hidden_layers", 0))
    width = int(getattr(layers[0].experts, "d", layers[0].experts.d_out))
    facts: dict[str, Any] = {
        "n_layers": n_layers,
        "dense_layers": sorted(set(range(n_layers)) - {layer.layer for layer in layers}),
        "width": width,
    }
    for parameter in layers[0].experts.parameters():
        facts["bytes_per_token"] = width * parameter.element_size()
        break
    return facts, {int(layer.layer): _of_layer(layer) for layer in layers}


def _of_layer(layer: Any) -> dict[str, Any]:
    router = layer.routers[0]
    shared = 0 if layer.shared is None else _bytes(layer.shared.parameters())
    found = {"router": getattr(router, "name", type(router).__name__), "shared_bytes": shared}
    size = _expert_bytes(layer.experts)
    return found if size is None else {**found, "bytes_per_expert": size}


def _expert_bytes(experts: Any) -> int | list[int] | None:
    members = getattr(experts, "members", None)
    if members is not None:
        sizes = [_bytes(member.parameters()) for member in members]
        return sizes[0] if len(set(sizes)) == 1 else sizes
    stacked = [getattr(experts, name, None) for name in _STACKED]
    found = [p.shape[1:].numel() * p.element_size() for p in stacked if isinstance(p, Tensor)]
    return sum(found) if found else None


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
