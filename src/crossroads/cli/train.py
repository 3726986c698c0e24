"""``crossroads train``: one run of a small model with experts, described by a YAML file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from crossroads.core.errors import MissingExtraError


@click.command("train")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Of metrics and checkpoints; runs/ and the file's name.",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the trained model's decisions on the held-out batch here (.npz, a routing trace).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON only.")
def command(run: Path, out: Path | None, trace: Path | None, *, as_json: bool) -> None:
    """Train the small model that the YAML file RUN describes, with one router.

    Writes config.yaml, metrics.jsonl and checkpoint.pt. A run that was stopped continues from its
    last checkpoint, to the same numbers. The config.yaml of a run is such a file too; --trace of a
    run that is complete trains nothing. JSON: {run, router, steps, resumed_at, seconds, figures,
    out}, and trace where one was asked for.
    """
    try:
        from crossroads.moe.configuration import read_run, train_from
    except ImportError as error:
        if error.name is not None and error.name.startswith("crossroads"):
            raise
        raise MissingExtraError(error.name or "torch", extra="neural") from None
    router = read_run(run).spec.router
    folder = out or Path("runs") / run.stem
    done = train_from(run, folder, trace=trace)
    if as_json:
        found = {
            "run": str(run),
            "router": router,
            "steps": done.steps,
            "resumed_at": done.resumed_at,
            "seconds": done.seconds,
            "figures": dict(done.figures),
            "out": str(folder),
        }
        if trace is not None:
            found["trace"] = str(trace)
        click.echo(json.dumps(found, indent=2))
        return
    went_on = ""
    if done.resumed_at:
        went_on = f" in all, going on after step {done.resumed_at}"
    if done.resumed_at == done.steps:
        went_on = " before; nothing was left to train"
    click.echo(f"{router}: {done.steps} steps in {done.seconds:.1f} s{went_on}")
    for name, value in done.figures.items():
        click.echo(f"{name}  {value:.4f}")
    click.echo(f"metrics and checkpoint  {folder}")
    if trace is not None:
        click.echo(f"trace  {trace}")
