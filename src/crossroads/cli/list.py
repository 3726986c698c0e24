"""``crossroads list``: the systems of the catalogue, or the routers of a room."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from crossroads.core.catalog import families, load_cards
from crossroads.core.errors import CrossroadsError, MissingExtraError, UsageError, unknown_name
from crossroads.core.kinds import describe_kind, setting_kinds

ROUTERS = "routers"  # the family under which prompt routers are listed
MOE_ROUTERS = "moe-routers"  # the one of routers of tokens
ADAPTER_ROUTERS = "adapter-routers"  # and the one of routers among adapters
_COLUMNS = {
    "name": "name",
    "family": "family",
    "about": "what it routes to what",
    "arxiv": "arXiv",
    "status": "status",
}
_KEYS = ("name", "family", "title", "arxiv", "status", "verify")
_ROUTER_COLUMNS = {
    "name": "name",
    "about": "what it does",
    "timing": "decides",
    "method": "method",
    "axis": "axis",
    "knowledge": "learns from",
    "adding_a_model": "new model",
}
_MOE_COLUMNS = {"name": "name", "about": "what it does", "decoder": "decoder", "reads": "reads"}
_MOE_KEYS = ("causal", "needs", "settings", "types")
_ADAPTER_COLUMNS = {
    "name": "name",
    "about": "what it does",
    "group": "group",
    "reads": "must be given",
}
_TAUGHT = "to be taught (adapters teach)"
_ADAPTER_KEYS = ("group", "mode", "needs", "settings")
_WHOLE = {"name", "family", "arxiv", "status"}  # columns that are never wrapped
_WIDTH, _EXPERTS = 8, 8  # of the routers that are built to be asked what they need
_PLACES = ("timing", "method", "axis", "needs", "adding_a_model")
_BY = {"timing": "timing", "method": "method", "axis": "axis", "needs": "needs"}
_BY["adding-a-model"] = "adding_a_model"
Facts = Callable[[str], dict[str, Any]]  # a router's name -> what its class says


@click.command("list")
@click.argument("family", required=False)
@click.option(
    "--by", type=click.Choice(list(_BY)), help='Group the routers; only with the family "routers".'
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(family: str | None, by: str | None, as_json: bool) -> None:
    """Show the published systems, or those of one FAMILY; "routers" shows the prompt routers,
    "moe-routers" those of tokens in a layer, "adapter-routers" those among LoRA adapters.

    A system is "verified" when `crossroads verify` can measure its claim, else "planned"; a router
    is "available", or "broken" where it cannot be loaded. JSON: a list of {name, family, title,
    arxiv, status, verify}; of routers also {timing, method, axis, needs, adding_a_model, knowledge,
    hindsight}, null where broken; of routers of tokens also {causal, needs, settings, types};
    of routers among adapters also {group, mode, needs, settings}.
    """
    known = [*families(), ROUTERS, MOE_ROUTERS, ADAPTER_ROUTERS]
    if family is not None and family not in known:
        raise unknown_name("family", family, known)
    if by is not None and family != ROUTERS:
        raise UsageError("--by groups routers; write: crossroads list routers --by " + by)
    if family == ROUTERS:
        _list_routers(by, as_json=as_json)
        return
    if family == MOE_ROUTERS:
        _list_moe_routers(as_json=as_json)
        return
    if family == ADAPTER_ROUTERS:
        _list_adapter_routers(as_json=as_json)
        return
    rows = [row for row in _systems() if family in (None, row["family"])]
    if as_json:
        click.echo(json.dumps([{key: row[key] for key in _KEYS} for row in rows], indent=2))
        return
    _print_table(rows, _COLUMNS)
    if family is None:
        click.echo("\nPrompt routers to fit and serve today: crossroads list routers", err=True)
        click.echo("Routers of tokens to train with: crossroads list moe-routers", err=True)
        click.echo("Routers among LoRA adapters: crossroads list adapter-routers", err=True)


def _list_moe_routers(*, as_json: bool) -> None:
    rows = _moe_routers()
    if as_json:
        keys = (*_KEYS, *_MOE_KEYS)
        click.echo(json.dumps([{key: row[key] for key in keys} for row in rows], indent=2))
        return
    _print_table(rows, _MOE_COLUMNS)
    _tell_broken(rows)
    click.echo(
        "\ndecoder: no = looks at later tokens, so a decoder refuses it; reads: what it needs "
        "besides the tokens\npromoe reads cond:null, which text has not: in a language model it is "
        "promoe:uncond=false\nCompare them: crossroads arena moe --routers NAME:setting=value   "
        "Their settings: crossroads list moe-routers --json",
        err=True,
    )


def _list_adapter_routers(*, as_json: bool) -> None:
    rows = _adapter_routers()
    if as_json:
        keys = (*_KEYS, *_ADAPTER_KEYS)
        click.echo(json.dumps([{key: row[key] for key in keys} for row in rows], indent=2))
        return
    from crossroads.adapters.needs import GROUPS

    _print_table(rows, _ADAPTER_COLUMNS)
    _tell_broken(rows)
    click.echo("", err=True)
    for group, about in GROUPS.items():
        click.echo(f"{group}: {about}", err=True)
    click.echo(
        "Use one: crossroads adapters route DIR --router NAME:setting=value   "
        "Their settings: crossroads list adapter-routers --json",
        err=True,
    )


def _list_routers(by: str | None, *, as_json: bool) -> None:
    rows = _routers()
    if by is not None:
        from crossroads.prompts.taxonomy import ATTRIBUTES

        order = [*ATTRIBUTES[_BY[by]], None]
        rows.sort(key=lambda row: order.index(row[_BY[by]]))
    if as_json:
        keys = (*_KEYS, *_PLACES, "knowledge", "hindsight")
        click.echo(json.dumps([{key: row[key] for key in keys} for row in rows], indent=2))
        return
    columns = dict(_ROUTER_COLUMNS)
    if by is not None:  # what they are grouped by stands first
        columns = {_BY[by]: columns.pop(_BY[by], by), **columns}
    _print_table(rows, columns)
    _tell_broken(rows)


def _tell_broken(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["status"] == "broken":
            click.echo(f"router {row['name']!r} cannot be loaded: {row['problem']}", err=True)


def _systems() -> list[dict[str, Any]]:
    return [
        {
            "name": card.name,
            "family": card.family,
            "title": card.title,
            "about": card.routes,
            "arxiv": card.arxiv,
            "status": card.status,
            "verify": card.verify,
        }
        for card in load_cards()
    ]


def _routers() -> list[dict[str, Any]]:
    """Return one row a router; one that cannot be loaded is listed all the same."""
    from crossroads.prompts.routers import router_names
    from crossroads.prompts.taxonomy import place

    def facts(name: str) -> dict[str, Any]:
        at = place(name)
        told = {key: getattr(at, key) for key in unknown}
        return told | ({"about": at.summary} if at.summary else {})

    unknown = (*_PLACES, "knowledge", "hindsight")
    return [
        _router_row(ROUTERS, "crossroads.prompts.routers", name, unknown, facts)
        for name in router_names()
    ]


def _moe_routers() -> list[dict[str, Any]]:
    """Return one row a router of tokens, as it is with its default settings."""
    with _torch_wanted():
        from crossroads.moe.routers import (
            BUILT_IN,
            build_router,
            known_settings,
            router_class,
            router_names,
        )
    cards = {card.name: card for card in load_cards() if card.family == "moe"}

    def facts(name: str) -> dict[str, Any]:
        router = build_router(name, _WIDTH, _EXPERTS)
        settings = known_settings(router_class(name))
        kinds = setting_kinds(router_class(name))
        card = cards.get(router.system or name)
        return {
            **({"arxiv": card.arxiv, "verify": card.verify} if card else {}),
            "causal": router.causal_safe,
            "needs": sorted(router.needs),
            # What a model builder fills in is no setting of the text form.
            "settings": {k: _plain(v) for k, v in settings.items() if k not in BUILT_IN},
            "types": {
                k: describe_kind(kinds[k]) if k in kinds else "unknown"
                for k in settings
                if k not in BUILT_IN
            },
            "decoder": "yes" if router.causal_safe else "no",
            "reads": ", ".join(sorted(router.needs)),
        }

    return [
        _router_row(MOE_ROUTERS, "crossroads.moe.routers", name, _MOE_KEYS, facts)
        for name in router_names()
    ]


def _adapter_routers() -> list[dict[str, Any]]:
    """Return one row a router among adapters, with the defaults of its settings."""
    with _torch_wanted():
        from crossroads.adapters.needs import group_of, needs_of
        from crossroads.adapters.routers import known_settings, router_class, router_names

    def facts(name: str) -> dict[str, Any]:
        cls = router_class(name)
        settings = {k: _plain(v) for k, v in known_settings(cls).items()}
        given = [f"{key}=NAME" for key, value in settings.items() if value == ""]
        return {
            "group": group_of(cls),
            "mode": cls.mode,
            "needs": list(needs_of(cls)),
            "settings": settings,
            "reads": ", ".join([*needs_of(cls), *given, *([_TAUGHT] if cls.learns else [])]),
        }

    return [
        _router_row(ADAPTER_ROUTERS, "crossroads.adapters.routers", name, _ADAPTER_KEYS, facts)
        for name in router_names()
    ]


@contextmanager
def _torch_wanted() -> Iterator[None]:
    """Tell which extra is missing where an import inside fails for another package's absence."""
    try:
        yield
    except ImportError as error:
        if error.name is not None and error.name.startswith("crossroads"):
            raise
        raise MissingExtraError(error.name or "torch", extra="neural") from None


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _router_row(
    family: str, package: str, name: str, unknown: tuple[str, ...], facts: Facts
) -> dict[str, Any]:
    """Return a router's row; one that cannot be loaded is listed by what its module says."""
    about = _first_line(package, name)
    row = {
        **dict.fromkeys(unknown),
        "name": name,
        "family": family,
        "title": about,
        "about": about,
        "arxiv": "",
        "status": "available",
        "verify": "",
        "reads": "",
        "decoder": "",
    }
    try:
        return row | facts(name)
    except (ImportError, AttributeError, CrossroadsError) as error:
        return row | {"status": "broken", "problem": " ".join(str(error).split())}


def _first_line(package: str, router: str) -> str:
    """Return the first line of a router module's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{package}.{router.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return "added by another package"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".").replace("``", "")


def _print_table(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, heading in columns.items():
        table.add_column(heading, no_wrap=key in _WHOLE)
    for row in rows:
        style = "dim" if row["status"] in {"planned", "broken"} else None
        table.add_row(*(row[key] or "-" for key in columns), style=style)
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(width=300)  # a pipe has no edge to wrap at; every row fits on a line of this
    with wide.capture() as printed:
        wide.print(table)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
