"""Prompts in another wording, to see which of a router's choices stay (RouterArena's robustness).

The wordings are made offline by rules, from a seed, once per table: every router and seed meets the
same ones, and the texts are encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossroads.models.embedding_cache import encode_cached
from crossroads.models.encoders import get_encoder
from crossroads.prompts.decide import Argmax
from crossroads.prompts.outcomes import OutcomeTable, unit_hash
from crossroads.prompts.router import PromptRouter, Queries
from crossroads.prompts.routerarena.perturb import GENERATORS, perturb
from crossroads.prompts.splits import Split

Ints = npt.NDArray[np.int64]

# The order of the splits' hashes would choose prompts that seed 0 learns from.
_ORDER = 2_000_003
_SPARE = 8  # times as many prompts are looked at as are perturbed


@dataclass(frozen=True, kw_only=True)
class PerturbedPrompts:
    """M prompts of a table, each perturbed in one of RouterArena's four ways in turn."""

    rows: Ints  # (M,) in the table, ascending
    texts: npt.NDArray[np.object_]  # (M,)
    embeddings: npt.NDArray[np.float32]  # (M, D)

    def __len__(self) -> int:
        return len(self.rows)

    def robustness(self, router: PromptRouter, split: Split, choice_N: Ints) -> float:
        """Return the share of judged prompts among these whose choice stays; NaN where none is."""
        _, judged, mine = np.intersect1d(split.rows, self.rows, return_indices=True)
        if len(judged) == 0:
            return float("nan")
        asked = Queries(embeddings=self.embeddings[mine], texts=self.texts[mine])
        again = Argmax().choose(router.predict(asked), split.expected_cost)
        return float((again == choice_N[judged]).mean())


def perturb_prompts(table: OutcomeTable, encoder: str, num: int) -> PerturbedPrompts | None:
    """Perturb ``num`` prompts of a table, chosen by hash; None without texts or for ``num`` 0.

    Raises UsageError for an unknown encoder.
    """
    if not table.has_texts or num == 0:
        return None
    order = np.argsort(unit_hash(table.prompt_hash, _ORDER), kind="stable")
    candidates = np.sort(order[: _SPARE * num])  # a table may lack the texts of some prompts
    texts = table.take(candidates).texts
    assert texts is not None
    has_text = np.array([bool(text) for text in texts])
    rank = np.argsort(order)
    rows = candidates[has_text]
    rows = np.sort(rows[np.argsort(rank[rows])][:num])
    if len(rows) == 0:
        return None
    text_of = dict(zip(candidates.tolist(), texts, strict=True))
    kinds = list(GENERATORS)
    changed = [
        perturb(str(text_of[row]), kinds[n % len(kinds)], seed=0)
        for n, row in enumerate(rows.tolist())
    ]
    return PerturbedPrompts(
        rows=rows,
        texts=np.array(changed, dtype=object),
        embeddings=encode_cached(get_encoder(encoder), changed, None),
    )
