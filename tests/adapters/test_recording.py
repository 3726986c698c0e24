"""Traces of routed models: every decision about real tokens, in the order of the sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.recording import Recorder
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError
from crossroads.core.trace import DECODE, PREFILL, RoutingTrace
from tests.adapters.toys import bank_for, experts, ids, tiny_llama, tiny_t5

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def test_a_pass_is_recorded_as_the_layers_decided() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 4), build_router("phatgoose"))
    recorder = Recorder(routed, meta={"model": "tiny"})
    x = ids(2, 5)
    with torch.no_grad(), recorder.on():
        model(x, attention_mask=MASK)
    trace = recorder.trace()
    real = MASK.bool()
    assert trace.seq_ptr.tolist() == [0, 3, 8]
    assert trace.token_id.tolist() == x[real].tolist()
    assert trace.pos.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert trace.expert.shape == (8, 10, 2)
    for column, (name, routing) in enumerate(routed.last_routings.items()):
        assert trace.rows[column]["module"] == name
        assert routing.index is not None
        weights, order = routing.weights[:, :, 0].sort(-1, descending=True)
        index = routing.index[:, :, 0].gather(-1, order)
        assert trace.expert[:, column].tolist() == index[real].tolist()
        np.testing.assert_allclose(trace.weight[:, column], weights[real], atol=1e-3)
    first = trace.rows[0]
    assert (first["layer"], first["branch"]) == (0, "self_attn.q_proj")
    assert (first["weights"], first["n_experts"]) == ("normalised", 4)
    assert trace.meta["experts"] == ["e0", "e1", "e2", "e3"]
    assert (trace.meta["kind"], trace.meta["model"]) == ("adapters", "tiny")


def test_decoding_goes_on_with_the_sequences() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 4), build_router("phatgoose:k=1"))
    recorder = Recorder(routed)
    with recorder.on():
        text = model.generate(ids(2, 5), attention_mask=MASK, max_new_tokens=4, do_sample=False)
        model.generate(ids(1, 3), attention_mask=torch.ones(1, 3), max_new_tokens=2)
    trace = recorder.trace()
    assert np.diff(trace.seq_ptr).tolist() == [3 + 3, 5 + 3, 3 + 1]  # the last is never read
    assert trace.token_id[:6].tolist() == text[0, 2:8].tolist()
    assert trace.phase[:6].tolist() == [PREFILL] * 3 + [DECODE] * 3
    assert trace.step[:6].tolist() == [0, 0, 0, 1, 2, 3]
    # What was decided step by step is what is decided at once.
    at_once = Recorder(routed)
    with torch.no_grad(), at_once.on():
        model(text[:, :8], attention_mask=torch.cat([MASK, torch.ones(2, 3).long()], 1))
    assert (at_once.trace().expert[:14] == trace.expert[:14]).all()


def test_many_passes_are_kept_compact_and_in_order() -> None:
    model = tiny_llama(num_hidden_layers=1)
    routed = RoutedModel(model, bank_for(model, 4, ends=("q_proj",)), build_router("phatgoose"))
    recorder = Recorder(routed)
    batches = [ids(1, 2, seed=seed) for seed in range(70)]
    with torch.no_grad(), recorder.on():
        for x in batches:
            model(x)
    trace = recorder.trace()
    assert trace.token_id.tolist() == torch.cat(batches).flatten().tolist()
    assert trace.step.tolist() == [step for step in range(70) for _ in range(2)]


def test_weights_of_sequences_hold_for_their_tokens_and_the_base_is_nobody() -> None:
    model = tiny_llama()
    recorder = Recorder(RoutedModel(model, bank_for(model, 3), build_router("named")))
    with torch.no_grad(), recorder.on(), calling(experts=["e2", None]):
        model(ids(2, 3))
    trace = recorder.trace()
    assert (trace.expert[:3, :, 0] == 2).all()
    assert (trace.expert[3:] == trace.sentinel).all()
    assert not trace.weight[3:].any()


def test_dense_weights_are_recorded_whole_or_cut() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 3), build_router("uniform"))
    whole, cut = Recorder(routed), Recorder(routed, places=2)
    with torch.no_grad(), whole.on(), cut.on():
        model(ids(1, 2))
    assert whole.trace().expert[0, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(whole.trace().weight, 1 / 3, atol=1e-3)
    assert cut.trace().expert.shape == (2, 10, 2)
    assert cut.trace().meta["approx_topk"] == 2


def test_layers_over_an_encoders_tokens_are_left_out_by_name() -> None:
    model = tiny_t5()
    bank = bank_for(model, 3, ends=("q", "k"))
    recorder = Recorder(RoutedModel(model, bank, build_router("phatgoose")))
    with torch.no_grad(), recorder.on():
        model(input_ids=ids(2, 5), attention_mask=MASK, decoder_input_ids=ids(2, 3, seed=4))
    trace = recorder.trace()
    assert trace.n_tokens == 6
    assert trace.token_id.tolist() == ids(2, 3, seed=4).flatten().tolist()
    assert all("encoder" not in row["module"].split(".") for row in trace.rows)
    assert len(trace.meta["left_out"]) == 4 + 2
    assert len(trace.rows) == 4 + 2


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    model = tiny_llama()
    recorder = Recorder(RoutedModel(model, bank_for(model, 3), build_router("phatgoose")))
    with torch.no_grad(), recorder.on():
        model(ids(2, 3))
    recorder.trace().save(tmp_path / "run.npz")
    read = RoutingTrace.load(tmp_path / "run.npz")
    assert (read.expert == recorder.trace().expert).all()
    assert read.rows == recorder.trace().rows


def test_what_cannot_be_one_trace_is_refused() -> None:
    model = tiny_llama()
    bank = bank_for(model, 3)
    recorder = Recorder(RoutedModel(model, bank, build_router("uniform")))
    with pytest.raises(InputError, match="recorder: no forward pass was recorded"):
        recorder.trace()
    with torch.no_grad(), recorder.on():
        model(ids(1, 2))
        bank.remove("e0")
        with pytest.raises(InputError, match="recorder: the experts changed"):
            model(ids(1, 2))


def test_experts_are_known_by_their_keys() -> None:
    model = tiny_llama()
    bank = bank_for(model, 2)
    recorder = Recorder(RoutedModel(model, bank, build_router("uniform")))
    with torch.no_grad(), recorder.on():
        model(ids(1, 2))
        bank.rename("e1", "other")
        model(ids(1, 2))
        assert recorder.trace().meta["experts"] == ["e0", "other"]
        bank.remove("other")
        bank.add(*experts(model, ["other"], seed=7))  # another one of the same name
        with pytest.raises(InputError, match="recorder: the experts changed"):
            model(ids(1, 2))
