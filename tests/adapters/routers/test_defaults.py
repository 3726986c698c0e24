"""Settings nobody gives are those of the papers or, where they say nothing, of PEFT."""

from __future__ import annotations

from typing import Any

import pytest

from crossroads.adapters.routers import build_router

DEFAULTS: dict[str, dict[str, Any]] = {
    "phatgoose": {"k": 2, "temperature": 1.0, "untrained": False},
    "average-activation": {"k": 2, "temperature": 1.0},
    "glider": {"k": 2, "weight": None, "high": 100.0, "low": 3.0, "tau": None, "p": 0.0},
    "arrow": {"k": 3, "temperature": 1.0},  # PEFT's
    "x-lora": {"depth": 1, "hidden": 2048, "temperature": 1.0, "k": 0, "by_layer": False},
    "lorahub": {"budget": 40, "limit": 1.5, "penalty": 0.05},
    "ties": {"density": 0.2, "weight": 1.0, "elect": "total"},
    "dare": {"density": 0.5, "elect": False},
    "task-arithmetic": {"weight": 0.4},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_router_by_name_alone_has_its_sources_settings(name: str) -> None:
    settings = build_router(name).settings()
    assert {key: settings[key] for key in DEFAULTS[name]} == DEFAULTS[name]
