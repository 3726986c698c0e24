"""Logs of lm-evaluation-harness: ``samples_TASK_DATE.jsonl``, written with ``--log_samples``.

The model's name is in ``results_DATE.json`` of the same folder, else it is the folder's name. The
prompt is the question in the document where it has one under a usual name, else the text that was
sent to the model, examples included. The logs hold no tokens, costs or times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError
from crossroads.prompts.logs.common import Log, Sample, decode, no_metric, share

HARNESS = "lm-evaluation-harness"

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")
_QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "input", "ctx", "text")
_FIXED = frozenset(
    (
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter"),
        *("metrics", "doc_hash", "prompt_hash", "target_hash"),
    )
)
_NO_FILTER = "none"
_OPTION_METRICS = frozenset({"acc", "acc_norm"})  # of tasks that rank the options


def is_log(path: Path) -> bool:
    """Whether a file is a log, by its name and first record."""
    if _NAME.fullmatch(path.name) is None:
        return False
    with path.open("rb") as file:
        return b'"doc_id"' in file.readline()


def read_log(path: Path, *, metric: str | None = None, filter_name: str | None = None) -> Log:
    """Read a log. Raises InputError for a damaged one, and for a metric or filter it has not."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, "is_log() first"
    where = str(path)
    records = _records(path)
    filters = list(dict.fromkeys(record.get("filter", _NO_FILTER) for record in records))
    chosen_filter = _choose_filter(filters, filter_name, where)
    records = [r for r in records if r.get("filter", _NO_FILTER) == chosen_filter]
    results = _results(path, match["date"])
    chosen = _choose_metric(records, metric, results.get("higher_is_better", {}), match, where)
    existing = _metrics(records[0])
    samples = tuple(
        _sample(record, chosen, existing, f"{where}, document {record['doc_id']}")
        for record in records
    )
    return Log(
        path=path,
        harness=HARNESS,
        task=match["task"],
        model=_model(results, path),
        metric=chosen if len(filters) == 1 else f"{chosen}, {chosen_filter}",
        samples=samples,
    )


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            record = decode(line, f"{path}, line {number}")
            if not isinstance(record, dict) or not isinstance(record.get("doc_id"), int | str):
                raise InputError(f"{path}, line {number}: expected a sample with a 'doc_id'")
            records.append(record)
    return records


def _results(path: Path, date: str | None) -> Mapping[str, Any]:
    """Return the summary that was written with the samples, empty where there is none."""
    pattern = "*results.json" if date is None else f"*_{date}.json"
    for candidate in sorted(path.parent.glob(pattern)):
        found = decode(candidate.read_bytes(), str(candidate))
        if isinstance(found, dict) and "results" in found:
            return found
    return {}


def _model(results: Mapping[str, Any], path: Path) -> str:
    name = results.get("model_name")
    if isinstance(name, str) and name:
        return name
    return path.absolute().parent.name.replace("__", "/")  # as the harness names its folders


def _choose_filter(filters: Sequence[str], wanted: str | None, where: str) -> str:
    """Return the filter asked for; a task with a single one has no choice."""
    if wanted is None or len(filters) == 1:
        return filters[0]
    if wanted not in filters:
        raise InputError(
            f"{where}: no filter {wanted!r}; it has: {', '.join(filters)}; choose with --filter"
        )
    return wanted


def _choose_metric(
    records: Sequence[Mapping[str, Any]],
    wanted: str | None,
    better: Mapping[str, Any],
    match: re.Match[str],
    where: str,
) -> str:
    """Return the metric asked for, else the first that can be a score. Raises InputError."""
    existing = _metrics(records[0])
    directions = better.get(match["task"]) or {}
    if wanted is not None:
        if wanted not in existing:
            raise no_metric(where, wanted, existing)
        if directions.get(wanted) is False:
            raise InputError(
                f"{where}: metric {wanted!r} is better when lower; a score must be better when "
                f"higher; it has: {', '.join(existing)}"
            )
        return wanted
    for name in existing:
        if directions.get(name) is not False and _is_share(record.get(name) for record in records):
            return name
    raise InputError(
        f"{where}: no metric is a number in [0, 1] that is better when higher; it has: "
        f"{', '.join(existing) or 'none'}"
    )


def _metrics(record: Mapping[str, Any]) -> list[str]:
    given = record.get("metrics")
    names = given if isinstance(given, list) else [name for name in record if name not in _FIXED]
    return [str(name) for name in names]


def _is_share(values: Any) -> bool:
    return all(
        value is None or (isinstance(value, bool | int | float) and not (value < 0 or value > 1))
        for value in values
    )


def _sample(record: Mapping[str, Any], metric: str, existing: list[str], where: str) -> Sample:
    prompt = _prompt(record)
    options = record.get("arguments") or ()
    ranks_options = metric in _OPTION_METRICS and "acc_mutual_info" not in existing
    return Sample(
        sample_id=str(record["doc_id"]),
        question=str(record.get("doc_hash") or prompt),
        prompt=prompt,
        score=share(record.get(metric), where, metric, existing),
        chance=1 / len(options) if ranks_options and len(options) > 1 else None,
    )


def _prompt(record: Mapping[str, Any]) -> str:
    doc = record.get("doc")
    if isinstance(doc, Mapping):
        for name in _QUESTIONS:
            if isinstance(doc.get(name), str) and doc[name].strip():
                return str(doc[name])
    sent = record.get("arguments")
    first = sent.get("gen_args_0") if isinstance(sent, Mapping) else None
    if isinstance(first, Mapping):
        return str(first.get("arg_0", ""))
    if isinstance(sent, list) and sent and isinstance(sent[0], list) and sent[0]:
        return str(sent[0][0])  # as older versions write it
    return ""
