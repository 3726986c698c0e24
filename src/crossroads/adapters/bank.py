"""A bank of LoRA experts: per adapted layer, the stacked factors of all of them.

Experts may differ in rank, in scale and in which layers they adapt. Lower ranks are padded with
zeros, which is exact; a layer that an expert does not adapt has it as dead.

Axes: E experts, R the largest rank, I inputs, O outputs of a layer, G width of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from crossroads.adapters.scopes import Scope, owner
from crossroads.core.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRA:
    """One expert at one layer: delta = scale * B A.

    Attributes
    ----------
    a_RI, b_OR : the factors, in the layout of ``torch.nn.Linear`` weights
    scale : alpha / r, or alpha / sqrt(r); multiplies the delta once and is never folded in memory
    """

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    def __post_init__(self) -> None:
        if self.a_RI.ndim != 2 or self.b_OR.ndim != 2 or len(self.a_RI) != self.b_OR.shape[1]:
            raise InputError(
                "LoRA factors: expected A (rank, inputs) and B (outputs, rank), got "
                f"{tuple(self.a_RI.shape)} and {tuple(self.b_OR.shape)}"
            )

    @property
    def rank(self) -> int:
        return len(self.a_RI)

    def delta_OI(self) -> Tensor:
        """Return scale * B A, (O, I), in float32."""
        return self.scale * (self.b_OR.float() @ self.a_RI.float())


def _new_key() -> str:
    return uuid4().hex


@dataclass(frozen=True, kw_only=True, eq=False)
class Expert:
    """One adapter, independent of any bank.

    Attributes
    ----------
    name : unique within a bank
    modules : full name of the linear layer in the base model -> factors
    artifacts : side data by name, then by layer: "gate" (I,), "activation" (I,), "prototype" (I,)
    embedding_G : of what the expert is for, unit norm; for routers that read sentences
    examples_JG : of J prompts of its training data, unit norm
    description : what the expert is for, in words
    base_model : name its adapter was trained on
    info : further plain data: source, labels, the adapter's configuration
    key : tells it from all others whatever they are called; ``dataclasses.replace`` keeps it, files
        do not have it
    """

    name: str
    modules: Mapping[str, LoRA]
    artifacts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    embedding_G: Tensor | None = None
    examples_JG: Tensor | None = None
    description: str = ""
    base_model: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    key: str = field(default_factory=_new_key, repr=False)

    @property
    def n_parameters(self) -> int:
        return sum(m.a_RI.numel() + m.b_OR.numel() for m in self.modules.values())


class ModuleBank(nn.Module):
    """All experts at one linear layer.

    Attributes
    ----------
    a_ERI, b_EOR : factors, parameters without gradient until somebody trains them; of the widest
        type among the experts' unless ``dtype`` says
    scale_E, rank_E : float32 and int64
    alive_E : bool, which of the ``n_experts`` adapt this layer: ``n_alive`` of them
    rank : R, the largest; lower ones are padded with zeros
    inputs, outputs : of the layer
    artifacts : side data by name, (E, I); rows of experts without it are NaN. These and the scales
        stay float32 when the bank is cast to another type
    heads : 1, or the number of blocks multi-head routing cuts inputs and outputs into
    rewrites : how often ``AdapterBank.rewritten`` was called, for what is kept of the numbers
    """

    a_ERI: nn.Parameter
    b_EOR: nn.Parameter
    scale_E: Tensor
    rank_E: Tensor
    alive_E: Tensor

    def __init__(
        self,
        name: str,
        found: Sequence[LoRA | None],
        *,
        heads: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given = [lora for lora in found if lora is not None]
        if not given:
            raise InputError(f"bank: no expert adapts {name}")
        first = given[0]
        inputs, outputs = first.a_RI.shape[1], len(first.b_OR)
        for lora in given:
            if lora.a_RI.shape[1] != inputs or len(lora.b_OR) != outputs:
                raise InputError(
                    f"bank: experts disagree about the size of {name}: {(inputs, outputs)} and "
                    f"{(lora.a_RI.shape[1], len(lora.b_OR))}; are they of one base model?"
                )
        _check_heads(name, heads, inputs, outputs)
        self.name, self.heads, self.rewrites = name, heads, 0
        # Plain numbers: a step of decoding asks for them at every layer.
        self.n_experts, self.n_alive = len(found), len(given)
        self.inputs, self.outputs = inputs, outputs
        self.rank = rank = max(lora.rank for lora in given)
        dtype = dtype or reduce(torch.promote_types, (lora.a_RI.dtype for lora in given))
        a_ERI = first.a_RI.new_zeros(len(found), rank, inputs, dtype=dtype)
        b_EOR = first.b_OR.new_zeros(len(found), outputs, rank, dtype=dtype)
        for e, one in enumerate(found):
            if one is not None:
                a_ERI[e, : one.rank], b_EOR[e, :, : one.rank] = one.a_RI, one.b_OR
        self.a_ERI = nn.Parameter(a_ERI, requires_grad=False)
        self.b_EOR = nn.Parameter(b_EOR, requires_grad=False)
        buffers = {
            "scale_E": torch.tensor([0.0 if one is None else one.scale for one in found]),
            "rank_E": torch.tensor([0 if one is None else one.rank for one in found]),
            "alive_E": torch.tensor([one is not None for one in found]),
        }
        for field_name, values in buffers.items():
            self.register_buffer(field_name, values.to(a_ERI.device))
        self.artifacts = nn.Module()

    def lora(self, expert: int) -> LoRA | None:
        """Return an expert's factors without the padding, or None where it is dead."""
        seen = self._view(expert)
        return seen and replace(seen, a_RI=seen.a_RI.clone(), b_OR=seen.b_OR.clone())

    def artifact(self, name: str) -> Tensor:
        """Return side data (E, I). Raises InputError where an expert that is alive has none."""
        found_EI = getattr(self.artifacts, name, None)
        if found_EI is None or torch.isnan(found_EI[self.alive_E]).any():
            raise InputError(f"bank: experts have no {name!r} for {self.name}")
        kept: Tensor = found_EI
        return kept

    def set_artifact(self, name: str, values_EI: Tensor) -> None:
        """Keep side data of shape (E, I)."""
        if values_EI.shape != (self.n_experts, self.inputs):
            raise InputError(
                f"artifact {name!r} of {self.name}: expected shape "
                f"{(self.n_experts, self.inputs)}, got {tuple(values_EI.shape)}"
            )
        self.artifacts.register_buffer(name, values_EI.to(self.a_ERI.device))

    def changed(self, keep: Sequence[int], new: Sequence[LoRA | None]) -> ModuleBank | None:
        """Return this layer with the experts at some places and others behind them.

        None where none of them adapts it. Numbers are copied bit by bit; side data of new experts
        is missing.
        """
        found = [*(self._view(place) for place in keep), *new]
        if not any(found):
            return None
        bank = ModuleBank(self.name, found, heads=self.heads, dtype=self.a_ERI.dtype)
        bank.a_ERI.requires_grad_(self.a_ERI.requires_grad)
        bank.b_EOR.requires_grad_(self.b_EOR.requires_grad)
        for kind, old_EI in self.artifacts.named_buffers():
            kept_EI = old_EI[list(keep)]
            if not torch.isnan(kept_EI).all():
                none_EI = kept_EI.new_full((len(new), self.inputs), torch.nan)
                bank.set_artifact(kind, torch.cat([kept_EI, none_EI]))
        return bank

    def _view(self, expert: int) -> LoRA | None:
        """Return an expert's factors without the padding, in the memory of the bank."""
        if not bool(self.alive_E[expert]):
            return None
        rank = int(self.rank_E[expert])
        return LoRA(
            a_RI=self.a_ERI[expert, :rank].detach(),
            b_OR=self.b_EOR[expert, :, :rank].detach(),
            scale=float(self.scale_E[expert]),
        )

    def _apply(self, fn: Any, recurse: bool = True) -> ModuleBank:
        """Move or cast the bank; scales and side data are moved alone."""
        kept = [(self, "scale_E", self.scale_E)]
        kept += [(self.artifacts, kind, rows) for kind, rows in self.artifacts.named_buffers()]
        super()._apply(fn, recurse)
        for holder, name, values in kept:
            setattr(holder, name, values.to(getattr(holder, name).device))
        return self


