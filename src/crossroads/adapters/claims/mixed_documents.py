"""Documents that change their kind half-way: routing by token against one expert a document.

The first half is Python source, the second a piece of Shakespeare, 64 tokens each, all test rows;
every token after the first is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.collection.tasks import get_task
from crossroads.adapters.embedding import embed
from crossroads.adapters.routers import build_router
from crossroads.adapters.texts import TextBatch, answer_nll_B

KINDS = ("python", "shakespeare")
HALF = 64  # tokens
_SETTLED = 16  # tokens after a change that are not counted as either kind


def documents(bed: CollectionBed, n: int) -> tuple[TextBatch, list[str]]:
    """Return ``n`` documents as one batch, and their texts."""
    halves = []
    for kind in KINDS:
        rows = get_task(kind).rows["test"]
        wholes = (row.prompt + row.answer for row in rows)
        ids = (bed.tokenizer.encode(whole, add_special_tokens=False).ids for whole in wholes)
        long = [found[:HALF] for found in ids if len(found) >= HALF]
        halves.append(torch.tensor(long[:n]))
    ids_BT = torch.cat(halves, 1)
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    texts = [bed.tokenizer.decode(ids) for ids in ids_BT.tolist()]
    return TextBatch(ids_BT=ids_BT, mask_BT=real_BT, answer_BT=real_BT), texts


def nll_B(bed: CollectionBed, batch: TextBatch, arm: str, texts: list[str]) -> Tensor:
    """Return nats per token of every document."""
    routed = bed.routed(build_router(arm))
    needs = routed.router.call_data
    try:
        with torch.no_grad(), calling(embedding=embed(texts) if needs else None):
            return answer_nll_B(bed.model, batch) / (batch.ids_BT.shape[1] - 1)
    finally:
        routed.unwrap()


def best_choice(bed: CollectionBed, batch: TextBatch) -> Tensor:
    """Return nats per token where every document has the better one of the two experts."""
    found = [nll_B(bed, batch, f"best-single:expert={kind}", []) for kind in KINDS]
    return torch.stack(found).amin(0)


def votes(bed: CollectionBed, batch: TextBatch) -> Mapping[str, Any]:
    """Return the share of (layer, token) pairs whose first choice is each kind, by half."""
    routed = bed.routed(build_router("phatgoose"))
    try:
        with torch.no_grad():
            bed.model.base_model(input_ids=batch.ids_BT, use_cache=False)
        first_MBT = torch.stack([_first(r.index) for r in routed.last_routings.values()])
    finally:
        routed.unwrap()
    halves = {"first half": slice(_SETTLED, HALF), "second half": slice(HALF + _SETTLED, None)}
    return {
        half: {
            kind: round(_share(first_MBT[..., where] == bed.bank.names.index(kind)), 3)
            for kind in KINDS
        }
        for half, where in halves.items()
    }


def _first(index: Tensor | None) -> Tensor:
    assert index is not None  # PHATGOOSE routes sparsely where experts outnumber places
    return index[:, :, 0, 0]


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())
