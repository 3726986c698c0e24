"""``crossroads evaluate``: what another policy would have earned, by the ledger."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.words import counted
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from crossroads.gateway.evaluation import Candidate, Evaluation, Interval
    from crossroads.gateway.evaluation.log import Log
    from crossroads.gateway.evaluation.settings import Reward

_MOST_RATIO = 2.0  # of bills and expectations, either way, that is not worth a word
_REWARDS = ("feedback", "score", "preference", "complete")


@click.command()
@click.option(
    "--ledger",
    metavar="URL|F",
    required=True,
    help="sqlite:PATH, postgresql://..., or calls exported to .parquet or .jsonl.",
)
@click.option("--router", metavar="DIR", type=click.Path(path_type=Path), help="A fitted router.")
@click.option(
    "--rule",
    metavar="R",
    help="Decision rule: of the router in place of its own, or of the logged estimates.",
)
@click.option(
    "--policy", metavar="P", help="always:MODEL, uniform, or split:MODEL=WEIGHT,MODEL=WEIGHT."
)
@click.option("--logged-policy", metavar="NAME", help="Only decisions of this served policy.")
@click.option("--since", metavar="T", help="A date (2026-05-01), or a time ago (7d, 12h).")
@click.option(
    "--reward",
    type=click.Choice(_REWARDS),
    default="feedback",
    show_default=True,
    help="Score else preference, one of them only, or whether the answer was complete.",
)
@click.option("--judge", metavar="S", help="Only feedback of this source.")
@click.option(
    "--reward-model",
    type=click.Choice(["ridge", "mean", "scores"]),
    help="Of the doubly robust estimates; ridge where embeddings were kept, else mean.",
)
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print the evaluation as JSON only.")
def command(
    *,
    ledger: str,
    router: Path | None,
    rule: str | None,
    policy: str | None,
    logged_policy: str | None,
    since: str | None,
    reward: Reward,
    judge: str | None,
    reward_model: Any,
    level: float,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Estimate what a candidate would have earned and cost, before it is deployed.

    The candidate is a fitted router (--router, with --rule), the logged estimates under another
    rule (--rule alone), or a plain policy (--policy). Where it would have chosen models that the
    served policy never chooses, bounds are given in place of estimates.
    """
    from crossroads.gateway.evaluation import off_policy
    from crossroads.gateway.evaluation.page import write_page
    from crossroads.gateway.evaluation.source import parse_since, read_log
    from crossroads.gateway.redaction import safe_url

    candidate = _candidate(router, rule, policy)
    log = read_log(
        ledger, since=parse_since(since), reward=reward, policy=logged_policy, judge=judge
    )
    try:
        found = off_policy(log, candidate, reward_model=reward_model, level=level, seed=seed)
    except UsageError as error:
        raise InputError(f"ledger {safe_url(ledger)}: {error}") from error  # it lacks what is named
    found = replace(found, warnings=(*found.warnings, *_disagreement(log)))
    page = None if out is None else write_page(found, out, source=safe_url(ledger))
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    _show(found)
    if page is not None:
        click.echo(f"page  {page}")


def _candidate(router: Path | None, rule: str | None, policy: str | None) -> Candidate:
    from crossroads.gateway.evaluation import LoggedScores, RouterCandidate
    from crossroads.prompts.decide import parse_rule

    if policy is not None and (router is not None or rule is not None):
        raise UsageError("--policy is a candidate of its own; leave out --router and --rule")
    if router is not None:
        return RouterCandidate.load(router, rule)
    if rule is not None:
        return LoggedScores(parse_rule(rule))
    if policy is not None:
        return _plain_policy(policy)
    raise UsageError("no candidate; give --router DIR, --rule R or --policy P")


