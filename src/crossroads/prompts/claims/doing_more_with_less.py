"""The survey "Doing More with Less" (arXiv 2502.00409): scheme, constrained problem and aim.

A survey reports no figure of its own. What can be measured is what it rests on, and the verdict
follows these rules, which were written down before any figure was seen:

Exact properties, on every table, router, seed and budget:

1. every shipped router has a place in the scheme, and routers of at least two methods are shipped;
2. a calibrated budget is met within 1 % in expectation on the calibration prompts;
3. the sweep of lambda never falls in predicted terms: who may spend more is promised no less.

Any of them broken: ``fails``. Statistical, on held-out prompts: ``gap``, the AIQ of a router's
frontier less that of mixing single models at random (quality at equal cost, in points), paired over
the seeds. A router is chosen for each method and table by the calibration prompts, never by the
test prompts.

4. ``holds``: for each method, the gap is above 0 with its whole 95 % t-interval on every table;
   ``holds in direction``: for each method, the mean gap is above 0 on every table;
   ``fails``: for each method, the mean gap is below 0 on every table; ``null``: anything else.

Reported beside it, without a say in the verdict: the best single model and the oracle, the spend of
the calibrated budgets realised on held-out prompts by recorded costs, the time of a decision, and
cascades (replayed), whose calls are all paid, with two verifiers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.errors import InputError
from crossroads.core.preference import aiq
from crossroads.core.statistics import Summary, summarise
from crossroads.datasets.paths import data_root
from crossroads.prompts.baselines import SingleModels
from crossroads.prompts.budget import expected_spend, fit_budget, prompt_draws
from crossroads.prompts.cascade import (
    LengthVerifier,
    cascade_frontier,
    chains,
    compare_with_routing,
    routing_frontier,
)
from crossroads.prompts.decide import Argmax, Tradeoff
from crossroads.prompts.features import queries, table_features, training_set
from crossroads.prompts.metrics import chosen_values, tradeoff_curve
from crossroads.prompts.outcomes import OutcomeTable, unit_hash
from crossroads.prompts.readers import read_outcomes
from crossroads.prompts.router import column_means
from crossroads.prompts.routers import build_router, router_names
from crossroads.prompts.taxonomy import Place, place

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEEDS = (0, 1, 2)
TABLES = ("mmlu-pro:small", "mmlu-pro:served")
OPTIONAL = "routellm_mmlu_gsm8k"
ROUTERS = ("knn", "clusters", "ridge", "category")
MORE_ROUTERS = (*ROUTERS, "logistic", "boosting", "auto")
CALIBRATION_SHARE = 0.3  # of the training prompts
BUDGET_SHARES = (0.25, 0.5, 0.75)  # between the cheapest and the greedy spend
TOLERANCE = 0.01
_SALT = np.uint64(0x2545F4914F6CDD1D)  # parts calibration from training apart from test prompts


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One table at one seed: rows to fit on, to calibrate on, to judge on."""

    table: OutcomeTable
    features: Float
    fit: Ints
    calibrate: Ints
    test: Ints
    expected_cost: Float64  # (K,) mean over the rows to fit on

    def scores(self, rows: Ints) -> Float64:
        return self.table.score[rows].astype(np.float64)

    def costs(self, rows: Ints) -> Float64:
        assert self.table.cost is not None
        return np.asarray(self.table.cost[rows])


def verify(full: bool) -> Verdict:
    """Measure the survey's claim; ``full`` adds the slower routers."""
    names = MORE_ROUTERS if full else ROUTERS
    places, unplaced = _places()
    sources = _sources()
    tables = {name: _measure_table(_read(where), names) for name, where in sources.items()}
    exact = {
        "classified": not unplaced and len({p.method for p in places} - {"none"}) >= 2,
        "budget_within_1_percent": all(
            t["worst_budget_error"] <= TOLERANCE for t in tables.values()
        ),
        "frontier_monotone": all(t["frontier_monotone"] for t in tables.values()),
    }
    gaps = {name: table.pop("gaps") for name, table in tables.items()}
    return Verdict(
        name="doing-more-with-less",
        verdict=outcome(all(exact.values()), gaps),
        paper={
            "scheme": "routers differ in when, by what method and from what they decide",
            "aim": "more quality at equal cost than models taken singly",
        },
        measured={
            "num_routers": len(places),
            "unplaced": unplaced,
            "by_method": _count(p.method for p in places),
            "by_timing": _count(p.timing for p in places),
            **exact,
            "tables": tables,
        },
        seeds=SEEDS,
        data=f"replayed outcomes: {', '.join(tables)}; static embeddings of the prompts",
    )


