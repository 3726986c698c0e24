"""A fitted router meets its budget on prompts that no part of the fit has seen."""

from __future__ import annotations

import numpy as np
import pytest

from crossroads.prompts.fitted import fit_router
from crossroads.prompts.pool import read_pool
from crossroads.prompts.readers import read_outcomes


@pytest.mark.parametrize("spec", ["matrix-factorization", "ridge"])
def test_the_served_router_is_the_calibrated_one(spec: str) -> None:
    """Real scores, costs estimated from answer lengths."""
    table = read_outcomes("mmlu-pro:small")
    unseen = np.arange(len(table)) % 3 == 0
    pool = read_pool("mmlu-pro").subset(table.models)
    rest = table.take(np.flatnonzero(unseen))
    assert rest.cost is not None
    fitted = fit_router(spec, table.take(np.flatnonzero(~unseen)), pool=pool, rule="budget:0.00004")
    assert fitted.provenance["num_fitted"] == fitted.metrics["num_train"]
    decisions = fitted.decide(rest.embeddings["static"])
    chosen = [table.models.index(decision.model) for decision in decisions]
    spent = float(rest.cost[np.arange(len(rest)), chosen].mean())
    assert spent == pytest.approx(4e-5, rel=0.06)
