"""Put a bank and its router into a Hugging Face model, and take them out again bit by bit.

Every adapted linear layer is replaced by a ``RoutedLinear`` that holds the frozen layer itself and
adds what the routed experts say. Nothing of the base model is copied or changed, so removal puts
the very same modules back.
"""

from __future__ import annotations

import gc
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, ModuleBank
from crossroads.adapters.base_layers import layer_size
from crossroads.adapters.calls import check_call, current_call, for_rows
from crossroads.adapters.combine import combine
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.kernels import Kernel
from crossroads.adapters.passes import Pass, Passes, Seen, begun
from crossroads.adapters.scopes import owner, reads_encoder
from crossroads.adapters.static import Static
from crossroads.core.errors import InputError
from crossroads.core.routed import AuxTerm

Watcher = Callable[[Pass], None]
_LOG = logging.getLogger(__name__)
_INSERTED: WeakSet[RoutedModel] = WeakSet()  # whose routers are prepared for their banks


class RoutedLinear(nn.Module):
    """A frozen linear layer and its routed experts."""

    def __init__(self, base: nn.Module, bank: ModuleBank, model: RoutedModel) -> None:
        super().__init__()
        self.base_layer = base
        self.owner = owner(model.router.scope, bank.name)
        self.reads_encoder = model.has_two_stacks and reads_encoder(bank.name)
        if self.reads_encoder and self.owner != bank.name:
            self.owner += " encoder"  # its tokens are not those of the decoder's layers
        self._is_full = bool(bank.alive_E.all())
        self._one = model.router.merged(bank)
        self._static = Static()
        self._parts = (bank, model)  # a tuple: neither is a submodule of this layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self._parts[0].inputs

    @property
    def out_features(self) -> int:
        return self._parts[0].outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for (B, T, I) or (B, I)."""
        bank, model = self._parts
        if not model.is_enabled:
            y: Tensor = self.base_layer(x)
            return y
        if x.ndim == 3:
            return self._routed(x, bank, model)
        x_BTI = x.reshape(len(x), -1, x.shape[-1])
        return self._routed(x_BTI, bank, model).reshape(*x.shape[:-1], bank.outputs)

    def _routed(self, x_BTI: Tensor, bank: ModuleBank, model: RoutedModel) -> Tensor:
        base = self.base_layer
        if self._one is not None:
            return self._static.forward_one(x_BTI, base, self._one)
        current = model.current
        routing = self._routing(x_BTI, bank, model, current)
        if model.kernel == "auto" and model.router.is_static(current.call):
            y_BTO = self._static.forward(x_BTI, base, bank, routing)
            if y_BTO is not None:
                return y_BTO
        y_BTO = base(x_BTI)
        if base._forward_hooks:
            y_BTO = y_BTO.clone()  # a hook may keep it, and it is written to
        if routing.base is not None:
            y_BTO = y_BTO * routing.base.to(y_BTO.dtype)
        return combine(x_BTI, bank, routing, model.kernel, y_BTO)

    def _routing(
        self, x_BTI: Tensor, bank: ModuleBank, model: RoutedModel, current: Pass
    ) -> Routing:
        """Return the layer's decision for its input, made once for all layers that share it."""
        rows, positions, _ = x_BTI.shape
        call = current.call_for(rows, positions, encoder=self.reads_encoder)
        found = current.shared(self.owner, bank.name, call)
        if found is None:
            found = model.router.route(
                RouteInput(
                    module=bank.name,
                    x_BTI=x_BTI,
                    bank=bank,
                    call=call,
                    any_alive_E=model.alive_by_owner[self.owner],
                )
            )
            current.share(self.owner, bank.name, call, found)
        if not self._is_full:
            found = found.among(bank.alive_E)
        if model.checks:
            found.check(bank)
        current.seen[bank.name] = Seen(routing=found, shape=(rows, positions), mask_BT=call.mask_BT)
        return found


