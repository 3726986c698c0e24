"""A model drawn at random, the same one for the same prompt and seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.prompts.outcomes import unit_hash
from crossroads.prompts.router import Arrays, PromptRouter, Queries, TrainingSet


@dataclass(kw_only=True)
class Random(PromptRouter):
    """Estimates quality by uniform draws that hash the prompt's embedding, the model and the seed.

    Hashing in place of a generator makes a decision independent of the batch it stands in.
    """

    name = "random"
    summary = "a model at random, the same for the same prompt"
    method = "none"
    needs = "nothing"
    adding_a_model = "free"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**31))

    def _predict(self, queries: Queries) -> npt.NDArray[np.float64]:
        rows = np.ascontiguousarray(queries.embeddings, dtype=np.float32)
        digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        with np.errstate(over="ignore"):  # wrapping is what makes it a hash
            model_K = np.arange(len(self.models), dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
            return unit_hash(hashes[:, None] + model_K, self._seed)

    def _state(self) -> Arrays:
        return {"seed": np.array(self._seed)}

    def _restore(self, arrays: Arrays) -> None:
        self._seed = int(arrays["seed"])
