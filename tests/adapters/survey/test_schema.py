"""The nine axes and the cells of a method."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.adapters.survey import schema
from crossroads.adapters.survey.schema import AXES, Cells, combining_modes
from crossroads.core.errors import InputError, UsageError
from tests.adapters.survey.examples import PHATGOOSE, any_cells, cells


def test_there_are_nine_axes_in_three_parts() -> None:
    assert len(AXES) == 9
    parts = [axis.design for axis in AXES.values()]
    assert [parts.count(part) for part in dict.fromkeys(parts)] == [2, 5, 2]


def test_types_of_the_cells_allow_what_the_axes_allow() -> None:
    hints = get_type_hints(Cells)
    assert [f.name for f in fields(Cells)] == list(AXES)
    for name, axis in AXES.items():
        assert get_args(hints[name]) == tuple(axis.values)


@given(any_cells)
def test_cells_survive_plain_data(given_cells: Cells) -> None:
    plain: dict[str, Any] = given_cells.to_dict()
    assert list(plain) == list(AXES)
    assert Cells(**plain) == given_cells


@given(
    st.sampled_from(list(AXES)),
    st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text())),
)
def test_a_value_outside_its_axis_is_refused_by_name(axis: str, value: Any) -> None:
    if value in list(AXES[axis].values):
        return
    with pytest.raises(InputError) as refused:
        cells(**{axis: value})
    message = str(refused.value)
    assert message.startswith(f"{axis}: expected one of {', '.join(AXES[axis].values)}, got ")
    assert repr(value) in message


def test_none_the_word_is_a_value_and_none_the_object_is_not() -> None:
    assert cells(routing_dataset="None").routing_dataset == "None"
    with pytest.raises(InputError, match=r"routing_dataset: .* got None$"):
        cells(routing_dataset=None)


@given(any_cells, any_cells)
def test_differences_are_the_axes_on_which_values_differ(one: Cells, other: Cells) -> None:
    found = one.differences(other)
    assert {axis: (b, a) for axis, (a, b) in found.items()} == other.differences(one)
    changed: dict[str, Any] = {**one.to_dict(), **{a: pair[1] for a, pair in found.items()}}
    assert Cells(**changed) == other
    assert not one.differences(one)


@given(st.sampled_from(list(AXES.values())), st.data())
def test_spelling_ignores_case_dashes_and_spaces(axis: schema.Axis, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(list(axis.values)))
    mark = data.draw(st.sampled_from(["-", "_", " "]))
    for text in (value, value.lower(), value.upper()):
        assert axis.spelled(text.replace("-", mark)) == value


def test_a_misspelt_value_meets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"value of user_dataset 'zeroshot'; did you mean 'Zero-S"):
        AXES["user_dataset"].spelled("zeroshot")


@pytest.mark.parametrize(
    ("changes", "modes"),
    [
        ({"expert_aggregation": "Output"}, {"mix"}),
        (
            {"expert_aggregation": "Parameter", "input_granularity": "Task"},
            {"merge_delta", "merge_factors"},
        ),
        (
            {"expert_aggregation": "Parameter", "input_granularity": "Step"},
            {"mix", "merge_delta", "merge_factors"},
        ),
        ({"expert_aggregation": "None"}, {"mix", "merge_delta", "merge_factors"}),
        ({"expert_aggregation": "Multiple"}, {"mix", "merge_delta", "merge_factors"}),
    ],
)
def test_modes_follow_from_the_aggregation(changes: dict[str, str], modes: set[str]) -> None:
    assert combining_modes(cells(**changes)) == modes


def test_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(schema).failed == 0
    assert PHATGOOSE.keys() == AXES.keys()


def test_asking_the_survey_imports_no_torch() -> None:
    code = (
        "import sys; from crossroads.adapters.survey import recommend; recommend(per='token'); "
        "import crossroads.cli.adapters.survey; "
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
