"""Paced spend against a budget that is cut off at the cap, and against a price known beforehand.

SIMULATED: qualities, costs and traffic are drawn at random; no model is asked. What is measured is
the governor's own pacer, stepped as it is while serving.

    python benchmarks/gateway/pacing.py [--out benchmarks/results/gateway-pacing.json]

One day, three models that cost 1, 6 and 30 units, or 0, 6 and 30. A call's qualities rise with the
model, by an amount that differs from call to call. Traffic is not stationary: it follows the hours,
doubles or halves from 10:00 on, or comes 30 times as dense from 8:00 to 8:10, and from 14:00 on
harder calls come, which profit more from the dear models. The budget is 35 % of what asking the
best model every time would cost on an expected day, beside the free model 5 %. Policies:

- paced: argmax quality - price * cost, the price by ``governance.pacing.Pacer``
- cut off: argmax quality until the budget is used up, then refused (quality 0)
- cut off to the cheapest: the same, but then the cheapest model, whose cost goes beyond the cap
- one price: the best constant price for this very day, found in hindsight

Paired: all policies see the same calls, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.files import write_atomically
from crossroads.core.provenance import machine
from crossroads.gateway.governance.pacing import Pacer

DAY = 86_400.0
START = 1_800_057_600.0  # midnight UTC
CALLS = 20_000  # expected
POOLS = {  # USD of a mean call of each model, and the budget's share
    "all priced": (np.array([1.0, 6.0, 30.0]) * 1e-4, 0.35),
    "one free": (np.array([0.0, 6.0, 30.0]) * 1e-4, 0.05),
}
HOURLY = 1 + 0.8 * np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
SCENARIOS = {  # factors: of the traffic from 10:00 on, of that from 8:00 to 8:10
    "as expected": (1.0, 1.0),
    "twice from 10:00 on": (2.0, 1.0),
    "half from 10:00 on": (0.5, 1.0),
    "a burst at 8:00": (1.0, 30.0),
}
SEEDS = (0, 1, 2)
BEST_USD = 30e-4


def stream(seed: int, later: float, burst: float, prices: Any) -> tuple[Any, Any, Any]:
    """Return times (N,), qualities (N, 3) and costs (N, 3) of one day's calls."""
    rng = np.random.default_rng(seed)
    rates = CALLS * HOURLY / HOURLY.sum() * np.where(np.arange(24) >= 10, later, 1.0)
    hours = [
        START + h * 3600 + np.sort(rng.uniform(0, 3600, rng.poisson(r)))
        for h, r in enumerate(rates)
    ]
    extra = rng.poisson((burst - 1) * rates[8] / 6)
    hours.append(START + 8 * 3600 + rng.uniform(0, 600, extra))
    at = np.sort(np.concatenate(hours))
    hardness = rng.beta(1.2, 2.5, len(at)) + np.where(at > START + 14 * 3600, 0.15, 0.0)
    gain = np.stack([np.zeros(len(at)), 0.35 * hardness, 0.6 * hardness], axis=1)
    quality = np.clip(0.9 - 0.6 * hardness[:, None] + gain + rng.normal(0, 0.03, gain.shape), 0, 1)
    length = rng.lognormal(-0.18, 0.6, len(at))  # mean 1
    return at, quality, prices * length[:, None]


def paced(at: Any, quality: Any, cost: Any, usd: float, traffic: Any) -> dict[str, Any]:
    pacer = Pacer(usd, traffic=None if traffic is None else tuple(traffic))
    spent, calls, gained, refused = 0.0, 0, 0.0, 0
    prices = []
    for i in range(len(at)):
        if pacer.is_due(START, START + DAY, at[i]):
            pacer.step(START, START + DAY, at[i], spent_usd=spent, calls=calls)
            prices.append(pacer.price)
        k = int(np.argmax(quality[i] - pacer.price * cost[i]))
        if spent + cost[i, k] > usd:
            refused += 1
            continue
        spent += cost[i, k]
        if cost[i, k] > 0:
            calls += 1
        else:
            pacer.num_free += 1
        gained += quality[i, k]
    return _row(gained, spent, refused, len(at), usd) | {
        "price_quartiles": [float(p) for p in np.percentile(prices, [25, 50, 75])]
    }


