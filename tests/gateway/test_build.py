from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.build import Built, Lasting, build
from crossroads.gateway.config import ServeConfig
from crossroads.gateway.contracts import Cache
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.telemetry import GatewayTelemetry
from crossroads.prompts import fit_router, read_outcomes, save_router
from crossroads.prompts.pool import ModelCard, Pool
from tests.gateway.caches.calls import asked, told
from tests.gateway.serving import QUIET

NEAR = ModelCard(name="near", endpoint="local:units")
FAR = ModelCard(name="far", endpoint="https://host/v1")


def build_it(config: ServeConfig) -> Built:
    lasting = Lasting(surfaces=build_surfaces(), telemetry=GatewayTelemetry(QUIET))
    return build(config, lasting)


def write_pool(folder: Path, *cards: ModelCard) -> str:
    path = folder / "pool.yaml"
    path.write_text(Pool(models=cards).model_dump_json(exclude_defaults=True), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A router over ``near`` and ``far``, fitted and saved."""
    rows = [
        {"prompt_id": str(n), "prompt": f"question {n}", "model": model, "score": (n + k) % 2}
        for n in range(40)
        for k, model in enumerate(("near", "far"))
    ]
    root = tmp_path_factory.mktemp("router")
    source = root / "outcomes.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    fitted = fit_router("ridge", read_outcomes(str(source)), pool=Pool(models=(NEAR, FAR)))
    save_router(fitted, root / "fitted")
    return str(root / "fitted")


def test_nothing_to_serve_says_how_to_get_something() -> None:
    with pytest.raises(UsageError, match="run: crossroads fit auto --outcomes local --out DIR"):
        build_it(ServeConfig())


def test_a_pool_alone_serves_its_models(tmp_path: Path) -> None:
    built = build_it(ServeConfig(pool=write_pool(tmp_path, NEAR, FAR)))
    assert list(built.policies.names) == ["near", "far"]


def test_a_router_alone_serves_its_own_pool(folder: str) -> None:
    built = build_it(ServeConfig(router=folder))
    assert list(built.policies.names) == ["auto", "near", "far"]


def test_a_pool_may_hold_more_than_the_router_chooses_among(folder: str, tmp_path: Path) -> None:
    more = ModelCard(name="more", endpoint="local:calculator")
    built = build_it(ServeConfig(router=folder, pool=write_pool(tmp_path, more, FAR, NEAR)))
    assert list(built.policies.names) == ["auto", "more", "far", "near"]


def test_a_router_never_chooses_a_model_that_cannot_be_reached(folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chooses among far, which pool 'pool' lacks"):
        build_it(ServeConfig(router=folder, pool=write_pool(tmp_path, NEAR)))
    mute = ModelCard(name="far")
    with pytest.raises(InputError, match="model 'far' has no endpoint"):
        build_it(ServeConfig(router=folder, pool=write_pool(tmp_path, NEAR, mute)))


def test_a_model_named_like_a_policy_is_refused(folder: str, tmp_path: Path) -> None:
    pool = write_pool(tmp_path, NEAR, FAR, ModelCard(name="auto", endpoint="local:units"))
    with pytest.raises(InputError, match="has a model named 'auto'"):
        build_it(ServeConfig(router=folder, pool=pool))


def test_a_router_that_does_not_load_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        build_it(ServeConfig(router=str(tmp_path / "nowhere"), pool="local"))


def test_an_upstream_is_kept_over_a_reload_where_nothing_of_it_changed(tmp_path: Path) -> None:
    lasting = Lasting(surfaces=build_surfaces(), telemetry=GatewayTelemetry(QUIET))

    async def reload() -> tuple[Built, Built]:
        before = build(ServeConfig(pool=write_pool(tmp_path, NEAR, FAR)), lasting)
        await before.services.start()
        changed = FAR.model_copy(update={"endpoint": "https://other/v1"})
        lasting.before = before
        after = build(ServeConfig(pool=write_pool(tmp_path, NEAR, changed)), lasting)
        await after.services.start()
        await before.services.until_idle()
        await before.services.close()
        await after.services.close()
        return before, after

    before, after = asyncio.run(reload())
    kept = {n for n, up in after.services.upstreams.items() if before.services.upstreams[n] is up}
    assert kept == {"near"}


def test_a_kept_answer_is_found_while_the_same_models_and_policies_answer(tmp_path: Path) -> None:
    lasting = Lasting(surfaces=build_surfaces(), telemetry=GatewayTelemetry(QUIET))
    moved = FAR.model_copy(update={"endpoint": "https://other/v1"})
    dearer = FAR.model_copy(update={"price_in": 2.0})

    def reload(*cards: ModelCard, weight: int = 1, **fallbacks: list[str]) -> Cache:
        policies = {"p": {"kind": "split", "weights": {"near": weight}}} if weight else {}
        config = ServeConfig.model_validate(
            {
                "pool": write_pool(tmp_path, *cards),
                "policies": policies,
                "fallbacks": fallbacks,
                "cache": {"exact": True},
            }
        )
        lasting.before = build(config, lasting)
        assert lasting.before.services.cache is not None
        return lasting.before.services.cache

    def finds(cache: Cache) -> bool:
        return asyncio.run(cache.get(asked(model="p"))) is not None

    reload(NEAR, FAR).put(asked(model="p"), told())
    assert finds(reload(NEAR, FAR))
    assert finds(reload(NEAR, dearer))
    assert not finds(reload(NEAR))
    assert not finds(reload(NEAR, moved))
    assert not finds(reload(NEAR, FAR, weight=2))
    assert not finds(reload(NEAR, FAR, near=["far"]))
    assert finds(reload(NEAR, FAR))  # back as it was
    reload(NEAR, FAR, weight=0).put(asked(model="p"), told())
    assert finds(reload(NEAR, FAR, weight=0))
    assert not finds(reload(NEAR, FAR, weight=0, near=["far"]))


def test_models_of_one_server_share_its_connections(tmp_path: Path) -> None:
    near = FAR.model_copy(update={"name": "beside", "endpoint": "https://host/other"})
    alone = FAR.model_copy(update={"name": "alone", "endpoint": "https://elsewhere/v1"})
    upstreams = build_it(
        ServeConfig(pool=write_pool(tmp_path, FAR, near, alone))
    ).services.upstreams
    pools = {name: getattr(upstream, "_pool") for name, upstream in upstreams.items()}  # noqa: B009
    assert pools["far"] is pools["beside"]
    assert pools["far"] is not pools["alone"]
