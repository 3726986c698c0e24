"""``crossroads check-config``: finds before the start what a first request could meet."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crossroads.gateway.checking import Finding


@click.command("check-config")
@click.argument("path", metavar="CONFIG", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of the configuration instead.")
@click.option("--probe", is_flag=True, help="Connect to every upstream, Redis and the ledger, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(path: str | None, schema: bool, probe: bool, as_json: bool) -> None:
    """Check a configuration of the gateway: fields, files, models, policies, keys, prices.

    Nothing is served or written, no model is asked. Exit code 0 where a server would start, else 1.

    With --json: {"config", "ok", "findings": [{"level", "place", "message"}]}; level is error,
    warning, or note (what --probe reached).
    """
    from crossroads.gateway.checking import check
    from crossroads.gateway.config import ServeConfig

    if schema:
        click.echo(json.dumps(ServeConfig.model_json_schema(), indent=2))
        return
    if path is None:
        raise click.UsageError("give the configuration's file, or --schema")
    findings = asyncio.run(check(path, probe=probe))
    is_ok = not any(finding.level == "error" for finding in findings)
    if as_json:
        body: dict[str, Any] = {
            "config": path,
            "ok": is_ok,
            "findings": [finding.to_dict() for finding in findings],
        }
        click.echo(json.dumps(body, indent=2))
    else:
        _print(path, findings, is_ok)
    if not is_ok:
        raise SystemExit(1)


def _print(path: str, findings: list[Finding], is_ok: bool) -> None:
    for finding in findings:
        place = f"{finding.place}: " if finding.place else ""
        click.echo(f"{finding.level}: {place}{finding.message}")
    if is_ok:
        click.echo(f"{path} is fit to serve")
    elif any("no such" in finding.message.lower() for finding in findings):
        click.echo(f"relative paths start at the working folder, {Path.cwd()}")
