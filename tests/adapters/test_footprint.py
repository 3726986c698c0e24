from __future__ import annotations

import itertools

import pytest

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.footprint import (
    held_bytes,
    measure_speed,
    ratio_in_turns,
    router_parameters,
)
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from tests.adapters.saved import bank, base_model


def _bytes(made: AdapterBank) -> int:
    return sum(
        t.untyped_storage().nbytes() for t in (*made.parameters(), *made.buffers())
    )  # what a bank of its own has


def test_what_is_held_is_the_bank_and_what_routing_keeps() -> None:
    made = bank()
    routed = RoutedModel(base_model().model, made, build_router("named"))
    assert held_bytes(routed) == _bytes(made)
    routed.unwrap()
    gates = sum(g.untyped_storage().nbytes() for g in RoutedModel(
        base_model().model, made, build_router("phatgoose")).router._gates.values())  # fmt: skip
    routed = RoutedModel(base_model().model, made, build_router("phatgoose"))
    assert held_bytes(routed) == _bytes(made) + gates


def test_a_merge_holds_a_copy_of_the_weights_it_is_in() -> None:
    base, made = base_model(), bank()
    weights = 4 * sum(layer.inputs * layer.outputs for layer in made.layers.values())
    routed = RoutedModel(base.model, made, build_router("uniform"))
    before = held_bytes(routed)
    measure_speed(base, routed, tokens=4, steps=1, turns=1)
    chosen = 4 * made.n_experts * len(made.layers)
    # The router's weights, and those by which experts were merged.
    assert held_bytes(routed) == before + weights + 2 * chosen


@pytest.mark.parametrize(("spec", "with_gates"), [("uniform", 0), ("arrow", 0), ("phatgoose", 1)])
def test_routing_has_its_own_numbers_and_the_side_data_it_reads(spec: str, with_gates: int) -> None:
    made = bank()
    routed = RoutedModel(base_model().model, made, build_router(spec))
    inputs = sum(layer.inputs for layer in made.layers.values())
    assert router_parameters(routed) == with_gates * made.n_experts * inputs


@pytest.mark.parametrize("spec", ["uniform", "phatgoose", "named", "oracle", "ties"])
def test_any_router_can_be_timed(spec: str) -> None:
    base = base_model()
    routed = RoutedModel(base.model, bank(), build_router(spec))
    speed = measure_speed(base, routed, tokens=8, steps=2, turns=1)
    assert speed.prefill > 0 and speed.decode > 0
    assert speed.prefill_ratio is None or speed.prefill_ratio > 0


def test_a_prompt_that_is_timed_fits_the_model() -> None:
    base = base_model()
    lengths = []
    routed = RoutedModel(base.model, bank(), build_router("uniform"))
    with routed.watched(lambda one: lengths.append(next(iter(one.seen.values())).shape[1])):
        measure_speed(base, routed, tokens=500, steps=4, turns=1)
    assert max(lengths) == base.context - 5


def test_a_busy_machine_does_not_change_a_ratio() -> None:
    calm, busy_base, busy_routed = (2.0, 4.0), (60.0, 4.0), (2.0, 90.0)
    turns = iter([busy_routed, calm, busy_base, calm, calm, calm])
    assert ratio_in_turns(lambda: next(turns)) == 0.5


def test_turns_that_do_not_agree_tell_no_ratio() -> None:
    turns = itertools.cycle([(2.0, 4.0), (4.0, 2.5)])
    assert ratio_in_turns(lambda: next(turns)) is None
