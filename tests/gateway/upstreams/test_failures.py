"""What upstreams ask us to wait, and how their words are quoted."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.core.http.connection import FailureKind, HttpFailure
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.failures import excerpt, json_object, seconds_to_wait


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7),
        ({b"retry-after": b" 1.5 "}, 1.5),
        ({b"retry-after": b"0"}, 0),
        ({b"retry-after": b"9" * 400}, 86_400),
        ({b"retry-after": b"Fri, 31 Dec 9998 23:59:59 GMT"}, 86_400),
        ({b"retry-after-ms": b"250", b"retry-after": b"9"}, 0.25),
        ({b"retry-after-ms": b"soon", b"retry-after": b"9"}, 9),
        ({b"retry-after": b"-3"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"1e9"}, None),
        ({b"retry-after": b"tomorrow"}, None),
        ({b"retry-after": b"Fri, 99 Foo 2026 99:99:99 GMT"}, None),
        ({b"retry-after": b"Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({b"retry-after": b"\xb2"}, None),
    ],
)
def test_what_an_upstream_asks_to_wait(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert seconds_to_wait(headers) == seconds


def test_a_date_to_come_back_at_is_a_time_from_now() -> None:
    headers = {b"retry-after": formatdate(time.time() + 60, usegmt=True).encode()}
    seconds = seconds_to_wait(headers)
    assert seconds is not None
    assert 50 < seconds <= 60


@given(st.dictionaries(st.sampled_from([b"retry-after", b"retry-after-ms"]), st.binary()))
def test_no_header_whatever_breaks_the_reader(headers: dict[bytes, bytes]) -> None:
    seconds = seconds_to_wait(headers)
    assert seconds is None or seconds >= 0


@given(st.binary(), st.integers(400, 599))
def test_no_body_whatever_breaks_the_error(body: bytes, status: int) -> None:
    error = Failures("model 'm'").of_status(status, {}, body)
    assert "\n" not in str(error)
    assert 400 <= error.status < 600


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_error_object_whatever_breaks_the_error(given_object: object) -> None:
    error = Failures("model 'm'").reported(given_object)
    assert error.status in {502, 503}
    assert "\n" not in str(error)


def test_short_secrets_do_not_strike_out_words() -> None:
    failures = Failures("model 'm'", ["none", "a-long-secret"])
    assert str(failures.error("none of a-long-secret")) == "model 'm': none of ***"


def test_an_excerpt_is_short_and_on_one_line() -> None:
    assert excerpt(b"a\r\n b\t c") == "a b c"
    assert len(excerpt(b"x" * 10_000)) < 210


@pytest.mark.parametrize("data", [b"", b"[]", b"5", b"nul", b"\xff\xfe", b"{]"])
def test_what_is_no_object_is_none(data: bytes) -> None:
    assert json_object(data) is None


@pytest.mark.parametrize(
    ("kind", "status", "is_spent"),
    [
        *(("connect", 503, False), ("late", 504, False), ("lost", 503, False)),
        *(("timeout", 504, True), ("cut", 502, True), ("invalid", 502, True)),
    ],
)
def test_only_a_call_that_was_begun_upstream_may_be_billed(
    kind: FailureKind, status: int, is_spent: bool
) -> None:
    error = Failures("model 'm'").of_transport(HttpFailure(kind, "it failed"))
    assert (error.status, isinstance(error, SpentError)) == (status, is_spent)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_refusal_is_not_billed(status: int) -> None:
    error = Failures("model 'm'").of_status(status, {}, b"{}")
    assert not isinstance(error, SpentError)


@pytest.mark.parametrize("body", [b"{}", b'{"error": {"type": "not_found_error"}}'])
def test_a_model_that_is_unknown_upstream_is_told_in_the_words_of_chat(body: bytes) -> None:
    error = Failures("model 'm'").of_status(404, {}, body)
    assert (error.status, error.type) == (404, "invalid_request_error")
