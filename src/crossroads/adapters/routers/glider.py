"""GLIDER: PHATGOOSE's gates for tokens, plus the nearness of the task to each expert's task.

logits_e = LN(x) . LN(v_e) / sqrt(d) + lambda cos(q, g_e), with g_e the embedding of a sentence
about the expert's task and q that of the task or prompt at hand, the same for all layers and
tokens. Source: Glider: Global and Local Instruction-Driven Expert Router (2024). Departures: the
authors' scripts set lambda by hand for each evaluation set; here the paper's switch is the default,
its threshold calibrated on the experts' own examples, because cosines of another encoder lie
elsewhere. Every sequence has its own q and lambda.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from crossroads.adapters.bank import AdapterBank, Expert
from crossroads.adapters.contract import RouteInput, Routing
from crossroads.adapters.routers.phatgoose import Phatgoose
from crossroads.adapters.routers.retrieval import query
from crossroads.adapters.selection import select
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError, UsageError
from crossroads.core.gating import softmax, top_p

_LOG = logging.getLogger(__name__)
_PAPER_TAU = 0.8


class Glider(Phatgoose):
    """Top-k, or top-p, of the local plus the weighted global score.

    Parameters
    ----------
    weight : lambda. None: ``high`` for sequences whose largest cosine is above ``tau``, else
        ``low``
    tau : None: calibrated from the experts' examples at ``prepare``, see ``calibrated_tau``; 0.8,
        the paper's, where they bring none
    p : above 0, keep the experts of the smallest prefix with more than this probability instead of
        ``k`` of them
    k, temperature, untrained : of PHATGOOSE
    """

    name: ClassVar[str] = "glider"
    call_data: ClassVar[frozenset[str]] = frozenset({"embedding_BG"})
    survey_row: ClassVar[str | None] = "GLIDER"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Private",
        routing_dataset="None",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="Multiple",
        user_dataset="Zero-Shot",
    )

    def __init__(
        self,
        *,
        k: int = 2,
        temperature: float = 1.0,
        untrained: bool = False,
        weight: float | None = None,
        high: float = 100.0,
        low: float = 3.0,
        tau: float | None = None,
        p: float = 0.0,
    ) -> None:
        super().__init__(k=k, temperature=temperature, untrained=untrained)
        for setting, value in {"weight": weight, "high": high, "low": low, "tau": tau}.items():
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise UsageError(f"router glider: {setting}: expected a number, got {value!r}")
        if not 0 <= p <= 1:
            raise UsageError(f"router glider: p: expected 0 to 1, got {p}; 0 keeps k experts")
        self.weight, self.high, self.low, self.tau, self.p = weight, high, low, tau, p
        self.threshold = _PAPER_TAU
        self._embeddings_EG = torch.empty(0, 0)

    def prepare(self, bank: AdapterBank) -> None:
        """Normalise the gates, keep the embeddings, find the threshold.

        Raises InputError for experts without gate or embedding.
        """
        super().prepare(bank)
        self._embeddings_EG = bank.embeddings_EG().float()
        self.threshold = self._threshold(bank.cards)

    def affinities(self, query_BG: Tensor) -> Tensor:
        """Return gamma, the cosines of prompts and experts, (B, E)."""
        return query_BG @ self._embeddings_EG.T

    def weights_B(self, gamma_BE: Tensor) -> Tensor:
        """Return lambda of every sequence."""
        if self.weight is not None:
            return gamma_BE.new_full(gamma_BE.shape[:1], float(self.weight))
        is_known_B = gamma_BE.amax(-1) > self.threshold
        return torch.where(is_known_B, self.high, self.low)

    def route(self, given: RouteInput) -> Routing:
        gamma_BE = self.affinities(query(given.call, self._embeddings_EG.shape[1], self.name))
        bias_BE = self.weights_B(gamma_BE)[:, None] * gamma_BE
        scores_BTHE = self.scores(given) + bias_BE[:, None, None]
        if self.p:
            return _nucleus(scores_BTHE / self.temperature, given.bank.alive_E, self.p)
        return select(scores_BTHE, given.bank.alive_E, k=self.k, temperature=self.temperature)

    def settings(self) -> Mapping[str, Any]:
        own = {name: getattr(self, name) for name in ("weight", "high", "low", "tau", "p")}
        return {**super().settings(), **own}

    def _threshold(self, cards: tuple[Expert, ...]) -> float:
        if self.tau is not None:
            return float(self.tau)
        examples = [card.examples_JG for card in cards if card.examples_JG is not None]
        if len(examples) < len(cards) or len(cards) == 1:
            if self.weight is None:
                _LOG.warning(
                    "router glider: experts without examples; tau is the paper's %g, which fits "
                    "its encoder and hardly yours: give tau, or examples", _PAPER_TAU,
                )  # fmt: skip
            return _PAPER_TAU
        return calibrated_tau(self._embeddings_EG, examples)


def calibrated_tau(embeddings_EG: Tensor, examples: list[Tensor]) -> float:
    """Return the midpoint between an example's mean cosine to its own expert and to the nearest
    other one; experts count alike however many examples they bring.

    Raises InputError for fewer than two experts.
    """
    if len(examples) < 2:
        raise InputError("router glider: tau cannot be calibrated with one expert; give tau")
    own, other = [], []
    for e, examples_JG in enumerate(examples):
        cosines_JE = examples_JG.float() @ embeddings_EG.T
        own.append(cosines_JE[:, e].mean())
        cosines_JE[:, e] = -torch.inf
        other.append(cosines_JE.amax(-1).mean())
    return float((torch.stack(own).mean() + torch.stack(other).mean()) / 2)


def _nucleus(logits_BTHE: Tensor, alive_E: Tensor, p: float) -> Routing:
    logits_BTHE = logits_BTHE.masked_fill(~alive_E, float("-inf"))
    probs_BTHE = softmax(logits_BTHE.detach())
    index_NE, keep_NE = top_p(probs_BTHE.flatten(0, 2), p)
    kept_NE = torch.zeros_like(keep_NE).scatter(-1, index_NE, keep_NE)
    masked = logits_BTHE.masked_fill(~kept_NE.view(logits_BTHE.shape), float("-inf"))
    return Routing(weights=softmax(masked), logits=logits_BTHE)
