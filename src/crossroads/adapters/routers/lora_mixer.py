"""LoRA-Mixer: soft over all experts in training, the k best at inference, hard by label before.

Routers are linear and read the raw input of a projection; queries, keys and values share one. Stage
H gives every sample the expert of its label alone; stage S trains the routers with a loss that
balances experts over the batch and, by default, makes each token's choice peaked.
Source: LoRA-Mixer (2025). Its printed loss has the entropy with the sign that flattens routing,
against its own text: ``entropy="as_printed"`` is that one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, RouteInput, Router, Routing
from crossroads.adapters.linear_gates import LinearGates, real_tokens
from crossroads.adapters.scopes import Scope
from crossroads.adapters.selection import select
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import UsageError
from crossroads.core.gating import softmax, top_k
from crossroads.core.losses import switch_balance, token_entropy
from crossroads.core.routed import AuxTerm

if TYPE_CHECKING:
    from crossroads.adapters.lessons import Lesson

_RATE = 1e-2  # of the gates
_SIGNS = {"minimise": 1.0, "as_printed": -1.0}


class LoRAMixer(Router):
    """Linear gates per block input.

    Parameters
    ----------
    k : experts of a token at inference, renormalised
    balance, peaked : coefficients a and l of the loss
    entropy : "minimise", or "as_printed" (see the module)
    scaled : multiply the balance term by E, as Switch does; E counts the experts that adapt any of
        the layers that share the decision
    hard : stage H: ``Call.labels_B`` names each sequence's expert, -1 routes it softly
    seed : of the gates' start, N(0, 0.02^2): zeros would be a saddle of the entropy term
    """

    name: ClassVar[str] = "lora-mixer"
    scope: ClassVar[Scope] = "input"
    survey_row: ClassVar[str | None] = "LoRA-Mixer (frozen experts)"
    learns: ClassVar[int] = 40
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="Target",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="Multiple",
        user_dataset="Few-Shot",
    )

    def __init__(
        self,
        *,
        k: int = 3,
        balance: float = 0.01,
        peaked: float = 0.01,
        entropy: str = "minimise",
        scaled: bool = True,
        hard: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if entropy not in _SIGNS:
            raise UsageError(
                f"router lora-mixer: entropy is {' or '.join(_SIGNS)}, got {entropy!r}"
            )
        if not (k >= 1 and math.isfinite(balance) and math.isfinite(peaked)):
            raise UsageError(
                "router lora-mixer: expected k of at least 1 and finite coefficients; got "
                f"k={k}, balance={balance} and peaked={peaked}"
            )
        self.k, self.balance, self.peaked, self.entropy = k, balance, peaked, entropy
        self.scaled, self.hard, self.seed = scaled, hard, seed
        self.gates = LinearGates("input", lambda gate: nn.init.normal_(gate, std=0.02))

    def prepare(self, bank: AdapterBank) -> None:
        self.gates.follow(bank, seed=self.seed)

    def route(self, given: RouteInput) -> Routing:
        scores_BTHE = self.gates.scores(given.module, given.x_BTI).unsqueeze(2)
        soft = select(scores_BTHE, given.alive_E, k=None if given.call.training else self.k)
        if self.hard and given.call.training and given.call.labels_B is not None:
            return _by_label(soft, given.call.labels_B, given.bank.n_experts)
        return soft

    def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
        """Return a * sum_i Pbar_i fbar_i and +- l * H(p), per router, averaged over routers."""
        if not call.training or not decided:
            return {}
        balances, entropies = [], []
        for routing in decided.values():
            assert routing.logits is not None
            logits_NE = routing.logits.flatten(0, 2)
            # Experts that adapt none of the layers have no share in E and k of their balance.
            logits_NE = logits_NE[:, ~torch.isneginf(logits_NE).any(0)]
            mask_N = real_tokens(call, routing.logits)
            probs_NE = softmax(logits_NE)
            balances.append(self._balance(probs_NE, logits_NE, mask_N))
            entropies.append(token_entropy(probs_NE, mask_N))
        sign = _SIGNS[self.entropy]
        return {
            "balance": AuxTerm(torch.stack(balances).mean(), self.balance),
            "entropy": AuxTerm(torch.stack(entropies).mean(), sign * self.peaked),
        }

    def learn(self, lesson: Lesson) -> AdapterBank:
        """Do stage S: train the gates over frozen experts."""
        return lesson.train_gates(self, lr=_RATE)

    def settings(self) -> Mapping[str, Any]:
        names = ("k", "balance", "peaked", "entropy", "scaled", "hard", "seed")
        return {name: getattr(self, name) for name in names}

    def _balance(self, probs_NE: Tensor, logits_NE: Tensor, mask_N: Tensor) -> Tensor:
        n_experts = probs_NE.shape[-1]
        k = min(self.k, max(1, n_experts - 1))  # with all of them picked f would be constant
        idx_NK = top_k(logits_NE, k).masked_fill(~mask_N.unsqueeze(-1), -1)
        value = switch_balance(probs_NE, idx_NK, mask_N)
        return value if self.scaled else value / n_experts


def _by_label(soft: Routing, labels_B: Tensor, n_experts: int) -> Routing:
    """Give labelled sequences their own expert alone; its weight carries no gradient."""
    hard_BE = nn.functional.one_hot(labels_B.clamp_min(0), n_experts).float()
    is_labelled = (labels_B >= 0)[:, None, None, None]
    weights = torch.where(is_labelled, hard_BE[:, None, None], soft.dense(n_experts))
    return Routing(weights=weights, logits=soft.logits)
