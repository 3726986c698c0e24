"""From answers to scores: in threads where a scorer computes, by a judge where one is named."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from crossroads.core.progress import Progress
from crossroads.prompts.collect.calls import Call, Cells
from crossroads.prompts.collect.items import PromptItem
from crossroads.prompts.pool import Pool
from crossroads.prompts.scorers import ScoringError, judge_of, parse_scorer
from crossroads.prompts.scorers.judge import MAX_TOKENS, judge_messages, parse_grade


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished cell: an item, the call that answered it, and what came back."""

    item: PromptItem
    call: Call
    cell: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A score, or None and the reason there is none."""

    score: float | None
    reason: str = ""


def judge_call(pool: Pool, answer: Answer) -> Call | None:
    """Return the call that grades an answer, None where no judge does."""
    item = answer.item
    judge = judge_of(item.scorer)
    if judge is None:
        return None
    messages = judge_messages(item.prompt, answer.cell["response"], item.references)
    return Call(
        card=pool[judge],
        request={"model": "", "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0.0},
        prompt_id=item.prompt_id,
        about=answer.call.card.name,
        is_grade=True,
    )


def score_answers(
    pool: Pool, answers: Sequence[Answer], cells: Cells, *, progress: Progress | None = None
) -> list[Scored]:
    """Return the score of each answer, in their order. ``cells`` holds the judges' grades."""
    scorers = {
        item.scorer: parse_scorer(item.scorer)
        for item in {answer.item.scorer: answer.item for answer in answers}.values()
        if judge_of(item.scorer) is None
    }

    def score(answer: Answer) -> Scored:
        call = judge_call(pool, answer)
        if call is not None:
            return _graded(call, cells)
        given = scorers[answer.item.scorer]
        try:
            return Scored(score=given(answer.cell["response"], answer.item.references))
        except ScoringError as error:
            return Scored(score=None, reason=str(error))

    found = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for number, scored in enumerate(threads.map(score, answers), start=1):
            found.append(scored)
            if progress is not None:
                progress(number, len(answers))
    return found


def _graded(call: Call, cells: Cells) -> Scored:
    cell = cells.get(call.key)
    if cell is None:
        return Scored(score=None, reason=f"judge {call.card.name!r} gave no grade")
    grade = parse_grade(cell["response"])
    if grade is not None:
        return Scored(score=grade)
    said = " ".join(cell["response"].split())[-60:]
    return Scored(score=None, reason=f"judge {call.card.name!r} stated no score: {said!r}")
