"""The inventory: complete, valid, and strict about what is wrong."""

from __future__ import annotations

from importlib import resources

import pytest

from crossroads.adapters.survey import inventory as module
from crossroads.adapters.survey.inventory import COLUMNS, inventory, parse_inventory, row
from crossroads.core.catalog import load_cards
from crossroads.core.errors import InputError, UsageError
from tests.adapters.survey.examples import PHATGOOSE

GOOD = {
    "method": "One",
    "kind": "moerging",
    "source": "ours",
    "arxiv": "2408.07057",
    "experts": "adapters",
    **PHATGOOSE,
    "about": "what it does",
}


def text(*rows: dict[str, str]) -> str:
    lines = [",".join(COLUMNS), *(",".join(r[column] for column in COLUMNS) for r in rows)]
    return "\n".join(lines)


def test_the_authors_list_has_26_methods_and_stands_first() -> None:
    sources = [method.source for method in inventory()]
    assert sources == ["authors"] * 26 + ["ours"] * (len(sources) - 26)
    assert sources.count("ours") > 0


def test_the_authors_classify_no_jointly_trained_method() -> None:
    kinds = {method.kind for method in inventory() if method.source == "authors"}
    assert kinds == {"moerging", "system"}


@pytest.mark.parametrize(
    ("name", "aggregation", "granularity"),
    [
        ("AdapterFusion", "Output", "Step"),
        ("LoraHub", "Parameter", "Task"),
        ("LoraRetriever", "Multiple", "Example"),
        ("Co-LLM", "None", "Step"),
        ("PWE MoE", "Parameter", "N/A"),
    ],
)
def test_rows_say_what_the_authors_say(name: str, aggregation: str, granularity: str) -> None:
    cells = row(name).cells
    assert (cells.expert_aggregation, cells.input_granularity) == (aggregation, granularity)


def test_jointly_trained_methods_share_their_data_and_need_custom_training() -> None:
    joint = [method for method in inventory() if method.kind == "joint"]
    assert joint
    for method in joint:
        assert (method.cells.expert_data, method.cells.expert_training) == ("Shared", "Custom")


def test_papers_that_have_a_card_here_are_cited_as_there() -> None:
    cited = {method.arxiv for method in inventory()}
    systems = {"phatgoose", "glider", "lora-mixer", "dynmole", "flylora", "mhr", "mogu",
               "task-level-moe"}  # fmt: skip
    for card in load_cards():
        if card.name in systems:
            assert card.arxiv in cited, card.name


def test_no_paper_is_cited_twice() -> None:
    cited = [method.arxiv for method in inventory() if method.arxiv]
    assert len(cited) == len(set(cited))
    assert row("PHATGOOSE").url == "https://arxiv.org/abs/2402.05859"
    assert not row("mergekit-moe").url


def test_the_file_is_ascii_and_read_as_it_is() -> None:
    found = resources.files(module.__package__).joinpath("inventory.csv").read_text("ascii")
    assert parse_inventory(found, where="here") == inventory()


def test_an_unknown_method_meets_the_nearest_spelling() -> None:
    with pytest.raises(UsageError, match="did you mean 'PHATGOOSE'"):
        row("PHATGOSE")


def test_a_good_row_is_read() -> None:
    (method,) = parse_inventory(text(GOOD), where="mine.csv")
    assert method.to_dict() == {
        **{key: GOOD[key] for key in ("method", "kind", "source", "arxiv", "experts", "about")},
        "cells": PHATGOOSE,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_data": "Secret"}, "line 2: expert_data: expected one of Private, Shared, Multi"),
        ({"expert_data": ""}, "line 2: expert_data: expected one of .* got ''"),
        ({"kind": "mixed"}, "line 2: kind: expected one of moerging, joint, system, got 'mixed'"),
        ({"source": "us"}, "line 2: source: expected one of authors, ours, got 'us'"),
        ({"experts": "people"}, "line 2: experts: expected one of adapters, models, either"),
        ({"arxiv": "2408.7057"}, "line 2: arxiv: expected an identifier such as 2408.07057"),
        ({"method": " "}, "line 2: method is empty; write it"),
        ({"about": ""}, "line 2: about is empty; write it"),
        ({"about": "this, that"}, "line 2: expected 15 columns; quote texts that hold commas"),
    ],
)
def test_a_bad_row_is_refused_with_line_and_column(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=f"mine.csv, {message}"):
        parse_inventory(text({**GOOD, **changes}), where="mine.csv")


def test_a_short_row_a_repeated_one_and_another_header_are_refused() -> None:
    with pytest.raises(InputError, match="line 2: expected 15 columns"):
        parse_inventory(",".join(COLUMNS) + "\nOne,moerging", where="mine.csv")
    with pytest.raises(InputError, match="line 3: method 'One' is there twice"):
        parse_inventory(text(GOOD, GOOD), where="mine.csv")
    with pytest.raises(InputError, match=r"line 1: expected the columns method, .* got a, b"):
        parse_inventory("a,b\n1,2", where="mine.csv")
    with pytest.raises(InputError, match=r"line 1: .* got none"):
        parse_inventory("", where="mine.csv")