def _plain_policy(text: str) -> Candidate:
    from crossroads.gateway.evaluation import FixedModel, Split, Uniform

    kind, _, rest = text.partition(":")
    if kind == "uniform" and not rest:
        return Uniform()
    if kind == "always" and rest:
        return FixedModel(rest)
    if kind == "split" and rest:
        try:
            pairs = [part.rsplit("=", 1) for part in rest.split(",")]
            return Split({name.strip(): float(weight) for name, weight in pairs}, name=text)
        except ValueError:
            pass
    raise UsageError(
        f"--policy {text!r}: expected always:MODEL, uniform, or split:MODEL=WEIGHT,MODEL=WEIGHT"
    )


def _disagreement(log: Log) -> list[str]:
    """Tell of calls that were billed far more, or less, than was expected of them."""
    import numpy as np

    expected = log.price[np.arange(len(log)), log.action]
    known = np.isfinite(expected)
    expected_usd, billed_usd = float(expected[known].sum()), float(log.cost[known].sum())
    if not expected_usd > 0 or 1 / _MOST_RATIO <= billed_usd / expected_usd <= _MOST_RATIO:
        return []
    return [
        f"the calls were billed {billed_usd / expected_usd:.3g} times what was expected of them "
        "when they were decided; rules that weigh cost, and the costs by dm, dr and switch_dr, go "
        "by what was expected: correct the prices, or fit the router on this ledger"
    ]


def _show(found: Evaluation) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(found.candidate, style="bold")
    console.print(
        f"{counted(found.num_calls, 'judged call')} in {counted(found.num_sessions, 'session')}, "
        f"worth {counted(round(found.effective_size), 'call')} of the candidate; "
        f"reward model: {found.reward_model}",
        soft_wrap=True,
    )
    console.print(
        f"on {counted(found.support.differing, 'call')} the served policy was less than half as "
        "likely to make the candidate's choice; "
        f"that choice was seen on {found.support.observed} of them",
        soft_wrap=True,
    )
    served = _within(found.served, 0.0, 1.0)
    served_cost = _within(found.served_cost, 0.0, math.inf)
    console.print(f"served: reward {_text(served)}, USD a call {_text(served_cost)}")
    if found.is_refused:
        for name, (low, high) in found.bounds.items():
            console.print(f"{name}: no estimate; the reward is between {low:.3f} and {high:.3f}")
    else:
        rewards = {name: _within(value, 0.0, 1.0) for name, value in found.value.items()}
        more = {name: _within(value, -1.0, 1.0) for name, value in found.difference.items()}
        console.print(_table("reward", rewards, more))
        beyond = [name for name in rewards if rewards[name].value != found.value[name].value]
        if beyond:
            names = ", ".join(beyond)
            console.print(f"outside [0, 1], and shown at its nearer end: reward by {names}")
        costs = {name: _within(value, 0.0, math.inf) for name, value in found.cost.items()}
        console.print(_table("USD a call", costs, found.cost_difference))
        below = [name for name in costs if (found.cost[name].value or 0.0) < 0]
        if below:
            console.print(f"below 0, and shown as 0: USD a call by {', '.join(below)}")
    if found.expected_cost is not None:
        console.print(f"by the prices known then: USD a call {_text(found.expected_cost)}")
    for reason, count in found.dropped.items():
        console.print(f"not in the log: {count} {reason}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


def _table(
    title: str, values: Mapping[str, Interval], differences: Mapping[str, Interval]
) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("estimator", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in (title, "less served"):
        table.add_column(heading, justify="right")
    for name, value in values.items():
        table.add_row(name, _text(value), _text(differences[name], sign="+"))
    return table


def _within(value: Interval, low: float, high: float) -> Interval:
    """Return the part of an interval that can be true."""
    ends = {name: getattr(value, name) for name in ("value", "low", "high")}
    kept = {name: min(max(end, low), high) for name, end in ends.items() if end is not None}
    return replace(value, **kept)


def _text(value: Interval, sign: str = "") -> str:
    if value.value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:{sign}.3g}"
    return f"{value.value:{sign}.3g} [{value.low:{sign}.3g}, {value.high:{sign}.3g}]"
