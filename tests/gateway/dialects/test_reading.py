from __future__ import annotations

import json
from typing import Any

import pytest

from crossroads.gateway.dialects import forwarded
from crossroads.gateway.dialects.reading import json_object, kind, load, own_headers, wrong
from crossroads.gateway.errors import ApiError


def folded(own: Any, **headers: str) -> dict[bytes, bytes]:
    given = {f"x-crossroads-{name}".encode(): value.encode() for name, value in headers.items()}
    return dict(own_headers({"crossroads": own}, given))


def test_own_fields_say_the_same_as_headers() -> None:
    own = {"policy": "cheap", "session": "s 1", "tags": ["a", "b"], "cache": False}
    assert folded(own) == {
        b"x-crossroads-policy": b"cheap",
        b"x-crossroads-session": b"s 1",
        b"x-crossroads-tags": b"a,b",
        b"cache-control": b"no-store",
    }


def test_tags_add_to_the_header_and_the_rest_takes_its_place() -> None:
    headers = folded({"tags": ["b"], "policy": "two"}, tags="a", policy="one")
    assert headers == {b"x-crossroads-tags": b"a,b", b"x-crossroads-policy": b"two"}


def test_headers_are_untouched_without_own_fields() -> None:
    headers = {b"a": b"b"}
    assert own_headers({}, headers) is headers


@pytest.mark.parametrize(
    ("own", "param"),
    [
        ([], "crossroads"),
        ({"policy": 1}, "crossroads.policy"),
        ({"policy": ""}, "crossroads.policy"),
        ({"session": "a\nb"}, "crossroads.session"),
        ({"session": "\u4e2d"}, "crossroads.session"),
        ({"session": "x" * 257}, "crossroads.session"),
        ({"tags": "a"}, "crossroads.tags"),
        ({"tags": ["a,b"]}, "crossroads.tags"),
        ({"tags": [1]}, "crossroads.tags"),
        ({"seed": 7}, "crossroads.seed"),  # draws are the policy's: a client cannot choose one
        ({"cache": "no"}, "crossroads.cache"),
        ({"polcy": "desk"}, "crossroads.polcy"),
        ({"": 1}, "crossroads."),
    ],
)
def test_own_fields_of_another_kind_are_refused(own: Any, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        folded(own)
    assert (raised.value.status, raised.value.param) == (400, param)


def test_a_misspelt_own_field_is_told_the_right_one() -> None:
    with pytest.raises(ApiError, match="unknown field 'polcy'; did you mean 'policy'"):
        folded({"polcy": "desk"})


def test_own_fields_are_not_forwarded() -> None:
    body = {"model": "m", "crossroads": {}, "routing_preferences": [], "metadata": {"a": "b"}}
    assert forwarded(body) == {"model": "m", "metadata": {"a": "b"}}


@pytest.mark.parametrize("text", ["[1]", "{", "1", "null", 5, None])
def test_only_objects_are_objects(text: Any) -> None:
    with pytest.raises(ApiError):
        json_object(text, "p")


def test_an_empty_text_is_an_empty_object() -> None:
    assert json_object(" ", "p") == {} and json_object('{"a":1}', "p") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((None, "nothing"), (True, "a boolean"), (1.5, "a number"), ("", "an empty string")),
        *((0, "a number"), ([], "an empty list"), ({"a": 1}, "an object"), ({}, "an empty object")),
    ],
)
def test_values_are_named_in_words(value: Any, words: str) -> None:
    assert kind(value) == words


@pytest.mark.parametrize(
    ("given", "told"), [(2, "2"), (True, "true"), (10**60, "1" + 39 * "0"), ("2", "a string")]
)
def test_a_wrong_number_is_told_as_it_came(given: Any, told: str) -> None:
    assert (
        str(wrong("n", "1 for this model", given)) == f"'n' must be 1 for this model, got {told}."
    )


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_a_whole_number_that_would_be_rounded_is_refused(number: int) -> None:
    with pytest.raises(ApiError, match="'seed' does not fit in 64 bits") as raised:
        load(b'{"model": "m", "seed": %d}' % number)
    assert (raised.value.status, raised.value.param) == (400, "seed")


def test_a_number_too_long_to_be_read_is_refused() -> None:
    with pytest.raises(ApiError):
        load(b'{"seed": %s}' % (b"9" * 5000))


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "1e30", "0.7"])
def test_numbers_that_are_kept_as_they_are_pass(number: str) -> None:
    assert load(b'{"seed": %s}' % number.encode()) == {"seed": json.loads(number)}
