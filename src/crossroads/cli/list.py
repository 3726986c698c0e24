"""``crossroads list``: the systems of the catalogue, or the prompt routers."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import click

from crossroads.core.catalog import families, load_cards
from crossroads.core.errors import unknown_name

ROUTERS = "routers"  # the family under which prompt routers are listed
_COLUMNS = {
    "name": "name",
    "family": "family",
    "about": "what it routes to what",
    "arxiv": "arXiv",
    "status": "status",
}
_KEYS = ("name", "family", "title", "arxiv", "status", "verify")


@click.command("list")
@click.argument("family", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(family: str | None, as_json: bool) -> None:
    """Show the 56 published systems, or those of one FAMILY; "routers" shows the prompt routers.

    A system is "verified" when `crossroads verify` can measure its claim, else "planned"; a router
    is "available". JSON: a list of {name, family, title, arxiv, status, verify}.
    """
    known = [*families(), ROUTERS]
    if family is not None and family not in known:
        raise unknown_name("family", family, known)
    if family == ROUTERS:
        rows = _routers()
    else:
        rows = [row for row in _systems() if family in (None, row["family"])]
    if as_json:
        click.echo(json.dumps([{key: row[key] for key in _KEYS} for row in rows], indent=2))
        return
    _print_table(rows)
    if family is None:
        click.echo("\nPrompt routers to fit and serve today: crossroads list routers", err=True)


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
    from crossroads.prompts.routers import router_names

    rows = []
    for name in router_names():
        about = _first_line(name)
        rows.append(
            {
                "name": name,
                "family": ROUTERS,
                "title": about,
                "about": about,
                "arxiv": "",
                "status": "available",
                "verify": "",
            }
        )
    return rows


def _first_line(router: str) -> str:
    """Return the first line of a router module's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"crossroads.prompts.routers.{router.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return "added by another package"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, heading in _COLUMNS.items():
        table.add_column(heading, no_wrap=key != "about")
    for row in rows:
        style = "dim" if row["status"] == "planned" else None
        table.add_row(*(row[key] for key in _COLUMNS), style=style)
    console = Console()
    # A pipe has no edge to wrap at; this is wide enough for every row on one line.
    (console if console.is_terminal else Console(width=160)).print(table)
