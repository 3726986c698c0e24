"""The configuration that the page on governance shows is one."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from crossroads.gateway.governance import GovernanceSettings
from crossroads.gateway.governance.prices import read_prices

PAGE = Path(__file__).parents[3] / "docs" / "gateway" / "governance.md"


def blocks() -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_section_validates() -> None:
    text = blocks()[0].replace("${BATCH_KEY}", "a-secret-of-the-test")
    settings = GovernanceSettings.model_validate(yaml.safe_load(text)["governance"])
    assert settings.teams["research"].budgets[0].pace


def test_the_prices_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(blocks()[1])
    assert read_prices(path)["image-model"] == (0.0, 0.0, 0.02)
