from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.gateway.evaluation import FixedModel, off_policy
from crossroads.gateway.evaluation.page import _round_values, render_page, write_page
from tests.gateway.evaluation.logs import make_log, replayed


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_draws_every_estimate_and_loads_nothing(tmp_path: Path) -> None:
    log, target = replayed(np.random.default_rng(0), 500)
    path = write_page(off_policy(log, target, draws=50), tmp_path, source="sqlite:l.db")
    page = path.read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert sum(tag == "svg" for tag, _ in tags.seen) == 4
    assert sum(attrs.get("class") == "middle" for _, attrs in tags.seen) == 26
    assert not [tag for tag, attrs in tags.seen if tag in ("script", "iframe") or "src" in attrs]
    assert "doubly robust" in page
    assert "half as likely to make the candidate's choice; that choice was seen on" in page
    assert "sqlite:l.db" in page


def test_the_page_of_a_refused_candidate_shows_bounds_and_why() -> None:
    certain = np.tile([1.0, 0.0], (200, 1))
    log = make_log(np.zeros(200, int), certain, np.ones(200))
    page = render_page(off_policy(log, FixedModel("b"), draws=20), source="<script>")
    assert "Bounds" in page
    assert "zero propensity" in page
    assert "<script>" not in page


@given(st.floats(-1, 1), st.floats(1e-6, 2))
def test_an_axis_has_two_to_six_round_values_within(low: float, width: float) -> None:
    values = _round_values(low, low + width)
    assert 2 <= len(values) <= 6
    slack = 1e-9 * (1 + width)
    assert all(low - slack <= value <= low + width + slack for value in values)


def test_bars_below_zero_have_values_below_zero() -> None:
    assert [round(value, 6) for value in _round_values(-0.0475, 0.055)] == [
        *(-0.04, -0.02, 0.0),
        *(0.02, 0.04),
    ]


def test_every_interval_drawn_is_told_in_figures() -> None:
    log, target = replayed(np.random.default_rng(0), 500)
    found = off_policy(log, target, draws=0)
    page = render_page(found, source="l.db")
    dr = found.difference["dr"]
    assert f"<td>{dr.value:.3g}<br>[{dr.low:.3g}, {dr.high:.3g}]</td>" in page
