"""A gateway on a real socket, in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from crossroads.core.decision import Decision
from crossroads.core.errors import UsageError
from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.app import Gateway
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Choice, Policies, Upstream
from crossroads.gateway.dialects import build_surfaces
from crossroads.gateway.engine import Engine, EngineSettings
from crossroads.gateway.errors import ApiError
from crossroads.gateway.extras import ApiExtras
from crossroads.gateway.governance import GovernanceSettings, KeyGovernor, PriceBook
from crossroads.gateway.policies import PoliciesSettings, compile_policies
from crossroads.gateway.runtime import Runtime
from crossroads.gateway.services import Services
from crossroads.gateway.telemetry import GatewayTelemetry, TelemetrySettings
from crossroads.gateway.upstreams.local import LocalUpstream
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.prompts.experts.base import Expert
from crossroads.prompts.pool import ModelCard, Pool

QUIET = TelemetrySettings(logs=None)
ONE_TRY = EngineSettings(retries=0)


def as_upstream(expert: Expert) -> LocalUpstream:
    """An in-process expert as an upstream."""
    card = ModelCard(name=expert.name)
    return LocalUpstream(expert, card, timeouts=Timeouts(), settings=UpstreamSettings())


def gateway_of(
    upstreams: Mapping[str, Upstream],
    router: FakeRouter | None = None,
    *,
    api_key: str | None = None,
    failures: EngineSettings = ONE_TRY,
    **fields: Any,
) -> Gateway:
    """A gateway over these upstreams, asked once each; ``fields`` are those of its services."""
    policies: Policies
    if router is None:
        pool = Pool(models=tuple(ModelCard(name=name) for name in upstreams))
        policies = compile_policies(PoliciesSettings(), pool)
    else:
        policies = FakePolicies(list(upstreams), router)
    surfaces = build_surfaces()
    services = Services(
        surfaces=surfaces.by_path,
        prepare=surfaces.responses.prepare,
        extras=ApiExtras(surfaces, body_limit=1 << 20),
        upstreams=upstreams,
        policies=policies,
        engine=Engine(upstreams, failures),
        governor=KeyGovernor(GovernanceSettings(), api_key=api_key),
        prices=PriceBook(),
        telemetry=GatewayTelemetry(QUIET),
        **fields,
    )
    return Gateway(services)


@contextmanager
def serving(gateway: Gateway) -> Iterator[str]:
    """Run a gateway on a free port by uvicorn alone; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        gateway, http="httptools", ws="none", lifespan="on", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), name="gateway"
    )
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def serving_runtime(runtime: Runtime) -> Iterator[str]:
    """Run everything a configuration asks for on a free port; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        runtime.gateway,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        try:
            await runtime.start()
            await server.serve(sockets=[listener])
        finally:
            await runtime.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="runtime")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class FakePolicies:
    """Stands in for compiled policies: ``auto`` and ``auto:RULE`` ask the fake router."""

    def __init__(self, models: Sequence[str], router: FakeRouter) -> None:
        self._models, self._router = models, router

    @property
    def names(self) -> Sequence[str]:
        return ["auto", *self._models]

    async def choose(self, call: Call, *, cost_price: float = 0.0) -> Choice:
        if call.model in self._models:
            return Choice(model=call.model)
        name, _, rule = call.model.partition(":")
        if name != "auto":
            raise ApiError(f"no {name!r}", status=404, code="model_not_found", param="model")
        try:
            decision = self._router.route(call.text, rule=rule or None)
        except UsageError as error:
            raise ApiError(str(error), code="invalid_rule", param="model") from error
        return Choice(
            model=decision.model, policy="auto", reason=decision.reason, decision=decision
        )


class FakeRouter:
    """Sends prompts with a digit to ``first`` and all others to ``second``."""

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second
        self.asked: list[tuple[str, str | None]] = []

    def route(self, prompt: str, *, rule: str | None = None, seed: int = 0) -> Decision:
        self.asked.append((prompt, rule))
        if rule == "broken":
            raise UsageError("unknown decision rule 'broken'; Known: argmax")
        chosen = self.first if any(c.isdigit() for c in prompt) else self.second
        return Decision(
            chosen=(chosen,),
            scores={self.first: 0.25, self.second: 0.75},
            rule=rule or "argmax",
            reason=f"{chosen} has the highest\nestimated quality, \u00bd of it",
            propensity=1.0,
            predicted_quality=0.75,
            predicted_cost_usd=0.0000015,
            confidence=0.5,
            seconds=0.0001,
            router="fake",
            version="1",
            seed=seed,
        )
