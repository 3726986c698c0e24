"""Made-up figures for the admin server: shaped like those of a gateway, none of them measured."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from typing import Any

import orjson

from crossroads.core.errors import InputError
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


def frontier(price: float | None) -> dict[str, Any]:
    """Return a made-up frontier: cost in USD per 1,000 prompts."""

    def point(share: float) -> dict[str, Any]:
        cost = 0.08 * (13.5 / 0.08) ** share
        quality = 0.52 + 0.37 * (1 - (1 - share) ** 2.2)
        weights = [math.exp(-((i / 4 - share) ** 2) * 9) for i in range(5)]
        shares = {m: w / sum(weights) for m, w in zip(MODELS, weights, strict=True)}
        return {"price": 900 * (1 - share) ** 3, "quality": quality, "cost_usd": cost} | {
            "shares": shares
        }

    points = [point(i / 40) for i in range(41)]
    near = None if price is None else min(points, key=lambda p: abs(p["price"] - price))
    return {
        "points": [{k: v for k, v in p.items() if k != "shares"} for p in points],
        "models": [
            {"model": m, "quality": q, "cost_usd": 1e3 * u} for m, (q, u, _) in MODELS.items()
        ],
        "operating": points[19],
        "preview": near,
        "unit": "USD per 1,000 prompts",
        "source": "measured on 2,000 held-out prompts (replayed)",
    }


class FakeGateway:
    """Answers what ``AdminSources`` asks, and remembers what it was told."""

    def __init__(self, *, names: Mapping[str, str] | None = None) -> None:
        self.keys = [
            {"id": "checkout", "team": "shop", "models": None, "limits": {"requests_per_min": 600}},
            {"id": "search", "team": "shop", "models": ["auto", "small-1b"], "limits": {}},
            {"id": "support-bot", "team": "care", "models": None, "disabled": True},
        ]
        self.asked: list[bytes] = []
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
            frontier=lambda policy, price: frontier(price),
            regret=lambda: (
                {"regret": -0.021, "low": -0.034, "high": -0.008, "calls": 4812}
                | {"best_model": "large-70b", "method": "Doubly robust over the last 7 days."}
            ),
            drift=lambda: (
                {"alarm": False, "statistic": 0.41, "threshold": 1.36, "calls": 512}
                | {"method": "Kolmogorov-Smirnov, windows of 512; a false alarm in 10,000 calls."}
            ),
            reload=self.reload,
            check_config=self.check_config,
            playground=self.playground,
            config_path="gateway.yaml",
            gateway_url="http://127.0.0.1:8080",
        )

    def health(self) -> dict[str, Any]:
        return {
            "status": "degraded",
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

    def governance(self) -> dict[str, Any]:
        def budget(name: str, usd: float, spent: float, elapsed: float, **more: Any) -> Any:
            return {"name": name, "usd": usd, "spent_usd": spent, "period": "month"} | {
                "elapsed_share": elapsed,
                "reset_at": NOW + 9e5,
                **more,
            }

        return {
            "keys": self.keys,
            "budgets": [
                budget("shop", 400, 251.2, 0.61, scope="team", paced=True, price=12.4),
                budget("checkout", 120, 31.6, 0.61, scope="key"),
                budget("search", 60, 52.8, 0.61, scope="key"),
                budget("support-bot", 25, 25.0, 0.61, scope="key"),
            ],
            "store": {"kind": "memory"},
        }

    def create_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if any(key["id"] == asked["name"] for key in self.keys):
            raise InputError(f"key {asked['name']!r} exists; choose another name")
        key = {"id": asked["name"], "team": asked.get("team"), "models": asked.get("models")}
        self.keys.append(key)
        return {**key, "secret": "sk-cr-made-up-and-worth-nothing"}

    def revoke_key(self, name: str) -> bool:
        before = len(self.keys)
        self.keys = [key for key in self.keys if key["id"] != name]
        return len(self.keys) < before

    def decisions(self, limit: int, filters: Mapping[str, str]) -> list[Record]:
        rows = self.rows
        if "model" in filters:
            rows = [row for row in rows if row.model == filters["model"]]
        if filters.get("status") == "failed":
            rows = [row for row in rows if row.status != 200]
        return rows[:limit]

    async def policies(self) -> dict[str, dict[str, Any]]:
        return {
            "auto": {"kind": "learned", "models": list(MODELS), "objective": "tradeoff:100"}
            | {"router": "knn", "version": "4f2a91"},
            "code": {"kind": "rules", "models": ["coder-14b", "large-70b"]},
            "trial": {"kind": "canary", "models": ["auto", "auto-next"], "share": 0.05},
        }

    def reload(self) -> dict[str, Any]:
        self.num_reloads += 1
        return {"changed": False, "message": "Nothing has changed."}

    def check_config(self, text: str | None) -> dict[str, Any]:
        problems = ["policies.auto: router runs/gone: no such folder"] if text else []
        return {"ok": not problems, "problems": problems}

    def playground(self, body: bytes) -> Reply:
        self.asked.append(body)
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
