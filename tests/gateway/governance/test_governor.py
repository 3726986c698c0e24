from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from crossroads.gateway.call import ANYBODY
from crossroads.gateway.contracts import Governor, Grant, Usage
from crossroads.gateway.errors import ApiError
from crossroads.gateway.governance import (
    GovernanceSettings,
    KeyFile,
    KeyGovernor,
    PriceBook,
    SteadyClock,
)
from tests.gateway.governance.asking import (
    SECRET,
    FakeTime,
    call_of,
    granted,
    is_granted,
    settings,
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def governor_of(clock: SteadyClock | None = None, **fields: Any) -> KeyGovernor:
    return KeyGovernor(settings(**fields), clock=clock)


def refusal(governor: KeyGovernor, *, usd: float | None = None, **body: Any) -> ApiError:
    async def ask() -> Grant:
        grant = await granted(governor, **body)
        if usd is not None:
            await grant.reserve(usd)
        return grant

    with pytest.raises(ApiError) as caught:
        run(ask())
    return caught.value


# --- keys ---


def test_without_keys_everybody_is_let_in_without_limits() -> None:
    governor: Governor = KeyGovernor(GovernanceSettings())
    assert governor.identify({}) is ANYBODY
    grant = run(granted(KeyGovernor(GovernanceSettings())))
    run(grant.reserve(1e9))
    grant.settle(Usage(10**9, 0), 1e9)
    assert grant.headers() == []
    assert grant.cost_price == 0


def test_the_single_key_of_the_server_is_named_default() -> None:
    governor = KeyGovernor(GovernanceSettings(), api_key="short")
    assert governor.identify({b"authorization": b"Bearer short"}).key_id == "default"
    with pytest.raises(ApiError, match="Wrong API key"):
        governor.identify({b"authorization": b"Bearer shor"})
    with pytest.raises(ApiError, match="No API key"):
        governor.identify({})


def test_a_file_of_keys_without_any_lets_nobody_in(tmp_path: Path) -> None:
    governor = KeyGovernor(GovernanceSettings(keys_file=str(tmp_path / "keys.yaml")))
    assert not governor.is_open
    with pytest.raises(ApiError) as caught:
        governor.identify({})
    assert caught.value.status == 401


def test_a_key_asks_only_for_the_models_on_its_list() -> None:
    governor = governor_of(key={"models": ["auto", "small"]})
    for model in ("auto", "auto:tradeoff:10", "small"):
        run(governor.admit(call_of(governor, model=model)))
    error = refusal(governor, model="large")
    assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
    assert "auto, small" in str(error)


# --- limits ---


def test_requests_beyond_the_limit_get_429_and_are_told_when_to_come_back() -> None:
    governor = governor_of(limits={"requests_per_minute": 2})
    assert [run(is_granted(governor)) for _ in range(3)] == [True, True, False]
    error = refusal(governor)
    headers = dict(error.headers)
    assert (error.status, error.type, error.code) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert 29 <= int(headers[b"retry-after"]) <= 30
    assert headers[b"x-ratelimit-limit-requests"] == b"2"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert "key 'a'" in str(error)


def test_tokens_are_estimated_at_first_and_settled_after() -> None:
    governor = governor_of(limits={"tokens_per_minute": 1_000})
    grant = run(granted(governor, max_tokens=899))  # and 1 for the prompt's estimate
    assert dict(grant.headers())[b"x-ratelimit-remaining-tokens"] == b"100"
    assert not run(is_granted(governor))  # 256 for an answer without a bound
    grant.settle(Usage(10, 40), 0.0)
    left = dict(run(granted(governor, max_tokens=1)).headers())[b"x-ratelimit-remaining-tokens"]
    assert 948 <= int(left) <= 960  # 1,000 less 50, less 2, and what flowed in meanwhile


def test_a_request_larger_than_the_limit_is_told_that_it_never_fits() -> None:
    governor = governor_of(limits={"tokens_per_minute": 100})
    error = refusal(governor, max_tokens=500)
    headers = dict(error.headers)
    assert headers[b"x-should-retry"] == b"false"
    assert b"retry-after" not in headers
    assert "Shorten it" in str(error)


def test_parallel_requests_are_bounded_and_their_places_come_back() -> None:
    governor = governor_of(limits={"parallel": 2})
    first, second = run(granted(governor)), run(granted(governor))
    error = refusal(governor)
    assert "2 requests at a time" in str(error)
    first.settle(Usage(), 0.0)
    third = run(granted(governor))
    for grant in (second, third):
        grant.release()
        grant.release()
        grant.settle(Usage(), 0.0)
    assert [run(is_granted(governor)) for _ in range(3)] == [True, True, False]


def test_keys_of_a_team_share_its_limits() -> None:
    secrets = {name: f"a-secret-of-{name}-key" for name in ("one", "other")}
    keys = [{"name": n, "secret": secret, "team": "t"} for n, secret in secrets.items()]
    teams = {"t": {"limits": {"requests_per_minute": 2}}}
    governor = KeyGovernor(GovernanceSettings.model_validate({"keys": keys, "teams": teams}))
    clients = [
        governor.identify({b"x-api-key": secrets[name].encode()})
        for name in ("one", "other", "one")
    ]
    call = call_of(governor_of())
    for client in clients[:2]:
        call.client = client
        run(governor.admit(call))
    call.client = clients[2]
    with pytest.raises(ApiError, match="team 't'"):
        run(governor.admit(call))


def test_a_refused_request_counts_against_nothing() -> None:
    governor = governor_of(
        limits={"requests_per_minute": 5, "tokens_per_minute": 100, "parallel": 5},
        teams={"t": {"limits": {"requests_per_minute": 100, "tokens_per_minute": 50}}},
        key={"team": "t"},
    )
    refusal(governor, max_tokens=70)
    left = {(row["kind"], row["left"]) for row in governor.describe()["keys"][0]["limits"]}
    assert left == {("requests", 5), ("tokens", 100), ("parallel", 5)}


def test_a_call_that_failed_is_a_request_all_the_same_and_gives_the_rest_back() -> None:
    governor = governor_of(
        limits={"requests_per_day": 5, "tokens_per_day": 500, "parallel": 5},
        budgets=[{"usd": 1.0}],
    )
    grant = run(granted(governor))
    run(grant.reserve(0.5))
    grant.release()
    row = governor.describe()["keys"][0]
    left = {limit["kind"]: limit["left"] for limit in row["limits"]}
    assert left == {"requests": 4, "tokens": 500, "parallel": 5}
    assert (row["budgets"][0]["spent_usd"], row["budgets"][0]["reserved_usd"]) == (0, 0)


def test_calls_that_all_fail_meet_the_limit_of_requests() -> None:
    governor = governor_of(limits={"requests_per_day": 2})
    for _ in range(2):
        run(granted(governor)).release()
    assert refusal(governor).code == "rate_limit_exceeded"


def test_answers_that_cost_nothing_are_told_to_the_pace() -> None:
    governor = governor_of(budgets=[{"usd": 1.0, "pace": True}])
    for usd in (0.0, 0.1, 0.0):
        run(granted(governor)).settle(Usage(1, 1), usd)
    run(granted(governor)).release()
    (budget,) = governor._holders.budgets
    assert budget.pacer is not None
    assert (budget.pacer.num_free, budget.meter.total_calls) == (2, 1)


@pytest.mark.parametrize("jump", [-(10**8), 10**8])
def test_a_jump_of_the_wall_clock_opens_and_locks_nothing(jump: int) -> None:
    time = FakeTime()
    governor = governor_of(
        time.clock(), limits={"requests_per_minute": 2}, budgets=[{"usd": 1.0, "per": "hour"}]
    )
    grant = run(granted(governor))
    run(grant.reserve(0.75))
    grant.settle(Usage(), 0.75)
    time.wall += jump
    assert governor.describe()["keys"][0]["budgets"][0]["spent_usd"] == 0.75
    assert run(is_granted(governor, usd=0.25))
    assert not run(is_granted(governor))


# --- money ---


def test_money_is_reserved_before_it_is_spent() -> None:
    governor = governor_of(budgets=[{"usd": 1.0, "per": "day"}])
    held = [run(granted(governor)) for _ in range(3)]
    run(held[0].reserve(0.4))
    run(held[1].reserve(0.4))
    error = refusal(governor, usd=0.4)
    assert (error.status, error.type, error.code) == (
        *(429, "insufficient_quota", "insufficient_quota"),
    )
    headers = dict(error.headers)
    assert headers[b"x-should-retry"] == b"false"
    assert 1 <= int(headers[b"retry-after"]) <= 86_400
    assert str(error).startswith("Budget of key 'a', 1 USD per day, has 0.2 USD left, and this")
    assert "resets at" in str(error)
    run(held[2].reserve(0.2))
    assert str(refusal(governor, usd=0.4)).startswith("Budget of key 'a' is used up: 1 USD per day")
    held[2].release()
    held[2] = run(granted(governor))
    held[0].settle(Usage(1, 1), 0.1)
    run(held[2].reserve(0.4))


def test_a_call_that_no_budget_like_this_pays_for_is_told_so_and_not_to_wait() -> None:
    governor = governor_of(limits={"requests_per_day": 9}, budgets=[{"usd": 0.001, "per": "day"}])
    error = refusal(governor, usd=0.061488)
    assert (error.status, error.code) == (429, "insufficient_quota")
    assert error.headers == [(b"x-should-retry", b"false")]
    assert str(error) == (
        "This request may cost 0.061488 USD and does not fit the budget of key 'a', 0.001 USD per "
        "day. Send max_tokens, or a lower one, shorten the prompt, or raise the budget."
    )


def test_what_a_call_really_cost_is_counted_even_beyond_the_cap() -> None:
    governor = governor_of(budgets=[{"usd": 1.0}])
    grant = run(granted(governor))
    run(grant.reserve(0.9))
    grant.settle(Usage(), 1.5)
    budget = governor.describe()["keys"][0]["budgets"][0]
    assert (budget["spent_usd"], budget["left_usd"], budget["alerts"]) == (1.5, 0.0, [0.8])
    assert refusal(governor, usd=0.000000001).code == "insufficient_quota"
    assert run(is_granted(governor, usd=0.0)), "a model that costs nothing may still be asked"


def test_a_budget_begins_anew_with_its_period() -> None:
    time = FakeTime()
    governor = governor_of(time.clock(), budgets=[{"usd": 1.0, "per": "hour"}])
    assert run(is_granted(governor, usd=1.0))
    before = governor.describe()["keys"][0]["budgets"][0]["reset_at"]
    time.pass_(3_600)
    budget_row = governor.describe()["keys"][0]["budgets"][0]
    assert budget_row["spent_usd"] == 0
    assert budget_row["reset_at"] > before


def test_of_two_budgets_the_one_that_refuses_takes_nothing_from_the_other() -> None:
    governor = governor_of(
        budgets=[{"usd": 10.0, "per": "month"}, {"usd": 1.0, "per": "day"}],
    )
    refusal(governor, usd=5.0)
    rows = governor.describe()["keys"][0]["budgets"]
    assert [row["reserved_usd"] for row in rows] == [0, 0]


# --- reloading, describing ---


def test_counts_survive_a_reload_and_new_limits_hold(tmp_path: Path) -> None:
    async def reload() -> None:
        before = governor_of(limits={"requests_per_minute": 3}, budgets=[{"usd": 1.0}])
        await before.start()
        grant = await granted(before)
        await grant.reserve(0.6)
        after = governor_of(limits={"requests_per_minute": 4}, budgets=[{"usd": 2.0}])
        assert after.adopt(before)
        grant.settle(Usage(), 0.5)
        row = after.describe()["keys"][0]
        assert (row["limits"][0]["limit"], row["limits"][0]["left"]) == (4, 3)
        assert (row["budgets"][0]["usd"], row["budgets"][0]["spent_usd"]) == (2.0, 0.5)
        await after.close()
        elsewhere = governor_of(store=f"sqlite:{tmp_path / 'limits.db'}")
        assert not elsewhere.adopt(after)

    run(reload())


def test_a_description_is_plain_data_without_secrets(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.yaml")
    secret, key = file.create("filed", expires="2001-01-01")
    governor = governor_of(
        limits={"requests_per_minute": 3, "parallel": 2},
        budgets=[{"usd": 1.0, "per": "day", "pace": True}],
        teams={"t": {"budgets": [{"usd": 5}]}},
        keys_file=str(file.path),
    )
    text = json.dumps(governor.describe())
    assert SECRET not in text
    assert secret not in text
    assert key.hash is not None
    assert key.hash.removeprefix("sha256:") not in text
    found = json.loads(text)
    assert [(row["name"], row["source"], row["expired"]) for row in found["keys"]] == [
        ("a", "config", False),
        ("filed", "file", True),
    ]
    assert found["keys"][0]["budgets"][0]["pace"]["price"] == 0
    assert found["teams"][0]["name"] == "t"
    assert found["store"] == {"url": "memory", "reachable": True, "problem": ""}


def test_the_price_of_a_paced_budget_survives_a_restart(tmp_path: Path) -> None:
    time = FakeTime(at=1_800_057_660.0)  # a minute after midnight
    fields: dict[str, Any] = {"budgets": [{"usd": 10.0, "per": "day", "pace": True}]}
    fields |= {"store": f"sqlite:{tmp_path / 'limits.db'}"}

    async def price(spent: float) -> float:
        governor = governor_of(time.clock(), **fields)
        await governor.start()
        for _ in range(10 if spent else 0):
            grant = await granted(governor)
            await grant.reserve(spent / 10)
            grant.settle(Usage(), spent / 10)
        if spent:
            time.pass_(600.0)  # a step may have been made before anything was spent
        for _ in range(400):
            if (await granted(governor)).cost_price > 0:
                break
            await asyncio.sleep(0.01)
        found = (await granted(governor)).cost_price
        await governor.close()
        return found

    learned = run(price(9.0))
    assert learned > 0
    assert run(price(0.0)) == learned


def test_a_store_that_is_not_there_at_the_start_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve(on_failure: str) -> tuple[str, bool]:
        governor = governor_of(
            limits={"requests_per_day": 1_000},
            store="unix:///nowhere/redis.sock",
            on_store_failure=on_failure,
        )
        await governor.start()
        status: str = governor.health()["status"]
        try:
            await granted(governor)
            is_let_in = True
        except ApiError as error:
            assert error.status == 503
            is_let_in = False
        await governor.close()
        return status, is_let_in

    with caplog.at_level(logging.WARNING):
        assert run(serve("open")) == ("degraded", True)
        assert run(serve("closed")) == ("failing", False)
    assert "the store of limits is not there" in caplog.text


def test_prices_of_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("m: {per_call: 2}")
    governor = KeyGovernor(GovernanceSettings(prices_file=str(path)))
    assert governor.prices.cost("m", Usage()) == 2.0
    given = PriceBook()
    assert KeyGovernor(GovernanceSettings(), prices=given).prices is given


def test_100_parallel_calls_in_one_process_spend_a_budget_of_10() -> None:
    governor = governor_of(budgets=[{"usd": 10.0}])

    async def rush() -> int:
        return sum(await asyncio.gather(*(is_granted(governor, usd=1.0) for _ in range(100))))

    assert run(rush()) == 10
