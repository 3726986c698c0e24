"""From checked predictions to the figures of a leaderboard row."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from crossroads.core.files import write_atomically
from crossroads.prompts.routerarena.brought import estimated_tokens, is_estimated
from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.figures import (
    Headline,
    Optimality,
    breakdown,
    headline,
    latency_score,
    optimality,
)
from crossroads.prompts.routerarena.inference import Call, Result
from crossroads.prompts.routerarena.isolation import ScoringJob, score_apart
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.stored import read_stored
from crossroads.prompts.routerarena.submission import INDEX, Submission, token_counts

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Answers with their score and cost, by (global index, model).

    ``failed`` are the calls without an answer, ``estimated`` those whose tokens nobody counted.
    """

    score: Mapping[Call, float]
    cost: Mapping[Call, float]
    failed: frozenset[Call]
    estimated: frozenset[Call] = frozenset()


def choices_of(submission: Submission, evaluation: EvaluationSet) -> list[Call]:
    """Return (global index, the pool's name of the model) of each row, in the rows' order."""
    main = {
        entry[INDEX]: entry["prediction"]
        for entry in submission.predictions
        if entry.get("for_optimality") is not True
    }
    return [
        (row.global_index, _pool_name(main[row.global_index], evaluation))
        for row in evaluation.rows
    ]


def calls_of(submission: Submission, evaluation: EvaluationSet) -> list[Call]:
    """Return every call a submission needs: its choices, then those for optimality.

    On a replay all its models' outcomes are known, so that optimality covers every row.
    """
    main = choices_of(submission, evaluation)
    if evaluation.replay is not None:
        models = _models(submission, evaluation)
        return [*main, *((row.global_index, m) for row in evaluation.rows for m in models)]
    further = [
        (str(entry[INDEX]), _pool_name(entry["prediction"], evaluation))
        for entry in submission.predictions
        if entry.get("for_optimality") is True
    ]
    return [*main, *further]


def judge_calls(
    results: Mapping[Call, Result],
    evaluation: EvaluationSet,
    store: Path,
    *,
    force: bool = False,
    num_processes: int | None = None,
    code_runner: str = "",
) -> tuple[Judged, int]:
    """Return the judged calls and how many scores an earlier run had made.

    Scores are kept in ``store`` by what they were made of, so that an answer is scored once;
    ``force`` scores all again.
    """
    answered = {
        call: result for call, result in results.items() if result.get("success") is not False
    }
    jobs = {call: _job(call, result, evaluation) for call, result in answered.items()}
    keys = {call: _job_key(call, job, code_runner) for call, job in jobs.items()}
    kept: dict[str, float] = {}
    if store.exists() and not force:
        kept = read_stored(
            store, dict[str, float], remedy="delete it: all answers are scored again"
        )
    todo = {keys[call]: job for call, job in jobs.items() if keys[call] not in kept}
    num_reused = len(jobs) - sum(keys[call] in todo for call in jobs)
    if todo:
        scores = score_apart(
            list(todo.values()), num_processes=num_processes, code_runner=code_runner
        )
        kept |= dict(zip(todo, scores, strict=True))
        write_atomically(store, orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode())
    failed = frozenset(results) - frozenset(answered)
    judged = Judged(
        score={call: kept[keys[call]] for call in jobs},
        cost=_costs(results, failed, evaluation),
        failed=failed,
        estimated=frozenset(call for call, result in results.items() if is_estimated(result)),
    )
    return judged, num_reused


def figures_of(submission: Submission, evaluation: EvaluationSet, judged: Judged) -> dict[str, Any]:
    """Return the figures of a submission as plain data; what cannot be known is null."""
    choices = choices_of(submission, evaluation)
    score = np.array([judged.score.get(call, 0.0) for call in choices])
    head = headline(
        score,
        [judged.cost[call] for call in choices],
        [call in judged.failed for call in choices],
    )
    return {
        **_headline_figures(head),
        "optimality": _optimality_figures(submission, evaluation, judged, choices),
        "robustness": _robustness(submission, evaluation, choices),
        "latency": _latency(submission.decision_ms),
        "breakdown": breakdown(score, labels_of(evaluation)),
        "remarks": submission.remarks,
        "notes": [*submission.remarks, *head.notes, *_answer_notes(judged, head)],
    }


def labels_of(evaluation: EvaluationSet) -> dict[str, list[str]]:
    """Return the label of every row, by aspect."""
    labels = {
        "domain": [row.domain for row in evaluation.rows],
        "difficulty": [row.difficulty for row in evaluation.rows],
        "bloom": [row.bloom for row in evaluation.rows],
        "source": [row.source for row in evaluation.rows],
    }
    if labels["source"] == labels["domain"]:
        del labels["source"]
    return labels


def _answer_notes(judged: Judged, head: Headline) -> Iterator[str]:
    if head.num_failed:
        yield f"{head.num_failed} rows have no answer and count as 0"
    if judged.estimated:
        yield (
            f"{len(judged.estimated)} answers came with the submission: their tokens are estimated "
            "from the texts, 4 characters each, or more where it claims more"
        )


