"""Cascades: ask a cheap model, judge its answer, go on to a dearer one where it is not good enough.

The post-generation rule of the survey "Doing More with Less" (arXiv 2502.00409). Models stand in
order of cost; the answer a_i of model i is taken if a verifier g(q, a_i) >= tau_i, and every call
on the way is paid: the cost is their sum.
"""

from __future__ import annotations

from crossroads.prompts.cascade.calibrate import (
    Calibrated,
    cascade_frontier,
    chains,
    fit_cascade,
)
from crossroads.prompts.cascade.chain import Asked, Call, Cascade, Replay
from crossroads.prompts.cascade.replay import Contest, compare_with_routing, routing_frontier
from crossroads.prompts.cascade.verifier import LengthVerifier, agreement

__all__ = [
    "Asked",
    "Calibrated",
    "Call",
    "Cascade",
    "Contest",
    "LengthVerifier",
    "Replay",
    "agreement",
    "cascade_frontier",
    "chains",
    "compare_with_routing",
    "fit_cascade",
    "routing_frontier",
]
