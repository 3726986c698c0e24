"""The outcome table: how well, and at what cost, each model answered each prompt.

Long form (Parquet, CSV or JSON lines; one row per prompt and model):

| column | required | meaning |
|---|---|---|
| ``prompt_id`` | yes | identifies the prompt |
| ``prompt`` | no | its text (needed to fit a router unless the table carries embeddings) |
| ``model`` | yes | name of the model that answered |
| ``score`` | yes | quality in [0, 1]; empty = not run |
| ``input_tokens`` | no | tokens sent |
| ``output_tokens`` | no | tokens received |
| ``cost`` | no | paid; computed from a pool's prices and the token counts if absent |
| ``cost_unit`` | no | what ``cost`` counts where that is not USD |
| ``latency_s`` | no | seconds until the whole answer was there |
| ``domain`` | no | category of the prompt |
| ``subject`` | no | finer label: subject, data set, customer; learnt from where there is one |
| ``difficulty`` | no | free label |
| ``split`` | no | train / test for every prompt: used instead of hashing |
| ``response`` | no | the answer; never needed, not kept in memory |
| ``chance`` | no | probability that a blind guess is right (multiple choice: 1 / options) |

In memory the table is dense: N prompts x K models, NaN where a model was not run on a prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name
from crossroads.prompts.pool import Pool

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """N prompts x K models. Build it with ``crossroads.prompts.read_outcomes``.

    Attributes
    ----------
    prompt_ids : array of str, shape (N,)
    models : tuple of str, length K
    score : float32, shape (N, K); quality in [0, 1], NaN = not run
    prompt_hash : uint64, shape (N,); ``prompt_hash`` of the text (of the id where no text is)
    texts : array of str or None, shape (N,); an empty text is one that is not known
    cost : float64, shape (N, K), in ``cost_unit``; NaN = unknown
    cost_unit : what the costs count: USD, or the unit of the pool that priced the table
    input_tokens, output_tokens, latency_s : float32, shape (N, K), or None
    domain, subject, difficulty, split : array of str or None, shape (N,)
    chance : float32, shape (N,), or None
    embeddings : encoder name -> float32, shape (N, D), rows of unit length
    source : what the table is and where it came from, shown wherever its figures are shown
    """

    prompt_ids: Strings
    models: tuple[str, ...]
    score: Float32
    prompt_hash: npt.NDArray[np.uint64]
    texts: Strings | None = None
    cost: Float64 | None = None
    cost_unit: str = "USD"
    input_tokens: Float32 | None = None
    output_tokens: Float32 | None = None
    latency_s: Float32 | None = None
    domain: Strings | None = None
    subject: Strings | None = None
    difficulty: Strings | None = None
    split: Strings | None = None
    chance: Float32 | None = None
    embeddings: Mapping[str, Float32] = field(default_factory=dict)
    source: str = ""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def has_texts(self) -> bool:
        return self.texts is not None

    @property
    def has_costs(self) -> bool:
        return self.cost is not None

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Shape (N,): True where every model was run."""
        return np.asarray(np.isfinite(self.score).all(axis=1))

    def take(self, rows: npt.NDArray[Any]) -> OutcomeTable:
        """Return the table of these prompts (indices or a boolean mask, shape (N,))."""
        changes: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        changes["embeddings"] = {name: e[rows] for name, e in self.embeddings.items()}
        return replace(self, **changes)

    def select_models(self, names: Sequence[str]) -> Self:
        """Return the table of these models, in the order given; unknown names raise UsageError."""
        for name in names:
            if name not in self.models:
                raise unknown_name("model", name, self.models)
        if len(set(names)) != len(names):
            raise InputError(f"model named twice in the selection: {', '.join(names)}")
        columns = [self.models.index(name) for name in names]
        per_cell = ("score", "cost", "input_tokens", "output_tokens", "latency_s")
        changes: dict[str, Any] = {
            name: value[:, columns]
            for name in per_cell
            if (value := getattr(self, name)) is not None
        }
        return replace(self, models=tuple(names), **changes)

    def with_prices(self, pool: Pool) -> OutcomeTable:
        """Return the table with costs computed from the pool's prices, in the pool's unit.

        The cost of a cell is NaN where its model has a price per token and the table lacks the
        count, and where the model was not run. Models absent from the pool raise UsageError.
        """
        cost = np.empty(self.score.shape)
        for k, name in enumerate(self.models):
            card = pool[name]
            cost[:, k] = card.price(
                _countable(self.input_tokens, k, card.price_in),
                _countable(self.output_tokens, k, card.price_out),
            )
        cost = np.where(np.isnan(self.score), np.nan, cost)
        return replace(self, cost=cost, cost_unit=pool.cost_unit)

    def split_by_hash(
        self, seed: int, train_share: float = 0.7
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (train rows, test rows): prompts with the same text are never parted.

        A prompt goes to the training side when a hash of (its text hash, seed) falls below
        ``train_share``. Where the table has a ``split`` column, that decides and the seed does not.
        """
        if self.split is not None:
            is_train = self.split == "train"
        else:
            is_train = unit_hash(self.prompt_hash, seed) < train_share
        train, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
        if len(train) == 0 or len(test) == 0:
            raise InputError(
                f"splitting {len(self)} prompts leaves {len(train)} to train on and {len(test)} to "
                "test on; give more distinct prompts, or mark both sides in a 'split' column"
            )
        return train, test


def _countable(tokens: Float32 | None, k: int, price: float) -> Any:
    """Return the token counts of model ``k``; an unknown count matters only at a price."""
    if price == 0:
        return 0.0
    return np.nan if tokens is None else tokens[:, k].astype(np.float64)


def normalise_prompt(text: str) -> str:
    """Fold case and white space, so that trivially different copies of a prompt are one."""
    return " ".join(text.casefold().split())


def prompt_hash(text: str) -> int:
    """Return a 64-bit hash of the normalised prompt, the same on every machine and version."""
    digest = hashlib.blake2b(normalise_prompt(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def unit_hash(hashes: npt.NDArray[np.uint64], seed: int) -> Float64:
    """Map hashes to [0, 1), differently for each seed (splitmix64 finaliser of hash + seed)."""
    with np.errstate(over="ignore"):
        x = hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