def _headline_figures(head: Headline) -> dict[str, Any]:
    return {
        "arena_score": 100 * head.arena_score,
        "accuracy": 100 * head.accuracy,
        "cost_per_1k_usd": head.cost_per_1k_usd,
        "num_rows": head.num_rows,
        "num_failed": head.num_failed,
    }


def _optimality_figures(
    submission: Submission, evaluation: EvaluationSet, judged: Judged, choices: Sequence[Call]
) -> dict[str, Any] | None:
    models = _models(submission, evaluation)
    if len(models) < 2:
        return None  # nothing to choose from
    calls = [[(row.global_index, model) for model in models] for row in evaluation.rows]
    score_NK = np.array([[_score_or_nan(judged, call) for call in row] for row in calls])
    cost_NK = np.array([[judged.cost.get(call, np.nan) for call in row] for row in calls])
    choice_N = np.array([models.index(model) for _, model in choices])
    found = {
        mode: optimality(score_NK, cost_NK, choice_N, mode=mode)
        for mode in ("all_solvable", "router_correct")
    }
    if found["all_solvable"].num_rows == 0:
        return None
    return {mode: _percent(figures) for mode, figures in found.items()}


def _percent(figures: Optimality) -> dict[str, Any]:
    shares = asdict(figures)
    num_rows = shares.pop("num_rows")
    percent = {key: None if np.isnan(v) else 100 * v for key, v in shares.items()}
    return {**percent, "num_rows": num_rows}


def _score_or_nan(judged: Judged, call: Call) -> float:
    return 0.0 if call in judged.failed else judged.score.get(call, np.nan)


def _robustness(
    submission: Submission, evaluation: EvaluationSet, choices: Sequence[Call]
) -> dict[str, Any] | None:
    """Return the percentage of choices that stay, over all wordings and by kind."""
    if submission.robustness is None:
        return None
    clean = dict(choices)
    stays: dict[str, list[bool]] = {}
    for entry in submission.robustness:
        same = canonical_name(entry["prediction"]) == canonical_name(clean[entry[INDEX]])
        stays.setdefault(entry["kind"], []).append(same)
    every = [same for kind in stays.values() for same in kind]
    return {
        "share": 100 * sum(every) / len(every),
        "by_kind": {kind: 100 * sum(same) / len(same) for kind, same in sorted(stays.items())},
        "num_pairs": len(every),
    }


def _latency(decision_ms: float | None) -> dict[str, float] | None:
    if decision_ms is None:
        return None
    return {"decision_ms": decision_ms, "score": latency_score(decision_ms)}


def _models(submission: Submission, evaluation: EvaluationSet) -> list[str]:
    return [_pool_name(model, evaluation) for model in submission.models]


def _pool_name(model: str, evaluation: EvaluationSet) -> str:
    return evaluation.model_by_canonical[canonical_name(model)]


def _job(call: Call, result: Result, evaluation: EvaluationSet) -> ScoringJob:
    index, model = call
    place = evaluation.by_index[index]
    table = evaluation.replay
    if table is not None:
        recorded = float(table.score[place, table.models.index(model)])
        return ScoringJob(metric="recorded", recorded=recorded)
    row = evaluation.rows[place]
    answer = result["generated_answer"].encode("utf-8", "replace").decode()  # half characters
    return ScoringJob(metric=row.metric, answer=answer, references=row.answers)


def _job_key(call: Call, job: ScoringJob, code_runner: str) -> str:
    """Return what changes with anything a score depends on."""
    runner = code_runner if job.metric == "code_accuracy" else ""
    parts = (call, job.metric, job.answer, job.references, job.recorded, runner)
    text = repr(parts).encode("utf-8", "replace")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _costs(
    results: Mapping[Call, Result], failed: Iterable[Call], evaluation: EvaluationSet
) -> dict[Call, float]:
    """Return the cost of each call in USD, from recorded costs, or token counts at pool prices.

    A failed call without token counts is charged what its model costs on average here, or at least
    its prompt: its price is unknown, and taking it for free would make failing look cheap.
    """
    cost: dict[Call, float] = {}
    for call, result in results.items():
        known = _cost(call, result, evaluation)
        if known is not None:
            cost[call] = known
    answered: dict[str, list[float]] = defaultdict(list)
    for (_, model), usd in cost.items():
        answered[model].append(usd)
    for call in set(failed) - set(cost):
        index, model = call
        prompt = evaluation.rows[evaluation.by_index[index]].prompt
        same_model = answered[model] or [
            float(evaluation.pool[model].price(estimated_tokens(prompt), 0))
        ]
        cost[call] = sum(same_model) / len(same_model)
    return cost


def _cost(call: Call, result: Result, evaluation: EvaluationSet) -> float | None:
    index, model = call
    table = evaluation.replay
    if table is not None:
        assert table.cost is not None
        return float(table.cost[evaluation.by_index[index], table.models.index(model)])
    counts = token_counts(result)
    return None if counts is None else float(evaluation.pool[model].price(*counts))
