"""A whole collection: ask, judge, score, write; and what one would cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import replacing
from crossroads.core.progress import Progress
from crossroads.prompts.collect.calls import Call, Caller, cost_of
from crossroads.prompts.collect.items import PromptItem
from crossroads.prompts.collect.partial import PartialFile
from crossroads.prompts.collect.report import CollectEstimate, CollectReport, Failure
from crossroads.prompts.collect.scoring import Answer, Scored, judge_call, score_answers
from crossroads.prompts.collect.settings import CollectSettings
from crossroads.prompts.formats import FORMATS, write_long
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import ModelCard, Pool
from crossroads.prompts.scorers import check_scorer, judge_of

_DOLLARS = OutcomeTable.cost_unit  # the unit a table need not name


def collect(
    pool: Pool,
    prompts: Sequence[PromptItem],
    out: str | Path,
    *,
    settings: CollectSettings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    scoring_progress: Progress | None = None,
) -> CollectReport:
    """Run prompts x models and write the outcome table to ``out``: Parquet, CSV or JSON lines.

    ``progress`` counts cells and judgements as they are asked, ``scoring_progress`` the scores.
    Raises UsageError for another suffix, an unknown scorer, a judge that is not in the pool and
    settings that do not fit it, MissingExtraError for a scorer whose library is missing, and
    InputError when another process collects into ``out``, and when it exists and no interrupted
    collection is there to continue, unless ``overwrite``.
    """
    out, settings = Path(out), settings or CollectSettings()
    partial = _checked(pool, prompts, out, settings)
    with partial.held():
        if out.exists() and not partial.path.exists() and not overwrite:
            raise InputError(f"out {str(out)!r} exists; choose another name or pass --overwrite")
        started = time.perf_counter()
        caller = Caller(pool, settings, partial)
        calls = [(item, call) for item in prompts for call in _calls(pool, item, settings)]
        num_reused = sum(call.key in caller.cells for _, call in calls)
        answers, grades = asyncio.run(_ask(pool, calls, caller, progress))
        scored = score_answers(pool, answers, caller.cells, progress=scoring_progress)
        rows = [_row(pool, answer, s, settings) for answer, s in zip(answers, scored, strict=True)]
        if any(row["score"] is not None for row in rows):
            write_rows(rows, out)
        report = CollectReport(
            num_prompts=len(prompts),
            num_cells=len(calls),
            num_finished=len(answers),
            num_reused=num_reused,
            num_unasked=caller.num_unasked,
            failures=tuple(caller.failures),
            unscored=tuple(
                Failure(prompt_id=a.item.prompt_id, model=a.call.card.name, error=s.reason)
                for a, s in zip(answers, scored, strict=True)
                if s.score is None
            ),
            models={card.name: _summary(card.name, rows) for card in pool},
            judges=_judges(grades, caller),
            cost_unit=pool.cost_unit,
            seconds=time.perf_counter() - started,
            out=str(out) if any(row["score"] is not None for row in rows) else None,
        )
        if report.is_complete:
            partial.remove()
        return report


def estimate(
    pool: Pool,
    prompts: Sequence[PromptItem],
    out: str | Path,
    *,
    settings: CollectSettings | None = None,
) -> CollectEstimate:
    """Return what ``collect`` would ask and at most pay, without asking. Raises as it does."""
    out, settings = Path(out), settings or CollectSettings()
    cells = _checked(pool, prompts, out, settings).read()
    calls = [(item, call) for item in prompts for call in _calls(pool, item, settings)]
    found: dict[str, dict[str, float]] = {
        card.name: {"num_calls": 0, "input_tokens": 0, "cost": 0.0} for card in pool
    }
    longest = {"response": " " * (4 * settings.max_tokens)}
    for item, call in calls:
        answer = Answer(item=item, call=call, cell=cells.get(call.key, longest))
        for asked in (call, judge_call(pool, answer)):
            if asked is None or asked.key in cells:
                continue
            tokens_in, tokens_out = asked.expected_tokens
            figures = found[asked.card.name]
            figures["num_calls"] += 1
            figures["input_tokens"] += tokens_in
            figures["cost"] += float(asked.card.price(tokens_in, tokens_out))
    return CollectEstimate(
        num_prompts=len(prompts),
        num_cells=len(calls),
        num_reused=sum(call.key in cells for _, call in calls),
        models=found,
        cost=sum(figures["cost"] for figures in found.values()),
        cost_unit=pool.cost_unit,
    )


def _checked(
    pool: Pool, prompts: Sequence[PromptItem], out: Path, settings: CollectSettings
) -> PartialFile:
    """Check what can be known before anything is asked; return the file of finished cells."""
    if not out.name.lower().endswith(FORMATS):
        raise UsageError(f"out {str(out)!r}: expected a name ending in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise InputError(f"out {str(out)!r}: folder {str(out.parent)!r} does not exist; make it")
    settings.check(pool)
    for scorer in {item.scorer for item in prompts}:
        check_scorer(scorer)
        judge = judge_of(scorer)
        if judge is not None:
            pool[judge]  # an unknown name raises
    return PartialFile(out.with_name(f"{out.name}.partial.jsonl"))


def _calls(pool: Pool, item: PromptItem, settings: CollectSettings) -> list[Call]:
    """Return the calls that answer an item: one per model."""
    messages = [{"role": "user", "content": item.prompt}]
    if settings.system is not None:
        messages.insert(0, {"role": "system", "content": settings.system})
    request = {
        "model": "",  # the expert puts the name its endpoint knows
        "messages": messages,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
    }
    return [
        Call(card=card, request=request, prompt_id=item.prompt_id, about=card.name) for card in pool
    ]


async def _ask(
    pool: Pool,
    calls: Sequence[tuple[PromptItem, Call]],
    caller: Caller,
    progress: Progress | None,
) -> tuple[list[Answer], list[Call]]:
    """Ask for answers, then for the grades of those a judge scores."""
    earlier = _finished(calls, caller)
    caller.count_spent([call for _, call in calls] + _judge_calls(pool, earlier))
    await caller.run([call for _, call in calls], progress=progress)
    answers = _finished(calls, caller)
    grades = _judge_calls(pool, answers)
    if grades:
        await caller.run(grades, progress=progress)
    return answers, grades


def _finished(calls: Sequence[tuple[PromptItem, Call]], caller: Caller) -> list[Answer]:
    return [
        Answer(item=item, call=call, cell=caller.cells[call.key])
        for item, call in calls
        if call.key in caller.cells
    ]


def _judge_calls(pool: Pool, answers: Sequence[Answer]) -> list[Call]:
    """Return the calls that grade answers; equal answers to one prompt share a call."""
    calls = [call for answer in answers if (call := judge_call(pool, answer)) is not None]
    return list({call.key: call for call in calls}.values())


def _row(pool: Pool, answer: Answer, scored: Scored, settings: CollectSettings) -> dict[str, Any]:
    item, card, cell = answer.item, answer.call.card, answer.cell
    row = {
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "model": card.name,
        "score": scored.score,
        "input_tokens": cell["input_tokens"],
        "output_tokens": cell["output_tokens"],
        "cost": cost_of(card, cell),
        "cost_unit": None if pool.cost_unit == _DOLLARS else pool.cost_unit,
        "latency_s": cell["latency_s"],
        "domain": item.domain,
        "split": item.split,
    }
    return {**row, "response": cell["response"]} if settings.keep_responses else row


def write_rows(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write rows of the long form to ``out``, whole or not at all, without empty columns."""
    import pyarrow as pa

    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = pa.table({name: [row[name] for row in rows] for name in columns})
    with replacing(out) as temporary:
        write_long(table, temporary, out.name.lower())


def _summary(model: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    mine = [row for row in rows if row["model"] == model]
    costs = [row["cost"] for row in mine]
    scores = [row["score"] for row in mine if row["score"] is not None]
    return {
        "score": sum(scores) / len(scores) if scores else None,
        "cost": None if None in costs else sum(costs),
        "latency_s": sum(row["latency_s"] for row in mine) / len(mine) if mine else None,
    }


def _judges(grades: Sequence[Call], caller: Caller) -> dict[str, dict[str, float | None]]:
    cards: dict[str, ModelCard] = {call.card.name: call.card for call in grades}
    found: dict[str, dict[str, float | None]] = {}
    for name, card in cards.items():
        mine = [c for c in grades if c.card.name == name and c.key in caller.cells]
        costs = [cost_of(card, caller.cells[call.key]) for call in mine]
        known = [cost for cost in costs if cost is not None]
        total = sum(known) if len(known) == len(costs) else None
        found[name] = {"num_grades": len(mine), "cost": total}
    return found
