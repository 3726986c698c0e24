"""Whole blocks as experts: every block of a model runs once an expert, and the outputs are mixed.

    h' = sum_e w_e Block_e(h), Block_e the block with expert e in all its linear layers

A ``RoutedModel`` mixes within every linear layer, at the cost of about one block. The two agree for
one-hot weights and for those alone: this one is what task-level mixture of experts computes (Ye et
al. 2022, section 3). It costs a block for every expert that any sequence of the batch uses; where
routes are trained, for every expert, as the gradient of a softmax asks what each would have said.
There is no cache of keys and values, which would differ by expert: generate with
``use_cache=False``. And there is no gradient checkpointing within blocks: a block that is computed
again does not know its expert.

Axes: B sequences, T positions, D width of the model, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.passes import Pass, Seen
from crossroads.adapters.scopes import owner, reads_encoder
from crossroads.adapters.selection import one_hot
from crossroads.core.errors import InputError
from crossroads.core.routed import AuxTerm

_EXPERT: ContextVar[int] = ContextVar("crossroads_block_expert")


class RoutedBlocks(RoutedModel):
    """A model whose blocks are run once an expert; used and taken out as a ``RoutedModel``.

    >>> routed = RoutedBlocks(model, bank, build_router("task-moe:tasks=6"))     # doctest: +SKIP

    Raises InputError for routers of another scope and for layers outside of blocks; a pass does
    for a cache and for gradient checkpointing.

    Parameters
    ----------
    router : of scope "layer"; it is shown the input of a block as ``x_BTI``
    model, bank : as of ``RoutedModel``; every adapted layer lies in a block with a number
    """

    def __init__(self, model: nn.Module, bank: AdapterBank, router: Router) -> None:
        if router.scope != "layer":
            raise InputError(
                f"router {router.name}: blocks need one decision each, its scope is "
                f"{router.scope!r}; use RoutedModel"
            )
        self.deciding = router
        self._blocks: dict[str, _RoutedBlock] = {}
        super().__init__(model, bank, _Forced(router))

    @contextmanager
    def running(self, expert: int) -> Iterator[Pass]:
        """Run a block's layers with one expert inside, as a pass apart."""
        before = self._passes.current
        self._passes.current = inner = self.current.apart()
        token = _EXPERT.set(expert)
        try:
            yield inner
        finally:
            _EXPERT.reset(token)
            self._passes.current = before

    def _check_layers(self) -> None:
        super()._check_layers()
        for layer in self.bank.layers:
            if owner("layer", layer) == layer:
                raise InputError(f"layer {layer}: lies in no block; leave it out of the adapters")
        self._check_places({name: self._base(name) for name in self._firsts()})

    def _is_ours(self, module: nn.Module) -> bool:
        return isinstance(module, _RoutedBlock) or super()._is_ours(module)

    def _base(self, name: str) -> nn.Module | None:
        inserted = self._blocks.get(name)
        return super()._base(name) if inserted is None else inserted.block

    def _firsts(self) -> dict[str, str]:
        """Return the first adapted layer of every block."""
        firsts: dict[str, str] = {}
        for layer in self.bank.layers:
            firsts.setdefault(owner("layer", layer), layer)
        return firsts

    def _insert(self) -> None:
        super()._insert()
        for name, layer in self._firsts().items():
            parent, _, last = name.rpartition(".")
            made = _RoutedBlock(self.model.get_submodule(name), name, layer, self)
            setattr(self.model.get_submodule(parent), last, made)
            self._blocks[name] = made

    def _take_out(self) -> None:
        for name, routed in self._blocks.items():
            parent, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(parent), last, routed.block)
        self._blocks.clear()
        super()._take_out()


class _RoutedBlock(nn.Module):
    """One block, run with one expert after the other."""

    def __init__(self, block: nn.Module, name: str, layer: str, model: RoutedBlocks) -> None:
        super().__init__()
        self.block, self._name, self._layer = block, name, layer
        self._alive_E = model.bank.alive_by_owner("layer")[name]
        self._model = (model,)  # a tuple: the model is no submodule of its block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models read facts off their blocks, such as the kind of attention
            return getattr(super().__getattr__("block"), name)

    def forward(self, h_BTD: Tensor, *args: Any, **more: Any) -> Any:
        (model,) = self._model
        if not model.is_enabled:
            return self.block(h_BTD, *args, **more)
        if more.get("past_key_values") is not None:
            raise InputError(
                "blocks as experts: have no cache; call the model with use_cache=False"
            )
        if self.training and getattr(self.block, "gradient_checkpointing", False):
            raise _no_checkpointing(self._name)
        shape = (h_BTD.shape[0], h_BTD.shape[1])
        is_encoder = model.has_two_stacks and reads_encoder(self._name)
        call = model.current.call_for(*shape, encoder=is_encoder)
        given = RouteInput(
            module=self._layer,
            x_BTI=h_BTD,
            bank=model.bank.layers[self._layer],
            call=call,
            any_alive_E=self._alive_E,
        )
        routing = model.deciding.route(given)
        model.current.share(self._name, self._layer, call, routing)
        seen = Seen(routing=routing, shape=shape, mask_BT=call.mask_BT)
        return self._mixed(seen, h_BTD, *args, **more)

    def _mixed(self, seen: Seen, h_BTD: Tensor, *args: Any, **more: Any) -> Tensor:
        (model,) = self._model
        weights_BTE = seen.routing.dense(model.bank.n_experts)[:, :, 0]
        total_BTD = torch.zeros_like(h_BTD)
        # A weight of 0 has a gradient: it goes by what the expert would have said.
        is_asked_BTE = self._alive_E if weights_BTE.requires_grad else weights_BTE != 0
        used_E = is_asked_BTE.expand_as(weights_BTE).flatten(0, 1).any(0)
        for e in used_E.nonzero()[:, 0].tolist():
            with model.running(e) as inner:
                found = self.block(h_BTD, *args, **more)
            for layer in inner.seen:
                model.current.seen[layer] = self._seen_by(layer, seen)
            if not isinstance(found, Tensor):
                raise InputError(
                    f"block {self._name}: expected hidden states, it returns "
                    f"{type(found).__name__}; use RoutedModel"
                )
            total_BTD = total_BTD + weights_BTE[..., e, None].to(found.dtype) * found
        return total_BTD

    def _seen_by(self, layer: str, seen: Seen) -> Seen:
        """Return the block's decision as one of its layers used it.

        An expert that does not adapt the layer leaves it as it is; nobody takes its weight over.
        """
        (model,) = self._model
        alive_E = model.bank.layers[layer].alive_E
        if bool(alive_E.all()):
            return seen
        return replace(seen, routing=replace(seen.routing, normalised=False).among(alive_E))


class _Forced(Router):
    """The expert that the block is being run with, for all its layers."""

    name: ClassVar[str] = "of-the-block"

    def __init__(self, deciding: Router) -> None:
        super().__init__()
        self.deciding = deciding
        self.call_data = deciding.call_data  # type: ignore[misc]  # what a batch must say is its

    def prepare(self, bank: AdapterBank) -> None:
        self.deciding.prepare(bank)

    def route(self, given: RouteInput) -> Routing:
        expert = _EXPERT.get(None)
        if expert is None:  # its block was left: a part of it is computed again
            raise _no_checkpointing(owner("layer", given.module))
        return one_hot(torch.full((1, 1, 1), expert))

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        return self.deciding.losses(decided, call)


def _no_checkpointing(block: str) -> InputError:
    return InputError(
        f"block {block}: runs once an expert and cannot be computed again in the backward pass; "
        "switch gradient checkpointing off, or use RoutedModel"
    )
