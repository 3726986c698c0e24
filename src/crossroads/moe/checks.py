"""Settings that a router or a layer refuses when it is built, in the same words everywhere."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, get_args

from crossroads.core.errors import UsageError


def check_known(name: str, value: object, known: Any) -> None:
    """Raise UsageError for a value that is none of a ``Literal``."""
    values = get_args(known)
    if value not in values:
        raise UsageError(f"{name}: expected one of {', '.join(values)}, got {value!r}")


def check_whole(**values: object) -> None:
    """Raise UsageError for a value that is no whole number; None passes."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise UsageError(f"{name}: expected a whole number, got {value!r}")


def check_coefficients(**values: float) -> None:
    """Raise UsageError for a number below 0, an infinite one and NaN."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name}: expected a finite number, 0 or more, got {value}")


def check_positive(**values: float) -> None:
    """Raise UsageError for 0, a number below it, an infinite one and NaN."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name}: expected a finite number, more than 0, got {value}")
