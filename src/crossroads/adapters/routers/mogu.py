"""MoGU: every token blends variants of one model, such as a usable and a safe one.

Per layer and variant e a small net without hidden non-linearity gives a weight
w_e = sigmoid(v_e . (U_e D_e x + b_e) + c_e), and the layer's output is sum_e w_e (W x + s_e B_e A_e
x): the weights multiply the frozen layer too and are not forced to add to 1. In training they are
pulled towards the variant that a sequence's label names. Source: MoGU (NeurIPS 2024) and its code,
where x is the input of the attention's output projection, the one layer that is adapted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import UsageError
from crossroads.core.losses import masked_mean
from crossroads.core.routed import AuxTerm

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_LOG = logging.getLogger(__name__)
_RATE = 1e-3  # of the nets
_TOTALS = ("free", "one")


class MoGU(Router):
    """A weight for every variant from nets of their own.

    ``Call.labels_B`` names the variant that should answer a sequence by its place in the bank, -1 =
    none is named. ``crossroads.adapters.handoff`` lets it decide the first tokens of an answer
    alone, as the authors do.

    Parameters
    ----------
    width : of the nets' middle; the authors' is 512 at 4,096 inputs
    pull : coefficient of sum_e mean (w_e - target_e)^2 over layers and labelled tokens
    total : "free", or "one": weights are divided by their sum (ours)
    seed : of the nets' start, that of torch's linear layers
    """

    name: ClassVar[str] = "mogu"
    survey_row: ClassVar[str | None] = "MoGU"
    learns: ClassVar[int] = 40
    no_rival: ClassVar[str] = (
        "blends whole variants of one model and starts from their sum, which experts of many tasks "
        "are not; crossroads verify mogu measures it on its own ground"
    )
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Shared",
        routing_dataset="Expert",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Dense",
        expert_aggregation="Output",
        generalization="In-Distribution",
        user_dataset="Full",
    )

    def __init__(
        self, *, width: int = 64, pull: float = 2.0, total: str = "free", seed: int = 0
    ) -> None:
        super().__init__()
        if total not in _TOTALS or width < 1:
            raise UsageError(
                f"router mogu: total is {' or '.join(_TOTALS)} and width at least 1; got "
                f"{total!r} and {width}"
            )
        if not 0 <= pull < math.inf:
            raise UsageError(f"router mogu: pull is a number of at least 0, got {pull:g}")
        self.width, self.pull, self.total, self.seed = width, pull, total, seed
        self._places: dict[str, int] = {}
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self.nets = nn.ModuleList()

    def prepare(self, bank: AdapterBank) -> None:
        """Make the nets of every layer; those of variants that stay are kept.

        Variants that come later start as drawn, and are warned of; where nets are being trained,
        theirs are too.
        """
        is_trained = any(parameter.requires_grad for parameter in self.nets.parameters())
        kept = {layer: cast("nn.ModuleList", self.nets[p]) for layer, p in self._places.items()}
        places = bank.places_in(self._known)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = [
                self._nets(kept.get(layer), places, module.inputs, is_trained=is_trained)
                for layer, module in bank.layers.items()
            ]
        if kept and None in places:
            _LOG.warning("router mogu: variants are new, and have no say yet; train it again")
        self._places = {layer: place for place, layer in enumerate(bank.layers)}
        self._known = bank.keys_by_name
        self.nets = nn.ModuleList(made)

    def route(self, given: RouteInput) -> Routing:
        nets = self.nets[self._places[given.module]]
        assert isinstance(nets, nn.ModuleList)
        x_BTI = given.x_BTI.float()  # weights in float32 whatever the model's type
        logits_BTE = torch.cat([net(x_BTI) for net in nets], -1)
        weights_BTE = torch.sigmoid(logits_BTE)
        base_BT1 = weights_BTE.sum(-1, keepdim=True)
        if self.total == "one":
            weights_BTE, base_BT1 = weights_BTE / base_BT1, None
        # A variant that does not adapt the layer is the frozen layer there: it counts in the base.
        alone_BTE = weights_BTE.masked_fill(~given.bank.alive_E, 0.0)
        return Routing(
            weights=alone_BTE.unsqueeze(2),
            normalised=False,
            logits=logits_BTE.unsqueeze(2),
            base=base_BT1,
        )

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return the squared distance from the labels' weights, over layers and real tokens."""
        if not call.training or call.labels_B is None or not decided:
            return {}
        parts = [self._distances(routing, call, call.labels_B) for routing in decided.values()]
        distance_NE, mask_N = (torch.cat(part) for part in zip(*parts, strict=True))
        return {"pull": AuxTerm(masked_mean(distance_NE, mask_N).sum(), self.pull)}

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train the nets, pulled towards the expert that a row's task is named after."""
        return lesson.train_gates(self, lr=_RATE)

    def settings(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("width", "pull", "total", "seed")}

    def _distances(self, routing: Routing, call: Call, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (w - target)^2, (N, E), and which tokens are real and labelled.

        Token by token, since some models flatten the input of some layers: then a call that fits
        one layer's rows and positions does not fit another's.
        """
        assert routing.logits is not None
        weights_NE = torch.sigmoid(routing.logits[:, :, 0]).flatten(0, 1)
        if self.total == "one":
            weights_NE = weights_NE / weights_NE.sum(-1, keepdim=True)
        if routing.sequence_B is not None and len(labels_B) > 1:  # one label is that of all
            labels_B = labels_B[routing.sequence_B]
        labels_N = labels_B.repeat_interleave(len(weights_NE) // len(labels_B))
        target_NE = nn.functional.one_hot(labels_N.clamp_min(0), weights_NE.shape[-1]).float()
        counts_N = labels_N >= 0
        if call.mask_BT is not None:
            counts_N = counts_N & call.mask_BT.flatten()
        return (weights_NE - target_NE).square(), counts_N

    def _nets(
        self,
        kept: nn.ModuleList | None,
        places: list[int | None],
        inputs: int,
        *,
        is_trained: bool,
    ) -> nn.ModuleList:
        """Return a layer's nets, drawn but for those of variants that were there before."""
        drawn = [self._net(inputs).requires_grad_(is_trained) for _ in places]
        if kept is None or kept[0][0].in_features != inputs:
            return nn.ModuleList(drawn)
        return nn.ModuleList(
            net if place is None else kept[place] for net, place in zip(drawn, places, strict=True)
        )

    def _net(self, inputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, self.width, bias=False),
            nn.Linear(self.width, inputs),
            nn.Linear(inputs, 1),
        )
