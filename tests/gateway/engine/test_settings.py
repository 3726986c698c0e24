"""Settings: what is refused, and that the page about them is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from crossroads.core.errors import InputError
from crossroads.gateway.engine import Engine, EngineSettings, IdempotencySettings
from tests.gateway.engine.scripted import Scripted

PAGE = Path(__file__).parents[3] / "docs/gateway/failures.md"
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"retries": -1}, "greater than or equal to 0"),
        ({"deadline_s": 0}, "greater than 0"),
        ({"retires": 1}, "Extra inputs are not permitted"),
        ({"breaker": {"open_s": 61}}, "open_max_s must be at least open_s"),
        ({"hedge": {"max_share": 2}}, "less than or equal to 1"),
        ({"pass_headers": ["x-one: two"]}, "is no name of a header"),
        ({"pass_headers": ["X-Trace", "Authorization"]}, "authorization must never be passed on"),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineSettings.model_validate(wrong)


def test_header_names_are_compared_in_lower_case() -> None:
    assert EngineSettings(pass_headers=(" X-Trace ",)).pass_headers == ("x-trace",)


def test_a_model_that_does_not_exist_is_refused_before_anything_is_served() -> None:
    fields = {"vlm": {"continue_final_message": True}}
    settings = EngineSettings.model_validate({"continuation": {"fields": fields}})
    with pytest.raises(InputError, match=r"continuation\.fields: unknown model 'vlm'.*'vllm'"):
        Engine({"vllm": Scripted("vllm")}, settings)


def test_the_examples_of_the_page_are_valid_and_show_the_defaults() -> None:
    examples = [yaml.safe_load(block) for block in BLOCK.findall(PAGE.read_text("utf-8"))]
    assert len(examples) == 3
    shown = EngineSettings.model_validate(examples[0]["failures"])
    hedge = shown.hedge.model_copy(update={"after_s": None})  # off unless asked for
    assert shown.model_copy(update={"hedge": hedge}) == EngineSettings()
    kept = IdempotencySettings.model_validate(examples[0]["idempotency"])
    assert kept == IdempotencySettings()
    assert EngineSettings.model_validate(examples[1]["failures"]) == EngineSettings()
    EngineSettings.model_validate(examples[2]["failures"])
