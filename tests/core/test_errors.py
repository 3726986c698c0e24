"""The errors a user can meet."""

from __future__ import annotations

import pytest

from crossroads.core import errors


def test_every_error_on_purpose_can_be_caught_as_one() -> None:
    for error in (errors.InputError, errors.UsageError, errors.UnavailableError):
        assert issubclass(error, errors.CrossroadsError)
    assert issubclass(errors.MissingExtraError, errors.CrossroadsError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.UsageError, ValueError),
        (errors.UnavailableError, RuntimeError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_each_error_is_also_the_builtin_a_caller_expects(error, builtin) -> None:
    assert issubclass(error, builtin)


def test_only_wrong_usage_exits_with_two() -> None:
    assert errors.UsageError("x").exit_code == 2
    assert errors.InputError("x").exit_code == 1
    assert errors.UnavailableError("x").exit_code == 1
    assert errors.MissingExtraError("torch", extra="neural").exit_code == 1


def test_a_missing_extra_says_what_to_type() -> None:
    error = errors.MissingExtraError("onnxruntime", extra="minilm")
    assert str(error) == "onnxruntime is not installed; run: pip install 'crossroads[minilm]'"
    assert error.extra == "minilm"


def test_an_unknown_name_meets_the_nearest_spelling_and_all_that_exist() -> None:
    error = errors.unknown_name("router", "knm", iter(["ridge", "knn"]))
    assert str(error) == "unknown router 'knm'; did you mean 'knn'? Known: knn, ridge"


def test_an_unknown_name_near_nothing_gets_no_suggestion() -> None:
    error = errors.unknown_name("router", "zzzz", ["ridge", "knn"])
    assert str(error) == "unknown router 'zzzz'; Known: knn, ridge"
