"""A ledger as files: an outcome table to learn from, or every call as it was recorded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from crossroads.core.errors import InputError, UsageError
from crossroads.core.files import replacing
from crossroads.gateway.contracts import JUDGED, Record
from crossroads.gateway.ledger.feedback import Feedback
from crossroads.gateway.ledger.schema import CALL_COLUMNS, KIND_OF, decode, encoder
from crossroads.prompts.formats import FORMATS, write_long

CALL_FORMATS = (".parquet", ".jsonl")
_FEEDBACK = "feedback"  # column of a call's judgements in a file of calls
_BATCH = 10_000  # rows kept in memory at once
_EVERYTHING = ("text", "answers", "features")


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class _Cell:
    """What is known of one prompt and one model."""

    prompt: str | None
    calls: int = 0
    score: _Mean = field(default_factory=_Mean)
    cost: _Mean = field(default_factory=_Mean)
    input_tokens: _Mean = field(default_factory=_Mean)
    output_tokens: _Mean = field(default_factory=_Mean)
    latency_s: _Mean = field(default_factory=_Mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """How much of a ledger an outcome table holds.

    Attributes
    ----------
    rows, prompts, models : of the table
    calls : that it was made of
    left_out : reason -> calls that are not in it
    """

    rows: int
    prompts: int
    models: int
    calls: int
    left_out: Mapping[str, int]


def write_outcome_table(
    records: Iterable[Record],
    rewards: Mapping[str, float],
    path: Path,
    *,
    only_judged: bool = True,
) -> Exported:
    """Write calls as an outcome table that ``crossroads arena prompts --outcomes`` reads.

    One row per prompt and answering model, means over their calls. A prompt is identified by its
    text, or by the hash of its embedding where no text was kept; the score is the mean reward, and
    empty where nobody judged (``only_judged`` False). Costs, tokens and latency are of calls that
    one model answered at its first try, costs and latency with those of the model that judged the
    answer in a cascade; failed and cached calls are left out.

    Raises UsageError for an unknown suffix, InputError where nothing is left to write.
    """
    if not path.name.lower().endswith(FORMATS):
        raise UsageError(f"{path}: unknown kind of file; expected one of {', '.join(FORMATS)}")
    cells: dict[tuple[str, str], _Cell] = {}
    left_out: dict[str, int] = {}
    calls = 0
    for record in records:
        reason = _reason_to_leave_out(record, rewards, only_judged)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        calls += 1
        _add(cells, record, rewards.get(record.decision_id))
    if not any(cell.score.count for cell in cells.values()):
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(
            f"ledger: no judged call to make an outcome table of ({told or 'it is empty'}); keep "
            "the text (ledger.keep: [text]) and send feedback to /v1/feedback"
        )
    table = _arrow(cells)
    with replacing(path) as temporary:
        write_long(table, temporary, path.name.lower())
    return Exported(
        rows=len(cells),
        prompts=len({prompt for prompt, _ in cells}),
        models=len({model for _, model in cells}),
        calls=calls,
        left_out=left_out,
    )


def _reason_to_leave_out(record: Record, rewards: Mapping[str, float], only_judged: bool) -> str:
    if record.cache:
        return "answered by a cache"
    if not record.model or not record.is_complete:
        return "failed or cut short"
    if record.prompt is None and not record.features_hash:
        return "without text or embedding"
    if only_judged and record.decision_id not in rewards:
        return "not judged"
    return ""


def _add(cells: dict[tuple[str, str], _Cell], record: Record, reward: float | None) -> None:
    key = (_prompt_id(record), record.model)
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = _Cell(record.prompt)
    cell.calls += 1
    cell.score.add(reward)
    judged = sum(code == JUDGED for _, _, code, _ in record.attempts)
    if len(record.attempts) - judged <= 1:
        cell.input_tokens.add(record.input_tokens)
        cell.output_tokens.add(record.output_tokens)
        cell.cost.add(record.cost_usd)
        cell.latency_s.add(record.total_ms / 1000)


def _prompt_id(record: Record) -> str:
    if record.prompt is None:
        return f"features-{record.features_hash}"
    text = record.prompt.encode("utf-8", "replace")
    return f"prompt-{hashlib.blake2b(text, digest_size=12).hexdigest()}"


def _arrow(cells: Mapping[tuple[str, str], _Cell]) -> Any:
    import pyarrow as pa

    numbers = ("score", "cost", "input_tokens", "output_tokens", "latency_s")
    found = {name: [getattr(cell, name).value for cell in cells.values()] for name in numbers}
    columns: dict[str, Any] = {
        "prompt_id": pa.array([prompt for prompt, _ in cells], pa.string()),
        "prompt": pa.array([_valid(cell.prompt) for cell in cells.values()], pa.string()),
        "model": pa.array([model for _, model in cells], pa.string()),
        **{name: pa.array(values, pa.float64()) for name, values in found.items()},
        "calls": pa.array([cell.calls for cell in cells.values()], pa.int64()),
    }
    if columns["prompt"].null_count == len(cells):
        del columns["prompt"]
    return pa.table(columns)


def _valid(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


# --- every call ----------------------------------------------------------------------------------


def write_calls(records: Iterable[Record], feedback: Iterable[Feedback], path: Path) -> int:
    """Write every call with its judgements to ``.parquet`` or ``.jsonl``; return how many.

    ``read_calls`` reads it back, and ``crossroads evaluate --ledger FILE`` with it. Raises
    UsageError for an unknown suffix, InputError where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in CALL_FORMATS:
        raise UsageError(f"{path}: unknown kind of file; expected {' or '.join(CALL_FORMATS)}")
    judged: dict[str, list[Any]] = {}
    for each in feedback:
        judged.setdefault(each.decision_id, []).append(each.row())
    encode = encoder(_EVERYTHING)
    rows = ((*encode(r), _judgements(judged.get(r.decision_id))) for r in records)
    with replacing(path) as temporary:
        return (
            _write_parquet(rows, temporary)
            if suffix == ".parquet"
            else _write_lines(rows, temporary)
        )


