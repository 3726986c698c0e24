"""Logs of Inspect, the evaluation framework of the UK AI Security Institute.

A ``.json`` log is one object; a ``.eval`` log is a zip archive with ``header.json`` and one member
per sample and epoch. Scores are read as Inspect's own metrics do: C is 1, P is 0.5, I and N are 0;
yes, no, true and false count; a NaN is no score. Samples that ended in an error, or were
invalidated, have no score. Tokens and costs are those of the evaluated model alone (not of
graders, unless they are the same model), cached input included.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from crossroads.core.errors import InputError
from crossroads.prompts.experts.base import last_user_text
from crossroads.prompts.logs.common import Log, Sample, decode, no_metric, share
from crossroads.prompts.logs.zips import Members

HARNESS = "Inspect"

_START = re.compile(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:')
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_HEADERS = ("header.json", "_journal/start.json")  # the second of a log that was not finished
_ATTACHMENT = "attachment://"


def is_log(path: Path) -> bool:
    """Whether a file is a log, by its suffix and first bytes."""
    if path.suffix == ".eval":
        return True
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return _START.match(file.read(256)) is not None


def read_log(path: Path, *, metric: str | None = None) -> Log:
    """Read a log. Raises InputError for a damaged one and for a metric it does not have."""
    import msgspec

    where = str(path)
    try:
        if path.suffix == ".eval":
            spec, given = _read_archive(path)
        else:
            whole = _typed(path.read_bytes(), "Whole", where)
            spec, given = whole.eval, whole.samples or []
    except (zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
        raise InputError(f"{where}: not a readable zip archive ({error})") from error
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        problem = str(error).replace("`", "'")
        raise InputError(f"{where}: not a log of Inspect: {problem}") from error
    if not given:
        raise InputError(f"{where}: no samples; log them (Inspect's option log_samples)")
    chosen = _choose(given, metric, where)
    samples = tuple(_sample(sample, spec.model, chosen, where) for sample in given)
    return Log(
        path=path,
        harness=HARNESS,
        task=spec.task,
        model=spec.model,
        metric=chosen,
        samples=samples,
    )


@cache
def _types() -> dict[str, Any]:
    """Return the parts of a log that are read; everything else is skipped."""
    import msgspec

    usage = msgspec.defstruct(
        "Usage",
        [
            ("input_tokens", int, 0),
            ("output_tokens", int, 0),
            ("input_tokens_cache_write", int | None, None),
            ("input_tokens_cache_read", int | None, None),
            ("total_cost", float | None, None),
        ],
    )
    score = msgspec.defstruct("Score", [("value", Any)])
    output = msgspec.defstruct("Output", [("time", float | None, None)])
    sample = msgspec.defstruct(
        "Sample",
        [
            ("id", int | str),
            ("input", str | list[dict[str, Any]]),
            ("choices", list[str] | None, None),
            ("scores", dict[str, score] | None, None),  # type: ignore[valid-type]
            ("output", output | None, None),
            ("messages", list[dict[str, Any]], msgspec.field(default_factory=list)),
            ("model_usage", dict[str, usage], msgspec.field(default_factory=dict)),  # type: ignore[valid-type]
            ("attachments", dict[str, str], msgspec.field(default_factory=dict)),
            ("total_time", float | None, None),
            ("working_time", float | None, None),
            ("error", Any, None),
            ("invalidation", Any, None),
        ],
    )
    spec = msgspec.defstruct("Spec", [("task", str), ("model", str)])
    header = msgspec.defstruct("Header", [("eval", spec)])
    samples = ("samples", list[sample] | None, None)  # type: ignore[valid-type]
    whole = msgspec.defstruct("Whole", [("eval", spec), samples])
    return {"Sample": sample, "Header": header, "Whole": whole}


def _typed(data: bytes, kind: str, where: str) -> Any:
    """Decode what is read of a log. The decoder that skips the rest knows no NaN."""
    import msgspec

    try:
        return msgspec.json.decode(data, type=_types()[kind])
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(decode(data, where), _types()[kind])


def _read_archive(path: Path) -> tuple[Any, list[Any]]:
    with zipfile.ZipFile(path) as archive:
        names, inside = set(archive.namelist()), Members(archive, path)
        header = next((name for name in _HEADERS if name in names), None)
        if header is None:
            raise InputError(f"{path}: no {_HEADERS[0]} inside; not a log of Inspect")
        found = _typed(inside.read(header), "Header", f"{path}, {header}")
        members = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
        samples = [_typed(inside.read(name), "Sample", f"{path}, {name}") for name in members]
    return found.eval, samples


def _choose(samples: Sequence[Any], metric: str | None, where: str) -> str:
    """Return the metric to take: the one asked for, else the first. Raises InputError."""
    existing = list(dict.fromkeys(name for s in samples for name in _metrics(s)))
    if metric is None:
        if not existing:
            raise InputError(f"{where}: no sample has a score; run 'inspect score' on it first")
        return existing[0]
    if metric not in existing:
        raise no_metric(where, metric, existing)
    return metric


def _metrics(sample: Any) -> Iterable[str]:
    for name, score in (sample.scores or {}).items():
        if isinstance(score.value, Mapping):
            yield from (f"{name}.{key}" for key in score.value)
        else:
            yield name


def _sample(sample: Any, model: str, metric: str, where: str) -> Sample:
    prompt = _prompt(sample)
    usage = sample.model_usage.get(model)
    cached = 0
    if usage is not None:
        cached = (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
    is_valid = sample.error is None and sample.invalidation is None
    return Sample(
        sample_id=str(sample.id),
        question=prompt,
        prompt=prompt,
        score=_score(sample, metric, where) if is_valid else None,
        cost=None if usage is None else usage.total_cost,
        input_tokens=None if usage is None else usage.input_tokens + cached,
        output_tokens=None if usage is None else usage.output_tokens,
        latency_s=_seconds(sample),
        chance=1 / len(sample.choices) if sample.choices else None,
    )


def _prompt(sample: Any) -> str:
    text = sample.input if isinstance(sample.input, str) else last_user_text(sample.input)
    if text.startswith(_ATTACHMENT):
        text = sample.attachments.get(text.removeprefix(_ATTACHMENT), text)
    return str(text)


def _score(sample: Any, metric: str, where: str) -> float | None:
    values = dict(_values(sample))
    if metric not in values:
        return None
    value = values[metric]
    if isinstance(value, str):
        value = _GRADES.get(value, _WORDS.get(value.lower(), value))
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return share(value, f"{where}, sample {sample.id!r}", metric, list(values))


def _values(sample: Any) -> Iterable[tuple[str, Any]]:
    for name, score in (sample.scores or {}).items():
        if isinstance(score.value, Mapping):
            yield from ((f"{name}.{key}", value) for key, value in score.value.items())
        else:
            yield name, score.value


def _seconds(sample: Any) -> float | None:
    """Return the time of the only call where there was one, else that of the whole sample."""
    calls = sum(message.get("role") == "assistant" for message in sample.messages)
    if calls <= 1 and sample.output is not None and sample.output.time is not None:
        return float(sample.output.time)
    found = sample.total_time if sample.working_time is None else sample.working_time
    return None if found is None else float(found)