class RoutedModel:
    """A model with routed adapters in it.

    >>> routed = RoutedModel(model, bank, router)          # doctest: +SKIP
    >>> routed.model.generate(**inputs)                    # doctest: +SKIP
    >>> model = routed.unwrap()                            # doctest: +SKIP

    Threads may call the model at the same time; each has its own call and its own decisions. With
    gradient checkpointing, use the kind that is not reentrant where a router has auxiliary losses:
    the reentrant kind computes them without gradient.

    Raises InputError where the model lacks a layer of the bank, has it in another size or under two
    names, and where the router routes for another bank in another model. The model is then as it
    was.

    Parameters
    ----------
    model : any module whose linear layers the bank names: causal models and encoders alike
    bank, router : what is put in; ``router.prepare(bank)`` is called here
    kernel : how experts are mixed, see ``crossroads.adapters.kernels``; another than "auto" also
        keeps routers whose weights do not vary from merging them into the layers

    Attributes
    ----------
    checks : check every routing, for debugging
    """

    def __init__(
        self, model: nn.Module, bank: AdapterBank, router: Router, *, kernel: Kernel = "auto"
    ) -> None:
        self.model, self.bank, self.router = model, bank, router
        self.kernel: Kernel = kernel
        self.checks = False
        config = getattr(model, "config", None)
        self.has_two_stacks = bool(getattr(config, "is_encoder_decoder", False))
        self._backbone = getattr(model, "base_model", model)
        self._passes = Passes()
        self._latest = Pass()  # of any thread: backward passes may run in one of their own
        self._layers: dict[str, RoutedLinear] = {}
        self.alive_by_owner: dict[str, Tensor] = {}  # of all layers that share a decision
        self._watchers: list[Watcher] = []
        _warn_of_apart(router)
        self._check_layers()
        _check_is_free(router, bank)
        router.prepare(bank)
        self._insert()
        self._prepared = bank.version
        _INSERTED.add(self)
        self._hooks = [
            hook
            for name, start in self._starts().items()
            for hook in (
                start.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True),
                start.register_forward_hook(self._end, always_call=True),
            )
        ]

    @property
    def is_enabled(self) -> bool:
        """Whether experts take part in this thread; see ``disabled``."""
        return self._passes.is_enabled

    @property
    def current(self) -> Pass:
        """The pass this thread is in or was last in."""
        current = self._passes.current
        return current if current.entered else self._latest

    @property
    def last_routings(self) -> dict[str, Routing]:
        """Every layer's decision of the last forward pass, in the order the layers ran."""
        return {name: seen.routing for name, seen in self.current.seen.items()}

    def aux_loss(self) -> Tensor | float:
        """Return coefficient * value over all layers and auxiliary terms of the last pass.

        Decisions that several layers share count once. Padding is left out, of both stacks where
        there are two, whether the call or the model was told of it.
        """
        together = self.router.losses(*self._decided_of_losses())
        terms = [term.weighted for term in (*self._aux_terms(), *together.values())]
        return sum(terms[1:], terms[0]) if terms else 0.0

    def unwrap(self) -> nn.Module:
        """Take everything out and return the base model, bit by bit what it was."""
        self._take_out()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _INSERTED.discard(self)
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base model alone inside, in this thread."""
        before, self._passes.is_enabled = self.is_enabled, False
        try:
            yield
        finally:
            self._passes.is_enabled = before

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Call ``watcher`` with the pass after every forward pass inside, of any thread."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def refresh(self) -> None:
        """Follow changes of the bank: experts added, removed or renamed.

        A change that cannot be followed is refused here and in every pass, until the bank is as the
        model and the router need it. Raises InputError for that, and after ``unwrap``.
        """
        if not self._hooks:
            raise InputError(
                "routed model: its experts were taken out by unwrap(); make a new RoutedModel"
            )
        self._check_layers()
        self.router.prepare(self.bank)
        self._insert()
        self._prepared = self.bank.version

    def _starts(self) -> Mapping[str, nn.Module]:
        """Return the modules that may be called from outside, by name.

        The model; its backbone, which losses call without the head; the stacks of an encoder and a
        decoder, which text generation calls apart: all that hold several blocks.
        """
        heads = (re.split(r"\.\d+\.", name, maxsplit=1)[0] for name in self.bank.layers)
        names = {""} | {
            ".".join(parts[:count])
            for parts in (head.split(".") for head in heads)
            for count in range(1, len(parts))
        }
        return {name: self.model.get_submodule(name) for name in sorted(names)}

    def _begin(
        self, name: str, module: nn.Module, arguments: tuple[Any, ...], more: dict[str, Any]
    ) -> None:
        if not self.is_enabled:
            return
        current = self._passes.current
        more = {**_named(module, arguments), **more}
        if module is self.model or not current.is_open or module in current.entered:
            if self.bank.version != self._prepared:
                self.refresh()
            is_encoder = self.has_two_stacks and reads_encoder(name)
            current = begun(
                current_call(), more, is_encoder=is_encoder, has_two_stacks=self.has_two_stacks
            )
            self._passes.current = self._latest = current
        current.entered.append(module)
        if module is self._backbone:
            hidden = partial(self._base_hidden, module, more)
            current.say(self.router.ahead(current.call, hidden))
        check_call(self.router, current.call)

    def _end(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        current = self._passes.current
        if not self.is_enabled or not current.is_open or module is not current.entered[0]:
            return
        current.is_open = False
        if output is not None:  # None: the pass ended in an error
            for watcher in self._watchers:
                watcher(current)

    def _base_hidden(self, backbone: nn.Module, more: dict[str, Any]) -> Tensor:
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
            found: Tensor = backbone(**{**more, **uncached}).last_hidden_state
        return found

    def _decided_of_losses(self) -> tuple[Mapping[str, Routing], Call]:
        """Return the decisions and the call, which together say what tokens are real."""
        current = self.current
        if not current.seen:
            return current.decided, current.call
        if not self.has_two_stacks:
            first = next(iter(current.seen.values()))
            return current.decided, current.call_for(*first.shape, encoder=False)
        # A call has one mask and these decisions have two: padding is taken out beforehand.
        decided = {}
        for who, routing in current.decided.items():
            mask_BT = current.mask_of(who)
            if mask_BT is None or bool(mask_BT.any()):
                decided[who] = routing.without_padding(mask_BT)
        rows = max(seen.shape[0] for seen in current.seen.values())
        call = for_rows(current.call, rows)
        return decided, replace(call, mask_BT=None, encoder_mask_BT=None)

    def _aux_terms(self) -> Iterator[AuxTerm]:
        for routing in self.current.decided.values():  # shared ones are there once
            yield from routing.aux.values()

    def _check_layers(self) -> None:
        """Raise InputError where the bank does not fit the model; nothing is changed."""
        bases = {name: self._base(name) for name in self.bank.layers}
        for name, bank in self.bank.layers.items():
            _check_layer(name, bank, bases[name], self._base(name.rpartition(".")[0]))
        self._check_places(bases)

    def _check_places(self, found: Mapping[str, nn.Module | None]) -> None:
        """Raise InputError for a module that is also somewhere else: it would run there as it is.

        A module under a name that is replaced may be there several times, as a shared block is.
        """
        names = {id(base): name for name, base in found.items()}
        places = {
            (id(self._base(name.rpartition(".")[0])), name.rpartition(".")[2]) for name in found
        }
        for above, parent in self.model.named_modules():
            if self._is_ours(parent):
                continue
            for last, child in parent._modules.items():
                name = names.get(id(child))
                if name is not None and (id(parent), last) not in places:
                    other = f"{above}.{last}".removeprefix(".")
                    raise InputError(
                        f"layer {name}: the model has it as {other} too, where it would run "
                        "without experts; give it a module of its own there, or leave it out of "
                        "the adapters"
                    )

    def _is_ours(self, module: nn.Module) -> bool:
        """Return whether a module stands in for one of the model."""
        return isinstance(module, RoutedLinear)

    def _base(self, name: str) -> nn.Module | None:
        """Return the model's own module of a name, whether experts are in or not."""
        inserted = self._layers.get(name)
        if inserted is not None:
            return inserted.base_layer
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            return None

    def _insert(self) -> None:
        """Put experts in, in place of those that were; on an error those stay."""
        made: dict[str, RoutedLinear] = {}
        for name, bank in self.bank.layers.items():
            base = self._base(name)
            assert base is not None  # checked
            made[name] = RoutedLinear(base, bank, self)
        alive_by_owner = self.bank.alive_by({name: layer.owner for name, layer in made.items()})
        self._take_out()
        for name, layer in made.items():
            _replace(self.model, name, layer)
        self._layers, self.alive_by_owner = made, alive_by_owner

    def _take_out(self) -> None:
        for name, layer in self._layers.items():
            _replace(self.model, name, layer.base_layer)
        self._layers = {}
        self.alive_by_owner = {}


