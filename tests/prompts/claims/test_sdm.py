from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.core.calibration import SdmSettings
from crossroads.prompts.claims import sdm as claim
from crossroads.prompts.claims.sdm import (
    admitted_figures,
    draw,
    load_topics,
    measure,
    outcome,
    relations,
)

GOOD: dict[str, Any] = {
    "test": {"accuracy": 0.96, "sdm": {"admitted": 0.8, "accuracy": 0.99, "worst_class": 0.98}},
    "unseen": {
        "accuracy": 0.85,
        "sdm": {"admitted": 0.5, "accuracy": 0.95, "worst_class": 0.9},
        "softmax": {"admitted": 0.9, "accuracy": 0.88, "worst_class": 0.8},
    },
    "noise": {"softmax": 0.6, "sdm": 0.0},
    "hard_region_is_empty": True,
    "hard_admitted": 0.0,
}


def changed(*path: str, value: object) -> dict[str, Any]:
    figures: dict[str, Any] = copy.deepcopy(GOOD)
    inner = figures
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return figures


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> claim.Topics:
    monkeypatch.setenv("CROSSROADS_DATA", str(tmp_path))
    return load_topics()


def test_without_the_data_set_the_shipped_table_is_used(shipped: claim.Topics) -> None:
    assert "shipped MMLU-Pro" in shipped.data
    assert "MMLU not measured: needs routellm_mmlu_gsm8k" in shipped.data
    assert len(shipped.embeddings) == len(shipped.right) == 12032


def test_unseen_subjects_are_in_neither_pool_nor_test_and_topics_are_balanced(
    shipped: claim.Topics,
) -> None:
    drawn = draw(shipped, 0)
    seen = np.concatenate([drawn.pool, drawn.test])
    assert len(set(seen)) == len(seen)
    assert not set(shipped.subject[seen]) & set(drawn.unseen_subjects)
    assert set(shipped.subject[drawn.unseen]) == set(drawn.unseen_subjects)
    zero, one = np.bincount(drawn.topic[drawn.pool])
    assert zero == one


def test_the_worst_class_is_over_true_and_predicted_classes() -> None:
    prediction, label = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 0])
    found = admitted_figures(np.ones(5, bool), prediction, label)
    assert found == {"admitted": 1.0, "accuracy": 0.8, "worst_class": pytest.approx(2 / 3)}
    nobody = admitted_figures(np.zeros(5, bool), prediction, label)
    assert nobody == {"admitted": 0.0, "accuracy": None, "worst_class": None}


def test_it_holds_only_when_every_relation_holds_on_every_seed() -> None:
    assert outcome([GOOD] * 3) == "holds"
    for path, value in (
        (("test", "sdm", "admitted"), 0.4),
        (("test", "sdm", "worst_class"), 0.94),
        (("unseen", "sdm", "accuracy"), 0.93),
        (("noise", "sdm"), 0.02),
        (("hard_region_is_empty",), False),
    ):
        worse = changed(*path, value=value)
        assert sum(not held for held in relations(worse).values()) == 1
        assert outcome([GOOD, worse, GOOD]) == "holds in direction"


def test_direction_needs_every_seed_and_failure_the_mean() -> None:
    worse = changed("unseen", "sdm", "accuracy", value=0.87)
    assert outcome([GOOD, worse, GOOD]) == "null"
    assert outcome([worse] * 3) == "fails"
    nothing = changed("unseen", "sdm", "accuracy", value=None)
    assert outcome([nothing] * 3) == "null"


@pytest.mark.slow
def test_one_seed_is_measured_on_the_shipped_table(shipped: claim.Topics) -> None:
    figures = measure(shipped, 0, SdmSettings(width=32, epochs=3, restarts=1))
    assert figures["test"]["accuracy"] > 0.8
    assert 0 <= figures["noise"]["sdm"] <= figures["noise"]["softmax"]
    assert set(relations(figures)) == set(relations(GOOD))
