"""The cards, and measuring a claim."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from crossroads.core import catalog
from crossroads.core.catalog import Card, Verdict
from crossroads.core.errors import InputError, UsageError

ROOT = Path(__file__).parents[2]
NAMES = [
    "routerarena",
    "doing-more-with-less",
    "tryage",
    "composition-of-experts",
    "arch-router",
    "sdm",
    "router-r1",
    "xrouter",
    "r1-router",
    "mixture-of-thoughts",
    "mogu",
    "vision-moe",
    "vqmoe",
    "hyperrouter",
    "yuan-attention-router",
    "da-moe",
    "omni-router",
    "promoe",
    "dynamic-moe",
    "adamoe",
    "rmoe",
    "graph-of-tokens",
    "thor",
    "openmoe",
    "chain-of-experts",
    "union-of-experts",
    "hecto",
    "language-family-experts",
    "adaptdhm",
    "rewiring",
    "read-me",
    "task-level-moe",
    "mhr",
    "phatgoose",
    "glider",
    "lora-mixer",
    "dynmole",
    "flylora",
    "moerging-survey",
    "router-tuning",
    "dr-llm",
    "duo-llm",
    "exflow",
    "expertflow",
    "local-routing-consistency",
    "packet-spraying",
    "rrnco",
    "words-to-routes",
    "network-design",
    "learn-to-follow",
    "preroutgnn",
    "satellite-connectivity",
    "mesh-authentication",
    "mogfn",
    "diffusionnag",
    "kinetic-optimal-paths",
]

catalog_cards = catalog.load_cards()


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A card named ``probe`` whose claim is a function that each test sets."""
    module = types.ModuleType("probe_claims")
    monkeypatch.setitem(sys.modules, "probe_claims", module)
    entry = replace(catalog.card("thor"), name="probe", verify="probe_claims:measure")
    monkeypatch.setattr(catalog, "load_cards", lambda: (entry, catalog_cards[0]))
    return module


def test_the_catalogue_holds_exactly_the_published_systems_once_each() -> None:
    assert [card.name for card in catalog_cards] == NAMES
    assert len(NAMES) == 56


@pytest.mark.parametrize("card", catalog_cards, ids=lambda card: card.name)
def test_a_card_is_complete_and_plain(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.name)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert card.year == 2000 + int(card.arxiv[:2])
    assert card.url.endswith(card.arxiv)
    for text in (card.title, card.routes, card.claim.paper):
        assert text
        assert text.isascii()
        assert not text.endswith(".")


def test_no_paper_is_listed_twice() -> None:
    assert len({card.arxiv for card in catalog_cards}) == len(catalog_cards)


def test_families_are_the_rooms_in_order_of_appearance() -> None:
    expected = ["prompts", "knowledge", "adapters", "moe", "depth", "cluster", "world", "design"]
    assert catalog.families() == expected


def test_a_card_with_an_entry_point_is_verified_and_says_what_we_measured() -> None:
    for card in catalog_cards:
        assert card.status == ("verified" if card.verify else "planned")
        assert bool(card.claim.ours) == bool(card.verify)


@pytest.mark.parametrize(
    "card", [card for card in catalog_cards if card.verify], ids=lambda card: card.name
)
def test_every_entry_point_exists(card: Card) -> None:
    module, _, function = card.verify.partition(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(getattr(importlib.import_module(module), function))


def test_an_unknown_system_meets_the_nearest_spelling() -> None:
    with pytest.raises(UsageError, match="unknown system 'phatgose'; did you mean 'phatgoose'"):
        catalog.card("phatgose")


def test_a_planned_system_cannot_be_verified_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    later = replace(catalog_cards[0], name="later", verify="")
    monkeypatch.setattr(catalog, "load_cards", lambda: (later, catalog_cards[0]))
    with pytest.raises(UsageError, match=r"'later' is planned.*verifiable: routerarena"):
        catalog.verify("later")


def test_verifying_calls_the_entry_point_and_keeps_the_time(probe: types.ModuleType) -> None:
    calls = []

    def measure(full: bool) -> Verdict:
        calls.append(full)
        return Verdict(
            name="probe",
            verdict="null",
            paper={"gain": 0.1},
            measured={"gain": 0.0},
            seeds=(0, 1),
            data="toy",
        )

    probe.measure = measure  # type: ignore[attr-defined]
    verdict = catalog.verify("probe", full=True)
    assert calls == [True]
    assert verdict.seconds > 0
    assert verdict.to_dict() == {
        "name": "probe",
        "verdict": "null",
        "paper": {"gain": 0.1},
        "measured": {"gain": 0.0},
        "seeds": [0, 1],
        "seconds": verdict.seconds,
        "data": "toy",
    }


def test_a_verdict_is_one_of_four_words() -> None:
    with pytest.raises(InputError, match=r"verdict of 'x': expected one of holds, .* got 'maybe'"):
        Verdict(name="x", verdict="maybe", paper={}, measured={}, data="")  # type: ignore[arg-type]


def test_router_arena_scores_reproduce_the_published_leaderboard() -> None:
    verdict = catalog.verify("routerarena")
    assert verdict.verdict == "holds"
    assert verdict.measured["largest_error_points"] <= 0.06
    assert len(verdict.measured["scores"]) == len(verdict.paper["scores"]) == 13


def test_the_page_of_systems_is_what_the_cards_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "build_systems_table.py"))
    page = script["render"]()
    assert (ROOT / "docs" / "systems.md").read_text("utf-8") == page, (
        "run: python scripts/build_systems_table.py"
    )
    for card in catalog_cards:
        assert f"| `{card.name}` | [{card.title}]({card.url})" in page
