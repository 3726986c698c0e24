"""Put a bank and its router into a Hugging Face model, and take them out again bit by bit.

Every adapted ``nn.Linear`` is replaced by a ``RoutedLinear`` that holds the frozen layer itself and
adds what the routed experts say. Nothing of the base model is copied or changed, so removal puts
the very same modules back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
from crossroads.adapters.calls import current_call, for_rows
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.scopes import owner
from crossroads.core.errors import InputError
from crossroads.core.routed import AuxTerm


class RoutedLinear(nn.Module):
    """A frozen linear layer and its routed experts."""

    def __init__(self, base: nn.Linear, bank: ModuleBank, model: RoutedModel) -> None:
        super().__init__()
        self.base_layer = base
        self._parts = (bank, model)  # a tuple: neither is a submodule of this layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for (B, T, I) or (B, I)."""
        y: Tensor = self.base_layer(x)
        bank, model = self._parts
        if not model.is_enabled:
            return y
        merged = model.merged(bank)
        if merged is not None:
            down = x @ merged.a_RI.to(x.dtype).T
            return y + (merged.scale * (down @ merged.b_OR.to(x.dtype).T)).to(y.dtype)
        x_BTI = x if x.ndim == 3 else x.reshape(len(x), -1, x.shape[-1])
        routing = model.routing(bank, x_BTI)
        added_BTO = combine(x_BTI, bank, routing)
        return y + added_BTO.reshape(y.shape).to(y.dtype)