def outcome(exact: bool, gaps: Mapping[str, Mapping[str, Summary]]) -> Outcome:
    """Return the verdict by the rules of the module; ``gaps`` by table, then by method."""
    found = [gap for methods in gaps.values() for gap in methods.values()]
    if not exact or all(gap.mean is not None and gap.mean < 0 for gap in found):
        return "fails"
    if all(gap.low is not None and gap.low > 0 for gap in found):
        return "holds"
    if all(gap.mean is not None and gap.mean > 0 for gap in found):
        return "holds in direction"
    return "null"


def _places() -> tuple[list[Place], list[str]]:
    """Return the places of all routers, and the names of those that have none."""
    places, unplaced = [], []
    for name in router_names():
        try:
            places.append(place(name))
        except InputError:
            unplaced.append(name)
    return places, unplaced


def _sources() -> dict[str, str]:
    """Return what to read, by name: the shipped tables, and RouteLLM's where it is present."""
    root = data_root()
    sources = {name: name for name in TABLES}
    if root is not None and (root / OPTIONAL).is_dir():
        sources[OPTIONAL] = str(root / OPTIONAL)
    return sources


def _read(name: str) -> OutcomeTable:
    table = read_outcomes(name)
    assert table.cost is not None
    return table.take(np.flatnonzero(table.complete & np.isfinite(table.cost).all(axis=1)))


