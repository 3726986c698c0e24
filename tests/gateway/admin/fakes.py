"""Made-up figures for the admin server: shaped like those of a gateway, none of them measured."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.admin import AdminSources, Reply
from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry import GatewayTelemetry, History, TelemetrySettings

NOW = 1_790_000_000.0
MODELS = {  # name: quality, USD per call, seconds
    "small-1b": (0.52, 0.00008, 0.35),
    "medium-8b": (0.66, 0.0005, 0.8),
    "coder-14b": (0.71, 0.0011, 1.3),
    "large-70b": (0.79, 0.0042, 2.6),
    "frontier-x": (0.86, 0.0135, 4.2),
}
_SHARES = (0.38, 0.27, 0.17, 0.12, 0.06)
XSS = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def record(index: int, *, at: float = NOW, chance: random.Random | None = None) -> Record:
    """Return one made-up call."""
    chance = chance or random.Random(index)
    name = chance.choices(list(MODELS), _SHARES)[0]
    quality, usd, seconds = MODELS[name]
    upstream = 1e3 * seconds * chance.lognormvariate(0, 0.35)
    failed, fell_back = chance.random() < 0.015, chance.random() < 0.03
    chosen = "large-70b" if fell_back else name
    attempts = [(chosen, 503, "overloaded", 0.2)] if fell_back else []
    return Record(
        decision_id=f"dec_{index:032x}",
        request_id=f"req_{index}",
        time=at,
        key_id=chance.choice(["checkout", "search", "support-bot"]),
        team="shop",
        asked="auto",
        policy="auto",
        version="4f2a91",
        reason=f"tradeoff:100 prefers {chosen}: quality {quality:.2f} for USD {usd:.5f}",
        rule="tradeoff:100",
        chosen=chosen,
        model="" if failed else name,
        status=502 if failed else 200,
        error="upstream_error" if failed else "",
        is_complete=not failed,
        finish="" if failed else "stop",
        attempts=[*attempts, (name, 502 if failed else 200, "", upstream / 1e3)],
        propensity=0.95,
        probabilities=dict.fromkeys(MODELS, 0.0125) | {chosen: 0.95},
        scores={m: min(1.0, q + chance.gauss(0, 0.04)) for m, (q, _, _) in MODELS.items()},
        costs={m: u * chance.lognormvariate(0, 0.2) for m, (_, u, _) in MODELS.items()},
        is_explored=chance.random() < 0.04,
        confidence=round(chance.random(), 3),
        predicted_quality=quality,
        predicted_cost_usd=usd,
        input_tokens=chance.randint(20, 900),
        output_tokens=0 if failed else chance.randint(5, 400),
        cost_usd=0.0 if failed else usd * chance.lognormvariate(0, 0.3),
        queue_ms=chance.expovariate(20),
        route_ms=chance.lognormvariate(-2, 0.5),
        connect_ms=chance.expovariate(4),
        upstream_ms=upstream,
        relay_ms=chance.lognormvariate(-2.4, 0.4),
        total_ms=upstream + 0.6,
        first_token_ms=upstream / 5,
    )


async def filled_history(*, seconds: float = 900.0, step: float = 5.0) -> History:
    """Return the history of a made-up quarter of an hour."""
    telemetry = GatewayTelemetry(TelemetrySettings(logs=None), names=[*MODELS, "auto"])
    chance, now, index = random.Random(7), NOW - seconds, 0
    history = History(telemetry.figures, clock=lambda: now)
    while now <= NOW:
        await history.sample()
        rate = 6 + 4 * math.sin(now / 130) + chance.random() * 2
        for _ in range(round(rate * step / 3)):
            telemetry.begin(None)  # type: ignore[arg-type]
            telemetry.end(record(index, at=now, chance=chance))
            index += 1
        now += step
    return history


def point(share: float) -> dict[str, Any]:
    """Return a made-up operating point, 0 the cheapest and 1 the dearest; USD per call."""
    weights = [math.exp(-((i / 4 - share) ** 2) * 9) for i in range(5)]
    return {
        "price": 900 * (1 - share) ** 3,
        "quality": 0.52 + 0.37 * (1 - (1 - share) ** 2.2),
        "usd": 0.00008 * (0.0135 / 0.00008) ** share,
        "shares": {m: w / sum(weights) for m, w in zip(MODELS, weights, strict=True)},
        "num_prompts": 512,
    }


def frontier() -> dict[str, Any]:
    """Return a made-up frontier."""
    curve = [point(i / 40) for i in range(41)]
    return {
        "points": [{name: p[name] for name in ("price", "quality", "usd")} for p in curve],
        "models": [{"model": m, "quality": q, "usd": u} for m, (q, u, _) in MODELS.items()],
        "operating_point": point(19 / 40),
        "measured": {
            "quality": 0.781,
            "cost_usd": 0.0011,
            "best_single": "frontier-x",
            "best_single_quality": 0.853,
            "best_single_cost_usd": 0.0135,
        },
    }


def preview(policy: str, price: float) -> dict[str, Any]:
    return min((point(i / 40) for i in range(41)), key=lambda p: abs(p["price"] - price))


class FakeGateway:
    """Answers what ``AdminSources`` asks, and remembers what it was told."""

    def __init__(self, *, names: Mapping[str, str] | None = None) -> None:
        self.keys = [
            self.key("checkout", 120, 31.6, limits=[("requests", "minute", 600)]),
            self.key("search", 60, 52.8, models=["auto", "small-1b"], source="config")
            | {"residency": ["eu"]},
            self.key("support-bot", 25, 25.0, team="care", disabled=True),
        ]
        self.asked: list[tuple[bytes, str]] = []
        self.num_reloads = 0
        self.rename = dict(names or {})
        self.rows = [record(i, at=NOW - 2.3 * i) for i in range(60)]
        self._history = asyncio.run(filled_history())

    def sources(self) -> AdminSources:
        return AdminSources(
            health=self.health,
            metrics=lambda: b"# HELP fake fake\n",
            traffic=self._history.series,
            models=lambda: [{"name": "auto", "kind": "policy"}, *({"name": m} for m in MODELS)],
            upstreams=self.upstreams,
            governance=self.governance,
            create_key=self.create_key,
            revoke_key=self.revoke_key,
            decisions=self.decisions,
            decision=lambda id: next((r for r in self.rows if r.decision_id == id), None),
            policies=self.policies,
            preview=preview,
            regret=lambda: (
                {"regret": -0.021, "low": -0.034, "high": -0.008, "calls": 4812}
                | {"best_model": "large-70b", "method": "doubly robust", "level": 0.95, "why": ""}
            ),
            drift=lambda: {"auto": {"state": "ok", "source": "similarity", "window": 512}},
            reload=self.reload,
            check_config=self.check_config,
            playground=self.playground,
            config_path="gateway.yaml",
            gateway_url="http://127.0.0.1:8080",
        )

    def health(self) -> dict[str, Any]:
        return {
            "status": "degraded",
            "workers": 2,
            "parts": {
                "upstreams": {"status": "degraded", "reason": "coder-14b rests", "models": 5},
                "ledger": {"status": "ok", "queue": 12, "journal_rows": 0},
                "governance": {"status": "ok", "store": "memory"},
                "telemetry": {"status": "ok", "in_flight": 14, "loop_lag_worst_ms": 1.8},
            },
        }

    def upstreams(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for i, (name, (_, _, seconds)) in enumerate(MODELS.items()):
            found[self.rename.get(name, name)] = {
                "state": "closed",
                "state_for_s": 8211.0,
                "failure_share": 0.012 * i,
                "in_flight": 5 - i,
                "num_calls": 1900 // (i + 1),
                "num_failures": 7 * i,
                "answer_s": seconds,
                "first_event_s": seconds / 6,
                "last_error": None,
                "last_error_time": None,
            }
        found["coder-14b"] |= {"state": "open", "state_for_s": 12.0, "opens_for_s": 30.0}
        found["coder-14b"] |= {"failure_share": 0.62, "last_error_time": NOW}
        found["coder-14b"]["last_error"] = "coder-14b: no first byte within 5 s"
        return found

    def budget(self, usd: float, spent: float, **more: Any) -> dict[str, Any]:
        start = datetime.now(UTC) - timedelta(days=18)
        moments = {"start": start, "reset_at": start + timedelta(days=30)}
        told = {name: moment.isoformat(timespec="seconds") for name, moment in moments.items()}
        return {"per": "month", "usd": usd, "spent_usd": spent, "pace": None, **told, **more}

    def key(
        self, name: str, usd: float, spent: float, *, limits: Any = (), **more: Any
    ) -> dict[str, Any]:
        return {
            "name": name,
            "fingerprint": "9f31c2",
            "source": "file",
            "team": "shop",
            "models": None,
            "expires": None,
            "expired": False,
            "disabled": False,
            "limits": [{"kind": k, "per": p, "limit": n, "left": n} for k, p, n in limits],
            "budgets": [self.budget(usd, spent)] if usd else [],
            **more,
        }

    def governance(self) -> dict[str, Any]:
        paced = self.budget(400, 251.2, pace={"price": 12.4, "elapsed_share": 0.61})
        return {
            "open": False,
            "keys": self.keys,
            "teams": [{"name": "shop", "limits": [], "budgets": [paced]}],
            "store": {"url": "memory", "reachable": True, "problem": ""},
        }

    async def create_key(self, name: str, **fields: Any) -> str:
        if any(key["name"] == name for key in self.keys):
            raise InputError(f"key {name!r} exists; choose another name")
        self.keys = [*self.keys, self.key(name, 0, 0, **fields)]
        return "sk-cr-made-up-and-worth-nothing"

    async def revoke_key(self, name: str) -> None:
        if not any(key["name"] == name for key in self.keys):
            raise UsageError(f"there is no key {name!r}")
        self.keys = [key for key in self.keys if key["name"] != name]

    def decisions(self, limit: int, filters: Mapping[str, Any]) -> list[Record]:
        rows = self.rows
        if "model" in filters:
            rows = [row for row in rows if row.model == filters["model"]]
        if filters.get("is_error"):
            rows = [row for row in rows if row.status != 200]
        return rows[:limit]

    async def policies(self) -> dict[str, dict[str, Any]]:
        return {
            "auto": {"kind": "learned", "models": list(MODELS), "objective": "tradeoff:100"}
            | {"router": "knn", "version": "4f2a91", "frontier": frontier()},
            "code": {"kind": "rules", "models": ["coder-14b", "large-70b"]},
            "trial": {"kind": "canary", "models": ["auto", "auto-next"], "share": 0.05},
        }

    def reload(self) -> dict[str, Any]:
        self.num_reloads += 1
        return {"changed": False, "message": "Nothing has changed."}

    def check_config(self, text: str | None) -> dict[str, Any]:
        problems = ["policies.auto: router runs/gone: no such folder"] if text else []
        return {"ok": not problems, "problems": problems}

    async def playground(self, body: bytes, key: str) -> Reply:
        self.asked.append((body, key))
        prompt = orjson.loads(body)["messages"][-1]["content"]
        answer = {
            "model": "medium-8b",
            "choices": [
                {"message": {"role": "assistant", "content": f"You said: {prompt}"}}
                | {"finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 12, "completion_tokens": 40},
        }
        headers = {
            "x-crossroads-decision-id": self.rows[3].decision_id,
            "x-crossroads-model": "medium-8b",
            "x-crossroads-reason": "tradeoff:100 prefers medium-8b",
            "x-crossroads-cost-usd": "0.000412",
            "x-crossroads-overhead-ms": "0.31",
            "server-timing": "queue;dur=0.01, route;dur=0.12, connect;dur=0, upstream;dur=811, "
            "relay;dur=0.18",
        }
        return Reply(200, headers, orjson.dumps(answer))