class RoutedModel:
    """A model with routed adapters in it.

    >>> routed = RoutedModel(model, bank, router)          # doctest: +SKIP
    >>> routed.model.generate(**inputs)                    # doctest: +SKIP
    >>> model = routed.unwrap()                            # doctest: +SKIP

    Parameters
    ----------
    model : any module whose linear layers the bank names: causal models and encoders alike
    bank, router : what is put in; ``router.prepare(bank)`` is called here

    Raises InputError where the model lacks a layer of the bank or has it in another size.
    """

    def __init__(self, model: nn.Module, bank: AdapterBank, router: Router) -> None:
        self.model, self.bank, self.router = model, bank, router
        self.is_enabled = True
        self.checks = False  # of every routing, for debugging
        self._layers: dict[str, RoutedLinear] = {}
        self._seen: dict[str, Routing] = {}
        self._decided: dict[str, Routing] = {}
        self._call = Call()
        router.prepare(bank)
        self._prepared = bank.version
        self._insert()
        # Losses call the backbone without its head, so both begin a pass.
        starts = dict.fromkeys((model, getattr(model, "base_model", model)))
        self._hooks = [
            start.register_forward_pre_hook(self._begin, with_kwargs=True) for start in starts
        ]

    @property
    def last_routings(self) -> dict[str, Routing]:
        """Every layer's decision of the last forward pass, in the order the layers ran."""
        return dict(self._seen)

    def aux_loss(self) -> Tensor | float:
        """Return coefficient * value over all layers and auxiliary terms of the last pass.

        Decisions that several layers share count once.
        """
        together = self.router.losses(self._decided, self._call)
        terms = [term.weighted for term in (*self._aux_terms(), *together.values())]
        return sum(terms[1:], terms[0]) if terms else 0.0

    def unwrap(self) -> nn.Module:
        """Take everything out and return the base model, bit by bit what it was."""
        for name, layer in self._layers.items():
            _replace(self.model, name, layer.base_layer)
        self._layers.clear()
        for hook in self._hooks:
            hook.remove()
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base model alone inside."""
        before, self.is_enabled = self.is_enabled, False
        try:
            yield
        finally:
            self.is_enabled = before

    def refresh(self) -> None:
        """Follow changes of the bank: experts added, removed or renamed."""
        self._seen.clear()
        for name, layer in self._layers.items():
            _replace(self.model, name, layer.base_layer)
        self._layers.clear()
        self.router.prepare(self.bank)
        self._prepared = self.bank.version
        self._insert()

    def merged(self, bank: ModuleBank) -> LoRA | None:
        """Return the one adapter the router made for a layer, if it makes such adapters."""
        return self._merged[bank.name]

    def routing(self, bank: ModuleBank, x_BTI: Tensor) -> Routing:
        """Return a layer's decision for its input, made once for all layers that share it."""
        call = for_rows(self._call, len(x_BTI))
        key = owner(self.router.scope, bank.name)
        found = self._decided.get(key) if key != bank.name else None
        if found is None:
            given = RouteInput(module=bank.name, x_BTI=x_BTI, bank=bank, call=call)
            found = self.router.route(given)
            self._decided[key] = found
        found = found if bool(bank.alive_E.all()) else _alive_only(found, bank)
        if self.checks:
            found.check(bank)
        self._seen[bank.name] = found
        return found

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
        if not self.is_enabled:
            return
        if self.bank.version != self._prepared:
            self.refresh()
        self._seen, self._decided = {}, {}
        self._call = current_call()
        if module is getattr(self.model, "base_model", self.model):
            hidden = partial(self._base_hidden, module, arguments, more)
            self._call = self.router.ahead(self._call, hidden)
        _check_call(self.router, self._call)

    def _base_hidden(
        self, backbone: nn.Module, arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> Tensor:
        """Return the last hidden states (B, T, D) of the base model alone."""
        cache = more.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise InputError(
                f"router {self.router.name}: its first pass reads all tokens and cannot go on from "
                "a cache; generate with use_cache=False, or decide on the prompt alone"
            )
        more = {key: value for key, value in more.items() if key != "past_key_values"}
        uncached = {"use_cache": False} if "use_cache" in more else {}
        with torch.no_grad(), self.disabled():
            found: Tensor = backbone(*arguments, **{**more, **uncached}).last_hidden_state
        return found

    def _aux_terms(self) -> Iterator[AuxTerm]:
        counted: set[int] = set()
        for routing in self._decided.values():
            if id(routing) not in counted:
                counted.add(id(routing))
                yield from routing.aux.values()

    def _insert(self) -> None:
        found = dict(self.model.named_modules())
        for name, bank in self.bank.layers.items():
            base = found.get(name)
            if base is None:
                raise InputError(
                    f"layer {name}: the model has none of this name; is it the base model the "
                    "adapters were trained on?"
                )
            if not isinstance(base, nn.Linear):
                raise InputError(f"layer {name}: expected nn.Linear, it is {type(base).__name__}")
            if (base.in_features, base.out_features) != (bank.inputs, bank.outputs):
                raise InputError(
                    f"layer {name}: the adapters have {bank.inputs} inputs and {bank.outputs} "
                    f"outputs, the model {base.in_features} and {base.out_features}; they are of "
                    "another base model"
                )
        self._merged = {name: self.router.merged(b) for name, b in self.bank.layers.items()}
        for name, bank in self.bank.layers.items():
            layer = RoutedLinear(cast("nn.Linear", found[name]), bank, self)
            _replace(self.model, name, layer)
            self._layers[name] = layer


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _check_call(router: Router, call: Call) -> None:
    for name in sorted(router.call_data):
        if getattr(call, name) is None:
            argument = re.sub(r"_[A-Z]+$", "", name)
            raise InputError(
                f"router {router.name}: needs {argument!r} of every batch; run the model inside "
                f"'with calling({argument}=...)'"
            )


def _alive_only(routing: Routing, bank: ModuleBank) -> Routing:
    """Take weight from experts that do not adapt this layer; renormalise what was normalised."""
    alive_E = bank.alive_E
    index = routing.index
    is_alive = alive_E if index is None else alive_E[index]
    kept = torch.where(is_alive, routing.weights, routing.weights.new_zeros(()))
    if routing.normalised:
        total = kept.sum(-1, keepdim=True)
        kept = kept / total.masked_fill(total == 0, 1.0)
    return replace(routing, weights=kept)
