"""From what the parts of a gateway publish to what the dashboard draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from crossroads.gateway.telemetry.health import SEVERITY
from crossroads.gateway.telemetry.snapshot import Snapshot

_PER = 1_000  # calls that costs on the frontier are given for
UNIT = "USD per 1,000 calls"

Facts = Mapping[str, Any]
_STATES = ("closed", "half_open", "open")  # of a breaker, by crossroads_breaker_state
_WORDS = {number: word for word, number in SEVERITY.items()}


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


def health_of_all(told: Facts, figures: Snapshot) -> dict[str, Any]:
    """Return a worker's health, each part as bad as in the worst of all workers; ``workers``.

    ``figures`` are of all workers, `told` is of this one; details of the others are not known here.
    """
    workers = _num_workers(figures)
    found = {**told, "workers": workers}
    if workers < 2:
        return found
    parts = dict(told.get("parts") or {})
    for name, part in parts.items():
        worst = int(figures.gauges.get(("crossroads_degraded", (name,)), 0))
        if worst > SEVERITY.get(part["status"], 0):
            reason = "in another worker: see its log"
            parts[name] = {**part, "status": _WORDS[worst], "reason": reason}
    statuses = [told["status"], *(part["status"] for part in parts.values())]
    return {**found, "status": max(statuses, key=SEVERITY.__getitem__), "parts": parts}


def upstreams_of_all(told: Mapping[str, Facts], figures: Snapshot) -> dict[str, dict[str, Any]]:
    """Return a worker's upstreams with all workers' calls in flight and the worst breaker's state.

    ``state_of`` is ``another worker`` where that is not this one's.
    """
    found = {name: dict(facts) for name, facts in told.items()}
    if _num_workers(figures) < 2:
        return found
    for name, facts in found.items():
        running = figures.gauges.get(("crossroads_upstream_in_flight", (name,)))
        if running is not None:
            facts["in_flight"] = int(running)
        worst = _STATES[int(figures.gauges.get(("crossroads_breaker_state", (name,)), 0))]
        own = str(facts.get("state", "closed")).replace("-", "_")
        if own in _STATES and _STATES.index(worst) > _STATES.index(own):
            facts["state"], facts["state_of"] = worst, "another worker"
            for name_of_own in ("state_for_s", "waits_for_probe"):
                facts.pop(name_of_own, None)
    return found


def _num_workers(figures: Snapshot) -> int:
    return max(1, int(figures.gauges.get(("crossroads_workers", ()), 1)))


def shown_quality(value: float | None) -> float | None:
    """Return an estimate of quality within 0 and 1, which a regression may leave."""
    return None if value is None else min(1.0, max(0.0, value))


def limit_texts(limits: Iterable[Facts], budgets: Iterable[Facts] = ()) -> list[str]:
    """Return limits as a person writes them: ``600 requests per minute``, ``$25 per month``."""
    texts = []
    for limit in limits:
        per = f" per {limit['per']}" if limit.get("per") else ""
        kind = "requests at a time" if limit["kind"] == "parallel" else limit["kind"]
        texts.append(f"{limit['limit']:,} {kind}{per}")
    texts += [f"${budget['usd']:,.12g} per {budget['per']}" for budget in budgets]
    return texts


def key_rows(told: Facts) -> list[dict[str, Any]]:
    """Return every key of ``KeyGovernor.describe``: ``limits`` of its own, ``team_limits``, facts.

    Limits are texts, budgets among them.
    """
    of_team = {team["name"]: _limits_of(team) for team in told.get("teams") or ()}
    rows = []
    for key in told.get("keys") or ():
        facts = {name: value for name, value in key.items() if name != "budgets"}
        team_limits = of_team.get(key.get("team"), [])
        rows.append({**facts, "limits": _limits_of(key), "team_limits": team_limits})
    return rows


def _limits_of(holder: Facts) -> list[str]:
    return limit_texts(holder.get("limits") or (), holder.get("budgets") or ())


def _point(told: Facts) -> dict[str, Any]:
    usd = told.get("usd")
    found = {name: told[name] for name in ("model", "price", "shares", "rule") if name in told}
    return {
        **found,
        "quality": shown_quality(told.get("quality")),
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
