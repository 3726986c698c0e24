"""Verifiers of a cascade: is this answer good enough to be given?

Each implements ``contracts.Check``: plain data with ``accepted`` and ``reason``, besides ``check``,
the kind.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from crossroads.core.errors import InputError, MissingExtraError
from crossroads.gateway.call import Body, Call
from crossroads.gateway.contracts import Check, Usage
from crossroads.gateway.policies.eligibility import Eligibility
from crossroads.gateway.policies.patterns import Pattern
from crossroads.gateway.policies.settings import CheckSettings
from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.base import content_text

_REFUSAL = re.compile(
    r"\b(?:i(?: am|'m) (?:sorry|unable)|i can(?:'t|not| not) (?:help|assist|answer|comply|do that)"
    r"|as an ai\b|i do(?:n't| not) (?:know|have access)|unable to (?:help|answer|assist))",
    re.IGNORECASE,
)
_READ_FOR_REFUSAL = 400  # characters: who declines does so at once
_CHARACTERS_PER_TOKEN = 4
_JUDGE_READS = 24_000  # characters of question and answer each
_JUDGE_SAYS = 8  # tokens
_FRAME = 64  # characters around what a judge reads
_QUESTION = (
    "You check answers. Below are a request and an answer to it. Is the answer correct, complete "
    "and to the point? Reply with one word: yes or no."
)


class RulesCheck(Check):
    """Regular expression, JSON schema, least length, refusals: whatever was asked for."""

    def __init__(self, settings: CheckSettings, *, where: str) -> None:
        self._least = settings.min_chars or 0
        self._refusals = settings.refusals
        self._pattern = (
            None if settings.regex is None else Pattern(settings.regex, where=f"{where}.regex")
        )
        self._validate = (
            None if settings.json_schema is None else _validator(settings.json_schema, where)
        )

    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        problem = self._problem(_answer_text(answer), bool(_message(answer).get("tool_calls")))
        reason = problem or "the answer keeps the rules"
        return {"check": "rules", "accepted": not problem, "reason": reason}

    def _problem(self, text: str, has_calls: bool) -> str:
        if has_calls and not text:
            return ""  # a call of a tool is no text to be judged by
        if len(text) < self._least:
            return f"the answer has {len(text)} characters, fewer than {self._least}"
        if self._refusals and _REFUSAL.search(text, 0, _READ_FOR_REFUSAL):
            return "the answer declines"
        if self._pattern is not None and not self._pattern.found_in(text):
            return "the answer lacks the required pattern"
        return "" if self._validate is None else self._validate(text)


class LogprobsCheck(Check):
    """Mean log probability of the answer's tokens; without any the answer is not accepted."""

    def __init__(self, least: float) -> None:
        self._least = least

    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        logprobs = _first_choice(answer).get("logprobs")
        tokens = (logprobs.get("content") if isinstance(logprobs, Mapping) else None) or []
        found = [
            float(token["logprob"])
            for token in tokens
            if isinstance(token, Mapping) and isinstance(token.get("logprob"), int | float)
        ]
        if not found:
            reason = "the answer carries no log probabilities; the request must ask for them"
            return {"check": "logprobs", "accepted": False, "reason": reason}
        mean = math.fsum(found) / len(found)
        accepted = mean >= self._least
        return {
            "check": "logprobs",
            "accepted": accepted,
            "reason": f"the mean log probability of a token is {mean:.3f}, "
            f"{'at least' if accepted else 'below'} {self._least:g}",
            "mean_logprob": mean,
        }


