"""What the commands on a folder of adapters have in common."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import comma_separated
from crossroads.core.errors import InputError, MissingExtraError, UsageError, unknown_name

if TYPE_CHECKING:
    from crossroads.adapters.bank import AdapterBank
    from crossroads.adapters.base_models import BaseModel

Command = Callable[..., None]
SHIPPED = "shipped"
_WORDS = {"base", "saved"}  # taken as routers, names of none
_SHORT_S = 3.0  # nobody needs to be told why they wait for less

partial_option = click.option(
    "--partial",
    is_flag=True,
    help="Load what can be computed rightly, and say on stderr what of DIR is left out.",
)


def on_a_folder(function: Command) -> Command:
    """Add the argument DIR and the options --model and --partial."""
    function = partial_option(function)
    function = click.option(
        "--model",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder of the base model (save_pretrained); SmolLM2-135M-Instruct by default.",
    )(function)
    return click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))(function)


@contextmanager
def neural() -> Iterator[None]:
    """Name the extra to install where a library is missing that imports inside need."""
    try:
        yield
    except ImportError as error:
        if isinstance(error, MissingExtraError) or (error.name or "").startswith("crossroads"):
            raise
        raise MissingExtraError(error.name or "torch", extra="neural") from None


def adapters_folder(folder: Path) -> Path:
    """Return the folder of a bank; ``shipped`` is the package's own where no folder is so called.

    Raises InputError where there is no such folder.
    """
    if folder == Path(SHIPPED) and not folder.exists():
        from crossroads.adapters.collection.shipped import shipped_folder

        return shipped_folder()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; give a folder of adapters, or the word {SHIPPED}")
    return folder


def check_apart(folder: Path, out: Path) -> None:
    """Raise InputError where a folder to write is, holds or lies in the one that is read."""
    read, written = folder.resolve(), out.resolve()
    if read == written:
        how = "is"
    elif written.is_relative_to(read):
        how = "lies in"
    elif read.is_relative_to(written):
        how = "holds"
    else:
        return
    raise InputError(f"{out}: {how} {folder}, which is read; choose a folder apart from it")


@contextmanager
def told_when_long(doing: str) -> Iterator[None]:
    """Say on stderr what takes long; on a terminal, bars do."""
    if sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(_SHORT_S, click.echo, [f"{doing} ..."], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_routers(routers: Iterable[str], folder: Path) -> None:
    """Refuse unknown routers and settings, and ``saved`` of a folder that holds none.

    All that can be told before anything is loaded. Raises UsageError or InputError.
    """
    from crossroads.adapters.layout import has_router
    from crossroads.adapters.routers import build_router

    for spec in routers:
        if spec not in _WORDS:
            build_router(spec)
        elif spec == "saved" and not has_router(folder):
            raise UsageError(f"router saved: {folder} holds none; name one")


def check_rows(rows_file: Path | None, tasks: str | None) -> None:
    """Refuse a file of rows, or names of the collection's tasks, before anything is loaded."""
    from crossroads.adapters.collection.tasks import task_names
    from crossroads.adapters.task_files import check_tasks

    if rows_file is not None:
        check_tasks(rows_file)
    known = task_names()
    for name in comma_separated(tasks, "--tasks") or ():
        if name not in known:
            raise unknown_name("task", name, known)


def load(
    folder: Path, model: Path | None, routers: Iterable[str] = (), *, partial: bool = False
) -> tuple[BaseModel, AdapterBank]:
    """Return the base model, and the adapters of a folder after a look at whether they fit it.

    ``routers`` are to be used as they are: what is wrong with one is told before the model is
    loaded, also that nobody taught it.
    """
    from crossroads.adapters.base_models import load_base

    named = list(routers)
    check_routers(named, folder)
    _check_taught(named, folder, partial=partial)
    with told_when_long(f"loading the base model and the adapters in {folder}"):
        base = load_base(model)
        return base, read_adapters(folder, partial=partial, model=base.model)


def _check_taught(routers: Iterable[str], folder: Path, *, partial: bool) -> None:
    """Refuse routers that have to learn and did not; the adapters alone are read for it."""
    from crossroads.adapters.choice import choose_router
    from crossroads.adapters.layout import read_bank
    from crossroads.adapters.learning import must_learn

    if learners := [spec for spec in routers if must_learn(spec)]:
        bank, _ = read_bank(folder, partial=partial)
        for spec in learners:
            choose_router(spec, bank, folder)


def read_adapters(folder: Path, *, partial: bool, **how: Any) -> AdapterBank:
    """Return the adapters of a folder as ``read_bank`` does, and say what was left out."""
    from crossroads.adapters.layout import read_bank

    bank, reports = read_bank(folder, partial=partial, **how)
    for report in reports:
        for left in report.left:
            of = "" if left.kind == "adapter" else f"of {report.expert}: "
            say(f"left out {of}{left.what}: {left.why}")
        for warning in report.warnings:
            say(f"note: {warning}")
    return bank


def tell_of_no_chat(base: BaseModel) -> None:
    """Say where messages become plain text, as no chat form comes with the model."""
    if not base.has_chat:
        say(f"note: {base.name} has no chat form (its tokenizer no template): messages are plain")


def say(line: str) -> None:
    """Tell people something beside the results."""
    click.echo(line, err=True)


def percent(share: float) -> str:
    """Return a share as text.

    >>> percent(0.4213), percent(0.00021)
    ('42.1 %', '0.0 %')
    """
    return f"{100 * share:.1f} %"


def facts_of_bank(bank: AdapterBank) -> dict[str, Any]:
    """Return a bank's size as plain data."""
    return {
        "experts": list(bank.names),
        "layers": len(bank.layers),
        "parameters": sum(expert.n_parameters for expert in bank.experts()),
    }
