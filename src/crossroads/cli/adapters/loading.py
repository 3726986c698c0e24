"""What the commands on a folder of adapters have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.core.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from crossroads.adapters.bank import AdapterBank
    from crossroads.adapters.base_models import BaseModel

Command = Callable[..., None]
SHIPPED = "shipped"
_WORDS = {"base", "saved"}  # taken as routers, names of none


def on_a_folder(function: Command) -> Command:
    """Add the argument DIR and the option --model."""
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


def load(
    folder: Path, model: Path | None, routers: Iterable[str] = ()
) -> tuple[BaseModel, AdapterBank]:
    """Return the base model, and the adapters of a folder after a look at whether they fit it.

    Names of ``routers`` are looked up first: a misspelt one need not wait for the model.
    """
    from crossroads.adapters.base_models import load_base
    from crossroads.adapters.layout import load_bank
    from crossroads.adapters.routers import router_class

    for spec in routers:
        if spec not in _WORDS:
            router_class(spec.split(":", 1)[0])
    base = load_base(model)
    return base, load_bank(folder, model=base.model)


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
