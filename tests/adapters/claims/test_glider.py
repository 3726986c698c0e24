"""The claim about GLIDER: its rules by hand, and the shipped experts."""

from __future__ import annotations

import statistics

import pytest

from crossroads.adapters.claims import glider
from crossroads.adapters.claims.glider import judge, mixed, nearest_share, off_oracle
from crossroads.core.catalog import Outcome
from tests.adapters.claims.beds import HandBed, Values, shipped_bed

OUT = (3.0, 3.01, 3.0)


def bed(held_in: Values, held_out: Values) -> HandBed:
    """PHATGOOSE at 2.5 held in, at 3 held out; the oracle at 2."""
    local = ([2.5, 2.51, 2.5], OUT)
    return HandBed({"glider": (held_in, held_out), "phatgoose": local, "oracle": ([2.0] * 3, OUT)})


@pytest.mark.parametrize(
    ("made", "known", "verdict"),
    [
        (bed((2.3, 2.31, 2.3), OUT), 0.95, "holds"),
        (bed((2.3, 2.31, 2.3), OUT), 0.8, "holds in direction"),
        (bed((2.3, 2.9, 2.2), OUT), 0.95, "holds in direction"),  # unsure
        (bed((1.0, 1.01, 1.0), OUT), 0.95, "holds in direction"),  # beyond the oracle, and far
        (bed((2.5, 2.51, 2.5), OUT), 0.95, "holds in direction"),
        (bed((2.3, 3.4, 2.2), OUT), 0.95, "null"),
        (bed((2.3, 2.31, 2.3), (3.0, 3.6, 2.9)), 0.95, "null"),
        (bed((2.6, 2.61, 2.6), OUT), 0.95, "fails"),
        (bed((2.3, 2.31, 2.3), (3.1, 3.11, 3.1)), 0.95, "fails"),
    ],
)
def test_the_rules(
    made: HandBed, known: float, verdict: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glider, "nearest_share", lambda bed: {"all": known})
    assert judge(made) == verdict


@pytest.mark.acceptance
def test_prompts_of_known_tasks_gain() -> None:
    shipped = shipped_bed()
    means = [statistics.mean(shipped.means(a, held_in=True)) for a in ("glider", "phatgoose")]
    assert means[0] <= means[1] + 0.005
    assert off_oracle(shipped, "glider") < off_oracle(shipped, "phatgoose")


@pytest.mark.acceptance
def test_the_nearest_expert_is_the_own_one_for_nine_prompts_in_ten() -> None:
    assert nearest_share(shipped_bed())["all"] >= 0.9


@pytest.mark.acceptance
def test_documents_of_two_kinds_count_as_unknown() -> None:
    assert mixed(shipped_bed())["counted_as_known"] == 0
