"""The writing half of ``crossroads.prompts.staging``: batches of rows to arrays on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.models.encoders import get_encoder
from crossroads.prompts.formats import row_number, typed
from crossroads.prompts.outcomes import prompt_hash
from crossroads.prompts.pool import Pool

Ints = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

TEXTS = "prompts.arrow"
BATCH = 1 << 16  # rows read at a time
CODED = ("domain", "subject", "difficulty", "split")
_PRICED = ("input_tokens", "output_tokens")


@dataclass(frozen=True, kw_only=True)
class Names:
    """The prompts and models of a file, numbered in the order of their first rows."""

    prompts: dict[str, int]
    models: dict[str, int]


def batches(file: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of a Parquet file, BATCH at a time."""
    yield from file.iter_batches(batch_size=BATCH, columns=list(columns))


def read_names(file: Any, where: str, pool: Pool | None) -> Names:
    """Go through the identifiers of a Parquet file. Raises InputError for empty or unknown ones."""
    names = Names(prompts={}, models={})
    row = 0
    for batch in batches(file, ["prompt_id", "model"]):
        table = _typed(where, batch)
        for column, numbers in (("prompt_id", names.prompts), ("model", names.models)):
            codes, found = _codes(table[column])
            blank = [n for n, text in enumerate(found) if not text.strip()]
            empty = np.flatnonzero((codes < 0) | np.isin(codes, blank))
            if len(empty):
                _fail(where, row + int(empty[0]), column, "empty; every row needs one")
            for text in found:
                numbers.setdefault(text, len(numbers))
        row += batch.num_rows
    if row == 0:
        raise InputError(f"{where}: no rows; an outcome table needs one row per prompt and model")
    if pool is not None:
        for name in names.models:
            pool[name]  # names what is missing
    return names