class JudgeCheck(Check):
    """Asks a model whether the answer is good, yes or no.

    Anything but a clear yes refuses the answer. So does a judge that may not read the request: one
    that the client's key may not use, or that does not promise the region of its data. A judge that
    does not tell its tokens is billed by the length of what it read and said.
    """

    def __init__(
        self,
        model: str,
        ask_model: Callable[[str, Body], Awaitable[Body]],
        eligibility: Eligibility,
        question: str | None = None,
    ) -> None:
        self._model = model
        self._ask = ask_model
        self._eligibility = eligibility
        self._question = question or _QUESTION

    async def accepts(self, call: Call, model: str, answer: Body) -> Mapping[str, Any]:
        why = self._eligibility.forbids(call, self._model)
        if why:
            reason = f"{self._model} may not judge this request: {why}"
            return {"check": "judge", "accepted": False, "reason": reason}
        asked = call.conversation_text[-_JUDGE_READS:]
        given = _answer_text(answer)[:_JUDGE_READS]
        # As JSON strings, neither text can pass for the frame around it.
        question = f"Request: {json.dumps(asked)}\n\nAnswer: {json.dumps(given)}\n\nyes or no?"
        body: Body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": self._question},
                {"role": "user", "content": question},
            ],
            "temperature": 0,
            "max_tokens": _JUDGE_SAYS,
        }
        began = time.perf_counter()
        try:
            found = await self._ask(self._model, body)
        except TimeoutError as error:
            raise SpentError(
                f"judge {self._model!r}: no verdict in time; raise timeouts.total, or name a "
                "quicker model",
                status=504,
                code="upstream_timeout",
            ) from error
        finally:  # also where it failed: it was waited for
            call.phases.upstream += time.perf_counter() - began
        said = _answer_text(found).strip()
        usage = _told_usage(found)
        estimated = {} if usage else {"usage_estimated": True}
        accepted = re.match(r"\W*yes\b", said, re.IGNORECASE) is not None
        return {
            "check": "judge",
            "accepted": accepted,
            "reason": f"{self._model} {'finds the answer good' if accepted else 'does not accept'}",
            "judge": self._model,
            "usage": usage or _estimated_usage(len(self._question) + len(question), len(said)),
            **estimated,
            "said": said[:40],
        }

    def most(self, call: Call) -> tuple[str, Usage]:
        """Return the judge, and the tokens of a whole request and a whole answer."""
        whole = _JUDGE_READS // _CHARACTERS_PER_TOKEN
        answer = call.max_output_tokens
        read = min(call.input_tokens, whole) + (whole if answer is None else min(answer, whole))
        framing = -(-(len(self._question) + _FRAME) // _CHARACTERS_PER_TOKEN)
        return self._model, Usage(read + framing, _JUDGE_SAYS)


def build_check(
    settings: CheckSettings,
    *,
    where: str,
    ask_model: Callable[[str, Body], Awaitable[Body]] | None,
    eligibility: Eligibility,
) -> Check:
    """Return the check of an answer; ``sdm`` checks before there is one and has none.

    Raises InputError for a pattern, a schema or a judge that cannot be used.
    """
    if settings.kind == "rules":
        return RulesCheck(settings, where=where)
    if settings.kind == "logprobs":
        assert settings.least is not None
        return LogprobsCheck(settings.least)
    assert settings.kind == "judge" and settings.model is not None
    if ask_model is None:
        raise InputError(f"{where}: a judge cannot be asked here; use another kind of check")
    return JudgeCheck(settings.model, ask_model, eligibility, settings.question)


def _told_usage(answer: Body) -> Mapping[str, Any] | None:
    """Return the tokens an answer says it took; None where it does not."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping) or usage.get("prompt_tokens").__class__ is not int:
        return None
    return usage


def _estimated_usage(read: int, said: int) -> dict[str, int]:
    """Return about what so many characters read and said took."""
    return {
        "prompt_tokens": -(-read // _CHARACTERS_PER_TOKEN),
        "completion_tokens": -(-said // _CHARACTERS_PER_TOKEN),
    }


def _validator(schema: dict[str, Any], where: str) -> Callable[[str], str]:
    """Return what names the problem of a text that should be JSON of a schema; "" for none."""
    try:
        import jsonschema  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("check 'json_schema': jsonschema", extra="schema") from None
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"{where}.json_schema: {error.message}") from error
    validator = kind(schema)

    def problem(text: str) -> str:
        try:
            value = json.loads(_without_fence(text))
        except (ValueError, RecursionError):
            return "the answer is no JSON"
        found = next(iter(validator.iter_errors(value)), None)
        if found is None:
            return ""
        place = "/".join(map(str, found.absolute_path)) or "top level"
        return f"the answer's JSON is wrong at {place}"

    return problem


def _without_fence(text: str) -> str:
    """Return the inside of a Markdown code block, if the text is one."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        return text[text.index("\n") + 1 : -3]
    return text


def _first_choice(answer: Body) -> Mapping[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _message(answer: Body) -> Mapping[str, Any]:
    message = _first_choice(answer).get("message")
    return message if isinstance(message, Mapping) else {}


def _answer_text(answer: Body) -> str:
    return content_text(_message(answer).get("content"))
