from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from crossroads.core.http.timeouts import Timeouts
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Choice, Record
from crossroads.gateway.errors import ApiError
from crossroads.gateway.evaluation.replay import (
    PolicyChooser,
    Replay,
    RouterChooser,
    rebuilt_call,
    replay,
)
from crossroads.gateway.policies import CompiledPolicies, PoliciesSettings, compile_policies
from crossroads.gateway.upstreams import build_upstreams
from crossroads.prompts.fitted import FittedRouter, fit_router
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.readers import read_outcomes
from tests.gateway.ledger.records import record
from tests.gateway.policies.conftest import Stub, call, compiled, stub

POOL = Pool(name="two", models=(ModelCard(name="small"), ModelCard(name="large")))


class FakePolicies:
    """Sends long prompts to ``large``; refuses one word."""

    names: Sequence[str] = ("auto",)

    async def choose(self, call: Call, *, cost_price: float = 0.0) -> Choice:
        if "forbidden" in call.text:
            raise ApiError("no model is left")
        model = "large" if len(call.text) > 10 and not cost_price else "small"
        return Choice(model=model, policy="auto", version="v1", reason="by length")


def replayed(*records: Record) -> Replay:
    return asyncio.run(replay(records, PolicyChooser(FakePolicies())))


def test_decisions_are_the_same_changed_or_not_replayable() -> None:
    found = replayed(
        record("d1", prompt="short"),
        record("d2", prompt="a long prompt indeed"),
        record("d3", prompt="a long prompt indeed", version="v0"),
        record("d4"),
        record("d5", prompt="forbidden"),
        record("d6", policy="direct", prompt="short"),
    )
    assert (found.same, found.changed, found.skipped) == (1, 2, 1)
    assert found.moves == {("small", "large"): 2}
    assert found.not_replayable == {"no text kept": 1, "refused now: no model is left": 1}
    assert set(found.reasons) == {
        "the same version: the request had facts that the ledger does not keep",
        "another version of the policy",
    }
    assert found.num_priced == 2
    assert found.cost_usd == pytest.approx(2 * (0.01 - 0.001))
    assert json.loads(json.dumps(found.to_dict()))["moves"][0]["calls"] == 2


def test_a_recorded_price_on_cost_is_given_to_the_policy_again() -> None:
    found = replayed(record("d1", prompt="a long prompt indeed", labels={"cost-price": "5"}))
    assert found.same == 1


def test_a_call_is_rebuilt_with_its_id_and_session() -> None:
    call = rebuilt_call(record("dec_1", prompt="hello", session="s", team="t", input_tokens=100))
    assert (call.id, call.text, call.session, call.client.team) == ("dec_1", "hello", "s", "t")
    assert call.input_tokens == pytest.approx(100, abs=1)
    embedding = rebuilt_call(record("dec_2", prompt="hello", dialect="embeddings"))
    assert embedding.text == "hello"


def test_a_random_split_is_replayed_to_the_same_choices() -> None:
    settings = PoliciesSettings.model_validate(
        {"policies": {"auto": {"kind": "split", "weights": {"small": 1, "large": 1}}}}
    )
    policies = compile_policies(settings, POOL)

    async def decide(prompt: str, decision_id: str) -> Record:
        rebuilt = rebuilt_call(record(decision_id, prompt=prompt))
        choice = await policies.choose(rebuilt)
        return record(
            decision_id, prompt=prompt, chosen=choice.model, version=choice.version, policy="auto"
        )

    async def run() -> tuple[list[Record], Replay]:
        rows = [await decide(f"prompt {n}", f"dec_{n:032x}") for n in range(200)]
        return rows, await replay(rows, PolicyChooser(policies))

    rows, found = asyncio.run(run())
    policies.close()
    assert len({each.chosen for each in rows}) == 2
    assert found.same == 200


def test_a_request_whose_tags_decided_is_told_so_not_another_version() -> None:
    settings = PoliciesSettings.model_validate(
        {
            "policies": {
                "desk": {
                    "kind": "rules",
                    "rules": [{"when": {"tags": ["gold"]}, "use": "large"}],
                    "otherwise": "small",
                }
            }
        }
    )
    cards = (ModelCard(name=name, endpoint="http://127.0.0.1:9/v1") for name in ("small", "large"))
    pool = Pool(name="served", models=tuple(cards))
    upstreams = build_upstreams(pool, timeouts=Timeouts())
    speaks = {name: upstream.speaks for name, upstream in upstreams.items()}
    served = compile_policies(settings, pool, speaks=speaks)
    body = {"messages": [{"role": "user", "content": "hello"}]}
    gold = Call(dialect="chat", model="desk", body=body, headers={b"x-crossroads-tags": b"gold"})
    choice = asyncio.run(served.choose(gold))
    decided = {"asked": "desk", "policy": "desk", "version": choice.version}
    row = record("d1", prompt="hello", chosen=choice.model, **decided)
    again = compile_policies(settings, pool)  # by the file alone, as a replay does
    found = asyncio.run(replay([row], PolicyChooser(again)))
    assert found.moves == {("large", "small"): 1}
    told = "the same version: the request had facts that the ledger does not keep"
    assert found.reasons == {told: 1}


def test_a_replay_waits_for_a_router_that_was_in_time_before() -> None:
    fitted = stub()
    assert isinstance(fitted.router, Stub)
    gate = fitted.router.gate
    fields = {"budget_us": 2000, "fallback": "other", "inline_chars": 0}
    late = {"auto": {"kind": "learned", "router": "stub", **fields}}

    async def replayed_by(policies: CompiledPolicies) -> Replay:
        version = (await policies.choose(call(text="hard"))).version
        row = record("d1", prompt="wait hard", chosen="large", version=version)
        gate.clear()
        asyncio.get_running_loop().call_later(0.2, gate.set)
        found = await replay([row], PolicyChooser(policies))
        policies.close()
        return found

    timed = asyncio.run(replayed_by(compiled(late, router=fitted)))
    assert timed.reasons == {"the policy is degraded now": 1}
    waiting = asyncio.run(replayed_by(compiled(late, router=fitted, is_timed=False)))
    assert (waiting.same, waiting.changed) == (1, 0)


@pytest.fixture(scope="module")
def router() -> FittedRouter:
    return fit_router("knn", read_outcomes("local"))


def test_a_router_decides_by_text_and_by_embedding_alike(router: FittedRouter) -> None:
    texts = ["What is 12 % of 250?", "Convert 3 miles to kilometres."]
    vectors = router._encoder.encode(texts).astype("<f2")
    chosen = [d.model for d in router.decide(texts)]
    rows = [record(f"d{n}", prompt=t, chosen=chosen[n]) for n, t in enumerate(texts)]
    rows += [
        record(f"e{n}", features=vectors[n].tobytes(), chosen=chosen[n]) for n in range(len(texts))
    ]
    rows.append(record("f"))
    found = asyncio.run(replay(rows, RouterChooser(router)))
    assert found.same == 4
    assert found.not_replayable == {"neither text nor embedding kept": 1}
