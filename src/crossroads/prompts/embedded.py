"""The outcome table inside the package: MMLU-Pro answered by 29 language models.

``data/mmlu_pro.npz`` holds facts only, no text: which model was right on which question, how long
its answer was, the category, the hash of the question and its static embedding. It is what the
demonstration and the first arena run on. The figures are replayed outcomes of 2024 models, with
costs estimated from answer lengths and declared list prices; the table's ``source`` says so.

Coding (see ``pack_lengths`` and ``pack_unit_rows``): answer lengths in logarithmic steps of
one byte, within 4 %; embeddings as int8 with one float16 scale per row, cosine above 0.9999.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.datasets.common import CHARS_PER_TOKEN
from crossroads.datasets.mmlu_pro import SOURCE
from crossroads.prompts.artefact import npz_arrays
from crossroads.prompts.outcomes import OutcomeTable
from crossroads.prompts.pool import Pool, read_pool

NAME = "mmlu-pro"
FILE = "mmlu_pro.npz"
SUBSETS = ("all", "small", "served", "complete")

NOT_RUN = 0
_EMPTY = 1
_LOG_STEP = np.log(1e5) / 252  # bytes 2..254 cover 1 to 100,000 characters, 2.3 % a half step


def load_embedded(
    subset: str = "all", *, pool: Pool | None = None, with_text: bool = False
) -> OutcomeTable:
    """Return the embedded table of the models of a subset.

    Parameters
    ----------
    subset : ``all`` (29 models), ``complete`` (26 that answered every question), ``small`` (14 of
        up to 8B parameters) or ``served`` (11 realistic to deploy)
    pool : prices to use instead of the shipped ones; without a subset it also chooses the models.
        Models unknown to it or to the table raise UsageError
    with_text : attach the question texts from the MMLU-Pro data set, which must then be on this
        machine; raises UnavailableError where it is not
    """
    if subset not in SUBSETS:
        raise unknown_name(f"part of the table {NAME!r}:", subset, SUBSETS)
    shipped = embedded_pool(subset)
    if pool is None:
        pool = shipped
    elif subset != "all":
        pool = pool.subset(shipped.names)
    table = _load().select_models(pool.names).with_prices(pool)
    return _with_text(table) if with_text else table


def embedded_pool(subset: str = "all") -> Pool:
    """Return the shipped pool of a subset of the table's models, with declared prices."""
    return read_pool(f"{NAME}:{subset}")


@cache
def _load() -> OutcomeTable:
    """Decode the file, once per process; callers only derive new tables from it."""
    try:
        data = resources.files(__package__).joinpath(f"data/{FILE}").read_bytes()
        return decode(npz_arrays(data))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the embedded table {FILE} is missing or damaged; reinstall crossroads"
        ) from error


def decode(arrays: dict[str, npt.NDArray[Any]]) -> OutcomeTable:
    """Rebuild the table from the arrays of the file."""
    models = tuple(str(name) for name in arrays["models"])
    n, k = len(arrays["id"]), len(models)
    length = arrays["length"]
    correct = np.unpackbits(arrays["correct"], count=n * k).reshape(n, k)
    score = np.where(length == NOT_RUN, np.nan, correct).astype(np.float32)
    characters = unpack_lengths(length)
    asked = np.broadcast_to(arrays["input_chars"][:, None], (n, k)).astype(np.float32)
    return OutcomeTable(
        prompt_ids=np.array([str(i) for i in arrays["id"]], dtype=object),
        models=models,
        score=score,
        prompt_hash=arrays["prompt_hash"],
        input_tokens=asked / np.float32(CHARS_PER_TOKEN),
        output_tokens=characters / np.float32(CHARS_PER_TOKEN),
        domain=arrays["categories"].astype(object)[arrays["category"]],
        subject=arrays["subjects"].astype(object)[arrays["subject"]],
        chance=(1 / arrays["num_options"]).astype(np.float32),
        embeddings={"static": unpack_unit_rows(arrays["embedding"], arrays["embedding_scale"])},
        source=SOURCE,
    )


def pack_lengths(characters: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Code lengths as bytes: 0 = NaN, 1 = empty, b = exp((b - 2) * step) characters."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(np.log(characters) / _LOG_STEP)
    codes = np.where(characters >= 1, np.clip(steps, 0, 252) + 2, _EMPTY)
    return np.where(np.isnan(characters), NOT_RUN, codes).astype(np.uint8)


def unpack_lengths(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Invert ``pack_lengths``, within 4 % up to 100,000 characters."""
    values = np.exp((np.arange(256) - 2) * _LOG_STEP)
    values[NOT_RUN], values[_EMPTY] = np.nan, 0.0
    return np.asarray(values.astype(np.float32)[codes])


def pack_unit_rows(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Code rows (N, D) as int8 with one float16 scale per row."""
    scale = (np.abs(rows).max(axis=1) / 127).astype(np.float16)
    safe = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    codes = np.clip(np.rint(rows / safe[:, None]), -127, 127).astype(np.int8)
    return codes, scale


def unpack_unit_rows(
    codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float16]
) -> npt.NDArray[np.float32]:
    """Invert ``pack_unit_rows`` and scale the rows to length one again (zero rows stay)."""
    rows = codes.astype(np.float32) * scale.astype(np.float32)[:, None]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=rows, where=norms > 0))


def _with_text(table: OutcomeTable) -> OutcomeTable:
    from crossroads.datasets.mmlu_pro import read_questions
    from crossroads.datasets.paths import data_folder

    texts = {str(q["id"]): q["question"] for q in read_questions(data_folder("mmlu_pro_outcomes"))}
    missing = [i for i in table.prompt_ids if i not in texts]
    if missing:
        raise InputError(
            f"table {NAME}: no text for question {missing[0]} in the MMLU-Pro folder; copy it again"
        )
    return replace(table, texts=np.array([texts[i] for i in table.prompt_ids], dtype=object))
