from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.errors import InputError
from crossroads.gateway.policies.patterns import Pattern


@pytest.mark.parametrize(
    "text",
    [
        r"(a+)+$",
        r"(a*)*b",
        r"([a-z]+)*!",
        r"(\d+)*x",
        r"(a|a)*$",
        r"(a|ab)*c",
        r"(x{1,99}y?)+",
        r"(?:(?:ab)+c)+",
        r"(?=(a+)+)b",
        r"(a+|b)*c",
        r"(a{1,3})*b",
        r"(a?a)*b",
        r"(?i)(?:aa|A)*b",
        "a?" * 30 + "a" * 30,
        r".*.*.*x",
    ],
)
def test_patterns_that_can_take_forever_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="take forever"):
        Pattern(text, where="policies.p")


@pytest.mark.parametrize("text", ["(", "[", "a{2,1}", "(?P<n>a)(?P<n>b)", "*"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"policies\.p: .* is no regular expression"):
        Pattern(text, where="policies.p")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (r"\bsql\b", 4000),
        (r"select .* from", 1000),
        (r"(foo|bar)*", 1000),
        (r".*.*x", 99),
        (r"(?>a+)b", 1000),
        (r"(?:a++)+b", 1000),
        (r"a{0,3}b?", 4000),
        (r"(?i)\b(code|coding|python)\b.*", 577),
    ],
)
def test_the_more_a_pattern_repeats_the_less_it_reads(text: str, length: int) -> None:
    assert Pattern(text, where="p").length == length


def test_what_stands_beyond_the_limit_is_not_found() -> None:
    pattern = Pattern("needle", where="p")
    assert not pattern.found_in("hay " * 999 + "needle")
    assert pattern.found_in("hay needle")


def test_the_worst_accepted_patterns_end() -> None:
    for text in (r"a*a*b", r".*.*=", r"a?a?a?a?a?a?b", r"\s+$"):
        assert not Pattern(text, where="p").found_in("a" * 100_000)


@given(st.text(alphabet="ab c1", max_size=60))
def test_within_the_limit_the_answer_is_that_of_re(text: str) -> None:
    for pattern in (r"a+b", r"\d\s", r"^a|c$", r"(?:ab|c1)+ "):
        assert Pattern(pattern, where="p").found_in(text) == bool(re.search(pattern, text))
