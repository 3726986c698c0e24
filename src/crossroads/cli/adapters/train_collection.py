"""``crossroads adapters train-collection``: make the experts that routers are compared on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from crossroads.cli.options import comma_separated
from crossroads.core.errors import MissingExtraError


@click.command("train-collection")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the collection and of its unfinished parts; in the user's cache by default.",
)
@click.option("--only", metavar="A,B", help="Experts to make, by task; all by default.")
@click.option("--steps", type=click.IntRange(1), help="Of an expert's factors; as shipped.")
@click.option("--gate-steps", type=click.IntRange(1), help="Of its gates; as shipped.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; torch's own choice.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON only.")
def command(
    *,
    out: Path | None,
    only: str | None,
    steps: int | None,
    gate_steps: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train one LoRA expert on SmolLM2-135M for each of twelve tasks, and its PHATGOOSE gates.

    An hour and a half of one core. A run that was stopped, even by kill -9, goes on where it
    was; an expert that was made by the same recipe on the same rows is not made again. DIR/bank
    holds the finished collection in PEFT's layout, written once all twelve are there. JSON:
    {folder, complete, experts: {name: {first_loss, last_loss, gate_spread, cpu_seconds}}}.
    """
    from crossroads.core.files import check_folder
    from crossroads.core.progress import progress_bar

    try:
        import torch

        from crossroads.adapters.collection.making import make_collection
        from crossroads.adapters.collection.recipe import RECIPE
        from crossroads.adapters.collection.shipped import summary, write_collection
        from crossroads.adapters.collection.tasks import task_names
        from crossroads.models.embedding_cache import cache_folder
    except ImportError as error:
        if error.name is not None and error.name.startswith("crossroads"):
            raise
        raise MissingExtraError(error.name or "torch", extra="neural") from None
    if threads is not None:
        torch.set_num_threads(threads)
    folder = out or cache_folder() / "adapters"
    check_folder(folder)
    names = comma_separated(only, "--only")
    recipe = replace(
        RECIPE, steps=steps or RECIPE.steps, gate_steps=gate_steps or RECIPE.gate_steps
    )
    with progress_bar("Training experts") as moved:
        made = make_collection(
            folder / "parts",
            recipe,
            names=names,
            progress=moved,
            say=lambda line: click.echo(line, err=True),
        )
    is_complete = {one.expert.name for one in made} == set(task_names(held_in=True))
    if is_complete:
        write_collection(folder / "bank", made, recipe)
    if as_json:
        told = {"folder": str(folder), "complete": is_complete, "experts": summary(made)}
        click.echo(json.dumps(told, indent=2))
    elif is_complete:
        click.echo(f"{len(made)} experts in {folder / 'bank'}")
    else:
        click.echo(f"{', '.join(one.expert.name for one in made)} in {folder / 'parts'}")
