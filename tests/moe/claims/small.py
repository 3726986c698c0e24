"""Figures made up, and claims run in a few steps of one seed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from crossroads.moe.beds import ArenaBed
from crossroads.moe.claims.arms import Arms


def made_up(figures: Mapping[str, Mapping[str, float | Sequence[float]]]) -> Arms:
    """Return arms of three seeds; a plain number holds in every seed."""
    return Arms(
        seeds=(0, 1, 2),
        figures={
            arm: {
                name: (value,) * 3 if isinstance(value, int | float) else tuple(value)
                for name, value in found.items()
            }
            for arm, found in figures.items()
        },
    )


def shorten(
    patch: pytest.MonkeyPatch, claim: ModuleType, bed: type[ArenaBed] | Any, steps: int = 2
) -> None:
    """Let a claim train one seed of each arm for a few steps, in this process."""
    config = bed.config

    def short(self: Any, preset: Any) -> Any:
        return replace(config(self, preset), steps=steps, warmup=0)

    patch.setattr(bed, "config", short)
    patch.setattr(claim, "SEEDS", (0,))
    patch.setattr(claim, "run_arms", functools.partial(claim.run_arms, jobs=1))
