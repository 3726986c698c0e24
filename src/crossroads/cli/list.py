"""``crossroads list``: the systems of the catalogue, or the prompt routers."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import click

from crossroads.core.catalog import families, load_cards
from crossroads.core.errors import CrossroadsError, UsageError, unknown_name

ROUTERS = "routers"  # the family under which prompt routers are listed
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
_WHOLE = {"name", "family", "arxiv", "status"}  # columns that are never wrapped
_PLACES = ("timing", "method", "axis", "needs", "adding_a_model")
_BY = {"timing": "timing", "method": "method", "axis": "axis", "needs": "needs"}
_BY["adding-a-model"] = "adding_a_model"


@click.command("list")
@click.argument("family", required=False)
@click.option(
    "--by", type=click.Choice(list(_BY)), help='Group the routers; only with the family "routers".'
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(family: str | None, by: str | None, as_json: bool) -> None:
    """Show the published systems, or those of one FAMILY; "routers" shows the prompt routers.

    A system is "verified" when `crossroads verify` can measure its claim, else "planned"; a router
    is "available", or "broken" where it cannot be loaded. JSON: a list of {name, family, title,
    arxiv, status, verify}; of routers also {timing, method, axis, needs, adding_a_model, knowledge,
    hindsight}, null where broken.
    """
    known = [*families(), ROUTERS]
    if family is not None and family not in known:
        raise unknown_name("family", family, known)
    if by is not None and family != ROUTERS:
        raise UsageError("--by groups routers; write: crossroads list routers --by " + by)
    if family == ROUTERS:
        _list_routers(by, as_json=as_json)
        return
    rows = [row for row in _systems() if family in (None, row["family"])]
    if as_json:
        click.echo(json.dumps([{key: row[key] for key in _KEYS} for row in rows], indent=2))
        return
    _print_table(rows, _COLUMNS)
    if family is None:
        click.echo("\nPrompt routers to fit and serve today: crossroads list routers", err=True)


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

    rows = []
    for name in router_names():
        about = _first_line(name)
        row: dict[str, Any] = dict.fromkeys((*_PLACES, "knowledge", "hindsight"))
        row |= {
            "name": name,
            "family": ROUTERS,
            "title": about,
            "about": about,
            "arxiv": "",
            "status": "available",
            "verify": "",
        }
        try:
            at = place(name)
        except (ImportError, AttributeError, CrossroadsError) as error:
            row |= {"status": "broken", "problem": " ".join(str(error).split())}
        else:
            row |= {key: getattr(at, key) for key in (*_PLACES, "knowledge", "hindsight")}
            row["about"] = at.summary or about
        rows.append(row)
    return rows


def _first_line(router: str) -> str:
    """Return the first line of a router module's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"crossroads.prompts.routers.{router.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return "added by another package"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


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
    # A pipe has no edge to wrap at; this is wide enough for every row on one line.
    (console if console.is_terminal else Console(width=300)).print(table)