def _judgements(rows: list[Any] | None) -> str | None:
    return orjson.dumps(rows).decode() if rows else None


def _write_lines(rows: Iterable[tuple[Any, ...]], path: Path) -> int:
    count = 0
    with path.open("wb") as file:
        for row in rows:
            pairs = zip((*CALL_COLUMNS, _FEEDBACK), row, strict=True)
            known = {name: _plain(value) for name, value in pairs if value is not None}
            file.write(orjson.dumps(known) + b"\n")
            count += 1
    return count


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _write_parquet(rows: Iterable[tuple[Any, ...]], path: Path) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        **{"text": pa.string(), "json": pa.string(), "real": pa.float64()},
        **{"integer": pa.int64(), "boolean": pa.bool_(), "blob": pa.binary()},
    }
    fields = [(name, types[KIND_OF.get(name, "text")]) for name in CALL_COLUMNS]
    schema = pa.schema([*fields, (_FEEDBACK, pa.string())])
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in _parts(rows):
            columns = [list(column) for column in zip(*part, strict=True)]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(part)
    return count


def _parts(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    part: list[tuple[Any, ...]] = []
    for row in rows:
        part.append(row)
        if len(part) == _BATCH:
            yield part
            part = []
    if part:
        yield part


def read_calls(path: Path) -> tuple[list[Record], list[Feedback]]:
    """Return what ``write_calls`` wrote. Raises InputError for another or a damaged file."""
    suffix = path.suffix.lower()
    if suffix not in CALL_FORMATS:
        raise UsageError(f"{path}: unknown kind of file; expected {' or '.join(CALL_FORMATS)}")
    try:
        rows = _parquet_rows(path) if suffix == ".parquet" else _line_rows(path)
        records, feedback = [], []
        for row in rows:
            records.append(decode([row.get(name) for name in CALL_COLUMNS]))
            judged = orjson.loads(row[_FEEDBACK]) if row.get(_FEEDBACK) else []
            feedback += [Feedback.from_row(tuple(each)) for each in judged]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path}: not a file of calls ({error}); make one with: crossroads ledger export "
            "--what calls"
        ) from error
    return records, feedback


def _line_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            row["decision_id"]
            if row.get("features"):
                row["features"] = base64.b64decode(row["features"])
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if "decision_id" not in file.schema_arrow.names:
                raise LookupError("no column 'decision_id'")
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
