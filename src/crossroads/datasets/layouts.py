"""Which data set a folder holds, recognised by its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError
from crossroads.datasets import mmlu_pro, routellm, routerarena, zeroeval


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An outcome data set as it lies in a folder.

    ``pool`` names the shipped pool of its models; ``load`` returns the long Arrow table.
    """

    name: str
    files: tuple[str, ...]
    pool: str
    source: str
    load: Callable[[Path], Any]


LAYOUTS = tuple(
    Layout(name=name, files=m.FILES, pool=m.POOL, source=m.SOURCE, load=m.load)
    for name, m in (
        ("mmlu_pro_outcomes", mmlu_pro),
        ("routellm_mmlu_gsm8k", routellm),
        ("routerarena", routerarena),
        ("zeroeval_outcomes", zeroeval),
    )
)


def recognise(folder: Path) -> Layout:
    """Return the layout whose files the folder holds. Raises InputError naming those it knows."""
    present = {entry.name for entry in folder.iterdir()}
    for layout in LAYOUTS:
        if present.issuperset(layout.files):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.files)}" for layout in LAYOUTS)
    raise InputError(
        f"{folder}: not the folder of a known outcome table; give a file, or one with ({known})"
    )
