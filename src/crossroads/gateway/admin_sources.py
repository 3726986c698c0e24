"""What the admin server asks of a running gateway: one callable for each of its sources."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from crossroads.gateway.admin import AdminSources
from crossroads.gateway.admin.playground import in_process
from crossroads.gateway.admin.shapes import health_of_all, upstreams_of_all
from crossroads.gateway.checking import check
from crossroads.gateway.ledger import Filters
from crossroads.gateway.telemetry import History

if TYPE_CHECKING:
    from crossroads.gateway.contracts import Record
    from crossroads.gateway.evaluation import EvaluationSettings
    from crossroads.gateway.runtime import Runtime

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_SHORTEST = 4  # characters of a value that a message may not show


def sources_of(runtime: Runtime, history: History, *, gateway_url: str) -> AdminSources:
    """Return the sources; what this gateway does not have is None."""
    live = _Live(runtime)
    has_ledger = runtime.config.ledger is not None
    return AdminSources(
        health=live.health,
        metrics=runtime.telemetry.render,
        traffic=history.series,
        summary=live.summary if has_ledger else None,
        models=live.models,
        upstreams=live.upstreams,
        governance=live.governance,
        create_key=live.create_key,
        revoke_key=live.revoke_key,
        decisions=live.decisions,
        decision=live.decision,
        policies=live.policies,
        preview=live.preview,
        regret=live.regret if has_ledger else None,
        drift=live.drift,
        reload=runtime.reload,
        check_config=live.check_config,
        playground=in_process(runtime.gateway),
        config_path="" if runtime.path is None else str(runtime.path),
        gateway_url=gateway_url,
    )


class _Live:
    """Sources that need a few lines of their own."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._regret: tuple[float, dict[str, Any]] | None = None
        self._estimating = asyncio.Lock()

    async def summary(self, since: float) -> dict[str, Any]:
        reader = self._runtime.reader
        assert reader is not None
        best = self._runtime.config.baseline
        return await self._runtime.read(lambda: reader.summary(since, best_model=best))

    # The snapshot is looked up anew each time: a reload replaces it.

    async def health(self) -> dict[str, Any]:
        """Of all workers, as far as their figures tell."""
        told = self._runtime.health()
        return health_of_all(told, await self._runtime.telemetry.figures())

    async def upstreams(self) -> dict[str, Any]:
        told = self._runtime.built.engine.health()
        return upstreams_of_all(told, await self._runtime.telemetry.figures())

    def governance(self) -> dict[str, Any]:
        return self._runtime.built.governor.describe()

    def policies(self) -> dict[str, Any]:
        return self._runtime.built.policies.describe()

    def preview(self, name: str, price: float) -> dict[str, Any]:
        return self._runtime.built.policies.preview(name, price)

    def models(self) -> list[dict[str, Any]]:
        built = self._runtime.built
        cards = {card.name: card for card in built.pool}
        found = []
        for name in built.policies.names:
            card = cards.get(name)
            if card is None:
                found.append({"name": name, "kind": "policy"})
                continue
            facts: dict[str, Any] = {
                "context": card.context,
                "inputs": list(card.inputs),
                "tools": card.tools,
                "residency": list(card.residency),
                "usd_per_mtok_in": card.price_in,
                "usd_per_mtok_out": card.price_out,
            }
            found.append({"name": name, "kind": "model", **facts})
        return found

    async def create_key(self, name: str, /, **fields: Any) -> str:
        return await self._runtime.built.governor.key_store.create(name, **fields)

    async def revoke_key(self, name: str) -> None:
        await self._runtime.built.governor.key_store.revoke(name)

    async def decisions(self, count: int, filters: Mapping[str, Any]) -> list[Record]:
        """The ledger's, or what this process remembers where there is none."""
        reader = self._runtime.reader
        if reader is not None:
            return await self._runtime.read(reader.recent, count, Filters(**filters))
        return [record for record in reversed(self._runtime.telemetry.recent)
                if _fits(record, filters)][:count]  # fmt: skip

    async def decision(self, decision_id: str) -> Any:
        if self._runtime.reader is not None:
            return await self._runtime.entry(decision_id)
        recent = self._runtime.telemetry.recent
        return next((record for record in recent if record.decision_id == decision_id), None)

    async def regret(self) -> dict[str, Any]:
        """Estimate only now and then: it takes a while, and little changes."""
        settings = self._runtime.config.evaluation
        async with self._estimating:
            now = time.monotonic()
            if self._regret is None or now - self._regret[0] > settings.every_s:
                self._regret = (now, await asyncio.to_thread(self._estimated, settings))
            return self._regret[1]

    def _estimated(self, settings: EvaluationSettings) -> dict[str, Any]:
        """Read on a connection of its own: feedback and look-ups need not wait for statistics."""
        # Imported here: they are much to load for who never looks at them.
        from crossroads.gateway.evaluation import regret_of_ledger
        from crossroads.gateway.ledger import LedgerReader

        ledger = self._runtime.config.ledger
        assert ledger is not None
        with LedgerReader(ledger.url) as reader:
            return regret_of_ledger(reader, settings)

    def drift(self) -> dict[str, Any]:
        policies = self._runtime.built.policies.health()["policies"]
        return {name: part["drift"] for name, part in policies.items() if part.get("drift")}

    async def check_config(self, text: str | None) -> dict[str, Any]:
        """Check YAML text, or the file in use."""
        with TemporaryDirectory() as folder:
            path = self._runtime.path
            if text is not None:
                path = Path(folder) / "gateway.yaml"
                await asyncio.to_thread(path.write_text, text, "utf-8")
            if path is None:
                return {"ok": True, "problems": []}
            findings = await check(str(path))
        problems = [finding.to_dict() for finding in findings]
        if text is not None:
            # Whoever writes a configuration names variables of the environment; what a message
            # quotes of their values stays here. So does where the text was put for the check.
            for problem in problems:
                for name in ("place", "message"):
                    told = problem[name].replace(str(path), "the text").replace(f"{folder}/", "")
                    problem[name] = _without_values(told, text)
        return {"ok": all(p["level"] != "error" for p in problems), "problems": problems}


def _without_values(message: str, text: str) -> str:
    """Put the names of the variables that ``text`` refers to in place of their values.

    A message may quote the beginning of a value only.
    """
    for name in sorted(set(_REFERENCE.findall(text))):
        value = os.environ.get(name, "")
        for size in range(len(value), _SHORTEST - 1, -1):
            if value[:size] in message:
                message = message.replace(value[:size], f"${{{name}}}")
                break
    return message


def _fits(record: Record, filters: Mapping[str, Any]) -> bool:
    for name, wanted in filters.items():
        if name == "is_error":
            if (record.status >= 400) != wanted:
                return False
        elif getattr(record, name) != wanted:
            return False
    return True