def _count(values: Any) -> dict[str, int]:
    names, counts = np.unique(list(values), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _measure_table(table: OutcomeTable, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one table; ``gaps`` are those the verdict is made of."""
    features = table_features(table)
    runs = [_measure_seed(_split(table, features, seed), names, seed) for seed in SEEDS]
    methods = sorted({place(name).method for name in names})
    gaps = {m: summarise([run["methods"][m]["gap_points"] for run in runs]) for m in methods}
    return {
        "gaps": gaps,
        "num_prompts": len(table),
        "num_models": len(table.models),
        "worst_budget_error": max(run["worst_budget_error"] for run in runs),
        "frontier_monotone": all(run["frontier_monotone"] for run in runs),
        "gap_over_mix_points": {m: _rounded(gap) for m, gap in gaps.items()},
        "chosen_router": {m: [run["methods"][m]["router"] for run in runs] for m in methods},
        "gain_over_best_single_points": {
            m: _rounded(summarise([run["methods"][m]["gain_points"] for run in runs]))
            for m in methods
        },
        "aiq": {
            key: _rounded(summarise([run["aiq"].get(key, np.nan) for run in runs]))
            for key in runs[0]["aiq"]
        },
        "spend_over_budget": {
            key: _rounded(summarise([run["spend_over_budget"][key] for run in runs]), digits=4)
            for key in ("realised", "recorded")
        },
        "furthest_spend_over_budget": {
            key: round(_furthest([run["furthest_spend_over_budget"][key] for run in runs]), 4)
            for key in ("realised", "recorded")
        },
        "decision_us": round(float(np.median([run["decision_us"] for run in runs])), 1),
    }


def _split(table: OutcomeTable, features: Float, seed: int) -> _Split:
    train, test = table.split_by_hash(seed)
    held = unit_hash(table.prompt_hash[train] ^ _SALT, seed) < CALIBRATION_SHARE
    assert table.cost is not None
    return _Split(
        table=table,
        features=features,
        fit=train[~held],
        calibrate=train[held],
        test=test,
        expected_cost=column_means(table.cost[train[~held]]),
    )


def _measure_seed(split: _Split, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the figures of one seed: each method by its best router on the calibration prompts."""
    fitted: dict[str, dict[str, Any]] = {}
    for name in names:
        router = build_router(name)
        router.fit(training_set(split.table, split.fit, split.features), seed=seed)
        asked = queries(split.table, split.test, split.features)
        started = time.process_time()
        estimate = router.predict(asked)
        seconds = time.process_time() - started
        fitted[name] = {
            "method": place(router).method,
            "calibration": router.predict(queries(split.table, split.calibrate, split.features)),
            "test": estimate,
            "decision_us": 1e6 * seconds / len(asked),
        }
    methods: dict[str, dict[str, Any]] = {}
    for method in {f["method"] for f in fitted.values()}:
        rivals = [name for name, f in fitted.items() if f["method"] == method]
        best = max(rivals, key=lambda n: _gap(split, split.calibrate, fitted[n]["calibration"]))
        methods[method] = {
            "router": best,
            "gap_points": _gap(split, split.test, fitted[best]["test"]),
            "gain_points": _gain(split, fitted[best]["test"]),
        }
    budgets = [_budgets(split, f["calibration"], f["test"], seed) for f in fitted.values()]
    spends = {key: [r for b in budgets for r in b[key]] for key in ("realised", "recorded")}
    supervised = fitted[methods["supervised"]["router"]]
    return {
        "methods": methods,
        "worst_budget_error": max(b["worst_error"] for b in budgets),
        "frontier_monotone": all(
            is_monotone(f["calibration"], split.expected_cost) for f in fitted.values()
        ),
        "spend_over_budget": {key: float(np.mean(found)) for key, found in spends.items()},
        "furthest_spend_over_budget": {key: _furthest(found) for key, found in spends.items()},
        "aiq": _aiqs(split, supervised["calibration"], supervised["test"]),
        "decision_us": float(np.median([f["decision_us"] for f in fitted.values()])),
    }


def _gap(split: _Split, rows: Ints, estimate: Float64) -> float:
    """AIQ of the frontier less that of mixing single models, in points."""
    score, cost = split.scores(rows), split.costs(rows)
    singles = SingleModels.of(score, cost)
    sweep = tradeoff_curve(estimate, split.expected_cost, score, cost)
    mixed = aiq(singles.cost, singles.quality, *singles.cost_range)
    return 100 * (aiq(sweep.cost, sweep.quality, *singles.cost_range) - mixed)


def _gain(split: _Split, estimate: Float64) -> float:
    """Quality of argmax above that of the model best on the training rows, in points."""
    score = split.scores(split.test)
    best = int(column_means(split.scores(split.fit)).argmax())
    choice = Argmax().choose(estimate, split.expected_cost)
    return 100 * float(chosen_values(score, choice).mean() - score[:, best].mean())


def _budgets(split: _Split, calibration: Float64, test: Float64, seed: int) -> dict[str, Any]:
    """Return how closely budgets are met: expected where calibrated, realised where tested.

    ``realised`` decides by budgets of expected cost, ``recorded`` by such as were calibrated on the
    recorded costs of the calibration prompts; both are recorded spend over budget.
    """
    cost = split.expected_cost
    greedy = Argmax().choose(calibration, cost)
    low, high = float(cost.min()), float(cost[greedy].mean())
    spent, paid = split.costs(split.calibrate), split.costs(split.test)
    greedy_spent = chosen_values(spent, greedy).mean()
    errors, realised, recorded = [], [], []
    draws = prompt_draws(queries(split.table, split.test, split.features), seed)
    for share in BUDGET_SHARES:
        usd = low + share * (high - low)
        rule = fit_budget(calibration, cost, usd)
        errors.append(abs(expected_spend(rule, calibration, cost) / usd - 1))
        choice = rule.choose(test, cost, draws)
        realised.append(float(chosen_values(paid, choice).mean()) / usd)
        # The same share of a range in which every cost is a recorded one.
        usd = float((1 - share) * spent[:, cost.argmin()].mean() + share * greedy_spent)
        rule = fit_budget(calibration, cost, usd, spent_NK=spent)
        errors.append(abs(expected_spend(rule, calibration, cost, spent_NK=spent) / usd - 1))
        choice = rule.choose(test, cost, draws)
        recorded.append(float(chosen_values(paid, choice).mean()) / usd)
    return {"worst_error": max(errors), "realised": realised, "recorded": recorded}


def is_monotone(estimate_NK: Float64, cost_K: Float64) -> bool:
    """Whether spend and promised quality both never rise as lambda does."""
    choices = [Argmax().choose(estimate_NK, cost_K)]
    top = float(np.ptp(estimate_NK)) / max(float(np.diff(np.unique(cost_K)).min(initial=1)), 1e-12)
    for price in np.geomspace(1e-6 * top, top, 200) if top > 0 else ():
        choices.append(Tradeoff(float(price)).choose(estimate_NK, cost_K))
    rows = np.arange(len(estimate_NK))
    spend = np.array([cost_K[c].mean() for c in choices])
    promised = np.array([estimate_NK[rows, c].mean() for c in choices])
    slack = 1e-9
    return bool((np.diff(spend) <= slack * spend[0]).all() and (np.diff(promised) <= slack).all())


def _aiqs(split: _Split, calibration: Float64, test: Float64) -> dict[str, float]:
    """Return 100 x AIQ of singles, routing, oracle and cascades by two verifiers, one router's."""
    score, cost = split.scores(split.test), split.costs(split.test)
    singles = SingleModels.of(score, cost)
    oracle = tradeoff_curve(score, split.expected_cost, score, cost)
    verifiers = {"estimate": (calibration, test, split.calibrate)}
    tokens = split.table.output_tokens
    if tokens is not None and np.isfinite(tokens[split.calibrate]).any(axis=0).all():
        verifiers["length"] = _by_length(split, tokens, calibration, test)
    found: dict[str, float] = {
        "oracle": 100 * aiq(oracle.cost, oracle.quality, *singles.cost_range)
    }
    rules = routing_frontier(
        calibration,
        split.expected_cost,
        split.scores(split.calibrate),
        split.costs(split.calibrate),
    )
    for name, (on_calibration, on_test, rows) in verifiers.items():
        frontier = cascade_frontier(
            split.scores(rows),
            split.costs(rows),
            on_calibration,
            orders=chains(split.expected_cost),
        )
        contest = compare_with_routing(
            frontier,
            rules,
            acceptance_NK=on_test,
            estimate_NK=test,
            expected_cost_K=split.expected_cost,
            score_NK=score,
            cost_NK=cost,
        )
        found[f"cascade by {name}"] = 100 * contest.cascade_aiq
        found["routing"] = 100 * contest.routing_aiq
        found["random mix"] = 100 * contest.singles_aiq
    return found


def _by_length(
    split: _Split, tokens: Float, calibration: Float64, test: Float64
) -> tuple[Float64, Float64, Ints]:
    """Fit the length verifier on one half of the calibration rows; thresholds see the other."""
    rows = split.calibrate
    half = unit_hash(split.table.prompt_hash[rows] ^ ~_SALT, 0) < 0.5
    verifier = LengthVerifier().fit(calibration[half], tokens[rows[half]], split.scores(rows[half]))
    others = rows[~half]
    return (
        verifier.accept(calibration[~half], tokens[others]),
        verifier.accept(test, tokens[split.test]),
        others,
    )


def _furthest(ratios: Sequence[float]) -> float:
    """Return the spend over budget that is furthest from 1."""
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def _rounded(summary: Summary, *, digits: int = 3) -> dict[str, Any]:
    """Return plain data for the report."""
    return {
        key: [_round(v, digits) for v in value] if key == "per_seed" else _round(value, digits)
        for key, value in summary.to_dict().items()
    }


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
