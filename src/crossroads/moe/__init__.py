"""Tokens to experts: layers, routers, test beds, an arena, conversion, parallelism, traces.

The public names below are imported when they are first used; importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossroads.core.routed import RouteContext
    from crossroads.moe.beds import get_bed
    from crossroads.moe.building import MoEFactory, MoESpec
    from crossroads.moe.capacity import Capacity
    from crossroads.moe.contract import (
        Dense,
        ExpertChoice,
        Router,
        RouterInput,
        RouterOutput,
        RoutingDecision,
        TokenChoice,
    )
    from crossroads.moe.experts import FFNBank, ModuleExperts
    from crossroads.moe.layer import MoELayer
    from crossroads.moe.router import TokenChoiceRouter
    from crossroads.moe.routers import build_router, router_names
    from crossroads.moe.tasks import MoETask
    from crossroads.moe.training import TrainConfig, train

__all__ = [
    "Capacity",
    "Dense",
    "ExpertChoice",
    "FFNBank",
    "MoEFactory",
    "MoELayer",
    "MoESpec",
    "MoETask",
    "ModuleExperts",
    "RouteContext",
    "Router",
    "RouterInput",
    "RouterOutput",
    "RoutingDecision",
    "TokenChoice",
    "TokenChoiceRouter",
    "TrainConfig",
    "build_router",
    "get_bed",
    "router_names",
    "train",
]

_MODULES = {
    "RouteContext": "crossroads.core.routed",
    "get_bed": "crossroads.moe.beds",
    "MoEFactory": "crossroads.moe.building",
    "MoESpec": "crossroads.moe.building",
    "Capacity": "crossroads.moe.capacity",
    "Dense": "crossroads.moe.contract",
    "ExpertChoice": "crossroads.moe.contract",
    "Router": "crossroads.moe.contract",
    "RouterInput": "crossroads.moe.contract",
    "RouterOutput": "crossroads.moe.contract",
    "RoutingDecision": "crossroads.moe.contract",
    "TokenChoice": "crossroads.moe.contract",
    "FFNBank": "crossroads.moe.experts",
    "ModuleExperts": "crossroads.moe.experts",
    "MoELayer": "crossroads.moe.layer",
    "TokenChoiceRouter": "crossroads.moe.router",
    "build_router": "crossroads.moe.routers",
    "router_names": "crossroads.moe.routers",
    "MoETask": "crossroads.moe.tasks",
    "TrainConfig": "crossroads.moe.training",
    "train": "crossroads.moe.training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("crossroads"):
            raise
        from crossroads.core.errors import MissingExtraError

        raise MissingExtraError(error.name, extra="neural") from error
