from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts.fitted import fit_router, save_router
from crossroads.prompts.pool import Pool
from crossroads.prompts.routerarena.evaluation import replay_set
from crossroads.prompts.routerarena.prepare import (
    Chooser,
    chooser_of,
    chooser_of_fitted,
    prepare_submission,
)
from crossroads.prompts.routerarena.validate import check_submission
from tests.prompts.routerarena.toy import POOL, toy_replay, toy_table


@pytest.mark.parametrize("spec", ["random", "always:large"])
def test_what_is_prepared_passes_the_validator(spec: str) -> None:
    evaluation = toy_replay()
    submission = prepare_submission(chooser_of(spec, evaluation), evaluation)
    check_submission(submission, evaluation)
    assert submission.robustness is not None
    assert len(submission.robustness) == len(evaluation.reworded)
    assert submission.decision_ms is not None and submission.decision_ms > 0


def test_a_fitted_router_is_asked_for_every_row(tmp_path: Path) -> None:
    evaluation = toy_replay()
    split = np.array(["train", "train", "train", "train", "test", "test"], dtype=object)
    fitted = fit_router("cheapest", toy_table(split=split), pool=POOL)
    save_router(fitted, tmp_path / "my router")
    chooser = chooser_of(str(tmp_path / "my router"), evaluation)
    assert chooser.name == "my-router"
    submission = prepare_submission(chooser, evaluation, name="other")
    check_submission(submission, evaluation)
    assert submission.router_name == "other"
    assert {entry["prediction"] for entry in submission.predictions} == {"small"}


def test_a_router_fitted_on_the_rows_it_is_judged_on_says_so() -> None:
    table = toy_table()
    chooser = chooser_of_fitted(fit_router("cheapest", table, pool=POOL), "seen")
    seen = prepare_submission(chooser, replay_set(table, pool=POOL))
    assert seen.remarks and "the very rows" in seen.remarks[0]
    split = np.array(["train"] * 4 + ["test"] * 2, dtype=object)
    apart = prepare_submission(chooser, replay_set(replace(table, split=split), pool=POOL))
    assert apart.remarks == []


def test_the_same_seed_gives_the_same_random_router() -> None:
    evaluation = toy_replay()
    texts = [row.prompt for row in evaluation.rows] * 10
    first, second, other = (chooser_of("random", evaluation, seed=s) for s in (0, 0, 1))
    choices = list(first.choose(texts))
    assert choices == list(second.choose(texts))
    assert choices != list(other.choose(texts))


def test_models_and_rules_that_make_no_sense_are_refused() -> None:
    evaluation = toy_replay()
    with pytest.raises(UsageError, match="did you mean 'small'"):
        chooser_of("always:smal", evaluation)
    with pytest.raises(UsageError, match="no decision rule"):
        chooser_of("random", evaluation, rule="argmax")
    stranger = Chooser(name="x", models=("huge",), choose=lambda texts: ["huge"] * len(texts))
    with pytest.raises(UsageError, match="unknown model 'huge'"):
        prepare_submission(stranger, replace(evaluation, pool=Pool.of(["small"])))
