"""FlyLoRA: no router but the down-projection itself; the k ranks with the largest |A x| fire.

z = A x with A frozen, sparse and random; S = the k largest of |z + d|; y = W x + s sum_S B_i z_i.
d, one number a rank, balances the ranks without gradient: after each optimiser step
d_i += rate * sign(mean(c) - c_i), c_i the tokens that used rank i (``counting`` counts them, as
``adapters.joint`` does). As printed that rule does not
balance: inside the absolute value, a falling d makes |z + d| larger once it is negative.
``select="magnitude"`` ranks by |z| + d, which does. Source: FlyLoRA (NeurIPS 2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError, unknown_name
from crossroads.core.gating import top_k

if TYPE_CHECKING:
    from crossroads.adapters.insertion import RoutedModel
    from crossroads.adapters.lessons import Lesson
    from crossroads.adapters.passes import Pass

_RATE = 3e-3  # of B
_SELECTIONS = ("abs_biased", "magnitude", "signed")


class FlyLoRA(Router):
    """Top-k by rank, over a bank made by ``adapters.fly``.

    Parameters
    ----------
    k : ranks that fire for a token
    ranks : R of one adapter; the bank may hold several side by side, each fires its own k. 0 = all
        experts are one adapter
    select : "abs_biased" |z + d| (the paper), "magnitude" |z| + d, "signed" z + d (the authors'
        fork of PEFT)
    rate : of d, per optimiser step; 0 = d stays
    share : weight of a rank that fires: 1 / n averages n adapters side by side
    """

    name: ClassVar[str] = "flylora"
    survey_row: ClassVar[str | None] = "FlyLoRA"
    learns: ClassVar[int] = 80
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="None",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="In-Distribution",
        user_dataset="Full",
    )

    def __init__(
        self,
        *,
        k: int = 8,
        ranks: int = 0,
        select: str = "abs_biased",
        rate: float = 1e-3,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        if select not in _SELECTIONS:
            raise unknown_name("selection of router flylora", select, _SELECTIONS)
        if not (k >= 1 and ranks >= 0 and 0 <= rate < math.inf and math.isfinite(share)):
            raise UsageError(
                "router flylora: expected k of at least 1, ranks and rate of at least 0 and a "
                f"finite share; got k={k}, ranks={ranks}, rate={rate} and share={share}"
            )
        self.k, self.ranks, self.select, self.rate = k, ranks, select, rate
        self.share = share
        self._places: dict[str, int] = {}
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self._counts: dict[str, Tensor] = {}
        self.register_buffer("bias_LE", torch.zeros(0, 0))

    bias_LE: Tensor

    def prepare(self, bank: AdapterBank) -> None:
        """Make d for every layer; that of layers and ranks that stay is kept.

        Raises InputError where experts are not of rank one, do not fill whole adapters, or where
        ranks of two adapters would compete after a change.
        """
        n_experts, ranks = bank.n_experts, self.ranks or bank.n_experts
        if n_experts % ranks:
            raise InputError(
                f"router flylora: {n_experts} experts are no multiple of {ranks} ranks; add and "
                "remove whole adapters, or set ranks to what one of them has (0: all are one)"
            )
        for layer, module in bank.layers.items():
            if module.rank != 1 or not bool(module.alive_E.all()):
                raise InputError(
                    f"router flylora: {layer} has experts of rank {module.rank}, expected rank one "
                    "for all; crossroads adapters teach makes such a bank, in Python "
                    "crossroads.adapters.fly.fly_bank"
                )
        if not 1 <= self.k <= ranks:
            raise InputError(
                f"router flylora: k = {self.k} is not between 1 and {ranks}, the ranks of an "
                "adapter; set k so"
            )
        self._check_adapters(bank)
        self._follow(bank)
        self._counts = {}

    def bias_of(self, layer: str) -> Tensor:
        """Return d of a layer, (E,). Raises UsageError for a layer the router does not know."""
        if layer not in self._places:
            raise unknown_name("layer of router flylora", layer, self._places)
        return self.bias_LE[self._places[layer]]

    def route(self, given: RouteInput) -> Routing:
        n_experts = given.bank.n_experts
        ranks = self.ranks or n_experts
        z_BTE = given.x_BTI.detach().float() @ given.bank.a_ERI[:, 0].detach().float().T
        scores_BTE = self._scores(z_BTE, self.bias_of(given.module))
        best_BTGK = top_k(scores_BTE.unflatten(-1, (-1, ranks)), self.k)
        fires_BTE = torch.zeros_like(scores_BTE).unflatten(-1, (-1, ranks))
        fires_BTE = fires_BTE.scatter(-1, best_BTGK, self.share).flatten(-2)
        return Routing(
            weights=fires_BTE.unsqueeze(2), normalised=False, logits=scores_BTE.unsqueeze(2)
        )

    @contextmanager
    def counting(self, routed: RoutedModel) -> Iterator[None]:
        """Count inside which ranks fire in training passes, for ``update``.

        Every pass counts once: blocks that gradient checkpointing computes a second time do not
        count again.
        """
        with routed.watched(self._count):
            yield

    def update(self, step: int = 0) -> None:
        """Move d by what fired since the last update; call it once per optimiser step."""
        for layer, count_E in self._counts.items():
            by_adapter = count_E.unflatten(0, (-1, self.ranks or len(count_E)))
            wanted = by_adapter.mean(-1, keepdim=True)
            self.bias_of(layer).add_(self.rate * torch.sign(wanted - by_adapter).flatten())
        self._counts.clear()

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train B of one adapter for all tasks, with as many ranks as the experts have together."""
        from crossroads.adapters.fly import fly_bank
        from crossroads.adapters.joint import train_jointly

        ranks = self.ranks or lesson.bank.n_experts * lesson.rank
        bank = fly_bank(lesson.sizes, ranks=ranks, k=self.k, seed=lesson.seed)
        train_jointly(
            lesson.model, bank, self, lesson.batches(), lesson.settings,
            factors="up", router_lr=0, lr=_RATE, **lesson.training,
        )  # fmt: skip
        return bank

    def settings(self) -> Mapping[str, Any]:
        names = ("k", "ranks", "select", "rate", "share")
        return {name: getattr(self, name) for name in names}

    def _check_adapters(self, bank: AdapterBank) -> None:
        """Refuse ranks of two adapters side by side in what counts as one."""
        places = bank.places_in(self._known) if self.ranks else []
        for first in range(0, len(places), self.ranks or 1):
            one = slice(first, first + self.ranks)
            if len({place // self.ranks for place in places[one] if place is not None}) > 1:
                raise InputError(
                    f"router flylora: {bank.names[first]} to {bank.names[one][-1]} are ranks of "
                    "different adapters now; add and remove whole adapters"
                )

    def _follow(self, bank: AdapterBank) -> None:
        before_LE, rows = self.bias_LE, self._places
        self._places = {layer: place for place, layer in enumerate(bank.layers)}
        self.bias_LE = before_LE.new_zeros(len(self._places), bank.n_experts)
        for layer, place in self._places.items():
            if layer in rows:
                self.bias_LE[place] = bank.carried(
                    self._known, before_LE[rows[layer]], self.bias_LE[place]
                )
        self._known = bank.keys_by_name

    def _scores(self, z_BTE: Tensor, bias_E: Tensor) -> Tensor:
        if self.select == "abs_biased":
            return (z_BTE + bias_E).abs()
        if self.select == "magnitude":
            return z_BTE.abs() + bias_E
        return z_BTE + bias_E

    def _count(self, ended: Pass) -> None:
        if not ended.call.training:
            return
        for layer, seen in ended.seen.items():
            fires_BTE = (seen.routing.weights[:, :, 0] != 0).float()
            if seen.mask_BT is not None:
                fires_BTE = fires_BTE * seen.mask_BT.unsqueeze(-1)
            count_E = fires_BTE.sum((0, 1))
            self._counts[layer] = self._counts.get(layer, 0.0) + count_E
