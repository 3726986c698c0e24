"""X-LoRA: a first pass of the base model decides, token by token, how a second one mixes experts.

scalings = softmax(head(h) / temperature), h the last hidden states of the first pass; one set of
weights for all layers, or one for each. Experts stay frozen, the head is trained. Source: X-LoRA
(Buehler and Buehler 2024). A token's weights come from a pass that has read that token, so that a
pass cannot go on from a cache; ``prompt_scalings`` decides once on the prompt instead, and
generation may use its cache.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.scopes import owner
from crossroads.adapters.selection import check_settings
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError
from crossroads.core.gating import softmax, top_k

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_LOG = logging.getLogger(__name__)
_RATE = 1e-2  # of the head
_DROPOUT = 0.2  # between layers of a deep head, in training


class XLora(Router):
    """Weights by a head on the last hidden states, over all experts or the k largest of them.

    Parameters
    ----------
    depth : linear layers of the head, ReLU and ``hidden`` units between them
    temperature : of the softmax
    k : above 0, only the k largest weights are kept, as they are: they no longer add to 1
    by_layer : the head decides for every routed layer apart
    width : D of the hidden states; 0 = the inputs of a layer that reads them, such as queries
    seed : of the head's first numbers
    """

    name: ClassVar[str] = "x-lora"
    survey_row: ClassVar[str | None] = "X-LoRA"
    learns: ClassVar[int] = 40
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="Target",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Dense",
        expert_aggregation="Output",
        generalization="Multiple",
        user_dataset="Full",
    )

    def __init__(
        self,
        *,
        depth: int = 1,
        hidden: int = 2048,
        temperature: float = 1.0,
        k: int = 0,
        by_layer: bool = False,
        width: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1 or hidden < 1 or width < 0:
            raise UsageError(
                "router x-lora: expected depth and hidden of at least 1 and width of at least 0; "
                f"got depth={depth}, hidden={hidden} and width={width}"
            )
        check_settings(self.name, least=0, k=k, temperature=temperature)
        self.depth, self.hidden, self.temperature = depth, hidden, temperature
        self.k, self.by_layer, self.width, self.seed = k, by_layer, width, seed
        self.head = nn.ModuleList()
        self._known: dict[str, str] = {}  # the bank's keys when it was prepared for
        self._places: dict[str, int] = {}

    def prepare(self, bank: AdapterBank) -> None:
        """Make the head, unless there is one for these experts and layers.

        What it learnt of experts and layers that stay is kept; new ones start as drawn, and are
        warned of where the head was there before: it has to be trained again.
        """
        before, layers = self.head, tuple(bank.layers)
        rows_ME = self._rows(layers, bank.places_in(self._known))
        same = bank.is_as_in(self._known) and layers == tuple(self._places)
        self._known, self._places = bank.keys_by_name, {layer: m for m, layer in enumerate(layers)}
        if same:
            return
        width = self.width or _width(bank)
        sizes = [width, *[self.hidden] * (self.depth - 1), len(rows_ME)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        if len(before):
            self._keep(before, rows_ME)

    def _rows(self, layers: tuple[str, ...], places: list[int | None]) -> list[int | None]:
        """Return which output of the head each output after a change was before, None = new."""
        blocks = [self._places.get(layer) for layer in layers] if self.by_layer else [0]
        return [
            None if m is None or e is None else m * len(self._known) + e
            for m in blocks
            for e in places
        ]

    @torch.no_grad()
    def _keep(self, before: nn.ModuleList, rows_ME: list[int | None]) -> None:
        *inner, last = self.head
        *inner_before, last_before = before
        if last.weight.shape[1] == last_before.weight.shape[1]:
            for layer, old in zip(inner, inner_before, strict=True):
                layer.load_state_dict(old.state_dict())
            for row, old_row in enumerate(rows_ME):
                if old_row is not None:
                    last.weight[row], last.bias[row] = (
                        last_before.weight[old_row],
                        last_before.bias[old_row],
                    )
        for parameter in self.head.parameters():
            parameter.requires_grad_(last_before.weight.requires_grad)
        if None in rows_ME:
            _LOG.warning(
                "router x-lora: experts or layers are new, and its head knows nothing of them; "
                "train it again"
            )

    def ahead(self, call: Call, hidden: Callable[[], Tensor]) -> Call:
        if call.scalings is not None:
            return call
        return replace(call, scalings=self.scalings(hidden(), training=call.training))

    def scalings(self, h_BTD: Tensor, *, training: bool = False) -> Tensor:
        """Return weights (B, T, M, E) from last hidden states; M is 1 unless ``by_layer``.

        Raises InputError for hidden states of another width than the head was made for.
        """
        *inner, last = self.head
        width = self.head[0].in_features
        if h_BTD.shape[-1] != width:
            raise InputError(
                f"router x-lora: its head reads {width} numbers, and the model's last hidden "
                f"states have {h_BTD.shape[-1]}; build it with width={h_BTD.shape[-1]}"
            )
        h = h_BTD.float()
        for layer in inner:
            h = nn.functional.dropout(torch.relu(layer(h)), _DROPOUT, training=training)
        logits_BTME = last(h).unflatten(-1, (-1, len(self._known)))
        return softmax(logits_BTME / self.temperature)

    def route(self, given: RouteInput) -> Routing:
        if given.call.scalings is None:
            raise InputError("router x-lora: no scalings; call the whole model, not a layer")
        place = self._places[given.module] if self.by_layer else 0
        alive_E = given.bank.alive_E
        # Softmax over the experts alive here: the same as renormalising the one over all.
        odds_BT1E = given.call.scalings[:, :, place : place + 1] * alive_E
        total = odds_BT1E.sum(-1, keepdim=True)
        weights_BT1E = odds_BT1E / total.masked_fill(total == 0, 1.0)
        if not 0 < self.k < int(alive_E.sum()):
            return Routing(weights=weights_BT1E)
        index = top_k(weights_BT1E.detach(), self.k)
        return Routing(weights=weights_BT1E.gather(-1, index), index=index, normalised=False)

    def is_static(self, call: Call) -> bool:
        return call.scalings is not None and call.scalings.shape[1] == 1

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Train the head; experts stay frozen."""
        return lesson.train_gates(self, lr=_RATE)

    def settings(self) -> Mapping[str, Any]:
        names = ("depth", "hidden", "temperature", "k", "by_layer", "width", "seed")
        return {name: getattr(self, name) for name in names}


