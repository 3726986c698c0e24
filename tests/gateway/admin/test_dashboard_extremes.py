"""The dashboard, in a real browser, with figures that are out of the ordinary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.chromium import MARKS
from tests.gateway.admin.fakes import FakeGateway
from tests.gateway.admin.serving import serving
from tests.gateway.admin.test_dashboard import PATHS, look, opened, run, text, until

pytestmark = MARKS


def test_long_names_and_errors_stay_within_their_tables(browser: Any, gateway: FakeGateway) -> None:
    look(browser)
    url = "https://models.example.org/" + "v1" * 120
    told = gateway.upstreams()
    told["coder-14b"]["last_error"] = f"cannot connect to {url}"
    name = "a" * 48
    rows = [replace(row, asked=name, model=name, input_tokens=123_456) for row in gateway.rows]
    sources = replace(
        gateway.sources(), upstreams=lambda: told, decisions=lambda limit, filters: rows
    )
    beyond = "[...document.querySelectorAll('.panel')].filter(e => e.scrollWidth > e.clientWidth)"
    with serving(sources) as running:
        for view in ("upstreams", "decisions"):
            opened(browser, running + PATHS[view])
            until(lambda: run(browser, "document.querySelector('#list td') !== null"), view)
            assert run(browser, f"{beyond}.length") == 0, view
            assert run(browser, "document.documentElement.scrollWidth") <= 1280, view


def test_a_call_that_nobody_answered_says_so(browser: Any, gateway: FakeGateway) -> None:
    look(browser)
    row = replace(gateway.rows[0], model="", chosen="small-1b", status=429, is_complete=False)
    sources = replace(gateway.sources(), decisions=lambda limit, filters: [row])
    with serving(sources) as url:
        opened(browser, f"{url}/decisions")
        until(lambda: "nobody" in text(browser, "#list"), "the list")
        assert "small-1b was chosen" in text(browser, "#list")


def test_a_best_model_without_cost_is_not_taken_for_missing_prices(
    browser: Any, gateway: FakeGateway
) -> None:
    series: Any = gateway.sources().traffic

    async def unpriced(seconds: float) -> dict[str, Any]:
        return {**await series(seconds), "saved": None}

    with serving(replace(gateway.sources(), traffic=unpriced)) as url:
        opened(browser, url)
        said = text(browser)
    assert "needs a router, and a best model that costs" in said
    assert "whose best model has a price above 0" in said
