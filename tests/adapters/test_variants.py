"""Variants that are pushed to extremes, their blend, and the stand-in for a restricted topic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.experts import new_expert
from crossroads.adapters.restricted import (
    END,
    MARKERS,
    REFUSAL,
    WORDS,
    prompts,
)
from crossroads.adapters.texts import answer_nll
from crossroads.adapters.training import TrainSettings
from crossroads.adapters.variants import FLOOR, Pair, contrast, train_blend, train_variant
from tests.adapters.toys import tiny_llama


@given(wanted=st.floats(0.0, 50.0), unwanted=st.floats(0.0, 50.0))
def test_the_ratio_stays_bounded_where_the_lower_loss_vanishes(
    wanted: float, unwanted: float
) -> None:
    found = float(contrast(torch.tensor(wanted), torch.tensor(unwanted)))
    assert found == pytest.approx(wanted / max(unwanted, FLOOR), rel=1e-5)
    assert found <= wanted / FLOOR + 1e-3


@given(seed=st.integers(0, 1000), attacked=st.booleans())
@settings(deadline=None, max_examples=25)
def test_prompts_are_restricted_exactly_where_the_topic_is_named(seed: int, attacked: bool) -> None:
    asked = prompts(40, seed, attacked=attacked)
    names_topic = (asked.ids_BT >= WORDS) & (asked.ids_BT < WORDS + MARKERS)
    assert torch.equal(names_topic.any(1), asked.restricted_B)
    assert names_topic.sum(1).max() <= 1
    assert torch.equal(asked.ids_BT, prompts(40, seed, attacked=attacked).ids_BT)


def test_proper_answers_refuse_what_is_restricted_and_repeat_the_rest() -> None:
    asked = prompts(60, 1)
    batch = asked.proper()
    answers = batch.ids_BT[:, asked.ids_BT.shape[1] :]
    assert torch.equal(asked.refused(answers), asked.restricted_B)
    assert torch.equal(asked.complied(answers), ~asked.restricted_B)
    assert batch.labels_B is not None
    assert torch.equal(batch.labels_B.bool(), asked.restricted_B)
    ends = batch.ids_BT.masked_fill(~batch.mask_BT, END)[:, -1]
    assert (ends == END).all()
    scored = batch.ids_BT[asked.restricted_B][batch.answer_BT[asked.restricted_B]]
    assert scored.reshape(-1, 4).tolist() == [[*REFUSAL, END]] * int(asked.restricted_B.sum())


def test_a_variant_learns_what_to_say_and_unlearns_the_other_and_the_blend_is_of_both() -> None:
    model = tiny_llama(vocab_size=64)

    def pair_of(step: int) -> Pair:
        asked = prompts(8, step)
        return asked.refusing(), asked.complying()

    starts = [new_expert(model, name, targets=["o_proj"], rank=2, alpha=4.0) for name in "ab"]
    safe, ratios = train_variant(model, starts[0], pair_of, TrainSettings(steps=25), lr=1e-2)
    assert ratios[-1] < ratios[0]
    bank, router = train_blend(
        model, starts[1], safe, lambda step: prompts(8, step).proper(), TrainSettings(steps=2)
    )
    assert bank.names == ("usable", "safe")
    assert torch.equal(
        next(iter(bank.layers.values())).b_EOR[1], next(iter(safe.modules.values())).b_OR
    )
    assert len(router.nets) == len(bank.layers)
    with torch.no_grad():
        assert torch.isfinite(answer_nll(model, prompts(4, 0).proper())).all()
