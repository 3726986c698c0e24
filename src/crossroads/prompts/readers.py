"""Reading and writing outcome tables: Parquet, CSV, JSON lines, data set folders, shipped tables.

A file is read whole, checked, and only then returned; a wrong one raises InputError on one line
that names the file, the place, the column and the remedy (``crossroads.prompts.long_form``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import replacing
from crossroads.datasets.layouts import recognise
from crossroads.prompts import embedded
from crossroads.prompts.formats import FORMATS, read_long, row_number, to_long, typed, write_long
from crossroads.prompts.logs import find_logs, read_logs
from crossroads.prompts.long_form import LongTable, densify
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool, read_pool

LOCAL = "local"
LOCAL_FILE = "local_outcomes.csv"
LOCAL_SOURCE = (
    "local experts on this project's own prompts, measured; prices are declared, not billed"
)


def read_outcomes(
    source: str | Path, *, pool: Pool | None = None, models: Sequence[str] | None = None
) -> OutcomeTable:
    """Return the outcome table of a file, a folder or a shipped table.

    The costs are those of the ``cost`` column, else token counts at the pool's prices, else absent.
    Raises InputError for a wrong file, UsageError for unknown names.

    Parameters
    ----------
    source : ``.parquet``, ``.csv`` or ``.jsonl`` file (the last two also ``.gz``) in the long form
        of ``crossroads.prompts.outcomes``; a folder of a known data set
        (``crossroads.datasets.layouts``); a log of another harness or a folder of such logs
        (``crossroads.prompts.logs``); or ``mmlu-pro``, ``mmlu-pro:small`` (``:served``,
        ``:complete``), ``local``
    pool : prices; every model of the table must be in it. Shipped tables and data set folders have
        a pool of their own, whose models they are reduced to
    models : the models to keep, in this order
    """
    name, _, part = str(source).partition(":")
    if name == embedded.NAME:
        table = embedded.load_embedded(part or "all", pool=pool)
        return table if models is None else table.select_models(models)
    if str(source) == LOCAL:
        return _read_local(pool, models)
    path = Path(source)
    try:
        if path.exists() and find_logs(path):
            return read_logs([path], pool=pool, models=models)
        if path.is_dir():
            return _read_folder(path, pool, models)
        if not path.exists():
            raise InputError(
                f"outcomes {str(source)!r}: no such file; give {', '.join(FORMATS)}, a data set "
                f"folder, or one of: {', '.join(shipped_tables())}"
            )
        return _finish(read_long(path), source=path.name, pool=pool, models=models)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def shipped_tables() -> list[str]:
    """Return the names of the tables inside the package."""
    names = [f"{embedded.NAME}:{part}" for part in embedded.SUBSETS if part != "all"]
    local = [LOCAL] if _local_file().is_file() else []
    return [embedded.NAME, *names, *local]


def _finish(
    long: LongTable, *, source: str, pool: Pool | None, models: Sequence[str] | None
) -> OutcomeTable:
    table = densify(long, source=source, models=models, pool=pool)
    if table.has_costs or pool is None or not pool.has_prices:
        return table
    priced = table.with_prices(pool)
    is_known = priced.cost is not None and bool(np.isfinite(priced.cost).any())
    return priced if is_known else table


def _read_folder(path: Path, pool: Pool | None, models: Sequence[str] | None) -> OutcomeTable:
    layout = recognise(path)
    columns = layout.load(path)
    long = LongTable(where=str(path), columns=typed(str(path), columns), place=row_number)
    if pool is None:
        pool = read_pool(layout.pool)
        models = pool.names if models is None else models
    return _finish(long, source=layout.source, pool=pool, models=models)


def _read_local(pool: Pool | None, models: Sequence[str] | None) -> OutcomeTable:
    if not _local_file().is_file():
        raise UsageError(f"no table {LOCAL!r} in this installation; reinstall crossroads")
    with resources.as_file(_local_file()) as path:
        long = read_long(path)
    return _finish(long, source=LOCAL_SOURCE, pool=pool or read_pool(LOCAL), models=models)


def _local_file() -> Any:
    return resources.files(__package__).joinpath(f"data/{LOCAL_FILE}")


def write_outcomes(table: OutcomeTable, path: str | Path) -> None:
    """Write a table in the long form, by the suffix: Parquet, CSV or JSON lines (also ``.gz``).

    Reading it again gives the same table, embeddings and source aside. Cells that were not run are
    left out, except on the first prompt, whose rows keep the order of the models. The file appears
    whole or not at all. Raises UsageError for an unknown suffix, InputError where it cannot write.
    """
    path = Path(path)
    if not path.name.lower().endswith(FORMATS):
        raise UsageError(f"{path}: unknown kind of file; expected one of {', '.join(FORMATS)}")
    with replacing(path) as temporary:
        write_long(to_long(table), temporary, path.name.lower())