@dataclass(kw_only=True)
class StageWriter:
    """Lays N prompts x K models out in a folder; a context that closes its text file."""

    folder: Path
    names: Names
    columns: Sequence[str]
    where: str
    encoder: str
    pool: Pool | None
    num_rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        shape = (len(self.names.prompts), len(self.names.models))
        self._score = np.full(shape, np.nan, dtype=np.float32)
        self._filled = np.zeros(shape, dtype=bool)
        is_priced = self.pool is not None and self.pool.has_prices
        self._is_costed = "cost" in self.columns or is_priced
        self._cost = np.full(shape, np.nan) if self._is_costed else None
        self._hash = np.zeros(shape[0], dtype=np.uint64)
        self._has_text = "prompt" in self.columns
        self._coded = [name for name in CODED if name in self.columns]
        self._codes = {name: np.full(shape[0], -1, dtype=np.int32) for name in self._coded}
        self._texts: dict[str, dict[str, int]] = {name: {} for name in self._coded}
        self._num_prompts = 0  # whose first row has been read

    def __enter__(self) -> StageWriter:
        import pyarrow as pa

        if not self._has_text:
            raise InputError(
                f"{self.where}: no column 'prompt'; a table read in batches needs its texts"
            )
        self._encoder = get_encoder(self.encoder)
        self._features = np.lib.format.open_memmap(
            self.folder / "embeddings.npy",
            mode="w+",
            dtype=np.float32,
            shape=(len(self.names.prompts), self._encoder.dim),
        )
        self._schema = pa.schema([(name, pa.large_string()) for name in ("prompt_id", "prompt")])
        self._file = pa.OSFile(str(self.folder / TEXTS), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.close()
        self._features.flush()

    def add(self, batch: Any) -> None:
        """Take the next rows of the file."""
        table = _typed(self.where, batch)
        prompt_R = self._numbered(table["prompt_id"], self.names.prompts)
        model_R = self._numbered(table["model"], self.names.models)
        self._check_repeats(prompt_R, model_R)
        self._score[prompt_R, model_R] = self._numbers(table, "score", most=1.0)
        if self._cost is not None:
            self._cost[prompt_R, model_R] = self._costs(table, model_R, prompt_R)
        self._add_prompts(table, prompt_R)
        self.num_rows += batch.num_rows

    def finish(self) -> dict[str, Any]:
        """Write the arrays and return what the folder holds."""
        arrays: dict[str, npt.NDArray[Any]] = {"score": self._score, "prompt_hash": self._hash}
        if self._cost is not None:
            arrays["cost"] = self._cost
        for name, array in {**arrays, **self._codes}.items():
            np.save(self.folder / f"{name}.npy", array, allow_pickle=False)
        return {
            "models": list(self.names.models),
            "arrays": [*arrays, "embeddings"],
            "names": {name: list(found) for name, found in self._texts.items()},
            "encoder": self.encoder,
            "cost_unit": "USD" if self.pool is None else self.pool.cost_unit,
        }

    def _numbered(self, column: Any, numbers: dict[str, int]) -> Ints:
        codes, found = _codes(column)
        return np.array([numbers[text] for text in found], dtype=np.int64)[codes]

    def _check_repeats(self, prompt_R: Ints, model_R: Ints) -> None:
        cell_R = prompt_R * len(self.names.models) + model_R
        order = np.argsort(cell_R, kind="stable")
        again = order[1:][np.diff(cell_R[order]) == 0]
        again = np.concatenate([again, np.flatnonzero(self._filled[prompt_R, model_R])])
        if len(again):
            self._fail(
                int(again.min()),
                None,
                "its prompt and model stand already further up; keep one row per prompt and model",
            )
        self._filled[prompt_R, model_R] = True

    def _numbers(self, table: Any, column: str, *, most: float) -> Float64:
        array = table[column].combine_chunks()
        empty = array.is_null().to_numpy(zero_copy_only=False)
        values = np.asarray(array.fill_null(0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
        wrong = np.flatnonzero(~((values >= 0) & (values <= most)))
        if len(wrong):
            expected = "a number in [0, 1]" if most == 1.0 else "a finite number >= 0"
            found = float(values[wrong[0]])
            self._fail(int(wrong[0]), column, f"expected {expected}, got {found!r}")
        return np.where(empty, np.nan, values)

    def _costs(self, table: Any, model_R: Ints, prompt_R: Ints) -> Float64:
        """Return the cost of each row: its own, else by the pool's prices where it was run."""
        top = float(np.finfo(np.float32).max)
        if "cost" in table.column_names:
            return self._numbers(table, "cost", most=top)
        assert self.pool is not None
        tokens = {
            name: self._numbers(table, name, most=top)
            if name in table.column_names
            else np.full(len(model_R), np.nan)
            for name in _PRICED
        }
        cost_R = np.full(len(model_R), np.nan)
        for name, k in self.names.models.items():
            rows, card = model_R == k, self.pool[name]
            counts = (
                tokens[column][rows] if price else 0.0
                for column, price in zip(_PRICED, (card.price_in, card.price_out), strict=True)
            )
            cost_R[rows] = card.price(*counts)
        return np.where(np.isnan(self._score[prompt_R, model_R]), np.nan, cost_R)

    def _add_prompts(self, table: Any, prompt_R: Ints) -> None:
        """Encode and keep the prompts whose first row is in this batch."""
        number, first = np.unique(prompt_R, return_index=True)
        is_new = number >= self._num_prompts
        number, first = number[is_new], first[is_new]
        if len(number) == 0:
            return
        import pyarrow as pa

        rows = table.take(pa.array(first))
        texts = [text or "" for text in rows["prompt"].to_pylist()]
        ids = rows["prompt_id"].to_pylist()
        keys = (text or name for text, name in zip(texts, ids, strict=True))
        self._hash[number] = np.fromiter((prompt_hash(k) for k in keys), np.uint64, len(number))
        self._features[number] = self._encoder.encode(texts)
        self._writer.write(
            pa.record_batch(
                [pa.array(ids, pa.large_string()), pa.array(texts, pa.large_string())],
                schema=self._schema,
            )
        )
        for name in self._coded:
            codes, found = _codes(rows[name])
            known = self._texts[name]
            for text in found:
                known.setdefault(text, len(known))
            numbers = np.array([*(known[text] for text in found), -1], dtype=np.int32)
            self._codes[name][number] = numbers[codes]
            self._check_split(name, found, first, codes)
        self._num_prompts = int(number[-1]) + 1

    def _check_split(self, column: str, found: list[str], first: Ints, codes: Ints) -> None:
        if column != "split":
            return
        wrong = [n for n, text in enumerate(found) if text not in ("train", "test")]
        bad = np.flatnonzero((codes < 0) | np.isin(codes, wrong))
        if len(bad):
            self._fail(int(first[bad[0]]), "split", "expected 'train' or 'test' for every prompt")

    def _fail(self, row: int, column: str | None, problem: str) -> NoReturn:
        _fail(self.where, self.num_rows + row, column, problem)


def _typed(where: str, batch: Any) -> Any:
    import pyarrow as pa

    return typed(where, pa.Table.from_batches([batch]))


def _codes(column: Any) -> tuple[Ints, list[str]]:
    """Return each row's code, -1 where empty, and the distinct texts by code."""
    array = column.unify_dictionaries().combine_chunks()
    codes = np.asarray(array.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    return codes, array.dictionary.to_pylist()


def _fail(where: str, row: int, column: str | None, problem: str) -> NoReturn:
    place = f", column {column!r}" if column else ""
    raise InputError(f"{where}, {row_number(row)}{place}: {problem}")
