"""From long Arrow tables to ``OutcomeTable``, with every check a wrong file can fail.

A ``LongTable`` has text columns as dictionaries of strings, number columns as float64, null
where a cell is empty. Each complaint names the file, the line or row, the column, what was found
there and what to do, on one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.pool import Pool

REQUIRED = ("prompt_id", "model", "score")
PER_PROMPT = ("prompt", "domain", "subject", "difficulty", "split", "chance")
PER_CELL = ("cost", "input_tokens", "output_tokens", "latency_s")
NUMBERS = ("score", "chance", *PER_CELL)
STRINGS = ("prompt_id", "model", "prompt", "domain", "subject", "difficulty", "split", "cost_unit")
COLUMNS = (*STRINGS, *NUMBERS)  # "response" is allowed and never read

MOST_CELLS = 2**28  # prompts x models; beyond it the dense table no longer fits in memory

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LongTable:
    """One row per prompt and model. ``place(row)`` says where a row is: ``line 7``, ``row 6``."""

    where: str
    columns: Any
    place: Callable[[int], str]

    def fail(self, row: int | None, column: str | None, problem: str) -> NoReturn:
        """Raise InputError: file, place, column, problem."""
        parts = [self.where]
        if row is not None:
            parts.append(self.place(row))
        if column is not None:
            parts.append(f"column {column!r}")
        raise InputError(f"{', '.join(parts)}: {problem}")


def check_columns(where: str, names: Sequence[str]) -> list[str]:
    """Return the known columns among ``names``. Raises InputError for missing or repeated ones."""
    for name in COLUMNS:
        if names.count(name) > 1:
            raise InputError(f"{where}: column {name!r} stands there twice; keep one")
    for name in REQUIRED:
        if name not in names:
            found = ", ".join(repr(n) for n in names[:12]) or "none"
            raise InputError(
                f"{where}: no column {name!r}; found {found:.200}; "
                "an outcome table has prompt_id, prompt, model, score"
            )
    return [name for name in COLUMNS if name in names]


def densify(
    long: LongTable, *, source: str, models: Sequence[str] | None, pool: Pool | None
) -> OutcomeTable:
    """Check a long table and return the dense one: all of its models, or ``models`` in order.

    Raises InputError at the first problem; UsageError where ``models`` names an unknown one.
    """
    if long.columns.num_rows == 0:
        long.fail(None, None, "no rows; an outcome table needs one row per prompt and model")
    values = {name: _numbers(long, name) for name in NUMBERS if name in long.columns.column_names}
    prompt_of, prompt_ids = _identifiers(long, "prompt_id")
    model_of, found = _identifiers(long, "model")
    _check_models(long, found, model_of, models, pool)
    shape = (len(prompt_ids), len(found))
    if shape[0] * shape[1] > MOST_CELLS:
        long.fail(
            None,
            "model",
            f"{shape[0]} prompts x {shape[1]} models are too many cells; "
            "does the column hold model names?",
        )
    cell_of = prompt_of * shape[1] + model_of
    _check_repeats(long, cell_of)
    text = {
        name: _text_per_prompt(long, name, prompt_of, shape[0])
        for name in ("prompt", "domain", "subject", "difficulty", "split")
    }
    _check_split(long, text["split"], prompt_of)
    chance = _number_per_prompt(long, values.get("chance"), prompt_of, shape[0])
    cells = {name: _scatter(values.get(name), cell_of, shape) for name in ("score", *PER_CELL)}
    score = cells["score"]
    if score is None:
        long.fail(None, "score", "empty in every row; give at least one score")
    table = OutcomeTable(
        prompt_ids=prompt_ids,
        models=tuple(found),
        score=score.astype(np.float32),
        prompt_hash=_hashes(prompt_ids, text["prompt"]),
        texts=_replace_none(text["prompt"]),
        cost=cells["cost"],
        cost_unit=_cost_unit(long),
        input_tokens=_float32(cells["input_tokens"]),
        output_tokens=_float32(cells["output_tokens"]),
        latency_s=_float32(cells["latency_s"]),
        domain=_replace_none(text["domain"]),
        subject=_replace_none(text["subject"]),
        difficulty=_replace_none(text["difficulty"]),
        split=text["split"],
        chance=_float32(chance),
        source=source,
    )
    return table if models is None else table.select_models(models)


def _encode(long: LongTable, column: str) -> tuple[Ints, npt.NDArray[np.object_]]:
    """Return each row's code, -1 where empty, and the distinct texts by code.

    Codes count up in the order of the first row that holds the text.
    """
    array = long.columns[column].unify_dictionaries().combine_chunks()
    again = array.dictionary.dictionary_encode()  # a dictionary may repeat, or hold a null
    codes = _codes(again.indices.take(array.indices))
    present, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    has_empty = int(len(present) > 0 and present[0] < 0)
    order = np.argsort(first[has_empty:])
    rank = np.empty(len(present), dtype=np.int64)
    rank[:has_empty] = -1
    rank[has_empty:][order] = np.arange(len(order))
    texts = np.array([None, *again.dictionary.to_pylist()], dtype=object)[1:]
    return rank[codes], texts[present[has_empty:][order]]


def _codes(indices: Any) -> Ints:
    return np.asarray(indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _identifiers(long: LongTable, column: str) -> tuple[Ints, npt.NDArray[np.object_]]:
    """Return each row's number and the distinct names, in the order of their first row."""
    codes, names = _encode(long, column)
    if (codes < 0).any():
        long.fail(int(np.flatnonzero(codes < 0)[0]), column, "empty; every row needs one")
    blank = [n for n, name in enumerate(names) if not name.strip()]
    if blank:
        long.fail(int(np.flatnonzero(codes == blank[0])[0]), column, "empty; every row needs one")
    return codes, names


