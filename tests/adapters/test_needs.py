from __future__ import annotations

import pytest

from crossroads.adapters.needs import GROUPS, group_of, needs_of
from crossroads.adapters.routers import build_router, router_class, router_names


@pytest.mark.parametrize(
    ("router", "group"),
    [
        ("uniform", "adapters"),
        ("arrow", "adapters"),
        ("task-arithmetic", "adapters"),
        ("ties", "adapters"),
        ("phatgoose", "contributors"),
        ("average-activation", "contributors"),
        ("retrieval", "contributors"),
        ("glider", "contributors"),
        ("lorahub", "examples"),
        ("best-single", "examples"),
        ("x-lora", "shared data"),
        ("lora-mixer", "shared data"),
        ("dynmole", "shared data"),
        ("flylora", "shared data"),
        ("mogu", "shared data"),
        ("multitask", "shared data"),
        ("poly", "task"),
        ("oracle", "reference"),
        ("named", "reference"),
    ],
)
def test_routers_stand_with_those_that_need_the_same(router: str, group: str) -> None:
    assert group_of(build_router(router)) == group


def test_every_router_that_ships_has_a_group() -> None:
    assert {group_of(router_class(name)) for name in router_names()} <= set(GROUPS)


def test_needs_are_named() -> None:
    assert needs_of(build_router("phatgoose")) == ("gate of every expert",)
    told = ("embeddings of every expert", "the prompt's embedding")
    assert needs_of(build_router("glider"))[-2:] == told == needs_of(build_router("retrieval"))
    assert needs_of(build_router("uniform")) == ()
