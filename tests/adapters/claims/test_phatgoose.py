"""The claim about PHATGOOSE: its rules by hand, and the shipped experts."""

from __future__ import annotations

import statistics

import pytest
import torch

from crossroads.adapters.claims import collection_bed, phatgoose
from crossroads.adapters.claims.collection_bed import CollectionBed
from crossroads.adapters.claims.mixed_documents import (
    HALF,
    documents,
    votes,
)
from crossroads.adapters.claims.phatgoose import EARLIER, NAME, judge, own_expert_share
from crossroads.adapters.texts import TextBatch
from crossroads.core.catalog import Outcome
from tests.adapters import toys
from tests.adapters.claims.beds import HandBed, Values, shipped_bed

NEAR = (0.01, 0.02, 0.015)  # differences between seeds


def bed(closed: float, held_out: Values, average: Values = (3.0, 3.01, 3.0)) -> HandBed:
    """Uniform at 4 and oracle at 2 held in; the others at 3 held out."""
    mine = [4.0 - 2.0 * closed + d for d in NEAR]
    others = {arm: ([4.0] * 3, [3.0, 3.01, 3.0]) for arm in ("base", *EARLIER)}
    others["average-activation"] = ([3.0] * 3, average)
    return HandBed({**others, NAME: (mine, held_out), "oracle": ([2.0] * 3, [0.0] * 3)})


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (bed(0.9, (2.5, 2.52, 2.5)), "holds"),
        (bed(0.6, (2.5, 2.52, 2.5)), "holds in direction"),  # not far enough
        (bed(0.9, (2.5, 2.52, 2.5), average=(2.0, 2.0, 2.0)), "holds in direction"),
        (bed(0.9, (2.0, 3.9, 2.9)), "holds in direction"),  # below in the mean, unsure
        (bed(0.3, (2.5, 2.52, 2.5)), "null"),
        (bed(0.9, (2.9, 3.5, 2.9)), "null"),
        (bed(0.9, (3.5, 3.52, 3.5)), "fails"),
        (bed(-0.2, (2.5, 2.52, 2.5)), "fails"),
    ],
)
def test_the_rules(made: HandBed, verdict: Outcome) -> None:
    assert judge(made) == verdict


@pytest.mark.parametrize(("full", "batches"), [(False, 2), (True, 80)])
def test_mean_inputs_are_of_all_training_batches_in_a_full_run(
    full: bool, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Bed:
        description = ""

        def __init__(self, **_: object) -> None: ...

        def add_activations(self, batches: int) -> None:
            told.append(batches)

    monkeypatch.setattr(phatgoose, "CollectionBed", Bed)
    monkeypatch.setattr(phatgoose, "judge", lambda _: "null")
    monkeypatch.setattr(phatgoose, "measured", lambda *_: {})
    assert phatgoose.verify(full).measured["batches_of_mean_inputs"] == batches
    assert told == [batches]


def test_mean_inputs_are_of_as_many_batches_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    model = toys.tiny_llama()
    bank = toys.bank_for(model, 2)
    monkeypatch.setattr(collection_bed, "get_task", lambda _: None)

    def batch_of(step: int) -> TextBatch:
        steps.append(step)
        return toys.batch(toys.ids(2, 4, seed=step))

    monkeypatch.setattr(collection_bed, "training_batches", lambda *_, **__: batch_of)
    monkeypatch.setattr(CollectionBed, "tokenizer", None)
    bed = CollectionBed(rows=1, bank=bank, model=model)
    bed.add_activations(3)
    assert steps == [0, 1, 2] * 2
    first, *_ = bank.layers.values()
    assert torch.isfinite(first.artifact("activation")).all()


@pytest.mark.acceptance
def test_routing_beats_the_base_model_and_the_uniform_merge() -> None:
    shipped = shipped_bed()
    mine = statistics.mean(shipped.means(NAME, held_in=True))
    assert mine < statistics.mean(shipped.means("base", held_in=True))
    assert mine < statistics.mean(shipped.means("uniform", held_in=True))


@pytest.mark.acceptance
def test_the_own_expert_is_among_the_two_more_often_than_by_chance() -> None:
    shipped = shipped_bed()
    shares = own_expert_share(shipped).values()
    assert statistics.mean(shares) > 2 * 2 / len(shipped.bank.names)  # twice as often


@pytest.mark.acceptance
def test_votes_change_where_a_document_changes_its_kind() -> None:
    shipped = shipped_bed()
    batch, texts = documents(shipped, 4)
    assert batch.ids_BT.shape == (4, 2 * HALF)
    assert len(texts) == 4
    found = votes(shipped, batch)
    assert found["first half"]["python"] > found["second half"]["python"]
    assert found["second half"]["shakespeare"] > found["first half"]["shakespeare"]
