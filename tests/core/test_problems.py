from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from crossroads.core.problems import on_one_line, problems_of, yaml_problem

SECRET = "only-for-this-test-0123456789"


class Entry(BaseModel):
    """A line of a file."""

    model_config = ConfigDict(extra="forbid")

    in_: float = Field(default=0.0, ge=0, alias="in")
    names: tuple[str, ...] = ()


Lines = dict[str, Entry]


def told(value: Any, **options: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Lines).validate_python(value)
    return [str(problem) for problem in problems_of(caught.value, Lines, **options)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "expected fields and values, got a number"),
        ({"a": None}, "a: expected fields and values, got nothing"),
        ({"a": {"in": -1}}, "a.in: expected at least 0"),
        ({"a": {"inn": 1}}, "a: unknown field 'inn'; did you mean 'in'? Known: in, names"),
        ({"a": {"names": [1]}}, "a.names[0]: expected a text, got a number"),
        ({"a": {"names": datetime.date(2026, 1, 1)}}, "a.names: expected a list, got another kind"),
        ({"a\nb": {"in": "x"}}, "a\\nb.in: expected a number, got a text"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words_where_it_is_written(value: Any, said: str) -> None:
    (line,) = told(value)
    assert line.startswith(said)
    assert "\n" not in line


def test_no_value_is_told_unless_it_may_be() -> None:
    assert told({"a": {"in": -1}}, may_tell=lambda place: place[-1] == "in") == [
        "a.in: expected at least 0, got -1"
    ]
    (line,) = told({"a": {"in": SECRET}})
    assert SECRET not in line


def test_the_first_of_several_is_told_with_their_count() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Lines).validate_python({"a": {"in": -1, "x": 1}, "b": 3})
    found = problems_of(caught.value, Lines)
    assert on_one_line(found[1:2]) == "a.in: expected at least 0"
    assert on_one_line(found, remedy="; see") == f"{found[0]} (and 2 more; see)"
    assert "unknown field 'x'" in str(found[0])


@pytest.mark.parametrize(
    "text", [f"a: [{SECRET}", f"a: *{SECRET}", f"a: !{SECRET} x", f"a: '{SECRET}"]
)
def test_what_is_wrong_with_yaml_is_told_without_its_words(text: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    said = yaml_problem(caught.value)
    assert SECRET not in said
    assert "line 1" in said


def test_what_is_no_yaml_for_another_reason_is_told_too() -> None:
    with pytest.raises(ValueError, match="month") as caught:
        yaml.safe_load("2020-13-45")
    assert yaml_problem(caught.value) == "not a possible value"
    assert yaml_problem(RecursionError()) == "nested too deeply"
    assert yaml_problem(UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "x")) == "not UTF-8 at byte 1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "pool: [unclosed\n",
            "expected ',' or ']', but got '<stream end>' in line 2, column 1, "
            "while parsing a flow sequence from line 1, column 7",
        ),
        (
            "key: *secret\n",
            "found undefined alias '...' in line 1, column 6",
        ),
        (
            "\tkey: 1\n",
            r"found character '\t' that cannot start any token in line 1, column 1",
        ),
    ],
)
def test_signs_of_yaml_are_no_secret_and_names_may_be_one(text: str, told: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    assert yaml_problem(caught.value) == told
