"""How sure a category is, and below which confidence the general expert is the better choice.

The robust variant of Composition of Experts (2024, arXiv 2412.01868): a prompt whose category is
uncertain goes to the expert for general prompts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError, unknown_name

Float = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]

MEASURES = ("share", "entropy")


def confidence(probability_NC: Float, measure: str = "share") -> Float64:
    """Return how sure each row's category is, shape (N,), in [0, 1].

    ``share`` is the largest probability (of votes: the winner's share); ``entropy`` is
    1 - H(p) / log C, which is 0 for C equal probabilities and 1 for certainty (and for C = 1).
    Raises UsageError for another measure.
    """
    p = np.asarray(probability_NC, dtype=np.float64)
    if measure == "share":
        return np.asarray(p.max(axis=1))
    if measure != "entropy":
        raise unknown_name("confidence measure", measure, MEASURES)
    if p.shape[1] == 1:
        return np.ones(len(p))
    entropy_N = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    return np.asarray(np.clip(1.0 - entropy_N / np.log(p.shape[1]), 0.0, 1.0))


def choose_threshold(confidence_N: Float, routed_N: Float, general_N: Float) -> float:
    """Return the threshold tau of highest mean score when prompts below it go to the general one.

    ``routed_N`` and ``general_N`` are the scores of the category's expert and of the general one on
    validation prompts; rows with NaN are left out. 0 sends nobody, inf everybody; among equals the
    larger tau, which is the more cautious. A gain within one standard error is none: then tau is 0.
    Raises InputError for lengths that disagree.
    """
    sure, routed, general = (
        np.asarray(a, dtype=np.float64) for a in (confidence_N, routed_N, general_N)
    )
    if not sure.shape == routed.shape == general.shape or sure.ndim != 1:
        raise InputError(
            "threshold: expected confidence and scores of the same prompts, got shapes "
            f"{sure.shape}, {routed.shape} and {general.shape}"
        )
    known = np.isfinite(routed) & np.isfinite(general)
    order = np.argsort(sure[known], kind="stable")
    sure, gain = sure[known][order], (general - routed)[known][order]
    if len(sure) == 0:
        return 0.0
    total = np.concatenate([[0.0], gain.cumsum()])
    is_cut = np.concatenate([[True], sure[1:] > sure[:-1], [True]])
    cuts = np.flatnonzero(is_cut)
    best = int(cuts[total[cuts] >= total[cuts].max() - 1e-9][-1])
    sent = np.where(np.arange(len(gain)) < best, gain, 0.0)
    if total[best] <= 0 or sent.mean() * np.sqrt(len(sent)) < sent.std():
        return 0.0
    return np.inf if best == len(sure) else float(sure[best - 1] + sure[best]) / 2
