"""The constrained problem of the survey "Doing More with Less" (arXiv 2502.00409), over a stream.

For one query: ``argmax_k s(q, k)`` subject to ``cost(q, k) <= B``; that is ``decide.MaxCost``, and
``decide.MinQuality`` is its mirror. For a stream the budget binds the mean:

    max  mean_n s(n, k_n)   subject to   mean_n cost(n, k_n) <= B

Its Lagrangian, ``argmax_k s - lambda * cost``, decides prompt by prompt; lambda is found by
bisection on calibration prompts. As lambda grows the spend falls in steps, so one lambda can miss B
by a whole step: the two on either side of it are mixed at random, which is the optimum of the
linear relaxation. ``fit_budget`` does this for one budget, ``spend_curve`` keeps enough to do it
for any later, and ``PacedBudget`` learns lambda on the stream itself.

Shapes: N prompts, K models, P prices. Costs may be given as (K,), one expected cost a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.prompts.decide import BudgetRule, DecisionRule, Tradeoff
from crossroads.prompts.metrics import tradeoff_curve
from crossroads.prompts.outcomes import prompt_hash, unit_hash
from crossroads.prompts.router import Queries

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-12  # relative: sums of the same costs in another order differ by less
_BRACKET = 1e-9  # relative distance of the two prices at which bisection stops
_MOST_DOUBLINGS = 2000  # from the smallest to the largest float64
# The split of a table hashes the prompt too: without a mask all held-out prompts would draw high.
_MASK = np.uint64(0x5851F42D4C957F2D)


def fit_budget(
    quality_NK: Float, cost_NK: Float, usd_per_call: float, *, spent_NK: Float | None = None
) -> BudgetRule:
    """Calibrate the rule whose mean cost over these prompts is ``usd_per_call``, in expectation.

    Where everything affordable is bought for less, the rule is plain argmax and spends less.

    Raises InputError where even the cheapest model costs more than the budget, or for estimates and
    costs that are empty, not finite or of different shapes.

    Parameters
    ----------
    quality_NK : estimates on calibration prompts, by a router that did not learn from them
    cost_NK : expected costs the rule will decide by, (N, K) or (K,), in USD
    usd_per_call : B, the budget of a call
    spent_NK : recorded costs, where the spend shall be measured by them; by default ``cost_NK``
    """
    quality, cost, spent = _checked(quality_NK, cost_NK, spent_NK)
    if not np.isfinite(usd_per_call) or usd_per_call < 0:
        raise InputError(f"budget: expected USD per call >= 0, got {usd_per_call!r}")

    def spend(price: float) -> float:
        return _mean_at(Tradeoff(price).choose(quality, cost), spent)

    most = spend(0.0)
    if most <= usd_per_call:
        return BudgetRule(usd_per_call, 0.0, 0.0, 0.0)
    low, high = 0.0, _affordable_price(quality, cost, spent, usd_per_call)
    low_spend, high_spend = most, spend(high)
    while high - low > _BRACKET * high and high_spend < low_spend:
        middle = (low + high) / 2
        at = spend(middle)
        if at > usd_per_call:
            low, low_spend = middle, at
        else:
            high, high_spend = middle, at
    share = (low_spend - usd_per_call) / (low_spend - high_spend)
    return BudgetRule(usd_per_call, low, high, float(min(max(share, 0.0), 1.0)))


def expected_spend(
    rule: BudgetRule, quality_NK: Float, cost_NK: Float, *, spent_NK: Float | None = None
) -> float:
    """Return the mean cost of a call under a calibrated rule, over its random draws."""
    spent = np.broadcast_to(cost_NK if spent_NK is None else spent_NK, quality_NK.shape)
    low_N, high_N = rule.sides(quality_NK, cost_NK)
    return (1 - rule.share) * _mean_at(low_N, spent) + rule.share * _mean_at(high_N, spent)


@dataclass(frozen=True, kw_only=True)
class SpendCurve:
    """What each price spends on calibration prompts: enough to meet any budget later.

    Attributes
    ----------
    price : (P,) quality per USD, increasing, the first one 0
    usd : (P,) mean cost of a call at that price, decreasing
    """

    price: Float64
    usd: Float64

    def rule(self, usd_per_call: float) -> BudgetRule:
        """Return the rule that mixes the two prices around a budget.

        The spend is met in expectation on the calibration prompts, whatever was thinned out; the
        quality is below that of ``fit_budget`` by what the two prices lie apart. Raises InputError
        where even the cheapest model costs more than the budget.
        """
        price, usd = self.price, self.usd
        if not np.isfinite(usd_per_call) or usd_per_call < usd[-1] * (1 - _ROUNDING):
            raise _too_small(usd_per_call, float(usd[-1]))
        if usd_per_call >= usd[0]:
            return BudgetRule(usd_per_call, 0.0, 0.0, 0.0)
        high = int(np.searchsorted(-usd, -usd_per_call, side="left"))
        high = min(high, len(usd) - 1)
        low = high - 1
        share = min((usd[low] - usd_per_call) / (usd[low] - usd[high]), 1.0)
        return BudgetRule(usd_per_call, float(price[low]), float(price[high]), float(share))

    def to_rows(self) -> list[list[float]]:
        """Return plain data for JSON: a list of [price, USD per call]."""
        return [[float(p), float(u)] for p, u in zip(self.price, self.usd, strict=True)]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> SpendCurve:
        """Rebuild from ``to_rows``. Raises InputError for anything else."""
        try:
            pairs = np.array([[float(p), float(u)] for p, u in rows])
        except (TypeError, ValueError) as error:
            raise InputError("spend curve: expected rows of [price, USD]; fit again") from error
        if (
            len(pairs) == 0
            or not np.isfinite(pairs).all()
            or (pairs < 0).any()
            or pairs[0, 0] != 0
            or (np.diff(pairs[:, 0]) <= 0).any()
            or (np.diff(pairs[:, 1]) >= 0).any()
        ):
            raise InputError(
                "spend curve: expected prices rising from 0 and falling spends; fit again"
            )
        return cls(price=pairs[:, 0], usd=pairs[:, 1])


def spend_curve(
    quality_NK: Float, cost_NK: Float, *, spent_NK: Float | None = None, points: int = 64
) -> SpendCurve:
    """Return the spend of up to ``points`` prices, from plain argmax to the cheapest model.

    The prices are those of evenly spaced budgets. Parameters and errors as ``fit_budget``; where
    recorded costs make the spend rise with the price, such prices are left out.
    """
    if points < 2:
        raise InputError(f"spend curve: expected at least 2 points, got {points!r}")
    quality, cost, spent = _checked(quality_NK, cost_NK, spent_NK)
    sweep = tradeoff_curve(quality, cost, quality, spent)
    # An operating point holds from its price to the next one; rounding spares what lies between.
    until = np.append(sweep.price[1:], 2 * sweep.price[-1])
    prices = np.append(0.0, (sweep.price[1:] + until[1:]) / 2)
    falling = np.minimum.accumulate(sweep.cost)
    # Both ends of each step are kept, so that a steep step is not smeared over its neighbours.
    targets = np.linspace(falling[0], falling[-1], max(points // 2, 2))
    after = np.searchsorted(-falling, -targets, side="left").clip(max=len(falling) - 1)
    kept: list[tuple[float, float]] = []
    for i in np.unique(np.concatenate([[0, len(falling) - 1], after, np.maximum(after - 1, 0)])):
        usd = _mean_at(Tradeoff(float(prices[i])).choose(quality, cost), spent)
        if not kept or (prices[i] > kept[-1][0] and usd < kept[-1][1]):
            kept.append((float(prices[i]), usd))
    pairs = np.array(kept)
    return SpendCurve(price=pairs[:, 0], usd=pairs[:, 1])


def decide(
    rule: DecisionRule, quality_NK: Float, cost_NK: Float, asked: Queries, *, seed: int = 0
) -> tuple[Ints, Float64]:
    """Return the choices under any rule and the probability with which each was made, both (N,).

    A calibrated budget draws by prompt and seed (``prompt_draws``); the other rules draw nothing.
    """
    if not isinstance(rule, BudgetRule):
        return rule.choose(quality_NK, cost_NK), np.ones(len(quality_NK))
    choice = rule.choose(quality_NK, cost_NK, prompt_draws(asked, seed))
    return choice, np.asarray(rule.propensity(quality_NK, cost_NK, choice), dtype=np.float64)


def prompt_draws(asked: Queries, seed: int = 0) -> Float64:
    """Return one number in [0, 1) for each prompt, shape (N,): a hash of the prompt and the seed.

    The same prompt draws the same number in every batch and on every machine, so that a decision by
    ``BudgetRule`` can be repeated. Texts are hashed where there are any, else embeddings.
    """
    if asked.texts is not None:
        hashes = [prompt_hash(text or "") for text in asked.texts]
    else:
        hashes = [_row_hash(row) for row in np.ascontiguousarray(asked.embeddings)]
    return unit_hash(np.array(hashes, dtype=np.uint64) ^ _MASK, seed)


@dataclass(kw_only=True)
class PacedBudget:
    """Keeps a stream to a budget by a price on cost that is updated after every call.

    Decides ``argmax_k quality_k - price * cost_k``, then, knowing what the call cost,

        price <- max(0, price + step * (cost / B - 1) / B)

    which is online gradient descent on the dual of the stream problem. Two bounds hold on every
    stream, whatever the order (S = step, m_t = price_t * B, sums over T calls, x_t = cost_t / B):

    - spend:   sum cost_t <= T B + B (m_T - m_0) / S
    - quality: sum quality_t >= sum quality*_t - m_0^2 / (2 S) - S / 2 * sum (x_t - 1)^2
      against any choices (*) that cost at most B each, where costs are known beforehand; on a
      stream of independent prompts, in expectation, against the best policy of mean cost B.

    Parameters
    ----------
    usd_per_call : B, > 0
    step : S > 0, in quality; larger keeps closer to B, smaller wavers less: about 1 / sqrt(T)
    price : quality per USD at the start, for instance the ``high_price`` of ``fit_budget``
    """

    usd_per_call: float
    step: float = 0.02
    price: float = 0.0
    num_calls: int = field(default=0, init=False)
    spent_usd: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        positive = (self.usd_per_call, self.step)
        if not all(np.isfinite(v) and v > 0 for v in positive):
            raise InputError(
                "paced budget: expected USD per call and step > 0, got "
                f"{self.usd_per_call!r} and {self.step!r}"
            )
        if not np.isfinite(self.price) or self.price < 0:
            raise InputError(f"paced budget: expected a price >= 0, got {self.price!r}")

    def choose(self, quality_K: Float, cost_K: Float) -> int:
        """Return the column for one prompt; ties go to the cheaper model, then the earlier."""
        return int(Tradeoff(self.price).choose(quality_K[None], cost_K[None])[0])

    def paid(self, usd: float) -> None:
        """Tell what the call cost. Raises InputError for what is no cost."""
        if not np.isfinite(usd) or usd < 0:
            raise InputError(f"paced budget: expected the cost of a call >= 0, got {usd!r}")
        budget = self.usd_per_call
        self.price = max(0.0, self.price + self.step * (usd / budget - 1.0) / budget)
        self.num_calls += 1
        self.spent_usd += usd


def _affordable_price(quality: Float64, cost: Float64, spent: Float64, usd: float) -> float:
    """Return a price at which the spend is within the budget. Raises InputError if none is."""
    price = 1.0 / max(float(cost.max()), np.finfo(np.float64).tiny)
    cheapest = cost.min(axis=1)
    rows = np.arange(len(cost))
    for _ in range(_MOST_DOUBLINGS):
        choice = Tradeoff(price).choose(quality, cost)
        at = _mean_at(choice, spent)
        if at <= usd * (1 + _ROUNDING):
            return price
        if (cost[rows, choice] <= cheapest).all() or not np.isfinite(2 * price):
            break
        price *= 2
    raise _too_small(usd, at)


def _too_small(usd: float, least: float) -> InputError:
    return InputError(
        f"budget: {usd:g} USD a call is less than the cheapest choice costs, {least:g} USD; "
        "raise the budget or add a cheaper model"
    )


def _mean_at(choice_N: npt.NDArray[Any], value_NK: Float) -> float:
    return float(value_NK[np.arange(len(choice_N)), choice_N].mean(dtype=np.float64))


def _checked(
    quality_NK: Float, cost_NK: Float, spent_NK: Float | None
) -> tuple[Float64, Float64, Float64]:
    quality = np.asarray(quality_NK, dtype=np.float64)
    if quality.ndim != 2 or quality.size == 0:
        raise InputError(f"budget: expected estimates of shape (N, K), got {quality.shape}")
    try:
        cost = np.broadcast_to(np.asarray(cost_NK, dtype=np.float64), quality.shape)
        spent = cost
        if spent_NK is not None:
            spent = np.broadcast_to(np.asarray(spent_NK, dtype=np.float64), quality.shape)
    except ValueError:
        raise InputError(
            f"budget: costs of shape {np.shape(cost_NK)} for estimates of shape {quality.shape}"
        ) from None
    if not (np.isfinite(quality).all() and np.isfinite(cost).all() and np.isfinite(spent).all()):
        raise InputError("budget: estimates or costs hold NaN or infinity; drop those prompts")
    if (cost < 0).any() or (spent < 0).any():
        raise InputError("budget: a cost is negative; correct the table")
    return quality, cost, spent


def _row_hash(row: npt.NDArray[Any]) -> int:
    return int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
