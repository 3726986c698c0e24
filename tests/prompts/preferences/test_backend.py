from __future__ import annotations

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.preferences.backend import get_backend


@pytest.mark.parametrize(
    ("backend", "known"),
    [
        ("matcher", "encoder, tau"),
        ("scorer", "dtype, is_calibrated"),
        ("tuned", "adapter, dtype, is_calibrated"),
    ],
)
def test_an_unknown_option_is_named_with_what_the_back_end_takes(backend: str, known: str) -> None:
    with pytest.raises(UsageError) as wrong:
        get_backend(backend, device="cpu")
    assert str(wrong.value) == (
        f"option 'device' is not one of {backend}; it takes {known}; "
        "remove it from preferences.options"
    )


def test_an_option_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="'tuned' needs option 'adapter'; add it to preferences"):
        get_backend("tuned")
