"""``crossroads keys``: virtual keys of the gateway, in a file it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crossroads.core.errors import InputError, UsageError, unknown_name

if TYPE_CHECKING:
    from crossroads.gateway.config import ServeConfig
    from crossroads.gateway.governance import KeyFile, KeySettings

T = TypeVar("T")

_FILE = click.option(
    "--file", "path", default="keys.yaml", show_default=True, help="governance.keys_file."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_COUNT = click.IntRange(min=1)


@click.group("keys")
def command() -> None:
    """Create, list, rotate and revoke the keys that clients of the gateway send.

    A running gateway whose configuration says `governance: {keys_file: keys.yaml}` follows every
    change within a second or two. The file holds hashes; a secret is shown once, when it is made.
    """


@command.command("create")
@click.argument("name")
@_FILE
@click.option("--team", help="Team whose limits and budgets it shares.")
@click.option("--model", "models", multiple=True, help="Model or policy it may ask for; repeat.")
@click.option("--tag", "tags", multiple=True, help="Tag that rules see; repeat.")
@click.option("--residency", multiple=True, help="Region its data may be sent to; repeat.")
@click.option("--expires", help="Date or time, UTC: 2030-01-31, or 2030-01-31T12:00:00Z.")
@click.option("--requests-per-minute", type=_COUNT, help="Limit.")
@click.option("--tokens-per-minute", type=_COUNT, help="Limit, sent and received.")
@click.option("--parallel", type=_COUNT, help="Requests at a time.")
@click.option("--budget", help="USD per period, such as 20/month, 1.5/day or 100/30d.")
@click.option("--pace", is_flag=True, help="Spread the budget over its period.")
@click.option("--config", help="The gateway's: --team and --model must be among what it has.")
@_JSON
def create(name: str, path: str, config: str | None, as_json: bool, **options: Any) -> None:
    """Add the key NAME and print its secret.

    JSON: {name, secret, file}.
    """
    from crossroads.gateway.governance import KeyFile

    fields = _fields(options)
    folder = Path(path).parent
    if not folder.is_dir():
        raise InputError(f"keys {path}: there is no folder {folder}; make it, or correct --file")
    team = options["team"]
    if config is not None:
        _check_names(config, team, options["models"])
    secret, _ = KeyFile(path).create(name, **fields)
    _print_secret(name, secret, path, as_json=as_json)
    if team is not None and config is None and _is_new(team, name, path):
        click.echo(
            f"warning: no other key here has the team {team!r}; a gateway without it under "
            "governance.teams refuses the key (--config FILE looks before)",
            err=True,
        )


@command.command("list")
@_FILE
@_JSON
def list_(path: str, as_json: bool) -> None:
    """Show the keys, never their secrets.

    JSON: a list of {name, fingerprint, team, models, tags, residency, created, expires, disabled,
    limits, budgets}.
    """
    found = _file(path).read()
    for problem in found.problems:
        click.echo(f"warning: {problem}", err=True)
    rows = [_row(key) for key in found.keys]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        if found.problems:
            return
        click.echo(f"no keys in {path}; make one: crossroads keys create NAME --file {path}")
        return
    _print_table(rows)


@command.command("rotate")
@click.argument("name")
@_FILE
@_JSON
def rotate(name: str, path: str, as_json: bool) -> None:
    """Give the key NAME a new secret and print it; the old one is refused from then on.

    JSON: {name, secret, file}.
    """
    file = _file(path)
    secret, _ = _of_known(path, lambda: file.rotate(name))
    _print_secret(name, secret, path, as_json=as_json)


@command.command("revoke")
@click.argument("name")
@_FILE
@_JSON
def revoke(name: str, path: str, as_json: bool) -> None:
    """Remove the key NAME.

    JSON: {name, file}.
    """
    file = _file(path)
    _of_known(path, lambda: file.revoke(name))
    if as_json:
        click.echo(json.dumps({"name": name, "file": path}))
    else:
        click.echo(f"key {name!r} is removed from {path}")


def _file(path: str) -> KeyFile:
    """Return a file of keys that is there."""
    from crossroads.gateway.governance import KeyFile

    if not Path(path).exists():
        raise InputError(
            f"keys {path}: no such file; correct --file, or make one: crossroads keys create NAME "
            f"--file {path}"
        )
    return KeyFile(path)


def _check_names(path: str, team: str | None, models: Sequence[str]) -> None:
    """Refuse a team, models and policies that a configuration does not have."""
    from crossroads.gateway.config import read_config

    config = read_config(path)
    teams = config.governance.teams
    if team is not None and team not in teams:
        problem = unknown_name("team", team, teams) if teams else f"no team {team!r}"
        raise InputError(f"config {path}: {problem}; add it to governance.teams")
    if models:
        policies, pool = _served(config)
        for name in models:
            if name not in pool and name.partition(":")[0] not in policies:  # a policy takes a rule
                problem = unknown_name("model or policy", name, [*policies, *pool])
                raise InputError(f"config {path}: {problem}")


def _served(config: ServeConfig) -> tuple[list[str], list[str]]:
    """Return the policies and the models that a request to the gateway can name."""
    from crossroads.gateway.policies.settings import LearnedSettings
    from crossroads.prompts.fitted import load_router
    from crossroads.prompts.pool import read_pool

    policies = config.all_policies.policies
    names = list(policies)
    if any(policy.default for policy in policies.values()):
        names.append("auto")
    if config.pool is not None:
        return names, list(read_pool(config.pool).names)
    folders = {p.router for p in policies.values() if isinstance(p, LearnedSettings)}
    return names, [name for folder in folders for name in load_router(folder).pool.names]


def _is_new(team: str, name: str, path: str) -> bool:
    """Whether no other key has this team."""
    return all(key.team != team for key in _file(path).read().keys if key.name != name)


def _of_known(path: str, change: Callable[[], T]) -> T:
    """Change a key; one that the file does not have is no wrong usage, but failed work."""
    try:
        return change()
    except UsageError as error:
        raise InputError(f"keys {path}: {error}") from error


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a key; what was not given is left out."""
    limits = {
        name: options[name]
        for name in ("requests_per_minute", "tokens_per_minute", "parallel")
        if options[name] is not None
    }
    fields: dict[str, Any] = {
        name: options[name] for name in ("models", "tags", "residency") if options[name]
    }
    if options["team"] is not None:
        fields["team"] = options["team"]
    if options["expires"] is not None:
        fields["expires"] = _expiry(options["expires"])
    if limits:
        fields["limits"] = limits
    if options["budget"] is not None:
        fields["budgets"] = [_budget(options["budget"], pace=options["pace"])]
    elif options["pace"]:
        raise UsageError("--pace spreads a budget; add --budget, such as --budget 20/month")
    return fields


