"""Rates, waits and money of a live collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crossroads.core.errors import UsageError
from crossroads.prompts.collect import (
    CollectReport,
    CollectSettings,
    PromptItem,
    calls,
    collect,
    estimate,
)
from crossroads.prompts.collect.limits import RateLimiter
from crossroads.prompts.pool import ModelCard, Pool
from tests.prompts.collect.replies import Replies
from tests.prompts.collect.test_limits import Time


def items(count: int, **fields: Any) -> list[PromptItem]:
    return [
        PromptItem(prompt_id=f"p{n}", prompt=f"question {n}", references=("yes",), **fields)
        for n in range(count)
    ]


def pool_of(upstream: Replies, *names: str, **fields: Any) -> Pool:
    return Pool(models=tuple(ModelCard(name=n, endpoint=upstream.url, **fields) for n in names))


def run(pool: Pool, prompts: list[PromptItem], out: Path, **settings: Any) -> CollectReport:
    return collect(pool, prompts, out, settings=CollectSettings(backoff=0.001, **settings))


def test_calls_of_one_model_keep_to_its_bound_and_others_to_the_general_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[Time] = []

    def build(**bounds: Any) -> RateLimiter:
        times.append(Time())
        return RateLimiter(clock=times[-1].clock, sleep=times[-1].sleep, **bounds)

    monkeypatch.setattr(calls, "RateLimiter", build)
    with Replies(lambda body: "yes") as upstream:
        bounds = {"b": 2, "*": 3}
        pool = pool_of(upstream, "a", "b")
        report = run(pool, items(6), tmp_path / "o.csv", requests_per_minute=bounds)
    assert report.is_complete
    assert [time.now for time in times] == [60, 120]  # 3 + 3 calls, and 2 + 2 + 2


def test_the_bound_of_a_card_holds_where_no_option_overrules_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[Time] = []

    def build(**bounds: Any) -> RateLimiter:
        times.append(Time())
        return RateLimiter(clock=times[-1].clock, sleep=times[-1].sleep, **bounds)

    monkeypatch.setattr(calls, "RateLimiter", build)
    with Replies(lambda body: "yes") as upstream:
        pool = pool_of(upstream, "a", "b", requests_per_minute=2)
        report = run(pool, items(6), tmp_path / "o.csv", requests_per_minute={"b": 3})
    assert report.is_complete
    assert [time.now for time in times] == [120, 60]


def test_a_model_that_asks_to_wait_gets_its_time_and_then_answers(tmp_path: Path) -> None:
    seen: list[int] = []

    def reply(body: dict[str, Any]) -> str | web.Response:
        seen.append(1)
        if len(seen) == 1:
            return web.json_response({"error": {}}, status=429, headers={"retry-after": "0.05"})
        return "yes"

    with Replies(reply) as upstream:
        report = run(pool_of(upstream, "m"), items(2), tmp_path / "o.csv", concurrency=1)
        assert (report.failures, len(upstream.requests)) == ((), 3)


def test_a_model_that_asks_to_wait_for_long_is_left_to_the_next_run(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {}}, status=429, headers={"retry-after": "3600"})

    with Replies(reply) as upstream:
        report = run(pool_of(upstream, "m"), items(1), tmp_path / "o.csv")
        assert (len(report.failures), len(upstream.requests)) == (1, 1)


def test_the_table_never_costs_more_than_the_cap_and_more_money_continues_it(
    tmp_path: Path,
) -> None:
    out, prompts = tmp_path / "o.csv", items(20)
    with Replies(lambda body: "yes") as upstream:
        pool = pool_of(upstream, "m", price_out=1000.0)  # 0.01 each at 10 tokens
        upstream.usage = {"prompt_tokens": 0, "completion_tokens": 10}
        settings = {"max_tokens": 20, "concurrency": 3}
        first = run(pool, prompts, out, max_cost=0.1, **settings)
        made = len(upstream.requests)
        assert first.num_unasked == 20 - made
        assert first.models["m"]["cost"] == pytest.approx(0.01 * made)
        assert 0.08 <= 0.01 * made <= 0.1  # a further call could have cost 0.02
        assert not first.is_complete
        again = run(pool, prompts, out, max_cost=0.1, **settings)
        assert (again.num_reused, len(upstream.requests)) == (made, made)
        last = run(pool, prompts, out, max_cost=1.0, **settings)
        assert (last.num_reused, last.num_unasked, len(upstream.requests)) == (made, 0, 20)
        assert last.is_complete


def test_answers_without_token_counts_count_at_their_worst(tmp_path: Path) -> None:
    with Replies(lambda body: "yes") as upstream:
        upstream.usage = None
        pool = pool_of(upstream, "m", price_out=1000.0)
        settings = {"max_tokens": 20, "max_cost": 0.05, "concurrency": 1}
        report = run(pool, items(5), tmp_path / "o.csv", **settings)
        assert len(upstream.requests) == 2
        assert report.models["m"]["cost"] is None


def test_a_cap_without_prices_is_refused(tmp_path: Path) -> None:
    pool = Pool(models=(ModelCard(name="m", endpoint="local:units"),))
    with pytest.raises(UsageError, match="has no prices"):
        run(pool, items(1), tmp_path / "o.csv", max_cost=1.0)
    with pytest.raises(UsageError, match="max cost: expected more than 0"):
        CollectSettings(max_cost=0.0)


def test_bounds_of_unknown_models_and_empty_bounds_are_refused(tmp_path: Path) -> None:
    pool = Pool(models=(ModelCard(name="m", endpoint="local:units"),))
    with pytest.raises(UsageError, match="unknown model 'n'"):
        run(pool, items(1), tmp_path / "o.csv", requests_per_minute={"n": 3})
    with pytest.raises(UsageError, match=r"tokens per minute of '\*': expected at least 1"):
        CollectSettings(tokens_per_minute={"*": 0})


def test_an_estimate_asks_nothing_and_leaves_out_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    with Replies(lambda body: "yes" if body["model"] == "a" else web.Response(status=400)) as up:
        pool = pool_of(up, "a", "b", price_in=4.0, price_out=10.0)
        settings = CollectSettings(max_tokens=100)
        whole = estimate(pool, items(3), out, settings=settings)
        assert up.requests == []
        assert whole.models["a"] == {
            "num_calls": 3,
            "input_tokens": 9,  # "question 0" has 10 characters
            "cost": pytest.approx((9 * 4 + 300 * 10) / 1e6),
        }
        assert whole.cost == pytest.approx(2 * whole.models["a"]["cost"])
        run(pool, items(3), out, max_tokens=100)
        rest = estimate(pool, items(3), out, settings=settings)
        assert (rest.num_reused, rest.models["a"]["num_calls"]) == (3, 0)
        assert rest.models["b"]["num_calls"] == 3
