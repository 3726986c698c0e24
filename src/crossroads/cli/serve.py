"""``crossroads serve``: models and policies behind the APIs of OpenAI and Anthropic."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import InputError, UnavailableError, UsageError

if TYPE_CHECKING:
    from crossroads.gateway.admin import AdminSettings
    from crossroads.gateway.build import Built
    from crossroads.gateway.checking import Finding
    from crossroads.gateway.config import ServeConfig
    from crossroads.gateway.runtime import Runtime
    from crossroads.gateway.workers import Worker

_SHARED = "CROSSROADS_SHARED"  # folder that the workers of one gateway share figures through


@click.command()
@click.option("--router", help="Folder of a fitted router (crossroads fit).")
@click.option("--pool", help="pool.yaml, or a shipped pool's name: where the models are reached.")
@click.option("--config", help="YAML file; the other options go before its values.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="0 takes any free port.  [default: 8080]"
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that share the port.")
@click.option("--rule", help="Decision rule in place of the router's own, e.g. tradeoff:100.")
@click.option(
    "--api-key", envvar="CROSSROADS_API_KEY", help="Key that clients must send as bearer token."
)
def command(config: str | None, **options: Any) -> None:
    """Serve models behind OpenAI's and Anthropic's endpoints; the model "auto" asks the router.

    "auto:RULE" (auto:tradeoff:100) asks it under another decision rule, a model's name goes past
    it, a policy's name asks that policy. Every answer says in its headers (x-crossroads-...) which
    model answered and why. The dashboard is on a port of its own (8081). A changed configuration
    file is read anew; SIGHUP asks for it. Stop with Ctrl-C or SIGTERM; requests in flight are
    finished.
    """
    # A decision is too small a product for threads, which would fight the event loop for the cores.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from crossroads.gateway.config import read_config
    from crossroads.gateway.workers import Worker
    from crossroads.models.word_sums import prepare

    worker = Worker.of_this_process()
    shared = os.environ.get(_SHARED) if worker is not None else None
    as_written = partial(read_config, config, options)
    note = ""
    if worker is None:
        written = as_written()
        if any(policy.kind == "learned" for policy in written.all_policies.policies.values()):
            note = prepare()  # its router reads words
        if written.workers > 1:
            sys.exit(_supervise(written, note))
    read = partial(read_config, config, options, shared=shared)
    _serve(as_written, read, config, worker=worker, note=note)


def _supervise(settings: ServeConfig, note: str) -> int:
    """Start the workers and watch them; ``note`` is said when they serve."""
    from crossroads.gateway.server import url_of
    from crossroads.gateway.telemetry.logs import Logs
    from crossroads.gateway.workers import reserve, supervise

    with (
        ExitStack() as closing,
        reserve(settings.host, settings.port) as holder,
        tempfile.TemporaryDirectory(prefix="crossroads-") as shared,
    ):
        if settings.telemetry.logs is not None:  # what the parent says, in the workers' format
            logs = Logs(settings.telemetry.logs)
            closing.callback(logs.close)
            logs.start()
        url = url_of(holder)
        return supervise(
            [sys.executable, "-m", "crossroads", *sys.argv[1:]],
            holder,
            workers=settings.workers,
            drain=settings.timeouts.drain,
            on_ready=lambda: _say(f"{settings.workers} workers serve on {url}", note),
            environment={**os.environ, _SHARED: shared},
        )


def _serve(
    as_written: partial[ServeConfig],
    read: partial[ServeConfig],
    path: str | None,
    *,
    worker: Worker | None,
    note: str,
) -> None:
    """Serve in this process what ``read`` returns: ``as_written``, and what workers share.

    ``note`` is said when it serves.
    """
    from crossroads.gateway.checking import advice
    from crossroads.gateway.runtime import Runtime
    from crossroads.gateway.server import bind, serve, url_of
    from crossroads.gateway.standing import Keeper, Standing

    # Reloads, and a store that is back, are told wherever the log has calls.
    logging.getLogger("crossroads.gateway").setLevel(logging.INFO)
    standing = Standing.from_bytes(worker.standing) if worker and worker.standing else None
    settings = read() if standing is None else standing.config
    speaks = worker is None or worker.is_first  # for all workers
    shared = os.environ.get(_SHARED) if worker is not None else None
    keeper: Keeper | None = None
    if worker is not None and worker.is_first and shared is not None:
        keeper = Keeper(worker.tell_standing, Path(shared))

    def advise(built: Built) -> list[Finding]:
        return advice(built, as_written())

    listener = bind(settings.host, settings.port) if worker is None else worker.listen()
    admin: socket.socket | None = None
    try:
        if settings.admin is not None and speaks:
            admin = _bind_admin(settings.admin)
        try:
            runtime = Runtime(
                settings,
                read=None if path is None else read,
                path=path,
                shared=None if shared is None else Path(shared),
                admin_socket=admin,
                url=url_of(listener),
                advise=advise if speaks else None,
                standing=standing,
                keeper=keeper,
            )
        except UsageError as error:
            if path is None:
                raise
            raise InputError(f"config {path}: {error}") from error  # the file names what is not

        def on_ready() -> None:
            if speaks:
                _greet(url_of(listener), None if admin is None else url_of(admin), runtime)
                _say(note)
            if worker is not None:
                worker.report_ready()

        serve(
            runtime,
            listener,
            drain=settings.timeouts.drain,
            http=settings.http,
            front=settings.front,
            on_ready=on_ready,
        )
    finally:
        listener.close()
        if admin is not None:
            admin.close()


def _bind_admin(admin: AdminSettings) -> socket.socket:
    """Return the dashboard's socket: the usual port, any free one where nobody asked for it."""
    from crossroads.gateway.server import bind

    try:
        return bind(admin.host, admin.port)
    except UnavailableError as error:
        if "port" not in admin.model_fields_set:
            return bind(admin.host, 0)
        raise UnavailableError(
            f"admin: {error.args[0].partition(';')[0]}; choose another admin.port in the "
            "configuration"
        ) from error


def _say(*lines: str) -> None:
    """Print lines that are not empty; where nobody reads any more, serving goes on in silence."""
    try:
        for line in filter(None, lines):
            click.echo(line)
    except OSError:
        with Path(os.devnull).open("wb") as nothing:  # else the flush at the end fails once more
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _greet(url: str, admin: str | None, runtime: Runtime) -> None:
    built = runtime.built
    names = list(built.policies.names)
    models = ", ".join(built.pool.names)
    policies = [name for name in names if name not in built.pool.names]
    what = f"policies {', '.join(policies)} over {models}" if policies else f"models {models}"
    body = {
        "model": policies[0] if policies else names[0],
        "messages": [{"role": "user", "content": "What is 12 % of 250?"}],
    }
    name = "CROSSROADS_API_KEY" if runtime.config.api_key else "KEY"  # one that keys create printed
    key = f' -H "authorization: Bearer ${name}"' if runtime.config.has_keys else ""
    _say(f"crossroads serves on {url} ({what})")
    if admin is not None:
        _say(f"dashboard: {admin}")
    _say(f"try: curl -si {url}/v1/chat/completions{key} -d '{json.dumps(body)}'")
