from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import pytest

from crossroads.core.errors import UsageError
from crossroads.moe.checks import check_coefficients, check_known, check_positive, check_whole
from crossroads.moe.routers import build_router, known_settings, router_class, router_names

Loss = Literal["picks", "tokens"]


def test_a_value_outside_a_literal_is_answered_with_the_known_ones() -> None:
    check_known("f_norm", "picks", Loss)
    with pytest.raises(UsageError, match="f_norm: expected one of picks, tokens, got 'pick'"):
        check_known("f_norm", "pick", Loss)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_coefficient_is_a_finite_number_of_0_or_more(wrong: float) -> None:
    check_coefficients(balance=0.0, z_loss=1e-3)
    check_positive(tau=1e-3)
    with pytest.raises(UsageError, match="z_loss: expected a finite number, 0 or more"):
        check_coefficients(balance=0.0, z_loss=wrong)
    for refused in (wrong, 0.0):
        with pytest.raises(UsageError, match="tau: expected a finite number, more than 0"):
            check_positive(tau=refused)


def whole_settings(name: str) -> list[str]:
    """Return the settings of a router that its constructors declare as whole numbers."""
    parameters = [
        p
        for base in router_class(name).__mro__
        if "__init__" in vars(base)
        for p in inspect.signature(vars(base)["__init__"]).parameters.values()
    ]
    whole = {p.name for p in parameters if p.annotation in ("int", "int | None")}
    return sorted(whole & known_settings(router_class(name)).keys())


@pytest.mark.parametrize("wrong", ["2", 1.5, True])
@pytest.mark.parametrize("name", router_names())
def test_routers_refuse_what_is_no_whole_number_where_they_count(name: str, wrong: Any) -> None:
    for setting in whole_settings(name):
        with pytest.raises(
            UsageError, match=rf"\b{setting}: expected a whole number( or none)?, got {wrong!r}"
        ):
            build_router(name, 8, 4, **{setting: wrong})


def test_whole_numbers_of_other_libraries_and_nothing_are_taken() -> None:
    import numpy as np

    check_whole(k=np.int64(2), k_max=None)
    assert build_router("switch", 8, 4, k=np.int64(2)).nominal_active == 2
