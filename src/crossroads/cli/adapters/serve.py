"""``crossroads adapters serve``: a folder of adapters as one model behind OpenAI's API."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.adapters.loading import (
    adapters_folder,
    load,
    neural,
    on_a_folder,
    tell_of_no_chat,
)
from crossroads.cli.words import counted

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from crossroads.adapters.serving.engine import Engine


@click.command("serve")
@on_a_folder
@click.option(
    "--router",
    metavar="R",
    help="As in crossroads adapters route; the saved one, else phatgoose, else arrow.",
)
@click.option("--name", default="adapters", show_default=True, help="Of the model, for clients.")
@click.option(
    "--plain", is_flag=True, help="Read messages as plain text: no chat form around them."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0: any free."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; torch's own choice.")
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Requests in line behind the one that is answered; further ones are refused with 503.",
)
def command(
    *,
    folder: Path,
    model: Path | None,
    partial: bool,
    router: str | None,
    name: str,
    plain: bool,
    host: str,
    port: int,
    threads: int | None,
    max_waiting: int,
) -> None:
    """Serve the adapters in DIR, routed, as one model behind OpenAI's API; no key, so keep it on
    loopback and put crossroads serve in front of it.

    The model NAME is routed, NAME:base is the base model alone, NAME:ADAPTER one adapter alone
    (not with routers that merge adapters by other means than weights). Chat and text completions,
    whole or streamed; one request at a time, others wait in line. Every answer tells in its field
    crossroads which adapters it came from. The entry of a gateway's pool.yaml is printed at the
    start. Stop with Ctrl-C or SIGTERM; requests in flight are finished.
    """
    from crossroads.gateway.server import bind, serve, url_of

    listener = bind(host, port)
    try:
        with neural():
            import torch

            from crossroads.adapters.choice import choose_router
            from crossroads.adapters.serving.engine import Engine

            if threads is not None:
                torch.set_num_threads(threads)
            folder = adapters_folder(folder)
            base, bank = load(folder, model, [router] if router else (), partial=partial)
            if not plain:
                tell_of_no_chat(base)
            engine = Engine(
                base,
                bank,
                choose_router(router, bank, folder),
                name=name,
                plain=plain,
                max_waiting=max_waiting,
            )
        logging.getLogger("crossroads").setLevel(logging.INFO)
        url = url_of(listener)
        serve(_Served(engine), listener, on_ready=lambda: _greet(url, engine))
    finally:
        listener.close()


class _Served:
    """The engine as what ``crossroads.gateway.server`` runs."""

    def __init__(self, engine: Engine) -> None:
        from crossroads.adapters.serving.app import build_app

        self._engine = engine
        self.gateway: ASGIApp = build_app(engine)

    async def start(self) -> None:
        """Nothing: the model was loaded before."""

    async def close(self) -> None:
        self._engine.close()

    async def reload(self) -> Any:
        """Nothing: there is no configuration to read anew."""


def _greet(url: str, engine: Engine) -> None:
    adapters = counted(len(engine.bank.names), "adapter")
    click.echo(f"{adapters} of {engine.base.name}, router {engine.router.name}, on {url}")
    card = f"name: {json.dumps(engine.name)}, endpoint: {url}/v1"
    click.echo(f"pool.yaml: - {{{card}, speaks: [chat, completions], max_parallel: 1}}")
