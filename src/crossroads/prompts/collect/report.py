"""What a collection did, and what one would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A cell that stayed missing or without a score, and why."""

    prompt_id: str
    model: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectReport:
    """What a collection did.

    Attributes
    ----------
    num_cells : prompts x models
    num_finished : cells that were answered, in this run or before
    num_reused : cells an earlier run had finished
    num_unasked : calls that were not made because the money was spent
    failures : calls that failed; their cells are missing from the table, or without a grade
    unscored : cells of the table without a score
    models : per model its mean score, total cost (in ``cost_unit``, None if unknown) and mean
        latency (s)
    judges : per judge the grades it gave and what they cost
    cost_unit : what costs count
    seconds : wall time
    out : the table's path, None where no cell finished
    """

    num_prompts: int
    num_cells: int
    num_finished: int
    num_reused: int
    num_unasked: int
    failures: tuple[Failure, ...]
    unscored: tuple[Failure, ...]
    models: Mapping[str, Mapping[str, float | None]]
    judges: Mapping[str, Mapping[str, float | None]]
    cost_unit: str
    seconds: float
    out: str | None

    @property
    def is_complete(self) -> bool:
        """Whether every cell was asked, answered and scored."""
        return not (self.failures or self.unscored or self.num_unasked)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, under the attributes' names."""
        return asdict(self)


def summarise(failures: tuple[Failure, ...]) -> list[tuple[str, int, Failure]]:
    """Return (model, number of failures, the first of them), in the order of first failures."""
    found: dict[str, list[Failure]] = {}
    for failure in failures:
        found.setdefault(failure.model, []).append(failure)
    return [(model, len(mine), mine[0]) for model, mine in found.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectEstimate:
    """What a collection would ask.

    Attributes
    ----------
    num_cells, num_reused : as in ``CollectReport``
    models : per model ``num_calls``, ``input_tokens`` (about: 4 characters to the token) and
        ``cost``, at answers of the longest length; judges count as the models they are
    cost : of all calls
    cost_unit : what costs count
    """

    num_prompts: int
    num_cells: int
    num_reused: int
    models: Mapping[str, Mapping[str, float]]
    cost: float
    cost_unit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, under the attributes' names."""
        return asdict(self)
