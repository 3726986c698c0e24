"""The dashboard, in a real browser, with figures that are out of the ordinary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crossroads.gateway.admin.explain import to_fields
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


def test_what_routing_cost_more_is_no_negative_saving(browser: Any, gateway: FakeGateway) -> None:
    series: Any = gateway.sources().traffic

    async def dear(seconds: float) -> dict[str, Any]:
        found = await series(seconds)
        always = found["saved"]["always_best_usd"]
        return {**found, "saved": {**found["saved"], "saved_usd": -2 * always}}

    with serving(replace(gateway.sources(), traffic=dear)) as url:
        opened(browser, url)
        said = until(lambda: text(browser, "#figures"), "the figures")
    assert "cost more, expected" in said.lower()
    assert "200 % more than always" in said
    assert "-" not in said.lower().partition("cost more, expected")[2].partition("always")[0]


def test_what_is_not_watched_or_left_out_is_told(browser: Any, gateway: FakeGateway) -> None:
    regret: Any = gateway.sources().regret
    found = {**regret(), "left_out": 7}
    with serving(replace(gateway.sources(), drift=dict, regret=lambda: found)) as url:
        opened(browser, url + PATHS["system"])
        until(lambda: "no learned policy has the section drift" in text(browser), "drift")
        assert "4,812, and 7 left out" in text(browser, "#regret")


def test_a_model_that_waits_or_fails_unseen_is_not_called_well(
    browser: Any, gateway: FakeGateway
) -> None:
    told = gateway.upstreams()
    told["coder-14b"] |= {"state": "half_open", "waits_for_probe": True, "opens_for_s": 0.0}
    told["small-1b"] |= {"failure_share": 0.0, "num_recent": 0, "num_failed_in_row": 3}
    with serving(replace(gateway.sources(), upstreams=lambda: told)) as url:
        opened(browser, f"{url}/upstreams")
        until(lambda: "waits for a probe" in text(browser, "#list"), "the list")
        rows = text(browser, "#list").split("medium-8b")
        assert "serving, but failing" in rows[0] and "the last 3 calls failed" in rows[0]
        assert "no calls lately" in rows[0] and "serving, but failing" not in rows[1]


def test_a_judgement_reads_as_a_sentence(browser: Any, gateway: FakeGateway) -> None:
    row = to_fields(gateway.rows[0])
    told = {"decision_id": row["decision_id"], "time": row["time"], "key_id": "a", "comment": ""}
    scored = {**told, "feedback_id": "fb_1", "score": 1.0, "source": "user"}
    preferred = {**told, "feedback_id": "fb_2", "score": None, "source": "judge"}
    preferred |= {"preference": "over", "other": "small-1b"}
    found = {**row, "feedback": [scored, preferred]}
    with serving(replace(gateway.sources(), decision=lambda id: found)) as url:
        opened(browser, f"{url}/decisions")
        until(lambda: "by user" in text(browser, "#detail"), "the judgement")
        said = text(browser, "#detail")
    assert "1.00 by user" in said and "better than small-1b by judge" in said
    assert "fb_1" not in said


def test_a_filter_that_nothing_fits_leaves_nothing_explained(
    browser: Any, gateway: FakeGateway
) -> None:
    with serving(gateway.sources()) as url:
        opened(browser, f"{url}/decisions")
        until(lambda: "chosen" in text(browser, "#detail"), "an explanation")
        browser.find_element("name", "model").send_keys("nobody\n")
        until(lambda: "No call fits" in text(browser, "#list"), "the empty list")
        assert text(browser, "#detail") == ""


def test_on_a_phone_no_label_stands_without_its_value(browser: Any, gateway: FakeGateway) -> None:
    look(browser, width=400)
    labelled = (
        "[...document.querySelectorAll('.stack td')].filter(e => e.offsetHeight && "
        "e.dataset.label && !e.innerText.trim()).map(e => e.dataset.label)"
    )
    with serving(gateway.sources()) as url:
        for view in ("system", "routing", "keys"):
            opened(browser, url + PATHS[view])
            until(lambda: run(browser, "document.querySelector('.stack td') !== null"), view)
            assert run(browser, labelled) == [], view
    look(browser)


def test_only_a_paced_budget_is_measured_against_a_pace(browser: Any, gateway: FakeGateway) -> None:
    with serving(gateway.sources()) as url:
        opened(browser, f"{url}/budgets")
        rows = "[...document.querySelectorAll('.budget')].map(e => e.innerText)"
        until(lambda: run(browser, f"{rows}.length"), "budgets")
        for said in run(browser, rows):
            assert ("pace\n" in said or "on pace" in said) == ("paced" in said), said


def test_a_key_is_shown_with_the_limits_of_its_team(browser: Any, gateway: FakeGateway) -> None:
    gateway.keys.append(gateway.key("bare", 0, 0))
    with serving(gateway.sources()) as url:
        opened(browser, f"{url}/keys")
        until(lambda: "bare" in text(browser, "#list"), "the list")
        said = text(browser, "#list").split("bare")[1]
    assert "none of its own" in said and "with its team: $400 per month" in said