def _check_models(
    long: LongTable,
    found: npt.NDArray[np.object_],
    model_of: Ints,
    models: Sequence[str] | None,
    pool: Pool | None,
) -> None:
    if models is not None:
        for name in models:
            if name not in found:
                raise unknown_name(f"model in {long.where}:", name, found)
    if pool is None:
        return
    for name in found if models is None else models:
        if name not in pool.names:
            row = int(np.flatnonzero(model_of == list(found).index(name))[0])
            problem = unknown_name("model", name, pool.names)
            long.fail(
                row,
                "model",
                f"{problem} (pool {pool.name!r}); add it to the pool, or choose with --models",
            )


def _check_repeats(long: LongTable, cell_of: Ints) -> None:
    order = np.argsort(cell_of, kind="stable")
    again = np.flatnonzero(np.diff(cell_of[order]) == 0)
    if len(again) == 0:
        return
    row = int(order[again + 1].min())
    first = int(np.flatnonzero(cell_of == cell_of[row])[0])
    prompt, model = (long.columns[c][row].as_py() for c in ("prompt_id", "model"))
    long.fail(
        row,
        None,
        f"prompt {prompt!r:.60} and model {model!r:.60} stand already in {long.place(first)}; "
        "keep one row per prompt and model",
    )


def _numbers(long: LongTable, column: str) -> npt.NDArray[np.float64] | None:
    """Return a number column as float64 with NaN for empty cells; None where all are empty."""
    array = long.columns[column].combine_chunks()
    empty = array.is_null().to_numpy(zero_copy_only=False)
    if empty.all():
        return None
    values = np.asarray(array.fill_null(0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
    top = 1.0 if column in {"score", "chance"} else np.finfo(np.float32).max
    wrong = np.flatnonzero(~((values >= 0) & (values <= top)))
    if len(wrong):
        row = int(wrong[0])
        expected = "a number in [0, 1]" if top == 1.0 else "a finite number >= 0"
        when = "the model was not run" if column == "score" else "it is not known"
        found = float(values[row])
        long.fail(row, column, f"expected {expected}, got {found!r}; leave it empty where {when}")
    return np.where(empty, np.nan, values)


def _text_per_prompt(
    long: LongTable, column: str, prompt_of: Ints, num_prompts: int
) -> npt.NDArray[np.object_] | None:
    """Return the one value each prompt has, shape (N,), None where it has none."""
    if column not in long.columns.column_names:
        return None
    codes, names = _encode(long, column)
    if len(names) == 0:
        return None
    first = _one_per_prompt(long, column, codes, prompt_of, num_prompts)
    return np.array([*names, None], dtype=object)[first]


def _number_per_prompt(
    long: LongTable,
    values: npt.NDArray[np.float64] | None,
    prompt_of: Ints,
    num_prompts: int,
) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    distinct, codes = np.unique(values, return_inverse=True)
    codes = np.where(np.isnan(values), -1, codes)
    first = _one_per_prompt(long, "chance", codes, prompt_of, num_prompts)
    return np.asarray(np.append(distinct, np.nan)[first])


def _one_per_prompt(
    long: LongTable, column: str, codes: Ints, prompt_of: Ints, num_prompts: int
) -> Ints:
    """Return the code of each prompt's first value, -1 for none. Two values are an error.

    ``codes`` (R,) says which value a row holds, -1 for an empty cell.
    """
    rows = np.flatnonzero(codes >= 0)
    first = np.full(num_prompts, -1, dtype=np.int64)
    first[prompt_of[rows[::-1]]] = codes[rows[::-1]]  # the last assignment, the first row, stays
    differing = rows[codes[rows] != first[prompt_of[rows]]]
    if len(differing):
        row = int(differing[0])
        prompt, value = (long.columns[c][row].as_py() for c in ("prompt_id", column))
        other = rows[prompt_of[rows] == prompt_of[row]][0]
        long.fail(
            row,
            column,
            f"prompt {prompt!r:.60} has {value!r:.60} here and another value in "
            f"{long.place(int(other))}; give different prompts different ids",
        )
    return first


def _check_split(long: LongTable, split: npt.NDArray[np.object_] | None, prompt_of: Ints) -> None:
    if split is None:
        return
    wrong = np.flatnonzero([side not in ("train", "test") for side in split])
    if len(wrong):
        row = int(np.flatnonzero(prompt_of == wrong[0])[0])
        long.fail(
            row,
            "split",
            f"expected 'train' or 'test', got {split[wrong[0]]!r:.60}; "
            "mark every prompt, or drop the column",
        )


def _cost_unit(long: LongTable) -> str:
    """Return the one unit the costs count, dollars where none is named."""
    if "cost_unit" not in long.columns.column_names:
        return OutcomeTable.cost_unit
    codes, names = _encode(long, "cost_unit")
    if len(names) > 1:
        row = int(np.flatnonzero(codes == 1)[0])
        long.fail(
            row,
            "cost_unit",
            f"expected {names[0]!r:.40} as in the rows before, got {names[1]!r:.40}; convert the "
            "costs to one unit",
        )
    return str(names[0]) if len(names) else OutcomeTable.cost_unit


def _scatter(
    values: npt.NDArray[np.float64] | None, cell_of: Ints, shape: tuple[int, int]
) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    dense = np.full(shape[0] * shape[1], np.nan)
    dense[cell_of] = values
    return dense.reshape(shape)


def _float32(values: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32] | None:
    return None if values is None else values.astype(np.float32)


def _replace_none(values: npt.NDArray[np.object_] | None) -> npt.NDArray[np.object_] | None:
    if values is None:
        return None
    return np.array(["" if value is None else value for value in values], dtype=object)


def _hashes(
    ids: npt.NDArray[np.object_], texts: npt.NDArray[np.object_] | None
) -> npt.NDArray[np.uint64]:
    """Hash each prompt's text, or its id where it has none."""
    keys = ids if texts is None else [text or i for i, text in zip(ids, texts, strict=True)]
    return np.fromiter((prompt_hash(key) for key in keys), dtype=np.uint64, count=len(ids))
