"""The figures of a prompt arena: how they are called, shown and ordered."""

from __future__ import annotations

from dataclasses import replace

from crossroads.core.arena import Metric

DOLLARS = "USD"  # the unit the arena score is defined in
TIMINGS = ("latency_us_p50", "cpu_us")  # the metrics that differ from run to run

QUALITY = (
    Metric(
        name="quality",
        title="quality",
        digits=4,
        help="mean score of the model of highest estimated quality",
    ),
    Metric(
        name="gain_over_best_single",
        title="gain",
        unit="points",
        digits=2,
        help="100 x quality above the single model that was best in training",
    ),
)
COST = (
    Metric(
        name="cost_per_1k",
        title="cost",
        higher_is_better=False,
        digits=4,
        help="cost of 1,000 prompts at that choice",
    ),
    Metric(
        name="aiq",
        title="AIQ",
        digits=2,
        help="100 x mean quality over all budgets from the cheapest to the dearest single model",
    ),
    Metric(
        name="gain_over_mix",
        title="over mix",
        unit="points",
        digits=2,
        headline=False,
        help="AIQ minus the AIQ of mixing single models at random",
    ),
    Metric(
        name="cost_at_equal_quality",
        title="match cost",
        unit="x",
        higher_is_better=False,
        help=(
            "cost that reaches the best single model's quality, over that model's cost; read off "
            "the judged prompts' own hull, so the trade-off is picked with hindsight"
        ),
    ),
)
ARENA_SCORE = Metric(
    name="arena_score",
    title="arena score",
    digits=4,
    headline=False,
    help="RouterArena's score of quality and cost in USD, in [0, 1]",
)
REGRET = (
    Metric(
        name="regret",
        title="regret",
        higher_is_better=False,
        digits=4,
        headline=False,
        help="quality missing to a choice with hindsight",
    ),
)
TWO_MODELS = (
    Metric(
        name="apgr",
        title="APGR",
        headline=False,
        help="average performance gap recovered between weak and strong model; random 0.5",
    ),
    Metric(
        name="cpt50",
        title="CPT 50",
        higher_is_better=False,
        headline=False,
        help="share of strong calls that recovers half the gap",
    ),
    Metric(
        name="cpt80",
        title="CPT 80",
        higher_is_better=False,
        headline=False,
        help="share of strong calls that recovers 80% of the gap",
    ),
)
LATENCY = (
    Metric(
        name="latency_us_p50",
        title="latency",
        unit="us",
        higher_is_better=False,
        digits=0,
        help="median time of one decision alone, features given",
    ),
    Metric(
        name="cpu_us",
        title="CPU",
        unit="us",
        higher_is_better=False,
        digits=0,
        headline=False,
        help="mean CPU time of one decision alone, features given",
    ),
)


EQUAL_COST = Metric(
    name="gain_at_equal_cost",
    title="over mix at cost",
    unit="points",
    digits=2,
    headline=False,
    help="100 x quality above mixing single models at random at the same mean cost",
)
CALIBRATION = (
    Metric(
        name="ece",
        title="ECE",
        higher_is_better=False,
        headline=False,
        help=(
            "expected calibration error of the chosen model's estimate, 15 bins, estimates clipped "
            "to [0, 1]; only routers that estimate probabilities can be near 0"
        ),
    ),
    Metric(
        name="brier",
        title="Brier",
        higher_is_better=False,
        digits=4,
        headline=False,
        help="mean squared distance of the chosen model's estimate to its score",
    ),
    Metric(
        name="aurc",
        title="AURC",
        higher_is_better=False,
        digits=4,
        headline=False,
        help="mean loss over all coverages when the least confident decisions are refused first",
    ),
    Metric(
        name="coverage_at_half_risk",
        title="coverage",
        headline=False,
        help=(
            "share of prompts, most confident first, on which the mean loss is at most half of "
            "the best single model's; the threshold is read off the judged prompts"
        ),
    ),
)
ROBUSTNESS = (
    Metric(
        name="robustness",
        title="robust",
        headline=False,
        help=(
            "share of prompts whose choice stays when the text is perturbed (typo, grammar, "
            "synonym, paraphrase; made offline, seeded)"
        ),
    ),
)


def cost_metrics(unit: str) -> tuple[Metric, ...]:
    """Return the metrics of a table with costs in this unit."""
    cost, *others = COST
    score = (ARENA_SCORE,) if unit == DOLLARS else ()
    return (replace(cost, unit=f"{unit} / 1k"), *others, EQUAL_COST, *score)
