"""Loads, certainty and agreement of layers: real tokens alone, equal to counting by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.telemetry import Telemetry
from crossroads.core.errors import InputError
from tests.adapters.toys import bank_for, experts, ids, tiny_llama, tiny_t5

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


class Scripted(Router):
    """Gives every layer the weights it was told, by the layer's last name."""

    name: ClassVar[str] = "scripted"

    def __init__(self, made: dict[str, Routing]) -> None:
        super().__init__()
        self.made = made

    def route(self, given: RouteInput) -> Routing:
        return self.made[given.module.rpartition(".")[2]]


def dense(rows: list[list[float]], positions: int = 1) -> Routing:
    weights = torch.tensor(rows).view(-1, positions, 1, len(rows[0]))
    return Routing(weights=weights, normalised=False)


def reported(made: dict[str, Routing], **options: Any) -> dict[str, Any]:
    model = tiny_llama(num_hidden_layers=1)
    bank = bank_for(model, 3, ends=tuple(made))
    telemetry = Telemetry(RoutedModel(model, bank, Scripted(made)))
    with torch.no_grad(), telemetry.on():
        model(ids(2, 5), attention_mask=options.get("mask", MASK))
    return telemetry.report()


def test_figures_of_weights_of_tokens() -> None:
    rows = [[9.0, 9.0, 9.0]] * 2 + [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]] + [[0.2, 0.2, 0.6]] * 5
    layer = reported({"q_proj": dense(rows, 5)})["layers"]["model.layers.0.self_attn.q_proj"]
    assert layer["tokens"] == 8  # the first two are padding
    assert layer["counts"] == {"e0": 7, "e1": 6, "e2": 5}
    shares = [(1 + 0.5 + 5 * 0.2) / 8, (0.5 + 5 * 0.2) / 8, 5 * 0.6 / 8]
    assert list(layer["mean_share"].values()) == pytest.approx(shares)
    each = 2 * 0.2 * log(5) - 0.6 * log(0.6)
    assert layer["entropy"] == pytest.approx((log(2) + 5 * each) / 8)
    assert layer["normalised_entropy"] == pytest.approx(layer["entropy"] / log(3))
    assert layer["margin"] == pytest.approx((1 + 0 + 5 * 0.4) / 8)
    assert layer["broadcast"] == pytest.approx(5 / 8)
    assert layer["unrouted"] == pytest.approx(1 / 8)


def test_weights_of_sequences_and_of_the_call_count_their_tokens() -> None:
    report = reported({"q_proj": dense([[1, 0, 0], [0, 0.5, 0.5]]), "v_proj": dense([[0, 0, 1.0]])})
    q, v = report["layers"].values()
    assert q["counts"] == {"e0": 3, "e1": 5, "e2": 5}
    assert v["counts"] == {"e0": 0, "e1": 0, "e2": 8}


def test_shares_are_of_the_sizes_of_weights() -> None:
    layer = reported({"q_proj": dense([[4.0, -4.0, 0]])})["layers"]
    shares = layer["model.layers.0.self_attn.q_proj"]["mean_share"]
    assert shares == {"e0": 0.5, "e1": 0.5, "e2": 0.0}


def test_agreement_is_the_share_of_tokens_with_the_same_first_expert() -> None:
    first = [[1, 0, 0]] * 10
    second = [[0, 0, 1]] * 2 + [[1, 0, 0]] * 2 + [[0, 1, 0]] * 4 + [[0, 0, 0]] * 2
    found = reported({"q_proj": dense(first, 5), "v_proj": dense(second, 5)})["agreement"]
    assert len(found) == 1
    assert [name.rpartition(".")[2] for name in found[0]["layers"]] == ["q_proj", "v_proj"]
    matrix = found[0]["matrix"]
    assert matrix[0] == pytest.approx([1.0, 2 / 8])
    assert matrix[1] == pytest.approx([2 / 8, 6 / 8])  # two tokens are nobody's


def test_places_and_dense_weights_give_the_same_report() -> None:
    draw = torch.Generator().manual_seed(0)
    index = torch.rand(2, 5, 1, 3, generator=draw).argsort(-1)[..., :2]
    weights = torch.rand(2, 5, 1, 2, generator=draw)
    sparse = Routing(weights=weights, index=index, normalised=False)
    as_dense = Routing(weights=sparse.dense(3), normalised=False)
    one, other = (reported({"q_proj": r, "up_proj": r})["layers"] for r in (sparse, as_dense))
    for name, figures in one.items():
        for field, value in figures.items():
            assert value == pytest.approx(other[name][field]), field


