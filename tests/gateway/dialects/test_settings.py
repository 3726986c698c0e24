from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from crossroads.gateway.dialects import ResponsesSettings

DOCS = Path(__file__).parents[3] / "docs" / "gateway" / "dialects.md"


@pytest.mark.parametrize(
    "fields",
    [
        {"store": "disk"},
        {"ttl_s": 0},
        {"ttl_s": 1e9},
        {"max_mib": 0},
        {"max_mib": float("inf")},
        {"most": 3},
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResponsesSettings(**fields)


def test_the_yaml_of_the_docs_is_valid() -> None:
    text = DOCS.read_text("utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    given = yaml.safe_load(block)["responses"]
    assert ResponsesSettings(**given).store == given["store"]
