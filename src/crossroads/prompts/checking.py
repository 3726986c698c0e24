"""What a router is asked with, checked at the border: seeds, texts, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, UsageError

Float32 = npt.NDArray[np.float32]


def checked_seed(seed: object) -> int:
    """Return the seed. Raises UsageError unless it is a whole number in [0, 2^63)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 63:
        raise UsageError(f"seed: expected a whole number in [0, 2^63), got {seed!r:.40}")
    return int(seed)


def checked_texts(prompts: object) -> list[str]:
    """Return N texts with lone surrogates replaced. Raises InputError for anything else."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence | np.ndarray):
        remedy = "; use route() for one prompt" if isinstance(prompts, str) else ""
        raise InputError(
            f"prompts: expected a list of texts, got one {type(prompts).__name__}{remedy}"
        )
    if isinstance(prompts, np.ndarray) and prompts.ndim != 1:
        raise InputError(f"prompts: expected texts of shape (N,), got {prompts.shape}")
    for n, text in enumerate(prompts):
        if not isinstance(text, str):
            raise InputError(f"prompts: number {n} is no text but {type(text).__name__}")
    return [unicode_text(text) for text in prompts]


def unicode_text(text: str) -> str:
    """Return the text with every surrogate that is not half of a pair replaced."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def checked_embeddings(rows: npt.NDArray[Any], *, encoder: str, dim: int | None) -> Float32:
    """Return embeddings as float32 (N, D); ``dim`` is the D of the encoder, None for any.

    Raises InputError for other shapes, and for what is no finite number.
    """
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise InputError(
            f"embeddings: expected numbers of shape (N, D), got {rows.dtype} {rows.shape}"
        )
    with np.errstate(over="ignore"):  # what overflows is refused below
        rows = rows.astype(np.float32, copy=False)
    if dim is not None and rows.shape[1] != dim:
        raise InputError(
            f"embeddings: {rows.shape[1]} wide, encoder {encoder!r} makes them {dim} wide; "
            "encode the prompts with it, or give their texts"
        )
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise InputError(f"embeddings: row {wrong[0]} holds NaN or infinity")
    return rows
