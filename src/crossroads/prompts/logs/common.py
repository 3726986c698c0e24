"""What all logs have in common, and how several become one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from crossroads.core.errors import InputError
from crossroads.prompts.formats import row_number, typed
from crossroads.prompts.long_form import LongTable, densify
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool

_MEASURED = ("score", "cost", "input_tokens", "output_tokens", "latency_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer in a log.

    Attributes
    ----------
    sample_id : as in the log
    question : what two logs must agree on for the same id: a hash or the text itself
    prompt : its text
    score : in [0, 1], None where the log has none
    cost : USD
    input_tokens, output_tokens, latency_s, chance : as in the outcome table, None where unknown
    """

    sample_id: str
    question: str
    prompt: str
    score: float | None
    cost: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    latency_s: float | None = None
    chance: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """One model on one task; ``metric`` is what its scores are."""

    path: Path
    harness: str
    task: str
    model: str
    metric: str
    samples: tuple[Sample, ...]


def combine(
    logs: Sequence[Log], *, pool: Pool | None = None, models: Sequence[str] | None = None
) -> OutcomeTable:
    """Return the table of several logs. Raises InputError where two contradict each other."""
    import pyarrow as pa

    _check_runs(logs)
    questions: dict[str, tuple[Sample, Log]] = {}
    rows: list[dict[str, Any]] = []
    for log in logs:
        name = _name_in_pool(log.model, pool)
        for sample_id, samples in _by_id(log).items():
            prompt_id = f"{log.task}/{sample_id}"
            first, first_log = questions.setdefault(prompt_id, (samples[0], log))
            _check_question(prompt_id, first, first_log, samples, log)
            row = {
                "prompt_id": prompt_id,
                "prompt": first.prompt or None,
                "model": name,
                "domain": log.task,
                "chance": first.chance,
            }
            measured = {key: _mean(samples, key) for key in _MEASURED}
            rows.append({**row, **measured})
    where = ", ".join(dict.fromkeys(str(log.path) for log in logs))
    if not any(row["score"] is not None for row in rows):
        raise InputError(f"{where:.200}: no sample has a score; run the harness' scoring first")
    table = pa.table({key: [row[key] for row in rows] for key in rows[0]})
    long = LongTable(where=where, columns=typed(where, table), place=row_number)
    dense = densify(long, source=_source(logs), models=models, pool=pool)
    if dense.has_costs or pool is None or dense.input_tokens is None:
        return dense
    return dense.with_prices(pool)


def decode(data: bytes, where: str) -> Any:
    """Parse JSON, which may hold Python's NaN and Infinity. Raises InputError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); it may be truncated") from error


def share(value: Any, where: str, metric: str, existing: Sequence[str]) -> float | None:
    """Return a score in [0, 1], None for NaN and null. Raises InputError for anything else."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise InputError(
        f"{where}: metric {metric!r}: expected a number in [0, 1], got {value!r:.60}; choose "
        f"another with --metric: {', '.join(existing)}"
    )


def no_metric(where: str, metric: str, existing: Sequence[str]) -> InputError:
    """Return the error for a metric a log does not have."""
    return InputError(
        f"{where}: no metric {metric!r}; it has: {', '.join(existing) or 'none'}; choose with "
        "--metric"
    )


def _check_runs(logs: Sequence[Log]) -> None:
    seen: dict[tuple[str, str], Log] = {}
    for log in logs:
        other = seen.setdefault((log.task, log.model), log)
        if other is not log:
            raise InputError(
                f"{log.path}: model {log.model!r} ran task {log.task!r} in {other.path} already; "
                "give one log of each model and task"
            )


def _by_id(log: Log) -> Mapping[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in log.samples:
        found.setdefault(sample.sample_id, []).append(sample)
    return found


def _check_question(
    prompt_id: str, first: Sample, first_log: Log, samples: Sequence[Sample], log: Log
) -> None:
    if any(sample.question != first.question for sample in samples):
        raise InputError(
            f"{log.path}: sample {prompt_id!r} asks something else than in {first_log.path}; the "
            "logs are of different versions, orders or subsets of the data; rerun one of them"
        )


def _mean(samples: Sequence[Sample], key: str) -> float | None:
    """Return the mean over the epochs that know a value."""
    values = [value for sample in samples if (value := getattr(sample, key)) is not None]
    return float(np.mean(values)) if values else None


def _name_in_pool(model: str, pool: Pool | None) -> str:
    for card in pool or ():
        if model in (card.name, card.upstream_model):
            return card.name
    return model


def _source(logs: Sequence[Log]) -> str:
    harnesses = dict.fromkeys(log.harness for log in logs)
    metrics = dict.fromkeys(f"{log.task}: {log.metric}" for log in logs)
    return f"logs of {' and '.join(harnesses)} ({'; '.join(metrics)})"