def test_sums_go_on_over_passes_of_any_shape() -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 4), build_router("phatgoose"))
    telemetry = Telemetry(routed)
    with telemetry.on():
        model.generate(ids(2, 5), attention_mask=MASK, max_new_tokens=4, do_sample=False)
        model(ids(3, 2))
    model(ids(3, 2))  # outside: not looked at
    report = telemetry.report()
    assert report["passes"] == 5
    for layer in report["layers"].values():
        assert layer["tokens"] == 8 + 2 * 3 + 6
        assert sum(layer["counts"].values()) == 2 * layer["tokens"]
        assert sum(layer["mean_share"].values()) == pytest.approx(1.0)
        assert 0 <= layer["normalised_entropy"] <= 1
    matrix = torch.tensor(report["agreement"][0]["matrix"])
    torch.testing.assert_close(matrix.diagonal(), torch.ones(10))
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("how", ["attention_mask", "calling", "both"])
@pytest.mark.parametrize(
    ("search", "rows"),
    [({"num_beams": 3}, 3), ({"num_return_sequences": 3, "do_sample": True}, 3), ({}, 1)],
)
@pytest.mark.parametrize("width", [3, 5])  # with 3, a step has as many rows as the mask numbers
def test_tokens_of_beams_and_of_several_answers_count_each(
    search: dict[str, Any], rows: int, how: str, width: int
) -> None:
    model = tiny_llama()
    telemetry = Telemetry(RoutedModel(model, bank_for(model, 4), build_router("phatgoose")))
    mask = MASK[:, -width:].clone()
    mask[0, 0] = 0
    told = {} if how == "attention_mask" else {"mask": mask}
    given = {} if how == "calling" else {"attention_mask": mask}
    with telemetry.on(), calling(**told):
        model.generate(ids(2, width), max_new_tokens=4, **{"do_sample": False, **search}, **given)
    tokens = rows * (int(mask.sum()) + 3 * 2)  # the last token of an answer is not read again
    for layer in telemetry.report()["layers"].values():
        assert layer["tokens"] == tokens
        assert sum(layer["counts"].values()) == 2 * tokens


def test_encoder_and_decoder_are_counted_over_their_own_tokens() -> None:
    model = tiny_t5()
    bank = bank_for(model, 3, ends=("q", "k"))
    telemetry = Telemetry(RoutedModel(model, bank, build_router("phatgoose")))
    with torch.no_grad(), telemetry.on():
        model(input_ids=ids(2, 5), attention_mask=MASK, decoder_input_ids=ids(2, 3))
    for name, layer in telemetry.report()["layers"].items():
        of_encoder = name.startswith("encoder") or name.endswith("EncDecAttention.k")
        assert layer["tokens"] == (8 if of_encoder else 6), name
    assert len(telemetry.report()["agreement"]) == 2


def test_an_expert_that_adapts_a_layer_alone_has_no_entropy() -> None:
    model = tiny_llama()
    found = experts(model, ["a"])
    telemetry = Telemetry(
        RoutedModel(model, type(bank_for(model, 1))(found), build_router("phatgoose"))
    )
    with torch.no_grad(), telemetry.on():
        model(ids(1, 4))
    for layer in telemetry.report()["layers"].values():
        assert layer["normalised_entropy"] == 0.0
        assert layer["margin"] == pytest.approx(1.0)


def test_the_report_is_json(tmp_path: Path) -> None:
    model = tiny_llama()
    routed = RoutedModel(model, bank_for(model, 2), build_router("named"))
    telemetry = Telemetry(routed, agreement=False)
    with torch.no_grad(), telemetry.on(), calling(experts=["e0", None]):
        model(ids(2, 4))
    telemetry.save(tmp_path / "routing.json")
    read = json.loads((tmp_path / "routing.json").read_text("utf-8"))
    assert read == telemetry.report()
    assert read["agreement"] == []
    assert all(layer["unrouted"] == 0.5 for layer in read["layers"].values())


def test_other_experts_need_another_telemetry() -> None:
    model = tiny_llama()
    bank = bank_for(model, 3)
    telemetry = Telemetry(RoutedModel(model, bank, build_router("uniform")))
    bank.remove("e1")
    refused = pytest.raises(InputError, match="telemetry: the experts changed; begin another")
    with refused, telemetry.on():
        model(ids(1, 4))


def test_experts_are_known_by_their_keys() -> None:
    model = tiny_llama()
    bank = bank_for(model, 2)
    telemetry = Telemetry(RoutedModel(model, bank, build_router("uniform")))
    with torch.no_grad(), telemetry.on():
        model(ids(1, 4))
        bank.rename("e1", "other")
        model(ids(1, 4))
    report = telemetry.report()
    assert report["experts"] == ["e0", "other"]
    assert all(layer["counts"] == {"e0": 8, "other": 8} for layer in report["layers"].values())
    bank.remove("other")
    bank.add(*experts(model, ["other"], seed=7))  # another one of the same name
    with pytest.raises(InputError, match="telemetry: the experts changed"), telemetry.on():
        model(ids(1, 4))


def test_all_living_experts_are_everybody() -> None:
    model = tiny_llama()
    first, second = experts(model, ["a", "b"])
    layers = list(first.modules)
    partial_one = replace(second, modules={layers[0]: second.modules[layers[0]]}, artifacts={})
    routed = RoutedModel(model, AdapterBank([first, partial_one]), build_router("uniform"))
    telemetry = Telemetry(routed)
    with torch.no_grad(), telemetry.on():
        model(ids(1, 4))
    found = telemetry.report()["layers"]
    assert {found[layer]["broadcast"] for layer in layers} == {1.0}
    assert found[layers[0]]["mean_share"] == {"a": 0.5, "b": 0.5}
    assert found[layers[1]]["mean_share"] == {"a": 1.0, "b": 0.0}