class AdapterBank(nn.Module):
    """Experts by name and their factors by layer.

    ``version`` counts changes of the set of experts: routers prepare themselves again.

    What is kept of factors, scales and the base model's weights (flattened or merged copies) is
    made anew after training and other writes in place, which raise a tensor's version; not after
    writes through ``.data`` or from outside torch, nor to tensors made in inference mode, which
    raise none. What routers derive once (the prototypes of Arrow, merges of TIES and DARE) stays
    even after training. ``rewritten()`` drops all of it.
    """

    def __init__(self, experts: Iterable[Expert], *, heads: int = 1) -> None:
        super().__init__()
        self.heads, self.version = heads, 0
        self._cards: list[Expert] = []
        self._met: set[str] = set()  # keys of all experts that were ever here
        self._modules_by_name: dict[str, ModuleBank] = {}
        self._change([], list(experts))

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order of axis E."""
        return tuple(card.name for card in self._cards)

    @property
    def keys_by_name(self) -> dict[str, str]:
        """The experts' keys by name, in the order of axis E: for ``places_in`` at a later time."""
        return {card.name: card.key for card in self._cards}

    @property
    def n_experts(self) -> int:
        return len(self._cards)

    @property
    def layers(self) -> Mapping[str, ModuleBank]:
        """Full name of a linear layer of the base model -> its experts."""
        return self._modules_by_name

    @property
    def cards(self) -> tuple[Expert, ...]:
        """What is known of every expert, without factors and artifacts (``expert`` has them)."""
        return tuple(self._cards)

    def position(self, name: str) -> int:
        """Return an expert's place on axis E. Raises UsageError with the nearest spelling."""
        if name not in self.names:
            raise unknown_name("expert", name, self.names)
        return self.names.index(name)

    def places_in(self, former: Mapping[str, str]) -> list[int | None]:
        """Return where each expert stood among former ``keys_by_name``; None = it was not there.

        Experts are known by their keys, so that a renamed one is found, and another one under the
        name of one that was removed is not. Those of other banks, such as the same files read
        again, are known by their names.
        """
        by_key = {key: place for place, key in enumerate(former.values())}
        by_name = {
            name: place for place, name in enumerate(former) if former[name] not in self._met
        }
        return [by_key.get(card.key, by_name.get(card.name)) for card in self._cards]

    def is_as_in(self, former: Mapping[str, str]) -> bool:
        """Return whether the experts are those of former ``keys_by_name``, in their order."""
        return self.places_in(former) == list(range(len(former)))

    def carried(
        self, former: Mapping[str, str], before: Tensor, fresh: Tensor, *, axis: int = 0
    ) -> Tensor:
        """Return ``fresh``, which has the experts of this bank on an axis, with what is known.

        Slices of experts that were among former ``keys_by_name`` come from ``before``, which has
        them in that order.
        """
        pairs = [(now, was) for now, was in enumerate(self.places_in(former)) if was is not None]
        if not pairs:
            return fresh
        now_P, was_P = torch.tensor(pairs, device=before.device).unbind(1)
        return fresh.to(before).index_copy(axis, now_P, before.index_select(axis, was_P))

    def expert(self, name: str) -> Expert:
        """Return an expert with its factors and side data as they are now."""
        place = self.position(name)
        found = {layer: bank.lora(place) for layer, bank in self.layers.items()}
        alive = {layer: lora for layer, lora in found.items() if lora is not None}
        artifacts: dict[str, dict[str, Tensor]] = {}
        for layer in alive:
            for kind, values_EI in self.layers[layer].artifacts.named_buffers():
                if not torch.isnan(values_EI[place]).any():
                    artifacts.setdefault(kind, {})[layer] = values_EI[place].clone()
        return replace(self._cards[place], modules=alive, artifacts=artifacts)

    def alive_by_owner(self, scope: Scope) -> dict[str, Tensor]:
        """Return which experts adapt any of the layers that share a decision, by ``scopes.owner``.

        bool (E,) each, in the order of the first layers.
        """
        return self.alive_by({layer: owner(scope, layer) for layer in self.layers})

    def alive_by(self, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """Do as ``alive_by_owner`` for layers that share a decision by ``keys``, layer -> key."""
        found: dict[str, Tensor] = {}
        for layer, bank in self.layers.items():
            key = keys[layer]
            found[key] = found[key] | bank.alive_E if key in found else bank.alive_E
        return found

    def experts(self) -> list[Expert]:
        return [self.expert(name) for name in self.names]

    def embeddings_EG(self) -> Tensor:
        """Return the experts' embeddings. Raises InputError naming one that has none."""
        found = []
        for card in self._cards:
            if card.embedding_G is None:
                raise InputError(
                    f"bank: expert {card.name!r} has no embedding; give it with "
                    "crossroads.adapters.embedding.embed_experts"
                )
            found.append(card.embedding_G)
        return torch.stack(found)

    def add(self, *experts: Expert) -> None:
        """Add experts at the end, all of them or, on an error, none.

        Those that are there keep their numbers bit by bit, and the bank its type of numbers.
        """
        self._change(range(self.n_experts), experts)

    def remove(self, name: str) -> Expert:
        """Take an expert out and return it. Raises InputError for the last one."""
        gone = self.expert(name)
        left = [place for place, other in enumerate(self.names) if other != name]
        if not left:
            raise InputError(f"bank: {name!r} is its last expert; remove the bank instead")
        self._change(left, [])
        return gone

    def rename(self, name: str, new: str) -> None:
        """Give an expert another name. Raises InputError where it is taken."""
        place = self.position(name)
        if new != name and new in self.names:
            raise InputError(f"bank: there is an expert {new!r} already; choose another name")
        self._cards[place] = replace(self._cards[place], name=new)
        self.version += 1

    def rewritten(self) -> None:
        """Say that numbers were written where no version tells of it; see the class.

        All that is kept of them, here and in models that hold this bank, is made anew at the next
        forward pass.
        """
        for module in self.layers.values():
            module.rewrites += 1
        self.version += 1

    def describe(self, name: str, **facts: Any) -> None:
        """Change ``description``, ``embedding_G``, ``base_model`` or ``info`` of an expert."""
        place = self.position(name)
        self._cards[place] = replace(self._cards[place], **facts)
        self.version += 1

    def set_artifact(self, expert: str, kind: str, values: Mapping[str, Tensor]) -> None:
        """Keep side data of one expert: layer -> (I,). Raises InputError for an unknown layer."""
        place = self.position(expert)
        for layer, values_I in values.items():
            if layer not in self.layers:
                raise InputError(f"bank: {kind!r} of expert {expert!r}: no expert adapts {layer}")
            bank = self.layers[layer]
            known_EI = getattr(bank.artifacts, kind, None)
            if known_EI is None:
                known_EI = torch.full((bank.n_experts, bank.inputs), torch.nan)
            bank.set_artifact(
                kind, known_EI.index_copy(0, torch.tensor([place]), values_I.float()[None])
            )
        self.version += 1

    def subset(self, names: Sequence[str]) -> AdapterBank:
        """Return a new bank of some experts, in the order given.

        It knows which experts were ever here: for ``places_in`` it is this bank.
        """
        part = AdapterBank([self.expert(name) for name in names], heads=self.heads)
        part._met |= self._met
        return part

    def arranged(self, layers: Sequence[str]) -> AdapterBank:
        """Return this bank, with the same numbers in memory, and its layers in another order.

        For reading; ``layers`` are its own, each once.
        """
        other = copy.copy(self)
        other._modules_by_name = {layer: self.layers[layer] for layer in layers}
        return other

    def _change(self, keep: Sequence[int], new: Sequence[Expert]) -> None:
        """Keep the experts at some places and put others behind them."""
        cards = [*(self._cards[place] for place in keep), *new]
        names = [card.name for card in cards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"bank: two experts are called {twice[0]!r}; rename one")
        if not cards:
            raise InputError("bank: no experts; give at least one adapter")
        wanted = [*self.layers, *(layer for expert in new for layer in expert.modules)]
        changed = {layer: self._changed(layer, keep, new) for layer in dict.fromkeys(wanted)}
        self._modules_by_name = {layer: bank for layer, bank in changed.items() if bank is not None}
        self.banks = nn.ModuleList(self._modules_by_name.values())
        self._cards = [replace(card, modules={}, artifacts={}) for card in _told_apart(cards)]
        self._met |= {card.key for card in self._cards}
        self.version += 1

    def _changed(self, layer: str, keep: Sequence[int], new: Sequence[Expert]) -> ModuleBank | None:
        old, found = self.layers.get(layer), [expert.modules.get(layer) for expert in new]
        if old is None:
            others = iter(self.layers.values())
            dtype = next((bank.a_ERI.dtype for bank in others), None)
            bank = ModuleBank(layer, [*(None for _ in keep), *found], heads=self.heads, dtype=dtype)
        elif (changed := old.changed(keep, found)) is not None:
            bank = changed
        else:
            return None
        for kind in dict.fromkeys(kind for expert in new for kind in expert.artifacts):
            given_EI = _artifact_rows(kind, layer, new, bank)
            known_EI = getattr(bank.artifacts, kind, None)
            if known_EI is None:
                known_EI = given_EI.new_full((bank.n_experts, bank.inputs), torch.nan)
            bank.set_artifact(kind, torch.cat([known_EI[: len(keep)], given_EI.to(known_EI)]))
        return bank


def _told_apart(cards: Sequence[Expert]) -> list[Expert]:
    """Return experts with a key each: copies of one under other names are others."""
    found: dict[str, Expert] = {}
    for card in cards:
        told = replace(card, key=_new_key()) if card.key in found else card
        found[told.key] = told
    return list(found.values())


def _artifact_rows(kind: str, layer: str, experts: Sequence[Expert], bank: ModuleBank) -> Tensor:
    rows_EI = torch.full((len(experts), bank.inputs), torch.nan)
    for place, expert in enumerate(experts):
        values_I = expert.artifacts.get(kind, {}).get(layer)
        if values_I is None:
            continue
        if values_I.shape != (bank.inputs,):
            raise InputError(
                f"expert {expert.name!r}: {kind!r} of {layer} has shape {tuple(values_I.shape)}, "
                f"expected ({bank.inputs},)"
            )
        rows_EI[place] = values_I.float()
    return rows_EI


def _check_heads(name: str, heads: int, inputs: int, outputs: int) -> None:
    legal = [h for h in range(1, min(inputs, outputs) + 1) if inputs % h == 0 and outputs % h == 0]
    if heads not in legal:
        raise InputError(
            f"heads: {heads} does not divide the {inputs} inputs and {outputs} outputs of {name}; "
            f"legal are {', '.join(map(str, legal[:12]))}"
        )
