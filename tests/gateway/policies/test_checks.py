from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from crossroads.gateway.call import Body, Client
from crossroads.gateway.contracts import ExpertError
from crossroads.gateway.policies.checks import (
    JudgeCheck,
    LogprobsCheck,
    RulesCheck,
    build_check,
)
from crossroads.gateway.policies.eligibility import Eligibility
from crossroads.gateway.policies.settings import CheckSettings
from crossroads.prompts.experts.base import completion
from tests.gateway.policies.conftest import call, choose_one, compiled, pool, run

EVERYTHING = Eligibility(pool(judge={}))
READS = 6000  # tokens of a request, and of an answer, that a judge is shown at most


def judged(check: Any, answer: Body) -> Mapping[str, Any]:
    async def work() -> Mapping[str, Any]:
        found: Mapping[str, Any] = await check.accepts(call(text="what is it?"), "small", answer)
        return found

    return run(work)


def rules(**fields: Any) -> RulesCheck:
    return RulesCheck(CheckSettings(kind="rules", **fields), where="c")


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "good", "bad", "told"),
    [
        ({"min_chars": 5}, "long enough", "no", "fewer than 5"),
        ({"regex": r"\d"}, "it is 7", "seven", "lacks the required pattern"),
        ({"refusals": True}, "The sky is blue.", "I'm sorry, but no.", "declines"),
        ({"refusals": True}, "Sorry is a word.", "As an AI model, I", "declines"),
        ({"json_schema": SCHEMA}, '{"n": 3}', '{"n": "3"}', "wrong at n"),
        ({"json_schema": SCHEMA}, '```json\n{"n": 3}\n```', "{}", "wrong at top level"),
        ({"json_schema": SCHEMA}, '{"n": 3}', "n = 3", "is no JSON"),
    ],
)
def test_each_rule_accepts_and_refuses(
    fields: dict[str, Any], good: str, bad: str, told: str
) -> None:
    check = rules(**fields)
    assert judged(check, completion(good, model="small"))["accepted"] is True
    refused = judged(check, completion(bad, model="small"))
    assert refused["accepted"] is False
    assert told in refused["reason"]


def test_a_call_of_a_tool_is_not_judged_as_text() -> None:
    answer = completion("", model="small")
    assert judged(rules(min_chars=5), answer)["accepted"] is False
    answer["choices"][0]["message"] |= {"content": None, "tool_calls": [{"id": "1"}]}
    assert judged(rules(min_chars=5), answer)["accepted"] is True


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [None]}, {"choices": [{}]}])
def test_an_answer_without_text_is_refused_and_nothing_breaks(answer: Body) -> None:
    assert judged(rules(min_chars=1), answer)["accepted"] is False
    assert judged(LogprobsCheck(-1.0), answer)["accepted"] is False


def test_log_probabilities_are_averaged_over_tokens() -> None:
    answer = completion("a b", model="small")
    answer["choices"][0]["logprobs"] = {"content": [{"logprob": -0.2}, {"logprob": -0.6}]}
    found = judged(LogprobsCheck(-0.5), answer)
    assert found["mean_logprob"] == pytest.approx(-0.4)
    assert found["accepted"] is True
    assert judged(LogprobsCheck(-0.3), answer)["accepted"] is False


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("yes", True),
        ("Yes.", True),
        ('"YES"', True),
        ("no", False),
        ("yesterday", False),
        ("", False),
        ("I say yes", False),
    ],
)
def test_only_a_clear_yes_of_the_judge_accepts(said: str, accepted: bool) -> None:
    asked: list[tuple[str, Body]] = []

    async def ask(model: str, body: Body) -> Body:
        asked.append((model, body))
        return completion(said, model=model)

    found = judged(JudgeCheck("judge", ask, EVERYTHING), completion("an answer", model="small"))
    assert found["accepted"] is accepted
    model, body = asked[0]
    assert (model, body["temperature"]) == ("judge", 0)
    assert '"what is it?"' in body["messages"][1]["content"]
    assert '"an answer"' in body["messages"][1]["content"]


