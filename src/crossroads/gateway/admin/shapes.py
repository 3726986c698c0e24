"""From what the parts of a gateway publish to what the dashboard draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

_PER = 1_000  # calls that costs on the frontier are given for
UNIT = "USD per 1,000 calls"

Facts = Mapping[str, Any]


def frontier_view(told: Facts, *, operating: Facts, preview: Facts | None) -> dict[str, Any]:
    """Return a policy's frontier (``Frontier.describe``) with costs per 1,000 calls.

    ``points``, ``models``, ``operating`` and ``preview`` are the router's estimates over the last
    prompts; ``measured`` is what it reached on held-out prompts when it was fitted, and
    ``best_single`` the best model there. ``source`` says so.
    """
    measured = told.get("measured") or {}
    num_prompts = operating.get("num_prompts")
    source = "the router's estimates"
    if num_prompts:
        source += f" of the last {num_prompts} prompts"
    if measured:
        source += "; measured on held-out prompts where marked"
    return {
        "points": [p for p in map(_point, told.get("points") or ()) if _is_drawable(p)],
        "models": [p for p in map(_point, told.get("models") or ()) if _is_drawable(p)],
        "operating": _drawable(operating),
        "preview": None if preview is None else _drawable(preview),
        "measured": _held_out(measured, "quality", "cost_usd"),
        "best_single": _held_out(
            measured,
            "best_single_quality",
            "best_single_cost_usd",
            model=measured.get("best_single"),
        ),
        "unit": UNIT,
        "source": source,
    }


def budget_rows(told: Facts, *, now: float) -> list[dict[str, Any]]:
    """Return every budget of ``KeyGovernor.describe``, teams first, as one flat list."""
    rows = []
    for scope, holders in (("team", told.get("teams") or ()), ("key", told.get("keys") or ())):
        for holder in holders:
            for budget in holder.get("budgets") or ():
                rows.append(_budget(holder["name"], scope, budget, now))
    return rows


def _budget(name: str, scope: str, budget: Facts, now: float) -> dict[str, Any]:
    start, end = _unix(budget.get("start")), _unix(budget.get("reset_at"))
    pace = budget.get("pace") or {}
    elapsed = pace.get("elapsed_share")
    if elapsed is None and start is not None and end is not None and end > start:
        elapsed = min(1.0, max(0.0, (now - start) / (end - start)))
    return {
        "name": name,
        "scope": scope,
        "period": budget.get("per"),
        "usd": budget.get("usd"),
        "spent_usd": budget.get("spent_usd"),
        "reserved_usd": budget.get("reserved_usd"),
        "elapsed_share": elapsed,
        "reset_at": budget.get("reset_at"),
        "paced": bool(pace),
        "price": pace.get("price"),
    }


def limit_texts(limits: Iterable[Facts]) -> list[str]:
    """Return limits as a person writes them: ``600 requests per minute``."""
    texts = []
    for limit in limits:
        per = f" per {limit['per']}" if limit.get("per") else ""
        texts.append(f"{limit['limit']:,} {limit['kind']}{per}")
    return texts


def _point(told: Facts) -> dict[str, Any]:
    usd = told.get("usd")
    found = {name: told[name] for name in ("model", "price", "shares", "rule") if name in told}
    return {
        **found,
        "quality": told.get("quality"),
        "cost_usd": None if usd is None else _PER * usd,
    }


def _drawable(told: Facts) -> dict[str, Any] | None:
    point = _point(told)
    return point if _is_drawable(point) else None


def _is_drawable(point: Facts) -> bool:
    return point["quality"] is not None and point["cost_usd"] is not None


def _held_out(measured: Facts, quality: str, cost: str, **more: Any) -> dict[str, Any] | None:
    if measured.get(quality) is None or measured.get(cost) is None:
        return None
    return {"quality": measured[quality], "cost_usd": _PER * measured[cost], **more}


def _unix(moment: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None
