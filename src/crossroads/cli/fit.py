"""``crossroads fit``: learn a router from outcomes, measure it on prompts held out, save it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, UsageError
from crossroads.core.progress import progress_bar

if TYPE_CHECKING:
    from crossroads.prompts.fitted import FittedRouter

_LEAST_FOR_INTERVAL = 30  # held-out prompts


@click.command()
@click.argument("router", default="auto")
@click.option(
    "--outcomes",
    metavar="F",
    required=True,
    help="Outcome table: a file, a folder of a known data set, or the name of a shipped one.",
)
@click.option("--pool", metavar="P", help="Prices and cards of the models: a file or a name.")
@click.option("--models", metavar="M,N", help="Only these models.")
@click.option(
    "--encoder",
    default="static",
    show_default=True,
    help="What turns a prompt into features: static or minilm.",
)
@click.option("--rule", default="argmax", show_default=True, help="Decision rule used by default.")
@click.option(
    "--calibrate",
    metavar="M",
    help="Keep some prompts from the router to learn which of its choices to trust: sdm or index.",
)
@click.option(
    "--level",
    type=float,
    help="Accuracy asked of trusted choices, above 0.5; 0.95 if absent. Needs --calibrate.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the fitted router; an older one there is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was fitted as JSON only.")
def command(
    *,
    router: str,
    outcomes: str,
    pool: str | None,
    models: str | None,
    encoder: str,
    rule: str,
    calibrate: str | None,
    level: float | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Fit ROUTER (default: auto) on recorded outcomes and save it.

    ROUTER is a name, or NAME:setting=value. Figures are of prompts held out from a first fit; the
    saved router is fitted on all of them. A table with a "split" column is fitted on its "train"
    rows only.

    --calibrate adds a verifier: crossroads route then says whether to accept the choice, escalate
    it, or abstain. The router learns from fewer prompts and is kept as it was measured.

    JSON: {router, out, models, encoder, rule, metrics: {quality, best_single, best_single_quality,
    gain, gain_low, gain_high, num_train, num_test, cost_usd, best_single_cost_usd, match_rule,
    match_cost_ratio, match_quality, match_num_test}, provenance}; without costs the last six of
    the metrics are absent, the match_ ones also where no trade-off is as good as the best model.
    gain_low and gain_high are null where fewer than 30 prompts were held out.
    With --calibrate, metrics.verification: {method, level, num_calibrated, num_test, right,
    accepted, accepted_right, escalated, abstained, quality_escalated, fallback, least_similarity}.
    """
    from crossroads.core.calibration.region import check_level
    from crossroads.prompts.artefact import check_place
    from crossroads.prompts.fitted import fit_router, save_router
    from crossroads.prompts.pool import read_pool
    from crossroads.prompts.readers import read_outcomes
    from crossroads.prompts.verification import check_method

    method = None if calibrate is None else check_method(calibrate)
    if level is not None and method is None:
        raise UsageError("--level says how sure a verifier must be; add --calibrate sdm")
    try:
        asked = check_level(0.95 if level is None else level)
    except InputError as error:
        raise UsageError(f"--{error}") from None
    check_place(out)  # before any time is spent
    cards = None if pool is None else read_pool(pool)
    table = read_outcomes(outcomes, pool=cards, models=comma_separated(models, "--models"))
    with progress_bar("fitting") as progress:
        fitted = fit_router(
            router,
            table,
            pool=cards,
            encoder=encoder,
            rule=rule,
            calibrate=method,
            level=asked,
            seed=seed,
            progress=progress,
        )
    save_router(fitted, out)
    if as_json:
        facts = {
            "router": fitted.router.name,
            "out": str(out),
            "models": list(fitted.models),
            "encoder": fitted.encoder,
            "rule": fitted.rule,
            "metrics": _metrics(fitted),
            "provenance": dict(fitted.provenance),
        }
        click.echo(json.dumps(facts, indent=2))
        return
    _show(fitted, out)


def _metrics(fitted: FittedRouter) -> dict[str, Any]:
    """Return the figures, without an interval where it would be of too few prompts."""
    found = dict(fitted.metrics)
    if found["num_test"] < _LEAST_FOR_INTERVAL:
        found |= {"gain_low": None, "gain_high": None}
    return found


def _show(fitted: FittedRouter, out: Path) -> None:
    found, where = _metrics(fitted), fitted.provenance
    interval = "(too few held-out prompts for an interval)"
    if found["gain_low"] is not None:
        interval = f"[{found['gain_low']:+.4f}, {found['gain_high']:+.4f}]"
    click.echo(
        f"{fitted.router.name}: {len(fitted.models)} models, {where['num_prompts']} prompts "
        f"({where['source']})"
    )
    click.echo(
        f"held out ({found['num_test']} prompts, rule {fitted.rule}): "
        f"quality {found['quality']:.4f}; best single model {found['best_single']} "
        f"{found['best_single_quality']:.4f}; gain {found['gain']:+.4f} {interval}"
    )
    if "cost_usd" in found and "best_single_cost_usd" in found:
        click.echo(
            f"cost per 1,000 prompts {1000 * found['cost_usd']:.4g} USD; "
            f"best single model {1000 * found['best_single_cost_usd']:.4g} USD"
        )
    if "match_rule" in found:
        every = found["match_num_test"] == found["num_test"]
        answered = "" if every else f"{found['match_num_test']} fully answered "
        click.echo(
            f"same quality as {found['best_single']} on the {answered}held-out prompts at "
            f"{100 * found['match_cost_ratio']:.3g} % of its cost: --rule {found['match_rule']} "
            "(chosen on those prompts)"
        )
    if "verification" in found:
        _show_verification(found["verification"])
    click.echo(f"saved in {out}; try: crossroads route --router {out} --explain 'your prompt'")


def _show_verification(found: dict[str, Any]) -> None:
    start = f"verification ({found['method']}, level {found['level']:g}): "
    if found["least_similarity"] is None:
        click.echo(
            f"{start}no kind of prompt reaches the level: every choice will be escalated to "
            f"{found['fallback']} or abstained from; lower --level, or use a better router"
        )
        return
    right = "none" if found["accepted_right"] is None else f"{100 * found['accepted_right']:.1f} %"
    click.echo(
        f"{start}{100 * found['accepted']:.1f} % of {found['num_test']} held-out choices accepted, "
        f"right among them {right}, among all {100 * found['right']:.1f} %; "
        f"quality {found['quality_escalated']:.4f} with the others sent to {found['fallback']}"
    )
