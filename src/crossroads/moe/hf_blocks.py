"""Routed layers inside models of ``transformers``: the block, the pass around it, the old router.

The layouts read here are those of transformers 5. A sparse block has ``gate`` and ``experts``, the
latter with ``gate_up_proj`` (E, 2F, D) and ``down_proj`` (E, D, F), as in Mixtral, OLMoE,
Qwen2-MoE, Qwen3-MoE and DeepSeek V2 and V3; a dense feed-forward has ``gate_proj``, ``up_proj`` and
``down_proj``.

Axes: B sequences, T new positions, N = B * T tokens, D width, F hidden width, E experts, K places.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.core import gating
from crossroads.core.errors import UsageError
from crossroads.core.losses import pick_counts
from crossroads.core.routed import Collector, ModelOutput, RouteContext
from crossroads.moe.contract import (
    NOBODY,
    Router,
    RouterInput,
    RouterOutput,
    RoutingDecision,
    TokenChoice,
)
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import MoELayer

SHARED = "shared_routers"  # what a model calls the routers of several layers

Observer = Callable[[ModelOutput, RouteContext, bool], None]


class _Pass(Collector):
    """One forward pass, and how it stood when a layer was reached.

    Attributes
    ----------
    positions : of the sequences up to the end of the pass; None where a block is called alone
    """

    def __init__(self, context: RouteContext, positions: int | None = None) -> None:
        super().__init__(context)
        self.positions = positions

    def repeated(self) -> _Pass:
        """Return a pass for computing the next layer once more; its records lead nowhere."""
        again = _Pass(self.context, self.positions)
        again._carry = dict(self._carry)
        return again


class Surroundings:
    """What the routed blocks of one model share during a forward pass.

    Attributes
    ----------
    context : settings of the next passes (seed, step, losses' context); mask, training, causality
        and token ids are filled in from each call
    observer : called after every pass with its output, its context and whether it continues the
        sequences of the pass before (a decoding step)
    layers : those that hold a routed block
    arguments : names of the positional arguments, by type of model
    """

    def __init__(self) -> None:
        self.context = RouteContext()
        self.observer: Observer | None = None
        self.layers: list[nn.Module] = []
        self.arguments: dict[type[nn.Module], tuple[str, ...]] = {}
        self._owner: nn.Module | None = None  # the model whose call the pass is
        self._now: _Pass | None = None
        self._last: _Pass | None = None  # as it began
        self._continues = False

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Start a pass (a forward pre-hook of the model, and of the models within it)."""
        if self._owner is not None and self._owner is not model:
            return  # a model within the one that was called
        # A wrapper may have put a subclass in the place of the model's type.
        names = next((self.arguments[t] for t in type(model).__mro__ if t in self.arguments), ())
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        shown = given.get("inputs_embeds") if ids is None else ids
        past = given.get("past_key_values")
        seen = 0 if past is None else int(past.get_seq_length())
        self._continues = seen > 0
        cond = dict(self.context.cond)
        if ids is not None:
            cond["token_id"] = ids
        if shown is not None and given.get("position_ids") is not None:
            cond["pos"] = given["position_ids"].expand(shown.shape[:2])
        elif shown is not None and seen:  # as transformers counts them then
            count = torch.arange(seen, seen + shown.shape[1], device=shown.device)
            cond["pos"] = count.expand(shown.shape[:2])
        _refuse_missing_logits(model, given)
        for layer in self.layers if model.training else ():
            plain = getattr(layer, "_gradient_checkpointing_func", None)
            if plain is not None and not isinstance(plain, _Repeating):
                layer._gradient_checkpointing_func = _Repeating(plain, self)
        context = replace(
            self.context,
            mask_BT=_new_part(given.get("attention_mask"), shown, self.context.mask_BT),
            training=model.training,
            causal=True,
            cond=cond,
        )
        self._last = _Pass(context, None if shown is None else seen + shown.shape[1])
        self._owner, self._now = model, self._last.repeated()

    def after(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """End a pass (a forward hook of the model), also one that failed: it has no output."""
        if model is not self._owner:
            return
        done, self._now, self._owner = self._now, None, None
        if done is None or output is None or not done.records:
            return
        if self.observer is not None:
            logits = output.logits if hasattr(output, "logits") else output[0]
            self.observer(done.output(logits), done.context, self._continues)

    @property
    def running(self) -> _Pass:
        """The running pass.

        Outside of one a block called alone has no mask; one that is computed again during a
        backward pass, by a checkpoint that is not the model's, takes the last pass for its own.
        """
        if self._now is not None:
            return self._now
        if self._last is not None and torch._C._current_graph_task_id() >= 0:
            return self._last.repeated()
        return _Pass(replace(self.context, causal=True))

    @contextmanager
    def within(self, one: _Pass) -> Iterator[None]:
        """Run blocks in a pass that is over."""
        before, self._now = self._now, one
        try:
            yield
        finally:
            self._now = before


class _Repeating:
    """A checkpointing function of ``transformers`` that computes a layer again in its own pass."""

    def __init__(self, plain: Callable[..., Any], surroundings: Surroundings) -> None:
        self.plain, self.surroundings = plain, surroundings

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        there = self.surroundings.running.repeated()
        is_first = True

        def pinned(*inputs: Any, **more: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return run(*inputs, **more)
            with self.surroundings.within(there.repeated()):
                return run(*inputs, **more)

        return self.plain(pinned, *args, **kwargs)


def _refuse_missing_logits(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Raise UsageError where a call wants the logits of gates that are no longer there."""
    config = getattr(model, "config", None)
    wanted = given.get("output_router_logits")
    if wanted is None:
        wanted = getattr(config, "output_router_logits", False)
    if wanted and hasattr(config, "output_router_logits") and not has_gates(model):
        raise UsageError(
            "output_router_logits: none of the model's own routers is left; leave it out, and take "
            "decisions and auxiliary losses from crossroads.moe.convert.observed"
        )


def _new_part(given: Any, shown: Any, default: Tensor | None) -> Tensor | None:
    """Return the mask of the new positions, of a mask over all positions seen so far."""
    if not isinstance(given, Tensor) or given.ndim != 2 or shown is None:
        return default
    return given[:, -shown.shape[1] :].bool()


class RoutedMLP(nn.Module):
    """A MoE layer where ``transformers`` expects a feed-forward: a tensor in, a tensor out."""

    def __init__(self, moe: MoELayer, surroundings: Surroundings) -> None:
        super().__init__()
        self.moe = moe
        self.surroundings = surroundings
        self._attn: Tensor | None = None  # between the attention of a layer and this block
        self._hook: Any = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        attn, self._attn = self._attn, None
        running = self.surroundings.running
        if attn is not None:  # a static cache has keys that are not written yet
            attn = attn[..., : running.positions]
        return running(self.moe.layer, self.moe, hidden_states, attn=attn)

    def listen(self, model: nn.Module, layer: nn.Module) -> None:
        """Take the attention of the block's layer where the router reads it.

        Raises UsageError where the model does not show it.
        """
        if "attn" not in self.moe.needs:
            return
        implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
        if implementation != "eager" or not hasattr(layer, "self_attn"):
            raise self._hidden()
        self._hook = layer.self_attn.register_forward_hook(self._hear)

    def deafen(self) -> None:
        """Stop listening: another block takes the place."""
        if self._hook is not None:
            self._hook.remove()

    def _hear(self, module: nn.Module, args: Any, output: Any) -> None:
        self._attn = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if self._attn is None:
            raise self._hidden()

    def _hidden(self) -> UsageError:
        return UsageError(
            f"router {getattr(self.moe.routers[0], 'name', '?')!r}: reads the attention of its "
            "layer, which models show with attn_implementation='eager' only; load the model with "
            "it, or call model.set_attn_implementation('eager')"
        )


class OriginalRouter(Router):
    """The router a checkpoint came with: its module decides, this says it in our terms.

    Places are put in descending order of weight (DeepSeek's come in no order); probabilities are
    the softmax of the logits, also for gates that weigh by sigmoids. ``logit_bias``,
    ``allow`` and ``force`` would change another's arithmetic and are refused.
    """

    name = "original"

    def __init__(self, gate: nn.Module, n_experts: int) -> None:
        super().__init__(n_experts)
        self.gate = gate
        self.k = int(gate.top_k)

    def decide(self, inp: RouterInput) -> RouterOutput:
        if inp.logit_bias is not None or inp.allow is not None or inp.force_BT is not None:
            raise UsageError(
                "router 'original': takes no logit_bias, allow or force; swap in another router"
            )
        logits_NE, w_NK, idx_NK = self.gate(inp.x_ND)
        order_NK = torch.argsort(w_NK.detach(), dim=-1, descending=True, stable=True)
        idx_NK, w_NK = idx_NK.gather(-1, order_NK), w_NK.gather(-1, order_NK)
        real_N1 = inp.mask_N.unsqueeze(1)
        idx_NK = torch.where(real_N1, idx_NK, NOBODY)
        decision = RoutingDecision(
            choice=TokenChoice(
                idx_NK=idx_NK, w_NK=torch.where(real_N1, w_NK, torch.zeros_like(w_NK))
            ),
            n_experts=self.n_experts,
            shape=(inp.x_BTD.shape[0], inp.x_BTD.shape[1]),
            mask_N=inp.mask_N,
            logits_NE=logits_NE,
            probs_NE=gating.softmax(logits_NE),
            stats={"count_E": pick_counts(idx_NK.detach(), self.n_experts)},
        )
        return RouterOutput(decision=decision, carry=inp.carry or {})

    @property
    def nominal_active(self) -> float:
        return float(self.k)


def attach(model: nn.Module) -> Surroundings:
    """Return the surroundings of a model, made and hooked in at the first call."""
    for block in model.modules():
        if isinstance(block, RoutedMLP):
            return block.surroundings
    found = Surroundings()
    _body(model).register_load_state_dict_pre_hook(take_older_names)
    for part in model.modules():
        # ``model.model`` may be called without the head that stands around it.
        if part is model or hasattr(part, "base_model_prefix"):
            found.arguments[type(part)] = tuple(inspect.signature(part.forward).parameters)
            # Bound methods: a deep copy of the model gets surroundings of its own.
            part.register_forward_pre_hook(found.before, with_kwargs=True)
            part.register_forward_hook(found.after, with_kwargs=True, always_call=True)
    return found


def surroundings_of(model: nn.Module) -> Surroundings:
    """Return the surroundings of a converted model. Raises UsageError for any other."""
    for block in model.modules():
        if isinstance(block, RoutedMLP):
            return block.surroundings
    raise UsageError("model: has no routed blocks; call upcycle or swap_router first")


# ---------------------------------------------------------------------- routers of several layers


def register_shared(model: nn.Module) -> None:
    """Register the routers that layers share once, so that a state names them once.

    That is with the model below its head, which may be kept, moved or trained alone. Those that no
    layer uses any more go.
    """
    for part in list(model.modules()):
        part._modules.pop(SHARED, None)
    routers = dict.fromkeys(block.moe.routers[0] for _, block in _borrowing(model))
    if routers:
        made = nn.ModuleDict({f"router_{i}": router for i, router in enumerate(routers)})
        _body(model).add_module(SHARED, made.train(model.training))


def take_older_names(
    model: nn.Module, values: MutableMapping[str, Any], prefix: str = "", *_: Any
) -> None:
    """Rename, in place, what was saved when a shared router was registered with its layers.

    A hook of ``load_state_dict``, too; newer names and those of other parts stay.
    """
    body = _body(model)
    path = next(name for name, part in model.named_modules() if part is body)
    prefix += f"{path}." if path else ""
    numbered = {router: n for n, router in getattr(body, SHARED, nn.ModuleDict()).items()}
    for name, block in _borrowing(body):
        if block.moe.routers[0] not in numbered:
            continue  # registered elsewhere
        before = f"{prefix}{name}.moe.router."
        now = f"{prefix}{SHARED}.{numbered[block.moe.routers[0]]}."
        for key in [key for key in values if key.startswith(before)]:
            values.setdefault(now + key.removeprefix(before), values.pop(key))


def _body(model: nn.Module) -> nn.Module:
    """Return a Hugging Face model below its head; any other model as it is."""
    body = getattr(model, "base_model", model)
    return body if isinstance(body, nn.Module) else model


def _borrowing(model: nn.Module) -> Iterator[tuple[str, RoutedMLP]]:
    """Yield name and block of the layers whose router is not registered with them."""
    for name, block in model.named_modules():
        if isinstance(block, RoutedMLP) and not hasattr(block.moe, "router"):
            yield name, block


# ---------------------------------------------------------------------- what a model holds


def dense_blocks(model: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """Yield layer index, name and module of the gated dense feed-forwards of decoder layers."""
    for name, module in model.named_modules():
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.mlp$", name)
        if layer and all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
            yield int(layer.group(1)), name, module


def moe_blocks(model: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """Yield layer index, name and module of the mixtures of experts, converted ones included."""
    for name, module in model.named_modules():
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.[a-z_]+$", name)
        experts = getattr(module, "experts", None)
        stacked = isinstance(getattr(experts, "gate_up_proj", None), nn.Parameter)
        if layer and (isinstance(module, RoutedMLP) or (stacked and hasattr(module, "gate"))):
            yield int(layer.group(1)), name, module


def has_gates(model: nn.Module) -> bool:
    """Return whether a mixture of experts of the model still has the router it came with."""
    return any(
        not isinstance(block, RoutedMLP) or isinstance(block.moe.routers[0], OriginalRouter)
        for _, _, block in moe_blocks(model)
    )


def switch_off_logits(model: nn.Module) -> None:
    """Keep the model from asking for logits of its own gates where all of them are replaced."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False) and not has_gates(model):
        config.output_router_logits = False
        warnings.warn(
            "output_router_logits is switched off: none of the model's own routers is left; take "
            "auxiliary losses from crossroads.moe.convert.observed",
            stacklevel=3,
        )


def is_silu(module: nn.Module) -> bool:
    """Return whether the activation of a feed-forward is SiLU, the one our gated experts have."""
    act = getattr(module, "act_fn", None)
    probe = torch.linspace(-3, 3, 7)
    return callable(act) and torch.allclose(act(probe), nn.functional.silu(probe))


def check_dense(index: int, block: nn.Module) -> None:
    """Raise UsageError for a feed-forward that is not made of gated SiLU matrices alone."""
    parts = [getattr(block, part) for part in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) and part.bias is None for part in parts):
        raise UsageError(f"layer {index}: expected linear feed-forwards without biases")
    if not is_silu(block):
        raise UsageError(f"layer {index}: expected a SiLU gate; other activations are not read")


def check_sparse(index: int, block: nn.Module) -> None:
    """Raise UsageError for a mixture of experts whose experts are not of that form."""
    if isinstance(block, RoutedMLP):
        return
    experts: Any = block.experts
    up, down = experts.gate_up_proj, experts.down_proj
    if up.ndim != 3 or down.ndim != 3 or up.shape[1:] != (2 * down.shape[2], down.shape[1]):
        raise UsageError(
            f"layer {index}: expected gate_up_proj (E, 2F, D) and down_proj (E, D, F), "
            f"got {tuple(up.shape)} and {tuple(down.shape)}"
        )
    if not is_silu(experts) or getattr(experts, "gate_up_proj_bias", None) is not None:
        raise UsageError(f"layer {index}: expected SiLU gates without biases")


def bank_of(gate_up_E2FD: nn.Parameter, down_EDF: nn.Parameter, kinds: tuple[Any, ...]) -> FFNBank:
    """Return a bank over given weights, which are not copied."""
    d, hidden = down_EDF.shape[1], down_EDF.shape[2]
    bank = FFNBank(d, 1, kinds).to(down_EDF.device)  # small: its own weights are thrown away
    bank.hidden, bank.up, bank.down = hidden, gate_up_E2FD, down_EDF
    return bank


def dtypes_of(model: nn.Module) -> dict[str, str]:
    """Return the precision of every parameter and buffer that has one, by name."""
    return {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in _tensors(model)
        if tensor.is_floating_point()
    }


def set_dtypes(model: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Cast parameters and buffers in place; those that are not named stay as they are."""
    for name, tensor in _tensors(model):
        if name in dtypes:
            tensor.data = tensor.data.to(getattr(torch, dtypes[name]))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, also those that no state dict holds (rotary frequencies)."""
    yield from model.named_parameters()
    yield from model.named_buffers()
