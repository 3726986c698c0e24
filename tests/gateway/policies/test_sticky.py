from __future__ import annotations

from typing import Any

from crossroads.gateway.call import Client
from crossroads.gateway.policies.eligibility import Eligibility
from crossroads.gateway.policies.node import Ask, Manner, ModelNode
from crossroads.gateway.policies.sticky import StickyNode, first_user_text
from tests.gateway.policies.conftest import LEARNED, call, choose, choose_one, compiled, pool, run

STICKY: dict[str, Any] = {"auto": LEARNED, "kept": {"kind": "sticky", "policy": "auto"}}


def turn(*texts: str, session: str = "s", **more: Any) -> Any:
    """Return a request that carries a conversation of several user messages."""
    messages = [{"role": "user", "content": text} for text in texts]
    headers = {"x-crossroads-session": session} if session else {}
    return call("kept", messages=messages, headers=headers, **more)


def test_a_session_stays_with_its_first_model() -> None:
    policies = compiled(STICKY)
    found = choose(
        policies, turn("hard"), turn("hard", "no-large hard"), turn("no-large hard", session="t")
    )
    assert [choice.model for choice in found] == ["large", "large", "medium"]
    assert "the session stays with large" in found[1].reason
    assert (found[1].labels["sticky"], found[1].policy) == ("kept", "kept")


def test_workers_that_share_nothing_agree_by_the_first_message() -> None:
    conversation = ("hard", "no-large hard")
    here = choose(compiled(STICKY), turn(conversation[0]), turn(*conversation))
    elsewhere = choose_one(compiled(STICKY), turn(*conversation))  # sees the second turn first
    assert elsewhere.model == here[1].model == "large"


def test_without_a_session_every_call_is_decided_anew() -> None:
    policies = compiled(STICKY)
    found = choose(policies, turn("hard", session=""), turn("no-large hard", session=""))
    assert [choice.model for choice in found] == ["large", "medium"]


def test_keys_do_not_share_sessions() -> None:
    policies = compiled(STICKY)
    mine, yours = Client(key_id="a"), Client(key_id="b")
    found = choose(policies, turn("hard", client=mine), turn("no-large hard", client=yours))
    assert [choice.model for choice in found] == ["large", "medium"]


def test_a_session_leaves_a_model_that_may_not_answer() -> None:
    policies = compiled(STICKY, models=pool(large={"tools": False}))
    found = choose(policies, turn("hard"), turn("hard", tools=[{}]))
    assert [choice.model for choice in found] == ["large", "medium"]


def test_sessions_end_and_the_oldest_are_forgotten() -> None:
    eligibility = Eligibility(pool())
    manner = Manner("kept", "1", None, {}, eligibility)
    now = [0.0]
    node = StickyNode(
        ModelNode("small", manner), manner, ttl_s=10.0, sessions=2, clock=lambda: now[0]
    )

    async def labels(session: str) -> str:
        given = turn("x", session=session)
        ask = Ask(given, eligibility.all, True, 0.0, "", "x", session)
        return (await node.choose(ask)).labels.get("sticky", "new")

    async def work() -> list[str]:
        told = [await labels("a"), await labels("a")]
        now[0] = 9.0
        told.append(await labels("a"))  # use renews it
        now[0] = 18.0
        told.append(await labels("a"))
        now[0] = 29.0
        told.append(await labels("a"))
        told += [await labels("b"), await labels("c"), await labels("a")]
        return told

    assert run(work) == ["new", "kept", "kept", "kept", "new", "new", "new", "new"]
    assert node.health() == {"state": "ok", "sessions": 2, "most": 2}


def test_what_was_drawn_stays_with_its_propensity() -> None:
    policies = compiled(
        {
            "ab": {"kind": "split", "weights": {"small": 1, "medium": 3}},
            "kept": {"kind": "sticky", "policy": "ab"},
        }
    )
    first, again = choose(policies, turn("x"), turn("x", "y"))
    assert first.model == again.model
    assert again.propensity == first.propensity == {"small": 0.25, "medium": 0.75}[first.model]


def test_a_look_at_the_probabilities_starts_no_session() -> None:
    policies = compiled(
        {
            "auto": LEARNED,
            "inner": {"kind": "sticky", "policy": "auto"},
            "kept": {"kind": "canary", "base": "small", "candidate": "inner", "share": 0.000001},
        }
    )
    found = choose_one(policies, turn("hard"))
    assert found.probabilities == {"small": 0.999999, "large": 0.000001}
    assert policies.health()["policies"]["inner"]["sessions"] == 0


def test_the_first_user_message_is_found_past_the_system_prompt() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert first_user_text(call(messages=messages)) == "hi"
    assert first_user_text(call(messages=[])) == ""
    assert first_user_text(call(messages="odd")) == ""


def test_workers_that_share_nothing_explore_alike_for_a_session() -> None:
    spec = {
        "auto": {**LEARNED, "explore": {"epsilon": 0.9, "floor": 0.0}},
        "ab": {"kind": "split", "weights": {"small": 1, "medium": 1}, "by": "request"},
        "kept": {"kind": "sticky", "policy": "auto"},
        "split": {"kind": "sticky", "policy": "ab"},
    }
    for name in ("kept", "split"):
        calls = [call(name, "hard", headers={"x-crossroads-session": f"{n}"}) for n in range(60)]
        here = [choice.model for choice in choose(compiled(spec), *calls)]
        again = [call(name, "hard", headers={"x-crossroads-session": f"{n}"}) for n in range(60)]
        assert [choice.model for choice in choose(compiled(spec), *again)] == here
        assert len(set(here)) > 1


def test_sessions_of_two_keys_draw_for_themselves() -> None:
    spec = {**STICKY, "auto": {**LEARNED, "explore": {"epsilon": 0.9, "floor": 0.0}}}

    def drawn(key: str) -> list[str]:
        calls = [turn("hard", session=f"{n}", client=Client(key_id=key)) for n in range(60)]
        return [choice.model for choice in choose(compiled(spec), *calls)]

    assert drawn("a") != drawn("b")


def test_only_the_first_prompt_has_the_estimates_made_of_it() -> None:
    spec = {**STICKY, "auto": {**LEARNED, "keep_features": True}}
    first, again = choose(compiled(spec), turn("hard"), turn("hard", "no-large hard"))
    elsewhere = choose_one(compiled(spec), turn("hard", "no-large hard"))
    assert first.decision is not None
    assert first.features is not None
    assert first.costs
    for choice in (again, elsewhere):
        assert (choice.model, choice.decision, choice.features) == ("large", None, None)
