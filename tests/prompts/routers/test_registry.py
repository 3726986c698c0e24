from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from crossroads.core.errors import UsageError
from crossroads.prompts import routers
from crossroads.prompts.router import Arrays, Float, PromptRouter, Queries, TrainingSet
from crossroads.prompts.routers import GROUP, build_router, router_class, router_names
from tests.prompts.routers.tables import outcomes, queries


@dataclass(kw_only=True)
class ThirdPartyRouter(PromptRouter):
    """Every kind of setting. Always the level."""

    name = "third-party"
    level: float = 0.5
    copies: int = 1
    loud: bool = False
    tags: tuple[str, ...] = ("a",)
    motto: str = "none"

    def _fit(self, data: TrainingSet, rng: np.random.Generator) -> None:
        """Nothing to learn."""

    def _predict(self, queries: Queries) -> Float:
        return np.full((len(queries), len(self.models)), self.level)

    def _state(self) -> Arrays:
        return {}

    def _restore(self, arrays: Arrays) -> None:
        """Nothing was learnt."""


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package declares a router."""
    entry = EntryPoint("third-party", f"{__name__}:ThirdPartyRouter", GROUP)

    def forget() -> None:
        routers.REGISTRY.forget()

    with monkeypatch.context() as patch:
        patch.setattr(
            "crossroads.core.registry.entry_points", lambda group: [entry] if group == GROUP else []
        )
        forget()
        yield
    forget()


def complaint(spec: str) -> str:
    with pytest.raises(UsageError) as caught:
        build_router(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shipped_routers_are_found_in_order() -> None:
    names = router_names()
    assert names == sorted(set(names))
    assert {"auto", "best-single", "cheapest", "random", "oracle", "knn", "ridge"} <= set(names)


def test_listing_the_names_imports_no_router() -> None:
    code = (
        "import sys; from crossroads.prompts.routers import router_names; router_names(); "
        "assert not [m for m in sys.modules if m.startswith('crossroads.prompts.routers.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_alone_builds_the_default() -> None:
    router = build_router("knn")
    assert router.name == "knn"
    assert router.settings == router_class("knn")().settings
    assert router.models == ()


def test_settings_are_read_from_the_spec() -> None:
    settings = build_router("knn:k=20:shrink=2.5:weighting=uniform").settings
    assert settings == {"k": 20, "shrink": 2.5, "weighting": "uniform"}


def test_a_tuple_is_written_with_plus_signs() -> None:
    assert build_router("auto:members=linear+words").settings["members"] == ("linear", "words")


def test_an_unknown_router_is_refused_with_the_nearest_spelling() -> None:
    message = complaint("best-sinlge")
    assert "unknown router 'best-sinlge'; did you mean 'best-single'?" in message
    assert "knn" in message.partition("Known: ")[2]


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    message = complaint("knn:shrnk=3")
    assert "setting of router 'knn': 'shrnk'; did you mean 'shrink'?" in message
    assert message.endswith("Known: k, shrink, weighting")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("knn:20", "expected setting=value, got '20'"),
        ("knn:", "expected setting=value, got ''"),
        ("knn:k=many", "k: expected a whole number, got 'many'"),
        ("knn:k=2.5", "k: expected a whole number, got '2.5'"),
        ("knn:k=", "k: expected a whole number, got ''"),
        ("logistic:penalty=heavy", "penalty: expected a number, got 'heavy'"),
    ],
)
def test_a_bad_setting_is_refused_naming_the_spec(spec: str, expected: str) -> None:
    message = complaint(spec)
    assert f"router {spec!r}" in message
    assert expected in message


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        ("knn:weighting=gaussian", "triangular, uniform"),
        ("category:weighting=harsh", "hard, soft"),
        ("clusters:estimate=median", "mean, rank"),
        ("auto:members=linear+wrods", "domains, landmarks, linear, subjects, words"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(spec: str, known: str) -> None:
    name, _, value = spec.partition(":")
    message = complaint(spec)
    assert f"of router {name!r}" in message
    assert repr(value.split("=")[1].split("+")[-1]) in message
    assert message.endswith(f"Known: {known}")


@pytest.mark.usefixtures("third_party")
def test_a_router_of_another_package_joins_the_catalogue() -> None:
    assert "third-party" in router_names()
    assert "knn" in router_names()
    assert router_class("third-party") is ThirdPartyRouter
    router = build_router("third-party:level=0.25").fit(outcomes())
    assert (router.predict(queries(outcomes(), router)) == 0.25).all()


@pytest.mark.usefixtures("third_party")
def test_every_kind_of_setting_is_read() -> None:
    spec = "third-party:level=1:copies=-3:loud=yes:tags=b+c:motto=x=y"
    assert build_router(spec).settings == {
        "level": 1.0,
        "copies": -3,
        "loud": True,
        "tags": ("b", "c"),
        "motto": "x=y",
    }
    assert build_router("third-party:tags=").settings["tags"] == ()


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("YES", True), ("1", True), ("False", False), ("no", False), ("0", False)],
)
def test_switches_are_read(text: str, value: bool) -> None:
    assert build_router(f"third-party:loud={text}").settings["loud"] is value


@pytest.mark.usefixtures("third_party")
def test_what_is_no_switch_is_refused() -> None:
    assert "loud: expected true or false, got 'maybe'" in complaint("third-party:loud=maybe")


def test_a_router_of_another_package_is_gone_with_it() -> None:
    assert "third-party" not in router_names()
    assert "unknown router 'third-party'" in complaint("third-party")
