"""What docs/gateway.md and the architecture page say about the gateway is so."""

from __future__ import annotations

import ast
import asyncio
import csv
import random
import re
from pathlib import Path

import pytest
import yaml

from crossroads.gateway.checking import check
from crossroads.gateway.config import ServeConfig
from crossroads.gateway.governance.keyfile import KeyFile
from crossroads.prompts import fit_router, read_outcomes, read_pool, save_router
from crossroads.prompts.pool import parse_pool

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gateway.md"
PAGES = ROOT / "docs" / "gateway"
ROOMS = ROOT / "src" / "crossroads" / "gateway"
# Edges between rooms besides those to the trunk.
ALLOWED = {
    ("admin", "telemetry"),  # the names of metrics
    ("evaluation", "ledger"),  # the log it judges by
    ("upstreams", "dialects"),  # Anthropic's API for calls in chat
}


def yaml_blocks(page: Path = PAGE) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def outcomes(path: Path) -> None:
    """Made-up outcomes of the page's two models."""
    chance = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt_id", "prompt", "model", "score", "cost"])
        for n in range(60):
            for model, quality, cost in (("small", 0.5, 0.0001), ("large", 0.9, 0.01)):
                score = int(chance.random() < quality)
                rows.writerow([n, f"question {n} of {n % 7}", model, score, cost])


def test_the_configuration_of_the_page_is_one_a_server_starts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-not-one")
    pool, config = yaml_blocks()
    Path("pool.yaml").write_text(pool, "utf-8")
    Path("gateway.yaml").write_text(config, "utf-8")
    outcomes(Path("mine.csv"))
    fitted = fit_router("knn", read_outcomes("mine.csv"), pool=read_pool("pool.yaml"))
    save_router(fitted, Path("my-router"))
    KeyFile(Path("keys.yaml")).create("alice", team="research")
    assert asyncio.run(check("gateway.yaml")) == []  # a page warns of nothing it shows


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_section_that_a_page_shows_is_one(page: Path) -> None:
    for block in yaml_blocks(page):
        shown = yaml.safe_load(re.sub(r"\$\{\w+\}", "a-secret-of-the-test", block))
        if isinstance(shown.get("models"), list):
            parse_pool(block, where=page.name)
        elif shown.keys() <= ServeConfig.model_fields.keys():
            ServeConfig.model_validate(shown)
        else:
            assert "per_call" in block, "a file of prices, which is tested with its room"


def test_every_response_header_we_send_is_on_the_page() -> None:
    named = set(re.findall(r'b"(x-crossroads-[a-z-]+)"', (ROOMS / "headers.py").read_text("utf-8")))
    named |= set(re.findall(r'b"(x-crossroads-[a-z-]+)"', (ROOMS / "once.py").read_text("utf-8")))
    assert named
    text = PAGE.read_text("utf-8")
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_a_room_imports_the_trunk_and_no_other_room() -> None:
    rooms = {path.parent.name for path in ROOMS.glob("*/__init__.py")}
    edges = set()
    for path in ROOMS.glob("*/**/*.py"):
        room = path.relative_to(ROOMS).parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[:2] == ["crossroads", "gateway"] and parts[2:3] and parts[2] in rooms:
                    edges.add((room, parts[2]))
    found = {(here, there) for here, there in edges if here != there}
    assert found <= ALLOWED
    assert found, "the walk finds edges"
