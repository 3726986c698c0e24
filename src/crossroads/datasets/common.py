"""Reading and shaping shared by the loaders."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

CHARS_PER_TOKEN = 4.0  # the usual estimate for English text, where no token count was published


def read_csv(path: Path, types: Mapping[str, Any]) -> Any:
    """Read a gzipped CSV as an Arrow table with these column types. Raises InputError."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.read_csv(
            path,  # decompressed by its suffix
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a gzipped JSON-lines file. Raises InputError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> Any:
    """Return the content of a gzipped JSON file. Raises InputError."""
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error


def numbers(table: Any, columns: list[str]) -> npt.NDArray[np.float64]:
    """Return these columns as float64 (N, K), NaN where empty."""
    return np.column_stack(
        [np.asarray(table[c].to_numpy(zero_copy_only=False), dtype=np.float64) for c in columns]
    )


def long_form(
    *,
    models: list[str],
    score: npt.NDArray[Any],
    per_prompt: Mapping[str, Any],
    per_cell: Mapping[str, npt.NDArray[Any]],
) -> Any:
    """Return the long Arrow table of a dense one: one row for each cell where score is not NaN.

    ``score`` and every array of ``per_cell`` have shape (N, K), or broadcast to it; ``per_prompt``
    holds sequences of length N. NaN becomes null.
    """
    import pyarrow as pa

    n, k = score.shape
    kept = np.flatnonzero(~np.isnan(score.ravel()))
    rows, columns = np.divmod(kept, k)
    names = pa.DictionaryArray.from_arrays(pa.array(columns, pa.int32()), pa.array(models))
    arrays: dict[str, Any] = {
        key: pa.array(values).take(pa.array(rows)) for key, values in per_prompt.items()
    }
    arrays["model"] = names.cast(pa.string())
    for key, values in {"score": score, **per_cell}.items():
        flat = np.broadcast_to(values, (n, k)).ravel()[kept].astype(np.float64)
        arrays[key] = pa.array(flat, from_pandas=True)
    return pa.table(arrays)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); "
        "the file is damaged or not of this data set: copy it again"
    )
