"""A user's case: as text, as facts, and what contradicts itself."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.survey import situation as module
from crossroads.adapters.survey.inventory import row
from crossroads.adapters.survey.situation import Situation, findings, parse_situation
from crossroads.core.errors import InputError, UsageError
from tests.adapters.survey.examples import cells


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "private_data": st.booleans(),
            "custom_training": st.booleans(),
            "target_examples": st.integers(1, 10**6),
            "target_inputs": st.just(True),
            "tasks": st.sampled_from(["known", "new", "both"]),
            "per": st.sampled_from(["token", "example", "task"]),
            "experts": st.sampled_from(["adapters", "models"]),
            "joint_training": st.booleans(),
            "full_from": st.integers(1, 10**6),
        },
    ).filter(bool)
)
def test_a_situation_survives_as_text(facts: dict[str, Any]) -> None:
    words = {True: "yes", False: "no"}
    parts = [
        f"{name.replace('_', '-')}={words[value] if isinstance(value, bool) else value}"
        for name, value in facts.items()
    ]
    assert parse_situation(" , ".join(parts)) == Situation(**facts)


def test_a_fact_alone_is_a_yes() -> None:
    assert parse_situation("private-data,joint_training").to_dict() == {
        "private_data": True,
        "joint_training": True,
        "full_from": 1000,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected facts separated by commas; there are: private-data, "),
        (" , ", "expected facts separated by commas"),
        ("privte-data", "fact of a situation 'privte-data'; did you mean 'private-data'"),
        ("per=tokn", "value of per 'tokn'; did you mean 'token'"),
        ("per", r"situation: per takes a value; write per=token\|example\|task"),
        ("target-examples", "target-examples takes a value; write target-examples=NUMBER"),
        ("target-examples=few", "target-examples: expected a whole number >= 0, got 'few'"),
        ("target-examples=-1", "target-examples: expected a whole number >= 0, got '-1'"),
        ("private-data=maybe", "private-data: expected yes or no, got 'maybe'"),
        ("per=token,per=task", "per is given twice; keep one of them"),
        ("full-from=0", "situation: full_from: expected a whole number >= 1, got 0"),
        ("target-examples=3,target-inputs=no", "target_inputs is False but there are 3"),
    ],
)
def test_what_a_text_gets_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_situation(text)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"target_examples": -1}, "target_examples: expected a whole number >= 0, got -1"),
        ({"target_examples": 2.5}, "target_examples: expected a whole number >= 0, got 2.5"),
        ({"target_examples": True}, "target_examples: expected a whole number >= 0, got True"),
        ({"tasks": "old"}, "tasks: expected one of known, new, both, got 'old'"),
        ({"private_data": "yes"}, "private_data: expected True or False, got 'yes'"),
        ({"joint_training": None}, "joint_training: expected True or False, got None"),
    ],
)
def test_facts_are_checked(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Situation(**facts)


@pytest.mark.parametrize(
    ("facts", "has"),
    [
        ({}, None),
        ({"target_examples": 0}, False),
        ({"target_examples": 1}, True),
        ({"target_examples": 0, "target_inputs": True}, True),
        ({"target_inputs": False}, False),
    ],
)
def test_who_has_examples_has_inputs(facts: dict[str, Any], has: bool | None) -> None:
    assert Situation(**facts).has_target_inputs is has


@pytest.mark.parametrize(
    ("name", "facts", "fact", "fits", "why"),
    [
        ("MeteoRA", {"private_data": True}, "private_data", False, "must see the experts'"),
        ("CALM", {"private_data": True}, "private_data", True, "a variant leaves"),
        ("Arrow", {"private_data": True}, "private_data", True, "leaves the experts' data"),
        ("Arrow", {"custom_training": False}, "custom_training", True, "ordinary fine-tuning"),
        ("PHATGOOSE", {"custom_training": False}, "custom_training", False, "must add something"),
        ("LoraHub", {"target_examples": 0}, "target_data", False, "a few labelled examples"),
        ("LoraHub", {"target_examples": 1}, "target_data", True, "a few labelled examples"),
        ("X-LoRA", {"target_examples": 999}, "target_data", False, "1000 examples or more"),
        ("X-LoRA", {"target_inputs": True}, "target_data", True, "asks for a data set"),
        ("X-LoRA", {"target_inputs": False}, "target_data", False, "inputs of the target task"),
        ("RouteLLM", {"target_examples": 0}, "target_data", True, "in some variants only"),
        ("PWE MoE", {"per": "token"}, "per", False, "by something else than the input"),
        ("Arrow", {"tasks": "both"}, "tasks", False, "no expert was trained on"),
        ("GLIDER", {"tasks": "both"}, "tasks", True, "known and for new tasks"),
        ("RouteLLM", {"experts": "adapters"}, "experts", False, "routes among models"),
        ("DynMoLE", {}, "joint_training", False, "existing experts are of no use"),
    ],
)
def test_a_finding_says_why(
    name: str, facts: dict[str, Any], fact: str, fits: bool, why: str
) -> None:
    (found,) = [f for f in findings(row(name), Situation(**facts)) if f.fact == fact]
    assert found.fits is fits
    assert why in found.why


@pytest.mark.parametrize("facts", [{}, {"private_data": False}, {"custom_training": True}])
def test_facts_that_rule_nothing_out_find_nothing(facts: dict[str, Any]) -> None:
    assert not findings(row("MeteoRA"), Situation(**facts))


@pytest.mark.parametrize(
    ("name", "fact", "varies"),
    [
        ("CALM", "private_data", True),
        ("RouteLLM", "private_data", True),
        ("Arrow", "private_data", False),
        ("MeteoRA", "private_data", False),
        ("Airoboros and LlamaIndex", "custom_training", True),
        ("PHATGOOSE", "custom_training", False),
        ("PEMT", "target_data", True),
        ("LoraHub", "target_data", False),
    ],
)
def test_multiple_makes_a_fit_depend_on_the_variant(name: str, fact: str, varies: bool) -> None:
    case = Situation(private_data=True, custom_training=False, target_examples=1)
    (found,) = [f for f in findings(row(name), case) if f.fact == fact]
    assert found.varies is varies


def test_a_router_built_on_the_experts_data_needs_them_whatever_the_row_calls_them() -> None:
    method = replace(row("Arrow"), cells=cells(expert_data="Private", routing_dataset="Expert"))
    (found,) = findings(method, Situation(private_data=True))
    assert not found.fits


def test_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(module).failed == 0
