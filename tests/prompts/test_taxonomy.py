"""Where routers stand in the survey's scheme, and what a leaderboard owes its reader."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from crossroads.core.errors import InputError, UsageError
from crossroads.prompts import routers
from crossroads.prompts.router import PromptRouter
from crossroads.prompts.routers import GROUP, build_router, router_class, router_names
from crossroads.prompts.taxonomy import (
    ATTRIBUTES,
    describe,
    grouped,
    knowledge,
    place,
    taxonomy,
    unlike_knowledge,
)
from tests.prompts.toy import ToyRouter


def changed(**attributes: object) -> type[PromptRouter]:
    return type("Changed", (ToyRouter,), attributes)


@pytest.mark.parametrize("name", router_names())
def test_every_shipped_router_has_a_place_and_says_so(name: str) -> None:
    at = place(name)
    for attribute, values in ATTRIBUTES.items():
        assert getattr(at, attribute) in values
        if attribute != "needs":
            assert f"{getattr(at, attribute)}: " in describe(name)
    assert at.knowledge in describe(name)
    assert describe(name).splitlines()[0] == f"{name}: {router_class(name).summary}"


def test_a_name_its_class_and_an_instance_stand_in_the_same_place() -> None:
    assert place("knn") == place("knn:k=20") == place(router_class("knn"))
    assert place("knn") == place(build_router("knn"))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_value_outside_the_scheme_names_router_and_attribute(attribute: str) -> None:
    with pytest.raises(InputError) as caught:
        place(changed(**{attribute: "by magic"}))
    message = str(caught.value)
    assert message.startswith(f"router 'toy': {attribute} is 'by magic'; expected one of: ")
    assert message.endswith(", ".join(ATTRIBUTES[attribute]))


@pytest.mark.parametrize("attributes", [{"hindsight": True}, {"needs": "the outcomes to come"}])
def test_only_a_bound_needs_the_outcomes_to_come(attributes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="a bound, and nothing else"):
        place(changed(**attributes))
    both = {"hindsight": True, "needs": "the outcomes to come"}
    assert "bound" in describe(changed(**both))


def test_an_unknown_router_is_refused_with_the_nearest_spelling() -> None:
    with pytest.raises(UsageError, match="did you mean 'knn'"):
        place("knm")


def test_the_table_holds_routers_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("toy", f"{ToyRouter.__module__}:ToyRouter", GROUP)
    with monkeypatch.context() as patch:
        patch.setattr("crossroads.core.registry.entry_points", lambda group: [entry])
        routers.REGISTRY.forget()
        rows = taxonomy()
    routers.REGISTRY.forget()
    assert [row.name for row in rows] == sorted({*router_names(), "toy"})


@pytest.mark.parametrize("by", ATTRIBUTES)
def test_groups_part_the_routers_in_the_order_of_the_scheme(by: str) -> None:
    rows = taxonomy()
    groups = grouped(rows, by)
    assert sorted(p.name for group in groups.values() for p in group) == [p.name for p in rows]
    assert list(groups) == [value for value in ATTRIBUTES[by] if value in groups]
    for value, group in groups.items():
        assert {getattr(p, by) for p in group} == {value}


def test_an_unknown_attribute_to_group_by_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'method'"):
        grouped(taxonomy(["knn"]), "metod")


def test_a_place_is_plain_data() -> None:
    assert place("best-single").to_dict() == {
        "name": "best-single",
        "summary": router_class("best-single").summary,
        "timing": "pre-generation",
        "method": "none",
        "axis": "any",
        "needs": "mean scores",
        "adding_a_model": "few examples",
        "domains": "",
        "hindsight": False,
    }


def test_what_a_router_is_told_is_one_cell() -> None:
    assert knowledge("knn") == "full outcome table"
    assert knowledge("category") == "full outcome table, subjects or domains"
    assert knowledge("composition") == "full outcome table, domains"
    assert knowledge("auto") == "full outcome table, subjects or domains if given"
    assert knowledge("oracle") == "the outcomes to come"


def test_routers_told_alike_need_no_note_and_baselines_never_do() -> None:
    assert unlike_knowledge(["knn", "ridge", "knn:k=5", "random", "oracle", "cheapest"]) == ()


def test_routers_told_unlike_things_are_not_ranked_silently() -> None:
    (note,) = unlike_knowledge(["knn", "category", "ridge"])
    assert note == (
        "the routers differ in what they learn from; compare like with like "
        "(full outcome table: knn, ridge; full outcome table, subjects or domains: category)"
    )


def test_a_cascade_is_not_ranked_silently_beside_routers_that_decide_beforehand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_class("ridge"), "timing", "post-generation")
    (note,) = unlike_knowledge(["knn", "ridge"])
    assert "when they decide" in note
    assert "post-generation: ridge" in note
