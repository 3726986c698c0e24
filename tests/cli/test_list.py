"""``crossroads list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crossroads.cli.list import command
from crossroads.core.catalog import families, load_cards
from crossroads.core.errors import UsageError
from crossroads.prompts import routers
from crossroads.prompts.routers import router_names
from crossroads.prompts.taxonomy import ATTRIBUTES, place

KEYS = {"name", "family", "title", "arxiv", "status", "verify"}
PLACE_KEYS = {"timing", "method", "axis", "needs", "adding_a_model", "knowledge", "hindsight"}


def listed(*arguments: str) -> list[dict[str, str]]:
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    rows: list[dict[str, str]] = json.loads(result.output)
    return rows


def test_json_lists_exactly_the_systems_with_the_documented_keys() -> None:
    rows = listed()
    assert all(row.keys() == KEYS for row in rows)
    assert [row["name"] for row in rows] == [card.name for card in load_cards()]


def test_the_routers_are_a_list_of_their_own() -> None:
    assert [row["name"] for row in listed("routers")] == router_names()


@pytest.mark.parametrize("family", families())
def test_a_family_narrows_the_list_to_itself(family: str) -> None:
    rows = listed(family)
    assert rows == [row for row in listed() if row["family"] == family]


def test_status_follows_from_what_can_be_verified() -> None:
    for row in listed():
        assert row["status"] == ("verified" if row["verify"] else "planned")
    assert {row["status"] for row in listed("routers")} == {"available"}


def test_the_table_in_a_pipe_has_one_line_for_each_row() -> None:
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + len(listed())
    assert lines[0].split()[0] == "name"
    for card, line in zip(load_cards(), lines[1:], strict=False):
        assert line.split()[0] == card.name
        assert card.routes in line
        assert line.split()[-1] == card.status


def test_an_unknown_family_meets_the_nearest_spelling() -> None:
    with pytest.raises(UsageError, match="unknown family 'prompt'; did you mean 'prompts'"):
        CliRunner().invoke(command, ["prompt"], catch_exceptions=False)


def test_a_router_that_cannot_be_loaded_is_listed_by_its_module_and_named_on_stderr(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = '"""Sends all to the first model.\n\nMore."""\nraise ImportError("no wheels")\n'
    (tmp_path / "first_model.py").write_text(source, "utf-8")
    monkeypatch.setattr(routers, "__path__", [*routers.__path__, str(tmp_path)])
    (row,) = [row for row in listed("routers") if row["name"] == "first-model"]
    assert row["title"] == "Sends all to the first model"
    assert row["status"] == "broken"
    assert {row[key] for key in PLACE_KEYS} == {None}
    result = CliRunner().invoke(command, ["routers", "--by", "axis"], catch_exceptions=False)
    assert "router 'first-model' cannot be loaded: no wheels" in result.stderr
    assert result.stdout.splitlines()[-1].split()[:2] == ["-", "first-model"]


def test_routers_are_listed_with_their_places_in_the_scheme() -> None:
    for row in listed("routers"):
        assert row.keys() == KEYS | PLACE_KEYS
        at = place(row["name"])
        assert {key: row[key] for key in PLACE_KEYS} == {k: getattr(at, k) for k in PLACE_KEYS}


@pytest.mark.parametrize("by", ["timing", "method", "axis", "needs", "adding-a-model"])
def test_grouping_keeps_every_router_and_the_order_of_the_scheme(by: str) -> None:
    attribute = by.replace("-", "_")
    rows = listed("routers", "--by", by)
    assert sorted(row["name"] for row in rows) == router_names()
    ranks = [ATTRIBUTES[attribute].index(row[attribute]) for row in rows]
    assert ranks == sorted(ranks)
    result = CliRunner().invoke(command, ["routers", "--by", by], catch_exceptions=False)
    assert len(result.stdout.splitlines()) == 1 + len(rows)
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:]] == [
        row[attribute] for row in rows
    ]


def test_routers_of_tokens_are_listed_as_they_are_built() -> None:
    from crossroads.moe.routers import build_router
    from crossroads.moe.routers import router_names as moe_router_names

    rows: list[dict[str, Any]] = listed("moe-routers")
    assert [row["name"] for row in rows] == moe_router_names()
    for row in rows:
        assert row.keys() == KEYS | {"causal", "needs", "settings", "types"}
        assert row["types"].keys() == row["settings"].keys()
        assert row["title"]
        router = build_router(row["name"], 8, 8)
        assert (row["causal"], row["needs"]) == (router.causal_safe, sorted(router.needs))
    settings = {row["name"]: row["settings"] for row in rows}
    assert settings["top-p"]["p"] == 0.4
    types = {row["name"]: row["types"] for row in rows}
    assert types["adamoe"]["n_null"] == "a whole number or none"
    assert types["top2"]["later"] == "one of all, random"
    assert types["switch"]["capacity"] == "a number, a Capacity or none"
    found = {row["name"]: (row["arxiv"], row["verify"]) for row in rows}
    assert found["top-p"] == ("2403.07652", "crossroads.moe.claims.dynamic_moe:verify")
    assert found["soft"] == ("2401.15969", "crossroads.moe.claims.vision_moe:verify")
    assert found["switch"] == ("", "")
    told = {verify for _, verify in found.values() if verify}
    cards = [card for card in load_cards() if card.family == "moe" and card.verify]
    assert told == {card.verify for card in cards}
    assert "kinds" not in settings["top-p"]  # of a model builder, not of the text form


def test_the_table_of_token_routers_says_what_a_decoder_refuses() -> None:
    result = CliRunner().invoke(command, ["moe-routers"], catch_exceptions=False)
    said = {line.split()[0]: line.split()[-2:] for line in result.stdout.splitlines()[1:]}
    assert said["soft"] == ["no", "-"]
    assert said["da-moe"] == ["no", "attn"]
    assert said["top2"] == ["yes", "-"]
    assert "in a language model it is promoe:uncond=false" in result.stderr


def test_a_token_router_that_cannot_be_loaded_is_named_on_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from crossroads.moe import routers as of_tokens

    class Entry:
        def load(self) -> None:
            raise ImportError("no wheels")

    monkeypatch.setattr(of_tokens.REGISTRY, "_others", {"margin": Entry()})
    result = CliRunner().invoke(command, ["moe-routers"], catch_exceptions=False)
    assert "router 'margin' cannot be loaded: no wheels" in result.stderr
    assert "added by another package" in result.stdout


def test_routers_among_adapters_are_listed_with_what_they_must_be_given() -> None:
    from crossroads.adapters.needs import GROUPS
    from crossroads.adapters.routers import router_names as adapter_router_names

    rows: list[dict[str, Any]] = listed("adapter-routers")
    assert [row["name"] for row in rows] == adapter_router_names()
    for row in rows:
        assert row.keys() == KEYS | {"group", "mode", "needs", "settings"}
        assert row["title"] and row["group"] in GROUPS
    found = {row["name"]: row for row in rows}
    assert found["phatgoose"]["needs"] == ["gate of every expert"]
    assert found["phatgoose"]["settings"]["k"] == 2
    assert found["arrow"]["needs"] == [] and found["arrow"]["group"] == "adapters"


def test_the_table_of_adapter_routers_explains_its_groups() -> None:
    result = CliRunner().invoke(command, ["adapter-routers"], catch_exceptions=False)
    said = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert (
        said["glider"]
        .rstrip()
        .endswith("gate of every expert, embeddings of every expert, the prompt's embedding")
    )
    assert "contributors: needs what contributors add" in result.stderr
    assert said["retrieval"].rstrip().endswith("embeddings of every expert, the prompt's embedding")
    assert said["x-lora"].rstrip().endswith("to be taught (adapters teach)")
    assert said["arrow"].endswith(" -") and said["best-single"].endswith(" expert=NAME")
    assert all(line == line.rstrip() and "``" not in line for line in result.stdout.splitlines())


def test_only_routers_are_grouped() -> None:
    with pytest.raises(UsageError, match="crossroads list routers --by method"):
        CliRunner().invoke(command, ["--by", "method"], catch_exceptions=False)
