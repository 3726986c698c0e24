from __future__ import annotations

import math
from typing import Literal

import pytest

from crossroads.core.errors import UsageError
from crossroads.moe.checks import check_coefficients, check_known, check_positive

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
