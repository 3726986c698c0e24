"""Answers for the predictions that have none: replayed, from the cache, or asked of a model.

A result has the arena's shape::

    {"generated_answer": "...", "success": true, "error": null,
     "token_usage": {"input_tokens": 12, "output_tokens": 3}}

A model that fails after all attempts gives a result without success, which is not kept, so that the
next run asks again. ``may_pass`` tells an outage from a refusal: a refusal scores 0, an outage says
nothing of the router and must not be judged.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.core.errors import UnavailableError, UsageError
from crossroads.core.progress import Progress
from crossroads.prompts.experts.base import Completion, Expert, ExpertError, content_text
from crossroads.prompts.experts.registry import build_expert
from crossroads.prompts.pool import ModelCard
from crossroads.prompts.routerarena.cache import ResponseCache
from crossroads.prompts.routerarena.evaluation import EvaluationSet

Call = tuple[str, str]  # (global index, the pool's name of a model)
Result = dict[str, Any]

_LONGEST_WAIT = 60.0  # seconds between two attempts


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceSettings:
    """How models are asked.

    Attributes
    ----------
    max_tokens : bound on each answer
    concurrency : calls in flight per model
    num_retries : further attempts after a failure that may pass
    backoff : seconds before the first of them, doubled each time
    """

    max_tokens: int = 1024
    concurrency: int = 4
    num_retries: int = 2
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.concurrency < 1 or self.num_retries < 0:
            raise UsageError(
                "inference: expected max_tokens and concurrency of at least 1 and num_retries of "
                f"at least 0, got {self.max_tokens}, {self.concurrency} and {self.num_retries}"
            )


def run_calls(
    evaluation: EvaluationSet,
    calls: Iterable[Call],
    cache: Path,
    *,
    settings: InferenceSettings | None = None,
    build: Callable[[ModelCard], Expert] = build_expert,
    progress: Progress | None = None,
) -> dict[Call, Result]:
    """Return the result of every call, asking only those neither replayed nor in the cache.

    Raises InputError for a model of a live board without an endpoint, and what its expert raises
    where it cannot start.
    """
    wanted = list(dict.fromkeys(calls))
    if evaluation.replay is not None:
        return {call: _replayed(evaluation, call) for call in wanted}
    by_model: dict[str, list[str]] = defaultdict(list)
    for index, model in wanted:
        by_model[model].append(index)
    run = _Run(evaluation, cache, settings or InferenceSettings(), len(wanted), progress)
    for model, indices in by_model.items():
        run.take_cached(model, indices)
    asyncio.run(run.ask_all(build))
    return run.results


def require_answers(results: Mapping[Call, Result]) -> None:
    """Raise UnavailableError where calls failed for reasons that may pass."""
    missing = {call: result for call, result in results.items() if result.get("may_pass")}
    if not missing:
        return
    by_model = Counter(model for _, model in missing)
    counts = ", ".join(f"{model}: {count}" for model, count in sorted(by_model.items()))
    first = " ".join(str(next(iter(missing.values()))["error"]).split())
    raise UnavailableError(
        f"{len(missing)} of {len(results)} calls have no answer yet ({counts}; {first:.200}); "
        "nothing was published; run this again to continue with what is missing"
    )


def _replayed(evaluation: EvaluationSet, call: Call) -> Result:
    table = evaluation.replay
    assert table is not None
    place = evaluation.by_index[call[0]], table.models.index(call[1])
    usage = {
        name: None if tokens is None else float(tokens[place])
        for name, tokens in (
            ("input_tokens", table.input_tokens),
            ("output_tokens", table.output_tokens),
        )
    }
    return {
        "generated_answer": "",
        "success": True,
        "error": None,
        "token_usage": usage,
        "replayed": True,
    }


class _Run:
    """One inference: what the cache held, what is still to ask, what came back."""

    def __init__(
        self,
        evaluation: EvaluationSet,
        cache: Path,
        settings: InferenceSettings,
        num_calls: int,
        progress: Progress | None,
    ) -> None:
        self._evaluation = evaluation
        self._folder = cache
        self._settings = settings
        self._num_calls = num_calls
        self._progress = progress
        self._caches: dict[str, ResponseCache] = {}
        self._pending: dict[str, deque[str]] = {}
        self.results: dict[Call, Result] = {}

    def take_cached(self, model: str, indices: Iterable[str]) -> None:
        cache = self._caches[model] = ResponseCache(self._folder, model)
        waiting: deque[str] = deque()
        for index in indices:
            kept = cache.get(index, self._prompt(index))
            if kept is None:
                waiting.append(index)
            else:
                self.results[index, model] = kept
        if waiting:
            self._pending[model] = waiting

    async def ask_all(self, build: Callable[[ModelCard], Expert]) -> None:
        experts = {model: build(self._evaluation.pool[model]) for model in self._pending}
        try:
            for expert in experts.values():
                await expert.start()
            async with asyncio.TaskGroup() as group:
                for model, expert in experts.items():
                    num_tasks = min(self._settings.concurrency, len(self._pending[model]))
                    for _ in range(num_tasks):
                        group.create_task(self._ask_some(model, expert))
        except ExceptionGroup as errors:  # the tasks were stopped by the first of them
            raise errors.exceptions[0] from None
        finally:
            for expert in experts.values():
                await expert.close()

    async def _ask_some(self, model: str, expert: Expert) -> None:
        waiting = self._pending[model]
        while waiting:
            index = waiting.popleft()
            try:
                result = _result(await self._ask(expert, self._prompt(index)))
            except ExpertError as error:
                result = _failure(str(error), may_pass=error.can_be_retried)
            else:
                # One short line on the disk; waiting for it costs less than a thread would.
                self._caches[model].put(index, self._prompt(index), result)
            self.results[index, model] = result
            if self._progress is not None:
                self._progress(len(self.results), self._num_calls)

    async def _ask(self, expert: Expert, prompt: str) -> Completion:
        request = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._settings.max_tokens,
            "temperature": 0.0,
        }
        attempt = 0
        while True:
            try:
                return await expert.complete(request)
            except ExpertError as error:
                if attempt == self._settings.num_retries or not error.can_be_retried:
                    raise
                wait = error.retry_after or self._settings.backoff * 2**attempt
                await asyncio.sleep(min(wait, _LONGEST_WAIT))
                attempt += 1

    def _prompt(self, index: str) -> str:
        return self._evaluation.rows[self._evaluation.by_index[index]].prompt


def _result(answer: Completion) -> Result:
    choices = answer.get("choices") or [{}]
    message = choices[0].get("message") or {}
    usage: Mapping[str, Any] = answer.get("usage") or {}
    text = content_text(message.get("content"))
    return {
        "generated_answer": text.encode("utf-8", "replace").decode(),  # half characters
        "success": True,
        "error": None,
        "token_usage": {
            "input_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
        },
    }


def _failure(problem: str, *, may_pass: bool) -> Result:
    return {
        "generated_answer": "",
        "success": False,
        "error": problem,
        "token_usage": None,
        "may_pass": may_pass,
    }
