"""How many parameters an expert has: given, on its pool's card, or read off its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.prompts.pool import Pool

_SCALE = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e[+]?\d+)?)\s*([KMBT]?)", re.IGNORECASE)
# In a name the letter is needed and nothing may go on behind it: "7b" but not "4k" or "8bit".
_IN_NAME = re.compile(
    r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([MBT])(?![A-Za-z0-9])", re.IGNORECASE
)


def parse_size(text: str, *, where: str) -> float:
    """Return a number of parameters from ``7B``, ``135M``, ``1.5e9``; ``where`` names it in errors.

    Raises UsageError.
    """
    found = _SIZE.fullmatch(text.strip())
    value = float(found[1]) * _SCALE.get(found[2].upper(), 1.0) if found else 0.0
    if not 0 < value < np.inf:
        raise UsageError(f"{where}: expected a number of parameters like 7B or 135M, got {text!r}")
    return value


def size_in_name(name: str) -> float | None:
    """Return the parameters a model's name states, None where it states none or several.

    Of ``AxB`` mixtures the product is returned, an upper bound: their experts share some layers.

    >>> size_in_name("Llama-2-7b-hf"), size_in_name("Mixtral-8x7B-v0.1"), size_in_name("gpt-4")
    (7000000000.0, 56000000000.0, None)
    """
    found = {
        int(times or 1) * float(number) * _SCALE[letter.upper()]
        for times, number, letter in _IN_NAME.findall(name)
    }
    return found.pop() if len(found) == 1 else None


def parse_sizes(assignments: Sequence[str], *, where: str) -> dict[str, float]:
    """Return sizes by model from ``name=7B`` entries. Raises UsageError."""
    sizes = {}
    for text in assignments:
        name, equals, size = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"{where}: expected NAME=SIZE, for instance my-model=7B, got {text!r}")
        sizes[name] = parse_size(size, where=f"{where} of {name}")
    return sizes


def model_sizes(
    models: Sequence[str], *, given: Mapping[str, float] | None = None, pool: Pool | None = None
) -> npt.NDArray[np.float64]:
    """Return the parameters of K models, shape (K,).

    A given size goes before the card's, the card's before the name's. Raises UsageError for a given
    size of no model, InputError naming the models whose size is nowhere.
    """
    given = given or {}
    for name in given:
        if name not in models:
            raise unknown_name("model", name, models)
    cards = {} if pool is None else {card.name: card.parameters for card in pool}
    found = {name: given.get(name) or cards.get(name) or size_in_name(name) for name in models}
    missing = [name for name, size in found.items() if size is None]
    if missing:
        raise InputError(
            f"no size known of {', '.join(missing)}; give it as sizes=NAME=7B, name a pool "
            "whose cards say 'parameters', or leave the model out"
        )
    return np.array([found[name] for name in models], dtype=np.float64)
