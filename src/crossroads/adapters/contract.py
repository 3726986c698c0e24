"""What a router of adapters may look at, and what it decides.

Every routed linear layer asks its router once a forward pass: it hands over a ``RouteInput`` and
gets a ``Routing``, weights over the experts of its ``ModuleBank``. Three ways to combine experts
are three different functions:

==================  ===========================================  ==========================
``mix``             W x + sum_e w_e s_e B_e (A_e x)              weights may vary by token
``merge_delta``     (W + sum_e w_e s_e B_e A_e) x                equal to ``mix``
``merge_factors``   W x + s (sum_e w_e B_e)(sum_e w_e A_e) x     not equal: has cross terms
==================  ===========================================  ==========================

Axes: B sequences, T positions, H heads (1 but in multi-head routing), E experts, K places, I and O
inputs and outputs of the layer, G width of a sentence embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from crossroads.adapters.scopes import Scope
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError
from crossroads.core.routed import AuxTerm

if TYPE_CHECKING:
    from crossroads.adapters.bank import AdapterBank, LoRA, ModuleBank
    from crossroads.adapters.lessons import Lesson

Mode = Literal["mix", "merge_delta", "merge_factors"]
_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What the caller says about one batch; see ``crossroads.adapters.calls``.

    Attributes
    ----------
    mask_BT : bool, True = real token; None = what the model was told as its attention mask.
        Padding is computed but never counted. A router gets it fitted to its input, None = all are
    encoder_mask_BT : the same for the encoder of a model with two stacks, whose decoder has
        ``mask_BT``; a router whose layer reads encoder states gets it as ``mask_BT``
    task_ids_B : int64, the task of every sequence, for routers by task
    embedding_BG : float32, sentence embedding of every prompt, unit norm
    labels_B : int64, the expert a sequence belongs to in training (hard routing); -1 = none
    experts : names, one a sequence: that expert alone; None among them = the base model
    scalings : (B, T, M, E) or broadcastable, weights decided outside (two-pass routers)
    training, step, seed : of the run; every random draw is a function of (seed, step, module)
    """

    mask_BT: Tensor | None = None
    encoder_mask_BT: Tensor | None = None
    task_ids_B: Tensor | None = None
    embedding_BG: Tensor | None = None
    labels_B: Tensor | None = None
    experts: tuple[str | None, ...] | None = None
    scalings: Tensor | None = None
    training: bool = False
    step: int = 0
    seed: int = 0