def _check_layer(
    name: str, bank: ModuleBank, base: nn.Module | None, parent: nn.Module | None
) -> None:
    if base is None:
        raise InputError(
            f"layer {name}: the model has none of this name; is it the base model the adapters "
            "were trained on?"
        )
    if isinstance(base, RoutedLinear):
        raise InputError(f"layer {name}: has routed experts already; unwrap the other model first")
    size = layer_size(base)
    if size is None:
        raise InputError(
            f"layer {name}: expected a linear layer, it is {type(base).__name__}; leave it out of "
            "the adapters"
        )
    if size != (bank.inputs, bank.outputs):
        raise InputError(
            f"layer {name}: the adapters have {bank.inputs} inputs and {bank.outputs} outputs, the "
            f"model {size[0]} and {size[1]}; they are of another base model"
        )
    if isinstance(parent, nn.MultiheadAttention):
        raise InputError(
            f"layer {name}: torch's MultiheadAttention reads its weight without calling it, so "
            "experts would have no effect; leave it out of the adapters"
        )


def _named(module: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional arguments by the names the module gives them."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if not arguments or code is None:
        return {}
    return dict(zip(code.co_varnames[1 : code.co_argcount], arguments, strict=False))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _check_is_free(router: Router, bank: AdapterBank) -> None:
    """Raise InputError where preparing a router would change what it knows of another bank."""
    if not _holds_another(router, bank):
        return
    gc.collect()  # a model that nobody holds any more may not have been freed yet
    if _holds_another(router, bank):
        raise InputError(
            f"router {router.name}: routes for another bank in another model; unwrap that model "
            "first, or give each its own router"
        )


def _holds_another(router: Router, bank: AdapterBank) -> bool:
    parts = {part for part in router.modules() if isinstance(part, Router)}
    return any(
        other.bank is not bank and not parts.isdisjoint(other.router.modules())
        for other in list(_INSERTED)
    )


def _warn_of_apart(router: Router) -> None:
    """Warn where factors are averaged of experts that nobody trained together."""
    apart = router.cells is not None and router.cells.expert_data == "Private"
    if apart and router.mode == "merge_factors":
        _LOG.warning(
            "router %s: averages the factors A and B of adapters that were trained apart, which "
            "need not fit together; routers that add whole adapters, as uniform does, have no such "
            "trouble",
            router.name,
        )
