"""Exploration within a floor of quality, with the exact probability of every model.

``epsilon``   with this probability a model is drawn uniformly from the eligible ones whose estimate
              is above the floor and that the rule may choose at all (under a cap on the cost of a
              call, those below it); else the rule's own choice is taken
``thompson``  each model has the share of seeded normal draws around the estimates (``NUM_DRAWS``,
              the same for every prompt) in which the rule chooses it. The model is then drawn from
              these shares, so they are its exact probabilities and no estimate of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossroads.gateway.policies.objective import values
from crossroads.gateway.policies.settings import Exploration
from crossroads.prompts.decide import BudgetRule, DecisionRule
from crossroads.prompts.explain import Numbers

Float64 = npt.NDArray[np.float64]
NUM_DRAWS = 256


class Explorer:
    """Turns a rule's own mixture into the probabilities of all models.

    Parameters
    ----------
    settings : how to explore
    num_models : K
    seed : of the draws around the estimates
    """

    def __init__(self, settings: Exploration, num_models: int, seed: int) -> None:
        self._epsilon = settings.epsilon
        self._floor = -math.inf if settings.floor is None else settings.floor
        self._margin = settings.margin
        self._noise: Float64 | None = None
        if settings.thompson is not None:
            normal = np.random.default_rng(seed).standard_normal((NUM_DRAWS, num_models))
            self._noise = settings.thompson * normal

    def probabilities(
        self,
        rule: DecisionRule,
        quality_E: Numbers,
        cost_E: Numbers,
        mixture: list[tuple[int, float]],
        columns: Sequence[int],
    ) -> list[float]:
        """Return the probability of each of E models, summing to 1.

        ``mixture`` is what the rule itself would do; its choices are always open, whatever the
        floor. ``columns`` are the E models' places among the router's K.
        """
        floor = self._floor
        if self._margin is not None:
            floor = max(floor, max(quality_E) - self._margin)
        worth_E = values(rule, quality_E, cost_E)
        open_E = [
            quality >= floor and worth > -math.inf
            for quality, worth in zip(quality_E, worth_E, strict=True)
        ]
        for column, _ in mixture:
            open_E[column] = True
        if self._noise is None:
            return self._epsilon_greedy(open_E, mixture)
        return self._thompson(
            rule, np.array(quality_E), np.array(cost_E), np.flatnonzero(open_E), np.array(columns)
        )

    def _epsilon_greedy(self, open_E: list[bool], mixture: list[tuple[int, float]]) -> list[float]:
        assert self._epsilon is not None
        uniform = self._epsilon / sum(open_E)
        found = [uniform if is_open else 0.0 for is_open in open_E]
        for column, probability in mixture:
            found[column] += (1.0 - self._epsilon) * probability
        return found

    def _thompson(
        self,
        rule: DecisionRule,
        quality_E: Float64,
        cost_E: Float64,
        open_O: npt.NDArray[np.intp],
        columns: npt.NDArray[np.intp],
    ) -> list[float]:
        assert self._noise is not None
        drawn = quality_E[open_O] + self._noise[:, columns[open_O]]
        cost = np.broadcast_to(cost_E[open_O], drawn.shape)
        found = np.zeros(len(quality_E))
        if isinstance(rule, BudgetRule):
            for side, share in zip(
                rule.sides(drawn, cost), (1.0 - rule.share, rule.share), strict=True
            ):
                found[open_O] += share * np.bincount(side, minlength=len(open_O)) / NUM_DRAWS
        else:
            chosen = rule.choose(drawn, cost)
            found[open_O] = np.bincount(chosen, minlength=len(open_O)) / NUM_DRAWS
        return found.tolist()
