"""Several experts as one plain adapter, where routing turns out not to be needed.

A sum of weighted experts is their concatenation: A = [A_1; A_2; ...] and
B = [w_1 s_1 B_1, w_2 s_2 B_2, ...] have the sum of the ranks and compute
(W + sum_e w_e s_e B_e A_e) x exactly, for any ranks, scales and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.calls import check_call
from crossroads.adapters.combine import averaged, concatenated
from crossroads.adapters.contract import Call, RouteInput, Router
from crossroads.adapters.scopes import owner
from crossroads.core.errors import InputError
from crossroads.core.progress import Progress

Form = Literal["tight", "padded"]


def merged_expert(
    bank: AdapterBank, weights: Mapping[str, float], *, name: str = "merged", form: Form = "tight"
) -> Expert:
    """Return one expert that is the weighted sum of several.

    Raises UsageError for an unknown expert, InputError where no expert has a weight.

    Parameters
    ----------
    weights : expert -> weight, negative ones too; experts that are not named have none
    form : "tight" leaves every layer the sum of its experts' ranks; "padded" fills with zeros up to
        one rank for all, for loaders without rank patterns
    """
    weights_E = torch.zeros(bank.n_experts)
    for expert, weight in weights.items():
        weights_E[bank.position(expert)] = weight
    found = {layer: _summed(module, weights_E) for layer, module in bank.layers.items()}
    return _as_expert(bank, found, name, form)


def merged_by_router(
    bank: AdapterBank,
    router: Router,
    *,
    call: Call | None = None,
    name: str = "merged",
    form: Form = "tight",
    progress: Progress | None = None,
) -> Expert:
    """Return one expert that computes what a router does whose weights are the same for all tokens.

    ``call`` says what such a router reads, such as the task; it speaks of one sequence.
    ``progress`` is told of every layer.

    Raises InputError for a router that decides by token, or a call that lacks what it must be told.
    """
    call = call or Call()
    check_call(router, call)
    router.prepare(bank)
    alive = bank.alive_by_owner(router.scope)
    found = {}
    for done, (layer, module) in enumerate(bank.layers.items(), start=1):
        found[layer] = _decided(module, router, call, alive[owner(router.scope, layer)])
        if progress is not None:
            progress(done, len(bank.layers))
    return _as_expert(bank, found, name, form)


@torch.no_grad()
def _decided(bank: ModuleBank, router: Router, call: Call, alive_E: Tensor) -> LoRA | None:
    made = router.merged(bank)
    if made is not None:
        return made
    if not router.is_static(call):
        raise InputError(
            f"router {router.name}: its weights vary by token, which no single adapter computes; "
            "save the bank, or choose a router whose weights do not vary"
        )
    nothing_BTI = bank.a_ERI.new_zeros(1, 1, bank.inputs)
    given = RouteInput(
        module=bank.name, x_BTI=nothing_BTI, bank=bank, call=call, any_alive_E=alive_E
    )
    routing = router.route(given).among(bank.alive_E)  # as a layer of a model does
    weights_BTHE = routing.dense(bank.n_experts)
    if weights_BTHE.shape[0] != 1:
        raise InputError(f"router {router.name}: expected a call about one sequence, got several")
    if routing.mode == "merge_factors":
        one = averaged(bank, weights_BTHE)
        return LoRA(a_RI=one.a_BRI[0], b_OR=one.b_BOR[0], scale=one.scale)
    return _summed(bank, weights_BTHE[0, 0, 0])


@torch.no_grad()
def _summed(bank: ModuleBank, weights_E: Tensor) -> LoRA | None:
    has_weight = (weights_E != 0) & bank.alive_E
    return concatenated(bank, weights_E) if bool(has_weight.any()) else None


def _as_expert(
    bank: AdapterBank, found: Mapping[str, LoRA | None], name: str, form: Form
) -> Expert:
    modules = {layer: lora for layer, lora in found.items() if lora is not None}
    if not modules:
        raise InputError("merge: no expert has a weight; give one to at least one of them")
    if form == "padded":
        rank = max(lora.rank for lora in modules.values())
        modules = {layer: _padded(lora, rank) for layer, lora in modules.items()}
    first = bank.cards[0]
    kept = {"configuration": first.info["configuration"]} if "configuration" in first.info else {}
    return Expert(name=name, modules=modules, base_model=first.base_model, info=kept)


def _padded(lora: LoRA, rank: int) -> LoRA:
    more = rank - lora.rank
    pad = torch.nn.functional.pad
    return replace(lora, a_RI=pad(lora.a_RI, (0, 0, 0, more)), b_OR=pad(lora.b_OR, (0, more)))
