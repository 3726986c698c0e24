"""Recorded means: of real tokens, of at most 1,000 sequences, with the expert active."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossroads.adapters.activations import MOST_EXAMPLES, record_activation
from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.experts import Alone
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.texts import TextBatch
from crossroads.core.errors import InputError
from tests.adapters import toys

DEEP = "model.layers.1.self_attn.q_proj"


def test_means_are_those_of_the_inputs_with_the_expert_active() -> None:
    model, ids = toys.tiny_llama(), toys.ids(5, 6)
    expert = toys.strangers(model, 1)[0]
    found = record_activation(model, expert, [toys.batch(ids[:2]), toys.batch(ids[2:])]).artifacts
    inputs = []
    routed = RoutedModel(model, AdapterBank([expert]), Alone())
    layer = model.get_submodule(DEEP)
    layer.register_forward_hook(lambda module, given, out: inputs.append(given[0]))
    model(ids)
    routed.unwrap()
    torch.testing.assert_close(found["activation"][DEEP], inputs[0].flatten(0, 1).mean(0))
    assert found["activation"].keys() == expert.modules.keys()


def test_padding_does_not_count() -> None:
    model, ids = toys.tiny_llama(), toys.ids(4, 6)
    expert = toys.strangers(model, 1)[0]
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.long)], 1)
    mask = torch.arange(9).expand(4, 9) < 6
    short = record_activation(model, expert, [toys.batch(ids)])
    long = record_activation(
        model, expert, [TextBatch(ids_BT=padded, mask_BT=mask, answer_BT=mask)]
    )
    for layer, mean_I in short.artifacts["activation"].items():
        torch.testing.assert_close(long.artifacts["activation"][layer], mean_I)


def test_what_follows_the_first_thousand_is_not_read() -> None:
    model = toys.tiny_llama()
    expert = toys.strangers(model, 1)[0]
    ids = toys.ids(MOST_EXAMPLES, 2)
    alone = record_activation(model, expert, [toys.batch(ids)])
    more = record_activation(
        model,
        expert,
        [toys.batch(torch.cat([ids, toys.ids(3, 2, seed=1)])), toys.batch(toys.ids())],
    )
    for layer, mean_I in alone.artifacts["activation"].items():
        assert torch.equal(more.artifacts["activation"][layer], mean_I)


def test_other_side_data_stays_and_the_model_is_given_back() -> None:
    model = toys.tiny_llama()
    before = model(toys.ids()).logits
    expert = toys.strangers(model, 1, kinds=("gate",))[0]
    found = record_activation(model, expert, [toys.batch(toys.ids())])
    assert found.artifacts["gate"] == expert.artifacts["gate"]
    assert torch.equal(model(toys.ids()).logits, before)


def test_no_texts_are_an_error() -> None:
    model = toys.tiny_llama()
    expert = replace(toys.strangers(model, 1)[0], name="empty")
    with pytest.raises(InputError, match="'empty': there are no texts"):
        record_activation(model, expert, [])
