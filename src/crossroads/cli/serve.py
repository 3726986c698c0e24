"""``crossroads serve``: a fitted router behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crossroads.gateway.build import Built


@click.command()
@click.option("--router", help="Folder of a fitted router (crossroads fit).")
@click.option("--pool", help="pool.yaml, or a shipped pool's name: where the models are reached.")
@click.option("--config", help="YAML file; the other options go before its values.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0 takes any free port.  [default: 8080]")
@click.option("--rule", help="Decision rule in place of the router's own, e.g. tradeoff:100.")
@click.option(
    "--api-key", envvar="CROSSROADS_API_KEY", help="Key that clients must send as bearer token."
)
def command(config: str | None, **options: Any) -> None:
    """Serve models behind OpenAI's endpoints; the model "auto" asks the router.

    "auto:RULE" (auto:tradeoff:100) asks it under another decision rule, a model's name goes past
    it. Every answer says in its headers (x-crossroads-...) which model answered and why. Stop with
    Ctrl-C or SIGTERM; requests in flight are finished.
    """
    from crossroads.gateway.build import build_gateway
    from crossroads.gateway.config import read_config
    from crossroads.gateway.server import bind, serve, url_of

    settings = read_config(config, options)
    listener = bind(settings.host, settings.port)
    try:
        built = build_gateway(settings)
        url = url_of(listener)
        serve(
            built.gateway,
            listener,
            drain=settings.timeouts.drain,
            on_ready=lambda: _greet(url, built, has_key=bool(settings.api_key)),
        )
    finally:
        listener.close()


def _greet(url: str, built: Built, *, has_key: bool) -> None:
    models = ", ".join(built.models)
    what = f"router {built.router} over {models}" if built.router else f"models {models}"
    body = {
        "model": "auto" if built.router else built.models[0],
        "messages": [{"role": "user", "content": "What is 12 % of 250?"}],
    }
    key = ' -H "authorization: Bearer $CROSSROADS_API_KEY"' if has_key else ""
    click.echo(f"crossroads serves on {url} ({what})")
    click.echo(f"try: curl -si {url}/v1/chat/completions{key} -d '{json.dumps(body)}'")
