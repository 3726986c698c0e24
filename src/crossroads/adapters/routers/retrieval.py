"""Retrieval: the expert with a training example nearest to the prompt answers it, at all layers.

Score of an expert = max_j cos(q, example_j of the expert). Source: the baseline of Learning to
Route Among Specialized Experts (Muqeeth et al. 2024) after Retrieval of Experts (2023), which votes
once for a whole task; here every prompt decides for itself.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.scopes import Scope
from crossroads.adapters.selection import one_hot
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError
from crossroads.core.gating import first_maximum


class Retrieval(Router):
    """Weight 1 for the expert of the nearest example; ties to the lower index.

    Reads ``examples_JG`` of the experts, or their ``embedding_G`` alone where they bring no
    examples, and the embeddings of the prompts by the same encoder.
    """

    name: ClassVar[str] = "retrieval"
    scope: ClassVar[Scope] = "model"
    call_data: ClassVar[frozenset[str]] = frozenset({"embedding_BG"})
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Private",
        routing_dataset="None",
        input_granularity="Example",
        depth_granularity="Model",
        expert_selection="Sparse",
        expert_aggregation="None",
        generalization="Out-of-Distribution",
        user_dataset="Zero-Shot",
    )

    def __init__(self) -> None:
        super().__init__()
        self._examples: list[Tensor] = []

    def prepare(self, bank: AdapterBank) -> None:
        """Gather the examples. Raises InputError for an expert that has no embedding at all."""
        self._examples = []
        for card in bank.cards:
            own = card.examples_JG
            if own is None and card.embedding_G is not None:
                own = card.embedding_G[None]
            if own is None:
                raise InputError(
                    f"router retrieval: expert {card.name!r} has no embeddings; give them with "
                    "crossroads.adapters.embedding.embed_experts"
                )
            self._examples.append(own.float())

    def route(self, given: RouteInput) -> Routing:
        query_BG = query(given.call, self._examples[0].shape[-1], self.name)
        nearest = [(query_BG @ own_JG.T).amax(-1) for own_JG in self._examples]
        return one_hot(first_maximum(torch.stack(nearest, -1))[:, None, None])

    def is_static(self, call: Call) -> bool:
        return True


def query(call: Call, width: int, router: str) -> Tensor:
    """Return the embeddings of the prompts, (B, G) float32.

    Raises InputError where there are none or they are of another encoder than the experts'.
    """
    found_BG = call.embedding_BG
    if found_BG is None:
        raise InputError(f"router {router}: needs the embeddings of the prompts, embedding=...")
    if found_BG.ndim != 2 or found_BG.shape[1] != width:
        raise InputError(
            f"router {router}: the prompts' embeddings have shape {tuple(found_BG.shape)}, the "
            f"experts' have {width} numbers; embed both with the same encoder"
        )
    return found_BG.float()
