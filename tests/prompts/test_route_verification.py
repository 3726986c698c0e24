from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts import fitted as module
from crossroads.prompts.artefact import HEADER
from crossroads.prompts.fitted import FittedRouter, fit_router, load_router, save_router
from crossroads.prompts.outcomes import OutcomeTable, prompt_hash
from crossroads.prompts.route_verification import calibration_split, reason_of
from crossroads.prompts.router import PromptRouter
from crossroads.prompts.verification import Verification

from .toy import TOYS, toy_table

KNOWN, ODD = "red green blue", "seven eight nine"


@pytest.fixture(autouse=True, scope="module")
def toys() -> object:
    def build(spec: str) -> PromptRouter:
        return TOYS[spec]()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_router", build)
        patch.setattr(module, "router_class", TOYS.__getitem__)
        yield


def half_right(count: int = 700) -> OutcomeTable:
    """One kind of prompt that the first model always gets right, one that nobody does."""
    rng = np.random.default_rng(0)
    words = [(KNOWN if n % 2 else ODD).split() for n in range(count)]
    texts = [" ".join([*rng.choice(w, 4), f"number {n}"]) for n, w in enumerate(words)]
    right = np.arange(count) % 2
    score = np.column_stack([right, np.zeros(count)]).astype(np.float32)
    return OutcomeTable(
        prompt_ids=np.array([f"p{n}" for n in range(count)], dtype=object),
        models=("able", "idle"),
        score=score,
        prompt_hash=np.array([prompt_hash(t) for t in texts], dtype=np.uint64),
        texts=np.array(texts, dtype=object),
        source="toy",
    )


@pytest.fixture(scope="module")
def fitted(toys: object) -> FittedRouter:
    return fit_router("toy", half_right(), calibrate="sdm", level=0.9)


def test_choices_on_the_kind_that_is_answered_rightly_are_accepted(fitted: FittedRouter) -> None:
    found = fitted.metrics["verification"]
    assert found["accepted_right"] > 0.95
    assert 0 < found["accepted"] < found["right"] + 0.02
    decision = fitted.route("green blue red red number 5")
    assert decision.details["verification"]["answer"] == "accept"
    assert decision.details["verification"]["escalate_to"] is None
    assert fitted.route("eight seven nine").details["verification"]["answer"] != "accept"


def test_another_rule_than_the_calibrated_one_is_not_answered_for(fitted: FittedRouter) -> None:
    assert fitted.verifier is not None
    rows = np.zeros((2, 256), dtype=np.float32)
    answers = fitted.verifier.judge(rows, ["able", "idle"], "tradeoff:2")
    assert [a["answer"] for a in answers] == [None, None]
    assert "rule argmax, not tradeoff:2" in answers[0]["reason"]


def test_what_is_not_accepted_names_the_best_single_model(fitted: FittedRouter) -> None:
    assert fitted.verifier is not None
    rows = np.zeros((1, 256), dtype=np.float32)
    judged = fitted.verifier.judge(rows, ["idle"], "argmax")[0]
    assert judged["answer"] == "abstain"
    assert judged["escalate_to"] == "able" == fitted.metrics["best_single"]
    assert fitted.verifier.judge(rows, ["able"], "argmax")[0]["escalate_to"] is None


def test_a_saved_router_keeps_its_verifier_and_is_of_the_newer_format(
    fitted: FittedRouter, tmp_path: Path
) -> None:
    save_router(fitted, tmp_path)
    assert json.loads((tmp_path / HEADER).read_text())["format_version"] == 2
    again = load_router(tmp_path)
    for text in ("red green", "nine nine", ""):
        one, two = fitted.route(text), again.route(text)
        assert one.details == two.details
    del again
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps({**header, "verifier": {"method": "sdm"}}))
    with pytest.raises(InputError, match="incomplete or altered"):
        load_router(tmp_path)


def test_a_router_without_verifier_stays_of_the_older_format(tmp_path: Path) -> None:
    save_router(fit_router("toy", toy_table()), tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    assert header["format_version"] == 1 and "verifier" not in header
    assert load_router(tmp_path).verifier is None
    assert load_router(tmp_path).route("boil rice").details == {}


def test_calibration_prompts_are_neither_the_routers_nor_held_out(fitted: FittedRouter) -> None:
    table = half_right()
    train, test = table.split_by_hash(0)
    router_rows, held = calibration_split(table, train, 0)
    assert sorted([*router_rows, *held]) == train.tolist()
    assert fitted.verifier is not None
    used = set(fitted.verifier.verifier.ids.tolist())
    assert used <= set(table.prompt_ids[held].tolist())
    assert fitted.provenance["num_fitted"] == len(router_rows)
    assert fitted.metrics["num_test"] == len(test)


def test_copies_of_a_prompt_are_never_parted() -> None:
    table = toy_table()
    twice = table.take(np.repeat(np.arange(len(table)), 2))
    rows, held = calibration_split(twice, np.arange(len(twice)), 3)
    assert not set(twice.prompt_hash[rows]) & set(twice.prompt_hash[held])


def test_a_router_that_is_always_right_has_nothing_to_calibrate() -> None:
    table = toy_table()
    with pytest.raises(InputError, match="right on all"):
        fit_router("toy", replace(table, score=np.ones_like(table.score)), calibrate="sdm")


def test_too_few_prompts_and_unknown_methods_are_refused() -> None:
    table = toy_table().take(np.arange(2))
    with pytest.raises(InputError, match="too few"):
        calibration_split(table, np.arange(1), 0)
    with pytest.raises(UsageError, match="calibration"):
        fit_router("toy", toy_table(), calibrate="sdmm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="level"):
        fit_router("toy", toy_table(), calibrate="sdm", level=0.2)


def test_reasons_name_what_decided() -> None:
    base = Verification(
        answer="escalate", prediction=1, probability=0.8, similarity=4, distance=0.25, level=0.9
    )
    assert "similarity 4, distance 0.25" in reason_of(base)
    assert "predicted wrong" in reason_of(replace(base, prediction=0))
    assert "unlike" in reason_of(replace(base, answer="abstain"))
    assert "4 nearest" in reason_of(replace(base, answer="accept"))
    assert "nothing is accepted" in reason_of(base, is_empty=True)