def _width(bank: AdapterBank) -> int:
    """Return the inputs of the first layer that shares its input with others by its name.

    Queries, keys, values, gates and up-projections read what has the width of the model; of a bank
    without any of them the first layer is taken.
    """
    readers = [layer for layer in bank.layers if owner("input", layer) != layer]
    return bank.layers[[*readers, *bank.layers][0]].inputs


def prompt_scalings(routed: RoutedModel, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Return weights (B, 1, M, E) read off each prompt's last token, constant from then on.

    >>> with calling(scalings=prompt_scalings(routed, ids)):      # doctest: +SKIP
    ...     model.generate(ids)

    ``mask_BT`` is bool, True = real token, padding on either side. Raises InputError where the
    router of the model is another one.
    """
    router = routed.router
    if not isinstance(router, XLora):
        raise InputError(f"prompt scalings: the model's router is {router.name!r}, not 'x-lora'")
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    with torch.no_grad(), routed.disabled():
        h_BTD = routed.model.base_model(
            input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False
        ).last_hidden_state
        position_T = torch.arange(ids_BT.shape[1])
        last_B = torch.where(mask_BT, position_T, -1).amax(-1)
        h_B1D = h_BTD[torch.arange(len(ids_BT)), last_B].unsqueeze(1)
        return router.scalings(h_B1D)
