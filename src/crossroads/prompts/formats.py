"""The file formats of outcome tables: Parquet, CSV and JSON lines, to and from the long form.

Each reader returns a ``crossroads.prompts.long_form.LongTable`` that can say where a row
stands, or raises InputError on one line that names the file, the place and the remedy.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import InputError
from crossroads.prompts.long_form import (
    NUMBERS,
    PER_CELL,
    REQUIRED,
    STRINGS,
    LongTable,
    check_columns,
)
from crossroads.prompts.outcomes import OutcomeTable

FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def read_long(path: Path) -> LongTable:
    """Read a file by its suffix. Raises InputError; OSError where the system refuses."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    if kind == [".csv"]:
        return _read_csv(path)
    if kind in ([".jsonl"], [".ndjson"]):
        return _read_json_lines(path)
    if kind in ([".parquet"], [".pq"]) and suffixes[-1] != ".gz":
        return _read_parquet(path)
    raise InputError(f"{path}: unknown kind of file; expected one of {', '.join(FORMATS)}")


def row_number(row: int) -> str:
    """Name a row of a format that has no lines."""
    return f"row {row + 1}"


# -- Parquet -------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> LongTable:
    import pyarrow as pa
    from pyarrow import parquet

    where = str(path)
    try:
        schema = parquet.read_schema(path)
        columns = check_columns(where, schema.names)
        texts = [c for c in columns if c in STRINGS and schema.field(c).type == pa.string()]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            table = file.read(columns=columns)
        table.validate(full=True)  # damaged pages may hold offsets out of range, or no UTF-8
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(where, "Parquet", error) from error
    except OSError as error:
        if error.errno is not None:  # the system's complaint, not the decoder's
            raise
        raise _unreadable(where, "Parquet", error) from error
    return LongTable(where=where, columns=typed(where, table), place=row_number)


def typed(where: str, table: Any) -> Any:
    """Cast known columns to dictionaries of strings and to float64. Raises InputError."""
    import pyarrow as pa

    arrays = {}
    for name in (c for c in (*STRINGS, *NUMBERS) if c in table.column_names):
        array = table[name]
        is_dictionary = pa.types.is_dictionary(array.type)
        kind = array.type.value_type if is_dictionary else array.type
        fits = pa.types.is_integer(kind) or _is_any(
            kind, "null", *(_NUMERIC if name in NUMBERS else _TEXTUAL)
        )
        if not fits:
            expected = "numbers" if name in NUMBERS else "text"
            raise InputError(
                f"{where}, column {name!r}: expected {expected}, got the type {kind!s:.60}; "
                "write the column with the right type"
            )
        if name in NUMBERS:
            arrays[name] = array.cast(kind).cast(pa.float64())
        elif is_dictionary and pa.types.is_string(kind):
            arrays[name] = array
        else:
            text = array.cast(kind).cast(pa.large_string())
            arrays[name] = text.dictionary_encode()
    return pa.table(arrays)


_NUMERIC = ("floating", "boolean", "decimal")
_TEXTUAL = ("string", "large_string", "string_view")


def _is_any(kind: Any, *names: str) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


# -- CSV -----------------------------------------------------------------------------------------


def _read_csv(path: Path) -> LongTable:
    import pyarrow as pa
    from pyarrow import csv

    where, data = str(path), _read_bytes(path)
    options: dict[str, Any] = {"parse_options": csv.ParseOptions(newlines_in_values=True)}
    place = _line_finder(data)
    try:
        with csv.open_csv(pa.BufferReader(data), **options) as reader:
            columns = check_columns(where, reader.schema.names)
        options["convert_options"] = csv.ConvertOptions(
            include_columns=columns,
            column_types={
                name: pa.dictionary(pa.int32(), pa.string()) if name in STRINGS else pa.string()
                for name in columns
            },
            null_values=[""],
            strings_can_be_null=True,
        )
        table = csv.read_csv(pa.BufferReader(data), **options)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        _complain_of_encoding(where, data)
        raise _unreadable(where, "CSV", _with_row(data, options, error)) from error
    for name in (c for c in columns if c in NUMBERS):
        index = table.column_names.index(name)
        numbers = _parse_numbers(where, name, table[name], place)
        table = table.set_column(index, name, numbers)
    return LongTable(where=where, columns=table, place=place)


