"""One adapter for all tasks, as a bound that claims are measured by."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crossroads.adapters import learning, training
from crossroads.adapters.claims import collection_bed, multitask
from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.training import train
from tests.adapters.collection.toys import task, tokenizer
from tests.adapters.saved import bank
from tests.adapters.toys import tiny_llama


def _bed(names: Sequence[str], cache: Path) -> CollectionBed:
    return CollectionBed(
        rows=1, bank=bank(names), held_in=("words",), model=tiny_llama(), cache=cache
    )


def test_a_run_that_was_stopped_goes_on_over_the_same_experts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path))
    monkeypatch.setattr(collection_bed, "smollm2_tokenizer", tokenizer)
    monkeypatch.setattr(collection_bed, "get_task", task)
    monkeypatch.setattr(collection_bed, "task_names", lambda held_in: ["new"])
    monkeypatch.setattr(training, "train", functools.partial(train, every=2))
    monkeypatch.setattr(multitask, "_STEPS_A_TASK", 3)
    found: list[bool] = []
    learn = learning.learn
    stops = True

    def taught(*given: Any, **more: Any) -> Any:
        found.append(more["checkpoint"].is_file())

        def stop(done: int, of: int) -> None:
            if stops and done == 3:
                raise KeyboardInterrupt

        return learn(*given, **{**more, "progress": stop})

    monkeypatch.setattr(learning, "learn", taught)
    with pytest.raises(KeyboardInterrupt):
        multitask.multitask_means(_bed(["words", "lines"], tmp_path / "scores"))
    stops = False
    multitask.multitask_means(_bed(["words", "other"], tmp_path / "scores"))
    means = multitask.multitask_means(_bed(["words", "lines"], tmp_path / "scores"))
    assert found == [False, False, True]
    assert {kind: len(values) for kind, values in means.items()} == {"held_in": 3, "held_out": 3}
