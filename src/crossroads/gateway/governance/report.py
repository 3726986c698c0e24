"""Keys, limits and budgets as plain data, for dashboards. Never secrets or whole hashes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from crossroads.gateway.governance.accounts import NANO_USD
from crossroads.gateway.governance.keys import fingerprint
from crossroads.gateway.governance.meters import Meter
from crossroads.gateway.governance.plans import Budget, Holder
from crossroads.gateway.governance.settings import KeySettings


def key_row(key: KeySettings, *, source: str, now: float) -> dict[str, Any]:
    """Return what may be shown of a key. ``source``: ``config`` or ``file``."""
    return {
        "name": key.name,
        "fingerprint": fingerprint(key),
        "source": source,
        "team": key.team,
        "models": None if key.models is None else sorted(key.models),
        "tags": sorted(key.tags),
        "residency": sorted(key.residency),
        "created": _iso(key.created),
        "expires": _iso(key.expires),
        "expired": key.expires is not None and key.expires.timestamp() <= now,
        "disabled": key.disabled,
    }


def holder_row(holder: Holder, now: float) -> dict[str, Any]:
    """Return limits and budgets of a key or a team."""
    return {
        "limits": _limits(holder.limits),
        "budgets": [_budget(budget, now) for budget in holder.budgets],
    }


def _limits(meters: Iterable[Meter]) -> list[dict[str, Any]]:
    now = time.monotonic_ns()
    return [
        {
            "kind": meter.kind,
            "per": None if meter.kind == "parallel" else meter.period,
            "limit": meter.limit,
            "left": max(0, meter.left(now)),
            "reset_s": round(meter.reset_s(now), 3),
        }
        for meter in meters
    ]


def _budget(budget: Budget, now: float) -> dict[str, Any]:
    meter = budget.meter
    left = max(0, meter.left(time.monotonic_ns()))
    share = meter.spent / meter.limit
    return {
        "per": meter.period,
        "usd": meter.limit / NANO_USD,
        "spent_usd": meter.spent / NANO_USD,
        "reserved_usd": meter.reserved / NANO_USD,
        "left_usd": left / NANO_USD,
        "share": share,
        "calls": meter.total_calls,
        "start": _iso(datetime.fromtimestamp(meter.start, UTC)),
        "reset_at": _iso(datetime.fromtimestamp(meter.end, UTC)),
        "alerts": [at for at in budget.settings.alert_at if share >= at],
        "pace": None
        if budget.pacer is None
        else budget.pacer.describe(meter.start, meter.end, now),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
