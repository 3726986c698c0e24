"""Settings that mean nothing are wrong use, whatever the router, and its name is said."""

from __future__ import annotations

import pytest

from crossroads.adapters.routers import build_router, known_settings, router_class, router_names
from crossroads.core.errors import UsageError

_FREE = {"seed", "expert"}  # a seed may be any number, and the bank knows the names of experts


def senseless(name: str) -> list[str]:
    """Return a value of each setting that no router takes: not a number, below zero, no word."""
    found = []
    for setting, default in known_settings(router_class(name)).items():
        if setting in _FREE or isinstance(default, bool):
            continue
        value = {int: "-1", str: "nonsense"}.get(type(default), "nan")
        found.append(f"{name}:{setting}={value}")
    return found


@pytest.mark.parametrize(
    "spec",
    [
        *(spec for name in router_names() for spec in senseless(name)),
        "dare:density=1.5",
        "lorahub:budget=0",
        "task-arithmetic:weight=inf",
        "task-moe:distance=-1",
        "task-moe:floor=inf",
        "task-moe:form=transformer:hidden=6",
        "task-moe:hidden=0",
        "task-moe:rate=-1",
        "task-moe:tau=0",
        "task-moe:tau=inf",
        "task-moe:width=0",
        "ties:density=2",
        "x-lora:depth=0",
    ],
)
def test_senseless_settings_are_wrong_use(spec: str) -> None:
    name = spec.partition(":")[0]
    with pytest.raises(UsageError, match=f"^(router {name}: |unknown .* router {name} )"):
        build_router(spec)
