"""What reward each model would have earned on each call, by a model that has not seen the call.

A ridge regression per model on the kept embeddings, cross-fitted: the calls are dealt into folds,
whole sessions together, and each is predicted without its fold, so that the doubly robust estimate
keeps its guarantee. Without embeddings, the mean reward of each model, cross-fitted too.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from crossroads.core.errors import InputError
from crossroads.gateway.evaluation.intervals import clusters
from crossroads.gateway.evaluation.log import Float64, Ints, Log
from crossroads.prompts.outcomes import unit_hash
from crossroads.prompts.regression import ridge

RewardModel = Literal["ridge", "mean", "scores"]

FOLDS = 5
_PENALTIES = (1.0, 10.0, 100.0)
_CONSTANT = 10.0  # the intercept's column: large, so that the penalty hardly weighs on it
_PRIOR = 1.0  # calls that the mean over all models counts as, in each model's own


def expected_rewards(
    log: Log, *, kind: RewardModel | None = None, quality_NK: Float64 | None = None, seed: int = 0
) -> tuple[Float64, str]:
    """Return expected rewards in [0, 1], float (N, K), and what made them.

    Raises InputError where what the kind needs is not in the ledger.

    Parameters
    ----------
    kind : ``ridge`` (needs embeddings), ``mean``, or ``scores``: estimates of a router that has not
        learnt from these rewards. By default ridge where there are embeddings, else mean
    quality_NK : those estimates; the logged ones where absent
    seed : deals the folds
    """
    kind = kind or ("mean" if log.features is None else "ridge")
    if kind == "scores":
        quality = log.score if quality_NK is None else quality_NK
        if not np.isfinite(quality).any():
            raise InputError("reward model 'scores': the ledger has no estimates; choose 'mean'")
        fallback = _means(_targets(log.action, log.reward, len(log.models)), _folds(log, seed))
        return np.where(np.isfinite(quality), np.clip(quality, 0, 1), fallback), "scores"
    return cross_fitted(log, log.reward, kind=kind, seed=seed).clip(0.0, 1.0), kind


def cross_fitted(log: Log, value_N: Float64, *, kind: RewardModel, seed: int = 0) -> Float64:
    """Return a cross-fitted prediction of any value of the calls, float (N, K)."""
    target_NK = _targets(log.action, value_N, len(log.models))
    fold_N = _folds(log, seed)
    if kind == "mean":
        return _means(target_NK, fold_N)
    if log.features is None:
        raise InputError(
            "reward model 'ridge' needs the embedding of every prompt; set ledger.keep: [features] "
            "or choose 'mean'"
        )
    design = np.column_stack([log.features, np.full(len(log), _CONSTANT, dtype=np.float32)])
    _, held_LNK = ridge(design, target_NK, _PENALTIES, fold_N)
    error_L = np.nanmean(np.square(held_LNK - target_NK), axis=(1, 2))
    return np.asarray(held_LNK[int(np.argmin(error_L))])


def _targets(action_N: Ints, value_N: Float64, num_models: int) -> Float64:
    target = np.full((len(action_N), num_models), np.nan)
    target[np.arange(len(action_N)), action_N] = value_N
    return target


def _means(target_NK: Float64, fold_N: Ints) -> Float64:
    """Mean of each model over the other folds, drawn towards that of all models."""
    found = np.zeros(target_NK.shape)
    for fold in range(int(fold_N.max()) + 1):
        others = target_NK[fold_N != fold]
        if not np.isfinite(others).any():
            others = np.full((1, target_NK.shape[1]), 0.5)
        known = np.isfinite(others)
        overall = np.nanmean(others)
        total = np.where(known, others, 0.0).sum(axis=0) + _PRIOR * overall
        found[fold_N == fold] = total / (known.sum(axis=0) + _PRIOR)
    return found


def _folds(log: Log, seed: int) -> Ints:
    """Deal sessions into folds by a hash, so that the order of the calls does not matter."""
    numbers = clusters(log.session)
    draws = unit_hash(numbers.astype(np.uint64), seed)
    count = min(FOLDS, int(numbers.max()) + 1)
    # ranks, so that folds are of equal numbers of sessions even where there are few
    order = np.argsort(np.argsort(draws[np.unique(numbers, return_index=True)[1]]))
    return np.asarray(order[numbers] % count, dtype=np.int64)
