"""Where a text went: every expert's share of the weight, over layers and in each of them."""

from __future__ import annotations

from dataclasses import dataclass

from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass
from crossroads.adapters.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Shares of the routing weights' sizes.

    Attributes
    ----------
    experts : mean over the layers, the largest first; empty where the router merges experts by
        other means than weights, or all tokens stayed with the base model
    layers : the same by layer, in the order they ran
    """

    experts: dict[str, float]
    layers: dict[str, dict[str, float]]


def shares_of(routed: RoutedModel, one: Pass | None = None) -> Shares:
    """Return the shares in a pass; None = the latest one."""
    telemetry = Telemetry(routed, agreement=False)
    telemetry.add(routed.current if one is None else one)
    found = telemetry.report()["layers"]
    layers = {name: facts["mean_share"] for name, facts in found.items() if "mean_share" in facts}
    means = {
        expert: sum(shares[expert] for shares in layers.values()) / len(layers)
        for expert in routed.bank.names
        if layers
    }
    ordered = sorted((e for e in means if means[e] > 0), key=lambda e: -means[e])
    return Shares(experts={expert: means[expert] for expert in ordered}, layers=layers)
