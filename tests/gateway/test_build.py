from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway import build
from crossroads.gateway.build import build_gateway
from crossroads.gateway.config import ServeConfig
from crossroads.prompts.experts.http import HttpExpert
from crossroads.prompts.pool import ModelCard, Pool

NEAR = ModelCard(name="near", endpoint="local:units")
FAR = ModelCard(name="far", endpoint="https://host/v1")


def write_pool(folder: Path, *cards: ModelCard) -> str:
    path = folder / "pool.yaml"
    path.write_text(Pool(models=cards).model_dump_json(exclude_defaults=True), "utf-8")
    return str(path)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loaded router over ``near`` and ``far``."""
    found = SimpleNamespace(pool=Pool(models=(NEAR, FAR)), router=SimpleNamespace(name="fake"))
    monkeypatch.setattr(build, "load_router", lambda folder: found)
    return found


def test_nothing_to_serve_says_how_to_get_something() -> None:
    with pytest.raises(UsageError, match="run: crossroads fit auto --outcomes local --out DIR"):
        build_gateway(ServeConfig())


def test_a_pool_alone_serves_its_models(tmp_path: Path) -> None:
    built = build_gateway(ServeConfig(pool=write_pool(tmp_path, NEAR, FAR)))
    assert (built.models, built.router) == (("near", "far"), None)


def test_a_router_alone_serves_its_own_pool(router: Any) -> None:
    built = build_gateway(ServeConfig(router="runs/x"))
    assert (built.models, built.router) == (("near", "far"), "fake")


def test_a_pool_may_hold_more_than_the_router_chooses_among(router: Any, tmp_path: Path) -> None:
    more = ModelCard(name="more", endpoint="local:calculator")
    built = build_gateway(ServeConfig(router="x", pool=write_pool(tmp_path, more, FAR, NEAR)))
    assert built.models == ("more", "far", "near")


def test_a_router_never_chooses_a_model_that_cannot_be_reached(router: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="router x chooses among far, which pool 'pool' lacks"):
        build_gateway(ServeConfig(router="x", pool=write_pool(tmp_path, NEAR)))
    router.pool = Pool.of(["near", "far"])
    with pytest.raises(InputError, match="model 'near' has no endpoint"):
        build_gateway(ServeConfig(router="x"))


def test_a_model_named_like_the_router_is_refused(router: Any, tmp_path: Path) -> None:
    pool = write_pool(tmp_path, NEAR, FAR, ModelCard(name="auto", endpoint="local:units"))
    with pytest.raises(InputError, match="has a model named 'auto'"):
        build_gateway(ServeConfig(router="x", pool=pool))


def test_a_router_that_does_not_load_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        build_gateway(ServeConfig(router=str(tmp_path / "nowhere"), pool="local"))


def test_timeouts_reach_the_upstreams(tmp_path: Path) -> None:
    config = ServeConfig.model_validate(
        {"pool": write_pool(tmp_path, FAR), "timeouts": {"idle": 7, "connect": 3}}
    )
    expert = build_gateway(config).gateway._experts["far"]
    assert isinstance(expert, HttpExpert)
    assert (expert.timeouts.idle, expert.timeouts.connect) == (7, 3)
