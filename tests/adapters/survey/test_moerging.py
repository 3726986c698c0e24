"""Filters and recommendations."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.adapters.survey import moerging
from crossroads.adapters.survey.inventory import KINDS, inventory, row
from crossroads.adapters.survey.moerging import Recommendation, methods, recommend
from crossroads.adapters.survey.schema import AXES
from crossroads.adapters.survey.situation import Situation, findings
from crossroads.core.errors import InputError, UsageError

situations = st.builds(
    Situation,
    private_data=st.sampled_from([None, True, False]),
    custom_training=st.sampled_from([None, True, False]),
    target_examples=st.sampled_from([None, 0, 1, 16, 999, 1000, 5000]),
    tasks=st.sampled_from([None, "known", "new", "both"]),
    per=st.sampled_from([None, "token", "example", "task"]),
    experts=st.sampled_from([None, "adapters", "models"]),
    joint_training=st.booleans(),
)


def facts(situation: Situation, **changes: Any) -> dict[str, Any]:
    return {**situation.to_dict(), **changes}


def fitting(found: Recommendation) -> set[str]:
    return {match.method.name for match in found.fits}


@given(st.sampled_from(list(AXES.values())), st.data())
def test_several_values_of_an_axis_give_the_union(axis: Any, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from(list(axis.values)), min_size=1, unique=True))
    wanted: dict[str, Any] = {axis.name: values}
    found = methods(**wanted)
    assert found == tuple(m for m in inventory() if getattr(m.cells, axis.name) in values)


def test_several_axes_give_the_intersection_in_the_inventorys_order() -> None:
    private, merging = methods(expert_data="Private"), methods(expert_aggregation="Parameter")
    both = methods(expert_data="private", expert_aggregation="PARAMETER")
    assert both == tuple(m for m in private if m in merging)
    assert both


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_source_filter_too(kind: str) -> None:
    assert methods(kind=kind) == tuple(m for m in inventory() if m.kind == kind)
    ours = methods(kind=kind, source="ours")
    assert ours == tuple(m for m in methods(kind=kind) if m.source == "ours")


def test_implemented_and_not_implemented_part_the_inventory() -> None:
    done, open_ = methods(implemented=True), methods(implemented=False)
    assert {*done, *open_} == set(inventory())
    assert not {*done} & {*open_}
    assert row("PHATGOOSE") in done


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"expert_dat": "Private"}, "axis of the survey 'expert_dat'; did you mean 'expert_data'"),
        ({"expert_data": "privat"}, "value of expert_data 'privat'; did you mean 'Private'"),
        ({"kind": "moergin"}, "value of kind 'moergin'; did you mean 'moerging'"),
        ({"source": ("ours", "theirs")}, "unknown value of source 'theirs'"),
    ],
)
def test_what_is_unknown_meets_the_nearest_spelling(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        methods(**wanted)


def test_strangers_adapters_without_data_and_without_gates_leave_arrow() -> None:
    found = recommend(
        private_data=True, custom_training=False, target_examples=0, tasks="new", per="token",
        experts="adapters",
    )  # fmt: skip
    assert fitting(found) == {"Arrow"}
    (arrow,) = found.fits
    assert arrow.routers == ("arrow",)
    near = {match.method.name: match.unmet for match in found.near_misses}
    assert [f.fact for f in near["PHATGOOSE"]] == ["custom_training"]
    assert "contributors must add something" in near["PHATGOOSE"][0].why
    assert [f.why for f in near["LoRA-Flow"]] == ["needs a few labelled examples"]


def test_unlabelled_inputs_are_enough_where_no_labels_are_asked_for() -> None:
    method = "Weight-Ensembling MoE"
    assert method in fitting(recommend(target_inputs=True, target_examples=0))
    assert method not in fitting(recommend(target_examples=0))
    assert method in fitting(recommend(target_examples=5))


def test_where_a_data_set_begins_is_the_users_to_say() -> None:
    assert "AdapterFusion" not in fitting(recommend(target_examples=999))
    assert "AdapterFusion" in fitting(recommend(target_examples=1000))
    assert "AdapterFusion" in fitting(recommend(target_examples=50, full_from=50))


def test_methods_trained_jointly_fit_only_who_may_train_anew() -> None:
    known = recommend(target_examples=5000, tasks="known")
    assert {match.method.kind for match in known.fits} == {"moerging", "system"}
    assert "SMEAR" in fitting(recommend(target_examples=5000, tasks="known", joint_training=True))


def test_nothing_known_rules_nothing_out_but_joint_training() -> None:
    found = recommend()
    assert fitting(found) == {m.name for m in inventory() if m.kind != "joint"}
    assert {m.method.name for m in found.near_misses} == {
        m.name for m in inventory() if m.kind == "joint"
    }


@settings(max_examples=25)
@given(situations)
def test_fits_have_nothing_unmet_and_near_misses_one_fact(case: Situation) -> None:
    found = recommend(case)
    expected = {m.name: [f for f in findings(m, case) if not f.fits] for m in inventory()}
    assert fitting(found) == {name for name, unmet in expected.items() if not unmet}
    near = {m.method.name for m in found.near_misses}
    assert near == {name for name, unmet in expected.items() if len(unmet) == 1}


@settings(max_examples=25)
@given(situations)
def test_a_near_miss_fits_once_its_fact_is_given_up(case: Situation) -> None:
    for match in recommend(case).near_misses:
        fact = match.unmet[0].fact
        known = case.to_dict()
        for name in ("target_examples", "target_inputs") if fact == "target_data" else (fact,):
            known.pop(name, None)
        if fact == "joint_training":
            known["joint_training"] = True
        assert recommend(Situation(**known), among=[match.method]).fits


@settings(max_examples=25)
@given(situations)
def test_more_freedom_never_rules_a_method_out(case: Situation) -> None:
    before = fitting(recommend(case))
    freer: list[dict[str, Any]] = [{"private_data": False}, {"custom_training": True}]
    freer += [{"joint_training": True}]
    if case.target_examples is not None:
        freer.append({"target_examples": case.target_examples + 1000})
    for changes in freer:
        assert before <= fitting(recommend(Situation(**facts(case, **changes))))


@settings(max_examples=25)
@given(situations)
def test_the_implemented_come_first_then_those_that_fit_in_every_variant(case: Situation) -> None:
    found = recommend(case)
    for matches in (found.fits, found.near_misses):
        keys = [(not m.routers, any(f.varies for f in m.findings)) for m in matches]
        assert keys == sorted(keys)


def test_only_the_methods_given_are_recommended() -> None:
    some = methods(expert_aggregation="Parameter")
    found = recommend(among=some, private_data=True)
    assert {m.method for m in (*found.fits, *found.near_misses)} <= set(some)
    assert found.fits


def test_a_fact_that_does_not_exist_and_two_ways_at_once_are_refused() -> None:
    with pytest.raises(
        UsageError, match="fact of a situation 'privat_data'; did you mean 'private"
    ):
        recommend(privat_data=True)
    with pytest.raises(InputError, match="per: expected one of token, example, task"):
        recommend(per="word")
    with pytest.raises(TypeError, match="a situation or facts"):
        recommend(Situation(), per="token")


def test_plain_data_hold_the_situation_and_the_reasons() -> None:
    plain = recommend(private_data=True, target_examples=0).to_dict()
    assert plain["situation"] == {
        "private_data": True, "target_examples": 0, "joint_training": False, "full_from": 1000,
    }  # fmt: skip
    by_name = {entry["method"]: entry for entry in plain["near_misses"]}
    assert by_name["LoraHub"]["unmet"] == {"target_data": "needs a few labelled examples"}
    assert by_name["LoraHub"]["because"].keys() == {"private_data"}
    arrow = next(entry for entry in plain["fits"] if entry["method"] == "Arrow")
    assert arrow["departures"].keys() == {"arrow"}


def test_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(moerging).failed == 0
