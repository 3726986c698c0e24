from __future__ import annotations

from typing import Any

import pytest

from crossroads.gateway.dialects.understanding import reads_answers
from crossroads.gateway.errors import ApiError
from crossroads.prompts.experts.base import ExpertError


@reads_answers
def first_text(answer: Any) -> str:
    text: str = answer["choices"][0].get("text").strip()
    return text


@pytest.mark.parametrize(
    "answer", [None, {}, {"choices": []}, {"choices": ["x"]}, {"choices": [{}]}]
)
def test_what_cannot_be_read_is_the_upstreams_failure(answer: Any) -> None:
    with pytest.raises(ExpertError, match="malformed") as raised:
        first_text(answer)
    assert (raised.value.status, raised.value.code) == (502, "upstream_invalid")
    assert raised.value.can_be_retried


def test_answers_and_other_errors_pass() -> None:
    assert first_text({"choices": [{"text": " a "}]}) == "a"

    @reads_answers
    def refuse() -> None:
        raise ApiError("no")

    with pytest.raises(ApiError):
        refuse()
