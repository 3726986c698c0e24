"""``crossroads adapters teach``: a router that has to learn, taught on rows and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.cli.adapters.loading import (
    adapters_folder,
    check_apart,
    check_rows,
    facts_of_bank,
    load,
    neural,
    on_a_folder,
    say,
)
from crossroads.cli.options import comma_separated
from crossroads.cli.words import counted
from crossroads.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from crossroads.adapters.base_models import BaseModel
    from crossroads.adapters.collection.tasks import Task


@click.command("teach")
@on_a_folder
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--router", required=True, metavar="R", help="As NAME, NAME:setting=value or package.Class."
)
@click.option(
    "--rows-file",
    metavar="JSONL",
    type=click.Path(path_type=Path),
    help='Rows to learn from: {"task", "prompt", "answer"} a line; a task named after an adapter '
    "is its own.",
)
@click.option(
    "--tasks",
    metavar="A,B",
    help="Training rows of the collection in their place; by default those of the tasks that "
    "adapters are named after.",
)
@click.option("--steps", type=click.IntRange(1), help="Of training; the router's own by default.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of batches, of new experts, and of the router where --router tells none.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; torch's own choice.")
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is a bank.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON only.")
def command(
    *,
    folder: Path,
    out: Path,
    model: Path | None,
    partial: bool,
    router: str,
    rows_file: Path | None,
    tasks: str | None,
    steps: int | None,
    seed: int,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Teach a router to choose among the adapters in DIR, and write both to OUT.

    For routers that have numbers of their own, such as x-lora, lora-mixer, lorahub (crossroads list
    adapter-routers). The adapters stay as they are; poly, task-moe, flylora and multitask make
    experts of their own, of the same layers and size. A batch has at most 512 tokens, a step takes
    some seconds on SmolLM2. A run that was stopped goes on, but for lorahub and average-activation,
    which begin again. Every other command then takes OUT for DIR, its router as saved.
    JSON: {folder, router, settings, steps, tasks: [names], experts: [names], layers, parameters}.
    """
    if rows_file is not None and tasks is not None:
        raise UsageError("teach: --tasks names the collection's, --rows-file gives others")
    with neural():
        folder = adapters_folder(folder)
    check_apart(folder, out)
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another folder, or --overwrite it")
    from crossroads.core.files import check_writable
    from crossroads.core.progress import progress_bar

    if not out.is_dir():
        check_writable(out)
    with neural():
        import torch

        from crossroads.adapters.layout import save_bank
        from crossroads.adapters.learning import learnt
        from crossroads.adapters.routers import build_router
        from crossroads.models.embedding_cache import cache_folder

        if threads is not None:
            torch.set_num_threads(threads)
        kind = build_router(router)
        if not kind.learns:
            raise UsageError(f"router {kind.name}: has nothing to learn; use it as it is")
        if kind.no_rival:
            say(f"note: router {kind.name}: {kind.no_rival}")
        check_rows(rows_file, tasks)
        base, bank = load(folder, model, partial=partial)
        chosen = _tasks(tasks, rows_file, bank.names, base)
        if kind.artifacts:  # learnt from every adapter's own task
            chosen = _own(chosen, bank.names, kind.name)
        if "task_ids_B" in kind.call_data:
            _check_numbers(kind.name, chosen)
        with progress_bar(f"Teaching {kind.name}") as moved:
            made, taught, _ = learnt(
                router, base, bank, chosen, cache_folder() / "adapters" / "learnt",
                steps=steps, seed=seed, progress=moved,
            )  # fmt: skip
        save_bank(out, made, taught, overwrite=overwrite)
    told = {
        "folder": str(out),
        "router": kind.name,
        "settings": dict(taught.settings()),
        "steps": steps or kind.learns,
        "tasks": [task.name for task in chosen],
        **facts_of_bank(made),
    }
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(
        f"{kind.name}, taught {counted(told['steps'], 'step')} of "
        f"{counted(len(chosen), 'task')}, and {counted(made.n_experts, 'adapter')} in {out}"
    )


def _tasks(
    names: str | None, path: Path | None, experts: tuple[str, ...], base: BaseModel
) -> list[Task]:
    from crossroads.adapters.collection.tasks import get_task, task_names
    from crossroads.adapters.task_files import read_lessons

    if path is not None:
        return read_lessons(path, experts, base.tokenizer, most=base.context, say=say)
    wanted = comma_separated(names, "--tasks")
    wanted = wanted or [name for name in task_names() if name in experts]
    if not wanted:
        raise UsageError(
            "teach: no adapter is named after a task of the collection; give your rows with "
            "--rows-file, or name tasks with --tasks"
        )
    return [get_task(name) for name in wanted]


def _own(tasks: list[Task], experts: tuple[str, ...], router: str) -> list[Task]:
    """Return the tasks that adapters are named after, and say which others teach nothing."""
    ignored = [task.name for task in tasks if task.name not in experts]
    if ignored:
        say(
            f"note: router {router} learns of each adapter's own task: ignored {', '.join(ignored)}"
        )
    return [task for task in tasks if task.name in experts]


def _check_numbers(router: str, tasks: list[Task]) -> None:
    from crossroads.adapters.collection.tasks import task_names

    if [task.name for task in tasks] != task_names(held_in=True):
        raise UsageError(
            f"router {router}: goes by the number of a task, which commands know of the whole "
            "collection alone; leave out --tasks and --rows-file, or teach it in Python"
        )