def generator(*keys: int) -> torch.Generator:
    """Return a source of draws that is a function of whole numbers, such as a call's step."""
    return torch.Generator().manual_seed(hash(keys) & 0x7FFFFFFF)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteInput:
    """One routed layer's view of a forward pass.

    Attributes
    ----------
    module : full name of the linear layer in the base model
    x_BTI : its input exactly as the frozen layer receives it; a (B, I) input has T = 1
    bank : the layer's experts; ``bank.alive_E`` tells which of them adapt it at all
    any_alive_E : bool, which adapt any of the layers that share the decision; None = ``bank`` tells
    call : the batch, its rows repeated where a search runs several beams
    """

    module: str
    x_BTI: Tensor
    bank: ModuleBank
    call: Call
    any_alive_E: Tensor | None = None

    @property
    def alive_E(self) -> Tensor:
        """Which experts may be chosen, bool; every layer leaves out those that do not adapt it."""
        return self.bank.alive_E if self.any_alive_E is None else self.any_alive_E


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Weights over experts, dense or as places.

    Attributes
    ----------
    weights : dense, broadcastable to (B, T, H, E); with ``index`` (B, T, H, K)
    index : int64, expert of every place; None = dense
    mode : how experts are combined
    normalised : the weights of a token that has any expert alive add to 1
    logits : scores before the selection, (B, T, H, E), for losses and traces
    base : what the frozen layer's own output is multiplied with, (B, T, 1); None = 1
    aux : auxiliary losses by name
    sequence_B : int64, the sequence of the call that every row is of; None = row b is of sequence b
    """

    weights: Tensor
    index: Tensor | None = None
    mode: Mode = "mix"
    normalised: bool = True
    logits: Tensor | None = None
    base: Tensor | None = None
    aux: Mapping[str, AuxTerm] = field(default_factory=dict)
    sequence_B: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights.ndim != 4:
            raise InputError(
                "routing weights: expected axes (sequences, positions, heads, experts or places), "
                f"got shape {tuple(self.weights.shape)}"
            )
        if self.index is not None and self.index.shape != self.weights.shape:
            raise InputError(
                f"routing index: expected the shape of the weights {tuple(self.weights.shape)}, "
                f"got {tuple(self.index.shape)}"
            )
        if self.mode != "mix" and self.weights.shape[1] != 1:
            raise InputError(
                f"routing mode {self.mode}: its weights must not vary over positions, got "
                f"{self.weights.shape[1]} of them; use mode 'mix'"
            )

    def dense(self, n_experts: int) -> Tensor:
        """Return the weights as (B, T, H, E), differentiable in ``weights``."""
        if self.index is None:
            return self.weights
        empty = self.weights.new_zeros((*self.weights.shape[:-1], n_experts))
        return empty.scatter_add_(-1, self.index, self.weights)

    def among(self, alive_E: Tensor) -> Routing:
        """Take weight from experts that do not adapt a layer; renormalise what was normalised.

        Weights that lose nothing stay what they are, bit by bit.
        """
        is_alive = alive_E if self.index is None else alive_E[self.index]
        kept = torch.where(is_alive, self.weights, self.weights.new_zeros(()))
        if self.normalised:
            loses = (kept != self.weights).any(-1, keepdim=True)
            total = kept.sum(-1, keepdim=True)
            kept = kept / torch.where(loses & (total != 0), total, 1.0)
        return replace(self, weights=kept)

    def without_padding(self, mask_BT: Tensor | None) -> Routing:
        """Return the decisions for real tokens alone, each as a row of one position.

        What holds for whole sequences, with T = 1 where the mask has more, stays as it is.
        """
        if mask_BT is None:
            return self
        scored = self.weights if self.logits is None else self.logits
        if scored.shape[:2] != mask_BT.shape:
            return self

        def real(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return values.expand(*mask_BT.shape, *values.shape[2:])[mask_BT].unsqueeze(1)

        weights = real(self.weights)
        assert weights is not None
        return replace(
            self,
            weights=weights,
            index=real(self.index),
            logits=real(self.logits),
            base=real(self.base),
            sequence_B=mask_BT.nonzero()[:, 0],
        )

    def check(self, bank: ModuleBank) -> None:
        """Raise InputError where weights are not finite, dead experts have some, or sums are off.

        A token whose experts are all dead has weights of zero and is exempt from the sum.
        """
        weights = self.dense(bank.n_experts).detach()
        if not torch.isfinite(weights).all():
            raise InputError(f"routing of {bank.name}: weights are not finite")
        if weights[..., ~bank.alive_E].any():
            raise InputError(f"routing of {bank.name}: an expert that does not adapt it has weight")
        if not self.normalised:
            return
        total = weights.float().sum(-1)
        off = (total - 1).abs() > _SUM_TOLERANCE
        if (off & (weights != 0).any(-1)).any():
            raise InputError(f"routing of {bank.name}: weights declared normalised do not add to 1")


class Router(nn.Module):
    """Chooses experts. Subclasses implement ``route``, and ``prepare`` where they keep tensors.

    Class attributes
    ----------------
    name : as users write it
    mode : how its experts are combined
    scope : who shares one decision: every ``module`` decides; the first to run among those with the
        same ``input`` (queries, keys and values), of a ``layer`` or of a ``group`` (attention or
        feed-forward of a layer) decides for them; or one decision holds for the ``model`` and reads
        the call alone
    artifacts : per-module data every expert must bring, such as "gate"
    call_data : fields of ``Call`` that must be given
    cells, survey_row : the nine axes of the MoErging survey, and the row of its inventory
    learns : steps of ``learn`` unless told otherwise; 0 = it has nothing to learn
    by_task : what it learns holds for one task alone
    no_rival : why it has no place in comparisons of routers among experts of tasks; "" = it has one
    """

    name: ClassVar[str]
    mode: ClassVar[Mode] = "mix"
    scope: ClassVar[Scope] = "module"
    artifacts: ClassVar[frozenset[str]] = frozenset()
    call_data: ClassVar[frozenset[str]] = frozenset()
    cells: ClassVar[Cells | None] = None
    survey_row: ClassVar[str | None] = None
    learns: ClassVar[int] = 0
    by_task: ClassVar[bool] = False
    no_rival: ClassVar[str] = ""

    def prepare(self, bank: AdapterBank) -> None:
        """Compute what depends on the bank alone; called at insertion and when experts change.

        Raises InputError where the bank lacks what the router needs. Parameters that were trained
        stay where the experts are the same.
        """

    def route(self, given: RouteInput) -> Routing:
        """Return one layer's decision."""
        raise NotImplementedError

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return auxiliary losses over all decisions of a pass together, by name.

        ``decided`` has one entry per decision, by the layer or the scope that shares it. What one
        decision alone is charged goes into its ``Routing.aux``. Padding is what ``call.mask_BT``
        says; the decisions of a model with two stacks come without theirs, see
        ``Routing.without_padding``.
        """
        return {}

    def merged(self, bank: ModuleBank) -> LoRA | None:
        """Return the one adapter a layer has for all input, where it is no weighting of experts.

        For merges that trim and elect numbers. Layers keep it until the bank changes, and such a
        router is never asked for a ``route``. None: ``route`` decides.
        """
        return None

    def ahead(self, call: Call, hidden: Callable[[], Tensor]) -> Call:
        """Return the call of a pass, with what a first pass of the base model tells.

        ``hidden()`` runs the base model on the arguments of the pass, without gradient, and
        returns its last hidden states (B, T, D).
        """
        return call

    @property
    def looks_ahead(self) -> bool:
        """Whether ``ahead`` may need its first pass, which reads all tokens and has no cache."""
        return type(self).ahead is not Router.ahead

    def is_static(self, call: Call) -> bool:
        """Return whether weights are the same for all tokens of each sequence of this call.

        Layers then merge the experts once and keep the merged adapter.
        """
        return False

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Learn from rows of tasks, in place, and return the bank this router then works on.

        That is ``lesson.bank`` itself, or experts made for this router. Routers with ``learns``
        above 0 implement it.
        """
        raise UsageError(f"router {self.name}: has nothing to learn; use it as it is")

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's settings, as plain data, to build the router again."""
        return {}
