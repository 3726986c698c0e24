"""Where a router stands on four of the nine axes, seen by running it on a small bank.

Two layers of one model, six experts, nine sequences: all but the last are of one task and differ in
everything else. The router's own parameters are drawn at random first, since many
start where all experts weigh the same. What is seen are its decisions and the outputs of the
layers, which are held against the formulas of ``crossroads.adapters.contract``.

This module imports torch; the rest of the survey does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank, Expert, LoRA, ModuleBank
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Mode, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.survey.schema import Cells, combining_modes

_EXPERTS, _WIDTH, _LENGTH, _SENTENCE = 6, 16, 5, 8
NAMES = tuple(f"expert-{place}" for place in range(_EXPERTS))
"""The experts of the small bank."""
_LAYERS = ("layers.0.q_proj", "layers.1.q_proj")
_TASKS = (0,) * 8 + (1,)  # so many that a hard choice among the experts can not be one by luck
_SAME = 1e-4  # of the largest output


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What running a router showed.

    A router that hands every layer one finished adapter shows no weights: num_experts,
    depth_granularity and expert_selection are then None, and contradict nothing.

    Attributes
    ----------
    mode : in which its decisions say experts are combined
    is_true : the layers' outputs are what that mode's formula gives for its weights
    num_experts : the most experts that had weight for one token
    input_granularity, depth_granularity, expert_selection : as ``Cells``
    """

    mode: Mode
    is_true: bool
    num_experts: int | None
    input_granularity: Literal["Step", "Example", "Task"]
    depth_granularity: Literal["Module", "Model"] | None
    expert_selection: Literal["Sparse", "Dense"] | None

    def contradicts(self, cells: Cells) -> tuple[str, ...]:
        """Return the axes on which what was seen is not what the cells say.

        Cells that leave the matter open (``Multiple``, ``N/A``, selection ``None``) agree with all.
        """
        axes = []
        for axis in ("input_granularity", "depth_granularity", "expert_selection"):
            said, seen = getattr(cells, axis), getattr(self, axis)
            if said not in {"N/A", "None"} and seen not in {said, None}:
                axes.append(axis)
        is_single = self.num_experts is not None and self.num_experts <= 1
        wrong = self.mode not in combining_modes(cells)
        if not self.is_true or wrong or (cells.expert_aggregation == "None" and not is_single):
            axes.append("expert_aggregation")
        return tuple(axes)


def observe(router: Router, *, seed: int = 0, rank: int = 2) -> Observation:
    """Run a router on the small bank and say what it did. Its parameters are overwritten.

    ``rank`` is that of every expert.

    Raises what the router raises where it needs more than the bank and the call hold: side data
    "gate", "activation" and "prototype", embeddings, examples and descriptions of the experts, task
    ids, embeddings and labels of the sequences.
    """
    draw = torch.Generator().manual_seed(seed)
    bank = _bank(draw, rank)
    model = _Small()
    _randomise(model.parameters(), draw)
    routed = RoutedModel(model, bank, router)
    _randomise(router.parameters(), draw)
    x_BTI = torch.randn(len(_TASKS), _LENGTH, _WIDTH, generator=draw)
    with torch.no_grad(), calling(**_call(draw)):
        given, added = _run(routed, x_BTI)
        weights = [decision.weights for decision in routed.last_routings.values()]
        if weights and not any(map(torch.any, weights)):
            # What is searched instead of trained is kept in buffers, and starts at 0.
            _randomise((b for b in router.buffers() if b.is_floating_point()), draw)
            given, added = _run(routed, x_BTI)
        merged = {name: router.merged(layer) for name, layer in bank.layers.items()}
    decisions = routed.last_routings
    routed.unwrap()
    if decisions:
        return _from_decisions(bank, decisions, given, added)
    expected = {n: given[n] @ m.delta_OI().T for n, m in merged.items() if m is not None}
    return Observation(
        mode=router.mode,
        is_true=all(_same(added[name], y) for name, y in expected.items()),
        num_experts=None,
        input_granularity="Task",
        depth_granularity=None,
        expert_selection=None,
    )


def _from_decisions(
    bank: AdapterBank,
    decisions: Mapping[str, Routing],
    given: Mapping[str, Tensor],
    added: Mapping[str, Tensor],
) -> Observation:
    weights = [decisions[name].dense(_EXPERTS) for name in bank.layers]
    is_true = all(
        _same(added[name], _formula(given[name], layer, decisions[name]))
        for name, layer in bank.layers.items()
    )
    counts = torch.cat([(w != 0).sum(-1).flatten() for w in weights])
    return Observation(
        mode=decisions[_LAYERS[0]].mode,
        is_true=is_true,
        num_experts=int(counts.max()),
        input_granularity=_granularity(weights),
        depth_granularity="Model" if _alike(weights) else "Module",
        expert_selection="Dense" if int(counts.min()) == _EXPERTS else "Sparse",
    )


