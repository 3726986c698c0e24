"""Scorers by name: shipped ones, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts import scorers
from crossroads.prompts.scorers import ScoringError, parse_scorer, scorer_names


def length(argument: str) -> Callable[[str, Sequence[str]], Any]:
    """A scorer of another package: the share of ``argument`` characters."""
    if argument and not argument.isdecimal():
        raise UsageError("length: expected a whole number")

    def score(answer: str, references: Sequence[str]) -> Any:
        return None if answer == "none" else len(answer) / int(argument or 10)

    return score


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="length", value=f"{__name__}:length", group=scorers.GROUP)
    monkeypatch.setattr(scorers, "_third_party", lambda: {"length": entry})


def test_the_names_are_the_documented_ones() -> None:
    shipped = ("choice", "code", "contains", "exact", "judge", "numeric", "regex", "symbolic")
    assert scorer_names() == sorted(shipped)
    assert all(name in (scorers.__doc__ or "") for name in shipped)


@pytest.mark.usefixtures("_installed")
def test_another_package_adds_a_scorer_with_an_argument() -> None:
    assert "length" in scorer_names()
    assert parse_scorer("length")("12345", []) == 0.5
    assert parse_scorer("length:5")("12345", []) == 1
    with pytest.raises(UsageError, match="expected a whole number"):
        parse_scorer("length:x")


@pytest.mark.usefixtures("_installed")
def test_what_another_package_gets_wrong_is_no_score() -> None:
    with pytest.raises(ScoringError, match=r"scorer 'length:1': expected a score in \[0, 1\]"):
        parse_scorer("length:1")("12345", [])
    with pytest.raises(ScoringError, match="scorer 'length' failed: TypeError"):
        parse_scorer("length")("none", [])