def _expiry(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            "--expires: expected a date such as 2030-01-31 or a time such as "
            f"2030-01-31T12:00:00Z, got {text!r}"
        ) from None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    if found <= datetime.now(UTC):
        raise UsageError(f"--expires: {text} is past; give a time to come")
    return found


def _budget(text: str, *, pace: bool) -> dict[str, Any]:
    from crossroads.gateway.governance.periods import parse_period

    usd, slash, period = text.partition("/")
    try:
        amount = float(usd)
    except ValueError:
        amount = 0.0
    if not slash or not period or not amount > 0:
        raise UsageError(f"--budget: expected USD/PERIOD such as 20/month, got {text!r}")
    try:
        parse_period(period)
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    return {"usd": amount, "per": period, "pace": pace}


def _row(key: KeySettings) -> dict[str, Any]:
    from crossroads.gateway.governance import fingerprint

    row: dict[str, Any] = {"name": key.name, "fingerprint": fingerprint(key)}
    shown = {"team", "models", "tags", "residency", "created", "expires", "disabled"}
    row |= key.model_dump(mode="json", include=shown)
    row["limits"] = key.limits.model_dump(exclude_none=True)
    row["budgets"] = [
        {"usd": budget.usd, "per": budget.per, **budget.model_dump(exclude_defaults=True)}
        for budget in key.budgets
    ]
    return row


def _print_secret(name: str, secret: str, path: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "secret": secret, "file": path}))
        return
    click.echo(secret)
    click.echo(f"key {name!r} is in {path}; its secret is shown this once, keep it safe", err=True)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "hash", "team", "models", "expires", "limits", "budgets"):
        table.add_column(title)
    for row in rows:
        limits = [f"{name} {value}" for name, value in row["limits"].items()]
        budgets = [f"{b['usd']:g} USD/{b['per']}" for b in row["budgets"]]
        table.add_row(
            row["name"],
            row["fingerprint"],
            row["team"] or "-",
            "all" if row["models"] is None else ", ".join(row["models"]),
            "disabled" if row["disabled"] else row["expires"] or "never",
            ", ".join(limits) or "-",
            ", ".join(budgets) or "-",
        )
    console = Console()
    # A pipe has no edge to wrap at; this is wide enough for every row on one line.
    (console if console.is_terminal else Console(width=300)).print(table)