def cut_off(quality: Any, cost: Any, usd: float, *, then_cheapest: bool) -> dict[str, Any]:
    best = quality.argmax(axis=1)
    rows = np.arange(len(best))
    within = np.cumsum(cost[rows, best]) <= usd
    if then_cheapest:
        choice = np.where(within, best, 0)
        return _row(quality[rows, choice].sum(), cost[rows, choice].sum(), 0, len(best), usd)
    gained = quality[rows, best][within].sum()
    return _row(gained, cost[rows, best][within].sum(), int((~within).sum()), len(best), usd)


def one_price(quality: Any, cost: Any, usd: float) -> dict[str, Any]:
    rows = np.arange(len(quality))
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        choice = (quality - middle * cost).argmax(axis=1)
        low, high = (middle, high) if cost[rows, choice].sum() > usd else (low, middle)
    choice = (quality - high * cost).argmax(axis=1)
    row = _row(quality[rows, choice].sum(), cost[rows, choice].sum(), 0, len(quality), usd)
    return row | {"price": high}


def _row(gained: float, spent: float, refused: int, calls: int, usd: float) -> dict[str, Any]:
    return {
        "quality_per_call": round(float(gained) / calls, 5),
        "spent_share": round(float(spent) / usd, 5),
        "refused_share": round(refused / calls, 5),
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, over all days, the band of the spend and the paired differences of quality."""
    found: dict[str, Any] = {}
    for policy in ("paced", "paced without a profile"):
        shares = [row["policies"][policy]["spent_share"] for row in rows]
        refused = max(row["policies"][policy]["refused_share"] for row in rows)
        found[policy] = {
            "least_spent_share": min(shares),
            "most_spent_share": max(shares),
            "most_refused_share": refused,
        }
        for other in ("cut off", "cut off to the cheapest", "one price in hindsight"):
            gains = [
                row["policies"][policy]["quality_per_call"]
                - row["policies"][other]["quality_per_call"]
                for row in rows
            ]
            found[policy][f"quality above {other}"] = {
                "least": round(min(gains), 4),
                "mean": round(float(np.mean(gains)), 4),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/gateway-pacing.json")
    options = parser.parse_args()
    rows = []
    for (pool, (prices, share)), (name, (later, burst)) in product(
        POOLS.items(), SCENARIOS.items()
    ):
        usd = share * CALLS * BEST_USD
        for seed in SEEDS:
            at, quality, cost = stream(seed, later, burst, prices)
            found = {
                "paced": paced(at, quality, cost, usd, HOURLY),
                "paced without a profile": paced(at, quality, cost, usd, None),
                "cut off": cut_off(quality, cost, usd, then_cheapest=False),
                "cut off to the cheapest": cut_off(quality, cost, usd, then_cheapest=True),
                "one price in hindsight": one_price(quality, cost, usd),
            }
            day = {"pool": pool, "budget_usd": usd, "traffic": name, "seed": seed}
            rows.append({**day, "calls": len(at), "policies": found})
            print(f"{pool}, {name}, seed {seed}: {len(at)} calls")
            for policy, row in found.items():
                print(
                    f"  {policy:26s} quality {row['quality_per_call']:.4f}  "
                    f"spent {row['spent_share']:7.2%}  refused {row['refused_share']:.2%}"
                )
    summary = {pool: summarise([row for row in rows if row["pool"] == pool]) for pool in POOLS}
    print(json.dumps(summary, indent=1))
    report = {
        "simulated": True,
        "what": __doc__.split("\n\n")[0],
        "machine": machine(),
        "summary": summary,
        "rows": rows,
    }
    write_atomically(Path(options.out), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