def _with_row(data: bytes, options: dict[str, Any], error: Exception) -> Exception:
    """Parse again in one thread, which makes the complaint name the row."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        csv.read_csv(
            pa.BufferReader(data), read_options=csv.ReadOptions(use_threads=False), **options
        )
    except (pa.ArrowException, UnicodeDecodeError) as again:
        return again
    return error


def _parse_numbers(where: str, name: str, strings: Any, place: Callable[[int], str]) -> Any:
    """Convert text to float64; halve the column until the first cell that is no number is found."""
    import pyarrow as pa

    try:
        return strings.cast(pa.float64())
    except pa.ArrowInvalid:
        low, high = 0, len(strings)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            strings.slice(low, middle - low).cast(pa.float64())
            low = middle
        except pa.ArrowInvalid:
            high = middle
    found = strings[low].as_py()
    raise InputError(
        f"{where}, {place(low)}, column {name!r}: expected a number, got {found!r:.60}; "
        "leave the cell empty where nothing was measured"
    )


def _line_finder(data: bytes) -> Callable[[int], str]:
    """Return a function from row to line: records may span lines inside quotes, or be blank."""

    def place(row: int) -> str:
        quotes, record, start = 0, -1, 1  # record -1 is the header
        for number, line in enumerate(data.splitlines(), start=1):
            if quotes % 2 == 0:
                if not line:
                    continue
                start = number
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                if record == row:
                    break
                record += 1
        return f"line {start}"

    return place


# -- JSON lines ----------------------------------------------------------------------------------


def _read_json_lines(path: Path) -> LongTable:
    import msgspec
    import pyarrow as pa

    where = str(path)
    decode = msgspec.json.Decoder(_record_type()).decode
    batches: list[Any] = []
    records: list[Any] = []
    try:
        for number, line in _lines(path):
            try:
                records.append(decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise _wrong_record(where, number, error) from error
            if len(records) == 20_000:  # columns take far less memory than records
                batches.append(_columns(records))
                records = []
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(where, "gzip", error) from error
    batches.append(_columns(records))

    def place(row: int) -> str:
        return f"line {next(islice(_lines(path), row, None))[0]}"

    return LongTable(where=where, columns=pa.concat_tables(batches), place=place)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if not line.isspace():
                yield number, line


@cache
def _record_type() -> Any:
    """Return the type of one line: known columns, others ignored."""
    import msgspec

    kinds: dict[str, Any] = {
        **dict.fromkeys(STRINGS, str | int | None),
        **dict.fromkeys(NUMBERS, float | bool | None),
    }
    fields = [
        (name, kind) if name in REQUIRED else (name, kind, None) for name, kind in kinds.items()
    ]
    return msgspec.defstruct("Record", fields, gc=False, kw_only=True)


def _columns(records: list[Any]) -> Any:
    """Return records as an Arrow table of all known columns."""
    import pyarrow as pa

    arrays = {}
    for name in STRINGS:
        values = [getattr(record, name) for record in records]
        if int in set(map(type, values)):
            values = [None if value is None else str(value) for value in values]
        arrays[name] = pa.array(values, pa.large_string()).dictionary_encode()
    for name in NUMBERS:
        values = [getattr(record, name) for record in records]
        if bool in set(map(type, values)):
            values = [None if value is None else float(value) for value in values]
        arrays[name] = pa.array(values, pa.float64())
    return pa.table(arrays)


def _wrong_record(where: str, number: int, error: Exception) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{where}, line {number}: not UTF-8 text; save the file as UTF-8")
    problem = " ".join(str(error).replace("`", "'").split())
    problem, _, column = problem.partition(" - at '$.")
    place = f", column '{column}" if column else ""
    return InputError(
        f"{where}, line {number}{place}: {problem:.120}; "
        "write one JSON object per line, with prompt_id, model and score at least"
    )


# -- shared --------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix.lower() != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(str(path), "gzip", error) from error


def _complain_of_encoding(where: str, data: bytes) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error


def _unreadable(where: str, kind: str, error: Exception) -> InputError:
    problem = " ".join(str(error).split())
    return InputError(
        f"{where}: not a readable {kind} file ({problem:.160}); "
        "it may be truncated, or of another kind than its name says"
    )


# -- writing -------------------------------------------------------------------------------------


def to_long(table: OutcomeTable) -> Any:
    """Return the long Arrow table of a dense one."""
    import pyarrow as pa

    keep = ~np.isnan(table.score)
    keep[~keep.any(axis=1), 0] = True
    keep[:1] = True
    rows, columns = np.nonzero(keep)
    ids = pa.array(table.prompt_ids, pa.large_string())
    arrays: dict[str, Any] = {"prompt_id": ids.take(pa.array(rows))}
    for name, values in (
        ("prompt", table.texts),
        ("domain", table.domain),
        ("subject", table.subject),
        ("difficulty", table.difficulty),
        ("split", table.split),
    ):
        if values is not None:
            known = pa.array([value or None for value in values], pa.large_string())
            arrays[name] = known.take(pa.array(rows))
    if table.chance is not None:
        arrays["chance"] = pa.array(table.chance[rows].astype(np.float64), from_pandas=True)
    arrays["model"] = pa.array(list(table.models), pa.large_string()).take(pa.array(columns))
    for name in ("score", *PER_CELL):
        cells = getattr(table, name)
        if cells is not None:
            flat = cells[rows, columns].astype(np.float64)
            arrays[name] = pa.array(flat, from_pandas=True)
    if table.cost is not None and table.cost_unit != OutcomeTable.cost_unit:
        arrays["cost_unit"] = pa.array([table.cost_unit] * len(rows), pa.large_string())
    return pa.table(arrays)


def write_long(long: Any, partial: Path, name: str) -> None:
    """Write the long form to ``partial`` in the format of ``name``."""
    import orjson
    from pyarrow import csv, parquet

    if name.endswith(".parquet"):
        parquet.write_table(long, partial, compression="zstd")
        return
    opener: Any = gzip.open if name.endswith(".gz") else open
    with opener(partial, "wb") as file:
        if ".csv" in name:
            csv.write_csv(long, file)
            return
        for batch in long.to_batches(max_chunksize=50_000):
            for record in batch.to_pylist():
                kept = {
                    key: value
                    for key, value in record.items()
                    if value is not None or key in REQUIRED
                }
                file.write(orjson.dumps(kept) + b"\n")
