from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.prompts.preferences.parsing import parse_route

NAMES = ["code", "law's letter", 'a "quoted" one']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"route": "code"}', "code"),
        ('```json\n{"route": "code"}\n```', "code"),
        ('```\n{"route":"code"}```', "code"),
        ("{'route': 'code'}", "code"),
        ('{\\n"route": "code"\\n}', "code"),
        ('{"route": "law\'s letter"}', "law's letter"),
        ('{"route": "a \\"quoted\\" one"}', 'a "quoted" one'),
        ('{"route": "other"}', None),
        ('{"route": ""}', None),
        ('{"route": "poetry"}', None),
        ('{"route": 3}', None),
        ('{"path": "code"}', None),
        ('["code"]', None),
        ("code", None),
        ("", None),
    ],
)
def test_an_answer_reads_as_its_route(text: str, expected: str | None) -> None:
    assert parse_route(text, NAMES) == expected


@given(st.text(min_size=1).filter(lambda name: name != "other"))
def test_every_name_written_as_json_is_read_back(name: str) -> None:
    assert parse_route(json.dumps({"route": name}), [name]) == name


@given(st.text())
def test_nothing_that_is_not_a_name_is_ever_returned(text: str) -> None:
    assert parse_route(text, NAMES) in {None, *NAMES}
