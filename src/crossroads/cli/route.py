"""``crossroads route``: ask a fitted router where one prompt should go."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from crossroads.core.decision import Decision
    from crossroads.prompts.fitted import FittedRouter


@click.command()
@click.argument("prompt")
@click.option(
    "--router",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder that crossroads fit wrote.",
)
@click.option(
    "--rule",
    metavar="R",
    help="argmax, tradeoff:PRICE, max-cost:USD, min-quality:FLOOR or budget:USD (on average); "
    "the router's own if absent.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--explain", is_flag=True, help="Show the estimate and the cost of every model.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON only.")
def command(
    *, prompt: str, router: Path, rule: str | None, seed: int, explain: bool, as_json: bool
) -> None:
    """Say where PROMPT should go, and why. A PROMPT of - is read from standard input.

    JSON: {model, scores: {model: quality}, rule, confidence, predicted_cost (USD or null),
    predicted_quality, seconds, reason, propensity, router, version, seed}; where the router was
    fitted with --calibrate also verification: {answer (accept, escalate, abstain, or null under
    another rule than the calibrated one), reason, escalate_to (model or null), level, probability,
    prediction (1 right, 0 wrong), similarity, distance, exemplars: [{id, distance, label,
    matches}]}.
    """
    from crossroads.prompts.fitted import load_router

    text = _read_prompt(prompt)
    fitted = load_router(router)
    decision = fitted.route(text, rule=rule, seed=seed)
    if as_json:
        click.echo(json.dumps(_facts(decision)))
    elif explain:
        _explain(decision, fitted)
    else:
        click.echo(f"{decision.model}\n{decision.reason}")
        if spend := _expected_spend(decision, fitted):
            click.echo(spend)
        if "verification" in decision.details:
            click.echo(_answer(decision.details["verification"]))


def _read_prompt(prompt: str) -> str:
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input: not UTF-8 text (byte {error.start}); send the prompt as UTF-8"
            ) from error
    if not prompt.strip():
        raise UsageError("the prompt is empty; give a text, or - to read standard input")
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UsageError("the prompt is not UTF-8 text; give it as UTF-8")
    return prompt


def _facts(decision: Decision) -> dict[str, object]:
    return {
        "model": decision.model,
        "scores": dict(decision.scores),
        "rule": decision.rule,
        "confidence": decision.confidence,
        "predicted_cost": decision.predicted_cost_usd,
        "predicted_quality": decision.predicted_quality,
        "seconds": decision.seconds,
        "reason": decision.reason,
        "propensity": decision.propensity,
        "router": decision.router,
        "version": decision.version,
        "seed": decision.seed,
        **{key: decision.details[key] for key in ("verification",) if key in decision.details},
    }


def _answer(found: Mapping[str, Any]) -> str:
    """Return the verifier's answer as one line."""
    if found["answer"] is None:
        return f"not verified: {found['reason']}"
    other = ""
    if found["answer"] != "accept":
        nobody = "a stronger model or a person (no better model in the pool)"
        other = f"; ask {found['escalate_to'] or nobody}"
    return f"{found['answer']} (level {found['level']:g}): {found['reason']}{other}"


def _expected_spend(decision: Decision, fitted: FittedRouter) -> str | None:
    """Return what a budget that does not bind comes to, as one line; None under other rules."""
    from crossroads.prompts.decide import parse_rule
    from crossroads.prompts.explain import is_slack

    rule = parse_rule(decision.rule)
    if fitted.spend is None or not is_slack(rule):
        return None
    return (
        f"expected spend {fitted.spend.usd[0]:.3g} USD a call on average, within the budget of "
        f"{rule.usd:g}"
    )


def _explain(decision: Decision, fitted: FittedRouter) -> None:
    from rich.console import Console
    from rich.table import Table

    from crossroads.prompts.decide import EXCLUDED

    table = Table("", "model", box=None)
    table.add_column("estimated quality", justify="right")
    table.add_column("mean cost, USD a call", justify="right")
    cost = dict(zip(fitted.models, fitted.mean_cost.tolist(), strict=True))
    for name, score in sorted(decision.scores.items(), key=lambda pair: -pair[1]):
        known = cost[name] == cost[name]  # not NaN
        mark = ">" if name == decision.model else ""
        quality = f"{score:.3f}" if score > EXCLUDED else "not kept"
        table.add_row(mark, name, quality, f"{cost[name]:.3g}" if known else "unknown")
    console = Console()
    console.print(table, highlight=False, markup=False)
    if spend := _expected_spend(decision, fitted):
        console.print(spend, highlight=False, markup=False)
    if "verification" in decision.details:
        _explain_verification(console, decision.details["verification"])
    console.print(
        f"{decision.reason}\nrule {decision.rule}, confidence {decision.confidence:.2f}, "
        f"{1e6 * decision.seconds:.0f} us, router {decision.router} {decision.version}, fitted on: "
        f"{fitted.provenance.get('source', 'unknown')}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _explain_verification(console: Console, found: Mapping[str, Any]) -> None:
    from rich.table import Table

    if found.get("exemplars"):
        table = Table("nearest calibrated prompts", "the choice was", box=None)
        table.add_column("distance", justify="right")
        table.add_column("supports", justify="right")
        for example in found["exemplars"]:
            was = {0: "wrong", 1: "right"}.get(example["label"], "not to be trusted")
            supports = "yes" if example["matches"] else "no"
            table.add_row(example["id"], was, f"{example['distance']:.3f}", supports)
        console.print(table, highlight=False, markup=False)
    console.print(_answer(found), highlight=False, markup=False, soft_wrap=True)