def test_a_judge_that_fails_is_an_expert_error() -> None:
    async def ask(model: str, body: Body) -> Body:
        raise ExpertError("down")

    with pytest.raises(ExpertError):
        judged(JudgeCheck("judge", ask, EVERYTHING), completion("x", model="small"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_time_of_a_judge_is_upstream_time(fails: bool) -> None:
    async def ask(model: str, body: Body) -> Body:
        await asyncio.sleep(0.02)
        if fails:
            raise ExpertError("down")
        return completion("yes", model=model)

    asked = call(text="what is it?")
    with suppress(ExpertError):
        answer = completion("x", model="small")
        asyncio.run(JudgeCheck("judge", ask, EVERYTHING).accepts(asked, "small", answer))
    assert asked.phases.upstream >= 0.015  # the loop's timers may be early by a millisecond or so


def test_settings_build_the_check_they_name() -> None:
    async def ask(model: str, body: Body) -> Body:
        return completion("yes", model=model)

    logprobs = CheckSettings(kind="logprobs", least=-0.5)
    judge = CheckSettings(kind="judge", model="large", question="Good?")
    assert isinstance(
        build_check(logprobs, where="c", ask_model=None, eligibility=EVERYTHING), LogprobsCheck
    )
    built = build_check(judge, where="c", ask_model=ask, eligibility=EVERYTHING)
    assert judged(built, completion("x", model="small"))["judge"] == "large"


@pytest.mark.parametrize(
    ("client", "headers", "told"),
    [
        (Client(key_id="k", residency=frozenset({"eu"})), {}, "data residency"),
        (Client(key_id="k"), {"x-crossroads-residency": "eu"}, "data residency"),
        (Client(key_id="k", models=frozenset({"c", "small", "large"})), {}, "the key's models"),
    ],
    ids=["residency of the key", "residency of the request", "models of the key"],
)
def test_a_judge_that_may_not_read_the_request_is_not_asked(
    client: Client, headers: dict[str, str], told: str
) -> None:
    asked: list[str] = []

    async def ask(model: str, body: Body) -> Body:
        asked.append(model)
        return completion("yes", model=model)

    european = {"residency": ["eu"]}
    policies = compiled(
        {
            "c": {
                "kind": "cascade",
                "steps": ["small", "large"],
                "check": {"kind": "judge", "model": "other"},
            }
        },
        models=pool(small=european, large=european, other={"residency": ["us"]}),
        ask_model=ask,
    )
    given = call("c", client=client, headers=headers)
    check = choose_one(policies, given).check
    assert check is not None

    async def work() -> Mapping[str, Any]:
        return await check.accepts(given, "small", completion("x", model="small"))

    found = run(work)
    assert (found["accepted"], asked) == (False, [])
    assert "other may not judge this request" in found["reason"]
    assert told in found["reason"]
    assert "judge" not in found  # nobody judged, so nobody is billed


def test_a_judge_allowed_by_name_or_with_a_list_of_policies_alone_is_asked() -> None:
    for models in (frozenset({"small", "judge"}), frozenset({"auto"})):
        client = Client(key_id="k", models=models)
        assert EVERYTHING.forbids(call(client=client), "judge") == ""


def test_a_judge_that_takes_too_long_is_an_expert_error() -> None:
    async def ask(model: str, body: Body) -> Body:
        raise TimeoutError

    with pytest.raises(ExpertError, match="no verdict in time") as raised:
        judged(JudgeCheck("judge", ask, EVERYTHING), completion("x", model="small"))
    assert raised.value.status == 504


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_a_judge_that_tells_no_tokens_is_billed_by_an_estimate(usage: Any) -> None:
    read: list[int] = []

    async def ask(model: str, body: Body) -> Body:
        read.append(sum(len(message["content"]) for message in body["messages"]))
        return {**completion("yes, quite", model=model), "usage": usage}

    found = judged(JudgeCheck("judge", ask, EVERYTHING), completion("x", model="small"))
    expected = {"prompt_tokens": -(-read[0] // 4), "completion_tokens": 3}
    assert found["usage"] == expected
    assert found["usage_estimated"] is True


def test_the_tokens_a_judge_tells_are_taken() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1}

    async def ask(model: str, body: Body) -> Body:
        return {**completion("yes", model=model), "usage": usage}

    found = judged(JudgeCheck("judge", ask, EVERYTHING), completion("x", model="small"))
    assert found["usage"] == usage
    assert "usage_estimated" not in found


@pytest.mark.parametrize(
    ("size", "bound", "read"),
    [(40, 10, 21), (40, None, 11 + READS), (1_000_000, 10, READS + 10), (4, 10**6, 2 + READS)],
)
def test_what_a_judge_takes_at_most_is_known_before_it_is_asked(
    size: int, bound: int | None, read: int
) -> None:
    async def nobody(model: str, body: Body) -> Body:
        raise AssertionError("not asked")

    check = JudgeCheck("judge", nobody, EVERYTHING, question="good?")
    limits = {} if bound is None else {"max_tokens": bound}
    name, usage = check.most(call(size=size, **limits))
    assert name == "judge"
    assert usage.output_tokens == 8
    assert read < usage.input_tokens < read + 25  # the question and what stands around it
    assert rules(min_chars=1).most(call()) is None
