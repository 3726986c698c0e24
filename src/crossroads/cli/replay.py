"""``crossroads replay``: decide a ledger again, and show what is different now."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossroads.gateway.call import Body
    from crossroads.gateway.contracts import Record
    from crossroads.gateway.evaluation.replay import Replay
    from crossroads.gateway.policies import CompiledPolicies

_SHOWN = 10  # changes told one by one


@click.command()
@click.option(
    "--ledger",
    metavar="URL|F",
    required=True,
    help="sqlite:PATH, postgresql://..., or calls exported to .parquet or .jsonl.",
)
@click.option("--config", metavar="F", type=click.Path(path_type=Path), help="Of the gateway.")
@click.option("--router", metavar="DIR", type=click.Path(path_type=Path), help="A fitted router.")
@click.option("--rule", metavar="R", help="Of the router, in place of the recorded ones.")
@click.option("--since", metavar="T", help="A date (2026-05-01), or a time ago (7d, 12h).")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON only.")
def command(
    *,
    ledger: str,
    config: Path | None,
    router: Path | None,
    rule: str | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Decide every recorded call again, by the policies of a configuration or by a router.

    Each decision is made with its recorded id, so that chance falls the same, and waits for its
    router: budget_us does not hold. Needs the text of the prompts (ledger.keep: [text]); a router
    also reads kept embeddings.
    """
    from crossroads.gateway.evaluation.source import parse_since, read_ledger
    from crossroads.prompts.decide import parse_rule

    start = parse_since(since)
    if (config is None) == (router is None):
        raise UsageError("give either --config F or --router DIR to decide by")
    if rule is not None and router is None:
        raise UsageError("--rule needs --router; policies of a configuration have their own")
    if rule is not None:
        parse_rule(rule)
    records, _ = read_ledger(ledger, since=start)
    found = asyncio.run(_replayed(records, config, router, rule))
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        _show(found)


async def _replayed(
    records: Sequence[Record], config: Path | None, router: Path | None, rule: str | None
) -> Replay:
    from crossroads.gateway.evaluation.replay import PolicyChooser, RouterChooser, replay
    from crossroads.prompts.fitted import load_router

    if router is not None:
        return await replay(records, RouterChooser(load_router(router), rule))
    assert config is not None
    policies = _policies(config)
    try:
        return await replay(records, PolicyChooser(policies))
    finally:
        policies.close()


def _policies(path: Path) -> CompiledPolicies:
    """Compile a configuration's policies; no model is ever asked."""
    from crossroads.gateway.config import read_config
    from crossroads.gateway.policies import compile_policies
    from crossroads.gateway.policies.settings import LearnedSettings
    from crossroads.prompts.experts.base import ExpertError
    from crossroads.prompts.fitted import load_router
    from crossroads.prompts.pool import Pool, read_pool

    async def ask(model: str, body: Body) -> Body:
        raise ExpertError(f"a replay does not ask {model!r}")

    config = read_config(path)
    settings = config.all_policies
    folders = {p.router for p in settings.policies.values() if isinstance(p, LearnedSettings)}
    routers = {folder: load_router(folder) for folder in folders}
    if config.pool is not None:
        pool = read_pool(config.pool)
    elif not routers:
        raise InputError(f"config {path}: names no models to decide among; add 'pool: pool.yaml'")
    else:
        cards = {card.name: card for router in routers.values() for card in router.pool}
        pool = Pool(name="routers", models=tuple(cards.values()))
    return compile_policies(settings, pool, routers=routers, ask_model=ask, is_timed=False)


def _show(found: Replay) -> None:
    unknown = sum(found.not_replayable.values())
    click.echo(
        f"{found.same} the same, {found.changed} changed, {unknown} not replayable, "
        f"{found.skipped} decided by no policy"
    )
    for (was, now), count in sorted(found.moves.items(), key=lambda pair: -pair[1]):
        click.echo(f"  {was} -> {now}: {count}")
    for why, count in found.reasons.items():
        click.echo(f"changed: {count}, {why}")
    for why, count in found.not_replayable.items():
        click.echo(f"not replayable: {count}, {why}")
    if found.num_priced:
        click.echo(
            f"expected cost: {found.cost_usd:+.6g} USD over {found.num_priced} priced changes"
        )
    for change in found.examples[:_SHOWN]:
        click.echo(f"{change.decision_id}: {change.was} -> {change.now}, {change.why}")
