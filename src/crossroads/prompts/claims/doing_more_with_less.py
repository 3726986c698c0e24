"""The survey "Doing More with Less" (arXiv 2502.00409): scheme, constrained problem and aim.

A survey reports no figure of its own. What can be measured is what it rests on, and the verdict
follows these rules. They were written down before any figure was seen, but for the prices of rule 4
being fixed on calibration prompts, which came later and is the stricter way.

Exact properties, on every table, router, seed and budget:

1. every shipped router has a place in the scheme, and routers of at least two methods are shipped;
2. a calibrated budget is met within 1 % in expectation on the calibration prompts;
3. the sweep of lambda never falls in predicted terms: who may spend more is promised no less.

Any of them broken: ``fails``. Statistical, on held-out prompts: ``gap``, the AIQ of a router's
frontier less that of mixing single models at random (quality at equal cost, in points), paired over
the seeds. The router of each method and table, and the prices it is operated at, are chosen on the
calibration prompts, never on the test prompts.

4. ``holds``: for each method, the gap is above 0 with its whole 95 % t-interval on every table;
   ``holds in direction``: for each method, the mean gap is above 0 on every table;
   ``fails``: for each method, the mean gap is below 0 on every table; ``null``: anything else.

The methods are those that learn from full outcome tables; bandits are told less, and their gap
would not compare. Reported beside it, without a say in the verdict: the best single model and the
oracle, the spend of the calibrated budgets realised on held-out prompts by recorded costs, the time
of a decision, and cascades (replayed), whose calls are all paid, with up to three verifiers: the
router's estimate, the answer's length, and where answers were recorded their agreement with those
before them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    agreement,
    cascade_frontier,
    chains,
    compare_with_routing,
    routing_frontier,
)
from crossroads.prompts.cascade.chain import Acceptance
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
ANSWERS = "mmlu_pro_outcomes"
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
    answers: npt.NDArray[Any] | None = None  # (N, K), where they were recorded

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
    tables = {name: _measure_table(name, where, names) for name, where in sources.items()}
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
        data=(
            f"replayed outcomes: {', '.join(tables)}; costs at declared prices (RouteLLM: in calls "
            f"of the strong model); static embeddings of the prompts{lacking()}"
        ),
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


def lacking() -> str:
    """Return a remark on what is not measured for want of a data set; empty with both."""
    root = data_root()
    needed = {"RouteLLM's table": OPTIONAL, "cascades by agreement": ANSWERS}
    return "".join(
        f"; {what} not measured: needs {name}"
        for what, name in needed.items()
        if root is None or not (root / name).is_dir()
    )


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


def _answers(name: str, table: OutcomeTable) -> npt.NDArray[Any] | None:
    """Return the letters chosen on MMLU-Pro, (N, K), empty where unread; None without the data."""
    root = data_root()
    folder = None if root is None else root / ANSWERS
    if folder is None or not folder.is_dir() or not name.startswith("mmlu-pro"):
        return None
    from crossroads.datasets.mmlu_pro import read_answers

    ids, models, letters, _ = read_answers(folder)
    row_of = {str(number): row for row, number in enumerate(ids)}
    rows = [row_of[number] for number in table.prompt_ids]
    chosen = letters[rows][:, [models.index(model) for model in table.models]]
    return np.where(chosen == "-", "", chosen)


def _count(values: Any) -> dict[str, int]:
    names, counts = np.unique(list(values), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _measure_table(name: str, where: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one table; ``gaps`` are those the verdict is made of."""
    table = _read(where)
    features, answers = table_features(table), _answers(name, table)
    splits = {seed: replace(_split(table, features, seed), answers=answers) for seed in SEEDS}
    runs = [_measure_seed(split, names, seed) for seed, split in splits.items()]
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
        **{
            figure: {
                key: _rounded(summarise([run[figure][key] for run in runs]))
                for key in runs[0][figure]
            }
            for figure in ("aiq", "top_gain_points", "top_cost")
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


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """One router at one seed: its estimates, and its gap in points on either side."""

    name: str
    method: str
    calibration: Float64
    test: Float64
    calibration_gap: float
    gap: float
    decision_us: float


def _measure_seed(split: _Split, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return the figures of one seed: each method by its best router on the calibration prompts."""
    fitted = [_fit(split, name, seed) for name in names]
    best = {
        method: max((f for f in fitted if f.method == method), key=lambda f: f.calibration_gap)
        for method in {f.method for f in fitted}
    }
    budgets = [_budgets(split, f.calibration, f.test, seed) for f in fitted]
    spends = {key: [r for b in budgets for r in b[key]] for key in ("realised", "recorded")}
    return {
        "methods": {
            method: {"router": f.name, "gap_points": f.gap, "gain_points": _gain(split, f.test)}
            for method, f in best.items()
        },
        "worst_budget_error": max(b["worst_error"] for b in budgets),
        "frontier_monotone": all(is_monotone(f.calibration, split.expected_cost) for f in fitted),
        "spend_over_budget": {key: float(np.mean(found)) for key, found in spends.items()},
        "furthest_spend_over_budget": {key: _furthest(found) for key, found in spends.items()},
        **_cascades(split, best["supervised"].calibration, best["supervised"].test),
        "decision_us": float(np.median([f.decision_us for f in fitted])),
    }


def _fit(split: _Split, name: str, seed: int) -> _Fitted:
    router = build_router(name)
    router.fit(training_set(split.table, split.fit, split.features), seed=seed)
    calibration = router.predict(queries(split.table, split.calibrate, split.features))
    asked = queries(split.table, split.test, split.features)
    started = time.process_time()
    test = router.predict(asked)
    seconds = time.process_time() - started
    rules = _rules(split, calibration)
    return _Fitted(
        name=name,
        method=place(router).method,
        calibration=calibration,
        test=test,
        calibration_gap=_gap(split, split.calibrate, calibration, rules),
        gap=_gap(split, split.test, test, rules),
        decision_us=1e6 * seconds / len(asked),
    )


def _rules(split: _Split, calibration: Float64) -> tuple[Tradeoff, ...]:
    """Return the trade-offs on the hull of the calibration prompts."""
    rows = split.calibrate
    return routing_frontier(calibration, split.expected_cost, split.scores(rows), split.costs(rows))


def _gap(split: _Split, rows: Ints, estimate: Float64, rules: Sequence[Tradeoff]) -> float:
    """AIQ of these trade-offs less that of mixing single models, in points."""
    score, cost = split.scores(rows), split.costs(rows)
    singles = SingleModels.of(score, cost)
    choices = [rule.choose(estimate, split.expected_cost) for rule in rules]
    spent = [float(chosen_values(cost, choice).mean()) for choice in choices]
    reached = [float(chosen_values(score, choice).mean()) for choice in choices]
    mixed = aiq(singles.cost, singles.quality, *singles.cost_range)
    return 100 * (aiq(spent, reached, *singles.cost_range) - mixed)


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


@dataclass(frozen=True, kw_only=True)
class _Verifier:
    """What judges the answers of a cascade: acceptance on calibration and on test prompts."""

    rows: Ints  # the calibration prompts that thresholds may see
    calibration: Acceptance
    test: Acceptance
    most_models: int = 2


def _cascades(split: _Split, calibration: Float64, test: Float64) -> dict[str, Any]:
    """Return how cascades by each verifier do beside routing by one router's estimates.

    ``aiq`` is 100 x AIQ. ``top_gain_points`` is the quality of the dearest cascade of a frontier
    above the best single model, ``top_cost`` its cost over that model's.
    """
    score, cost = split.scores(split.test), split.costs(split.test)
    singles = SingleModels.of(score, cost)
    best = int(column_means(split.scores(split.fit)).argmax())
    oracle = tradeoff_curve(score, split.expected_cost, score, cost)
    aiqs = {"oracle": 100 * aiq(oracle.cost, oracle.quality, *singles.cost_range)}
    gain, ratio = {}, {}
    for name, verifier in _verifiers(split, calibration, test).items():
        frontier = cascade_frontier(
            split.scores(verifier.rows),
            split.costs(verifier.rows),
            verifier.calibration,
            orders=chains(split.expected_cost, most_models=verifier.most_models),
        )
        contest = compare_with_routing(
            frontier,
            _rules(split, calibration),
            acceptance=verifier.test,
            estimate_NK=test,
            expected_cost_K=split.expected_cost,
            score_NK=score,
            cost_NK=cost,
        )
        aiqs[f"cascade by {name}"] = 100 * contest.cascade_aiq
        aiqs["routing"] = 100 * contest.routing_aiq
        aiqs["random mix"] = 100 * contest.singles_aiq
        gain[name] = 100 * float(contest.cascade_quality[-1] - singles.quality[best])
        ratio[name] = float(contest.cascade_cost[-1] / singles.cost[best])
    return {"aiq": aiqs, "top_gain_points": gain, "top_cost": ratio}


def _verifiers(split: _Split, calibration: Float64, test: Float64) -> dict[str, _Verifier]:
    """Return the verifiers that the table allows."""
    rows = split.calibrate
    found = {"estimate": _Verifier(rows=rows, calibration=calibration, test=test)}
    tokens = split.table.output_tokens
    if tokens is not None and np.isfinite(tokens[rows]).any(axis=0).all():
        found["length"] = _by_length(split, tokens, calibration, test)
    if split.answers is not None:
        found["agreement"] = _Verifier(
            rows=rows,
            calibration=partial(agreement, split.answers[rows]),
            test=partial(agreement, split.answers[split.test]),
            most_models=3,  # two have nothing to agree with
        )
    return found


def _by_length(split: _Split, tokens: Float, calibration: Float64, test: Float64) -> _Verifier:
    """Fit the length verifier on one half of the calibration rows; thresholds see the other."""
    rows = split.calibrate
    half = unit_hash(split.table.prompt_hash[rows] ^ ~_SALT, 0) < 0.5
    verifier = LengthVerifier().fit(calibration[half], tokens[rows[half]], split.scores(rows[half]))
    others = rows[~half]
    return _Verifier(
        rows=others,
        calibration=verifier.accept(calibration[~half], tokens[others]),
        test=verifier.accept(test, tokens[split.test]),
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