class _Small(nn.Module):
    """Two layers, called like a backbone of Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (nn.ModuleDict({"q_proj": nn.Linear(_WIDTH, _WIDTH)}) for _ in _LAYERS)
        self.layers = nn.ModuleList(blocks)

    def forward(self, x_BTI: Tensor) -> SimpleNamespace:
        for name in _LAYERS:
            x_BTI = self.get_submodule(name)(x_BTI)
        return SimpleNamespace(last_hidden_state=x_BTI)


def _bank(draw: torch.Generator, rank: int) -> AdapterBank:
    def vectors() -> dict[str, Tensor]:
        return {name: torch.randn(_WIDTH, generator=draw) for name in _LAYERS}

    def lora() -> LoRA:
        a_RI = torch.randn(rank, _WIDTH, generator=draw) / _WIDTH**0.5
        return LoRA(a_RI=a_RI, b_OR=torch.randn(_WIDTH, rank, generator=draw), scale=0.5)

    return AdapterBank(
        Expert(
            name=name,
            modules={layer: lora() for layer in _LAYERS},
            artifacts={kind: vectors() for kind in ("gate", "activation", "prototype")},
            embedding_G=_unit(torch.randn(_SENTENCE, generator=draw)),
            examples_JG=_unit(torch.randn(3, _SENTENCE, generator=draw)),
            description=f"task of {name}",
        )
        for name in NAMES
    )


def _call(draw: torch.Generator) -> dict[str, Tensor]:
    return {
        "task_ids": torch.tensor(_TASKS),
        "embedding": _unit(torch.randn(len(_TASKS), _SENTENCE, generator=draw)),
        "labels": torch.arange(len(_TASKS)) % _EXPERTS,
    }


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def _randomise(parameters: Iterable[Tensor], draw: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in parameters:
            width = parameter.shape[-1] if parameter.ndim else 1
            parameter.normal_(std=width**-0.5, generator=draw)


def _run(routed: RoutedModel, x_BTI: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what went into every layer, and what the experts added to its output."""
    given, added = {}, {}
    handles = []
    for name in routed.bank.layers:

        def keep(
            layer: nn.Module, inputs: tuple[Tensor, ...], y_BTO: Tensor, name: str = name
        ) -> None:
            base = layer.base_layer
            assert isinstance(base, nn.Linear)
            share = routed.last_routings[name].base if name in routed.last_routings else None
            given[name] = inputs[0]
            added[name] = y_BTO - base(inputs[0]) * (1.0 if share is None else share)

        handles.append(routed.model.get_submodule(name).register_forward_hook(keep))
    routed.model(x_BTI)
    for handle in handles:
        handle.remove()
    return given, added


def _formula(x_BTI: Tensor, bank: ModuleBank, routing: Routing) -> Tensor:
    """Return what the experts must add, written out expert by expert, for one head."""
    weights_BTE = routing.dense(bank.n_experts)[:, :, 0].expand(*x_BTI.shape[:2], -1)
    scale = float(bank.scale_E[0])
    if routing.mode == "merge_factors":
        a_BTRI = torch.einsum("bte,eri->btri", weights_BTE, bank.a_ERI)
        b_BTOR = torch.einsum("bte,eor->btor", weights_BTE, bank.b_EOR)
        return scale * torch.einsum("btor,btri,bti->bto", b_BTOR, a_BTRI, x_BTI)
    delta_EOI = scale * bank.b_EOR @ bank.a_ERI
    return torch.einsum("bte,eoi,bti->bto", weights_BTE, delta_EOI, x_BTI)


def _same(y: Tensor, expected: Tensor) -> bool:
    return bool((y - expected).abs().max() <= _SAME * expected.abs().max())


def _granularity(weights: Iterable[Tensor]) -> Literal["Step", "Example", "Task"]:
    found: Literal["Step", "Example", "Task"] = "Task"
    for weights_BTHE in weights:
        if not torch.allclose(weights_BTHE, weights_BTHE[:, :1], atol=1e-6):
            return "Step"
        of_one_task = weights_BTHE.expand(len(_TASKS), -1, -1, -1)[: _TASKS.count(0)]
        if not torch.allclose(of_one_task, of_one_task[:1], atol=1e-6):
            found = "Example"
    return found


def _alike(weights: list[Tensor]) -> bool:
    first, second = torch.broadcast_tensors(*weights)
    return torch.allclose(first, second, atol=1e-6)
