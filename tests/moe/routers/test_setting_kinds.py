"""A setting of the wrong kind is one line that names router, setting and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest

from crossroads.core.errors import UsageError
from crossroads.core.kinds import describe_kind, setting_kinds
from crossroads.moe.routers import build_router, router_class, router_names

KINDS = [
    pytest.param(name, setting, kind, id=f"{name}:{setting}")
    for name in router_names()
    for setting, kind in setting_kinds(router_class(name)).items()
    if setting != "kinds"
]


def members(kind: Any) -> tuple[Any, ...]:
    return (kind,) if get_origin(kind) is Literal or isinstance(kind, type) else get_args(kind)


@pytest.mark.parametrize(("name", "setting", "kind"), KINDS)
def test_no_router_takes_a_setting_of_another_kind(name: str, setting: str, kind: Any) -> None:
    texts = ["maybe"] if str not in members(kind) else []
    texts += ["1.5"] if int in members(kind) else []
    for text in texts:
        with pytest.raises(UsageError, match=rf"{setting}\b.*: expected .*got .*{text}"):
            build_router(f"{name}:{setting}={text}", 8, 8)
    for value in ([2], {"a": 1}, *([1.5] if int in members(kind) else [])):
        with pytest.raises(UsageError, match=rf"^router '{name}': {setting}: expected .*, got"):
            build_router(name, 8, 8, **{setting: value})


@pytest.mark.parametrize(
    ("text", "renorm"),
    [("no", False), ("off", False), ("False", False), ("0", False), ("yes", True), ("on", True)],
)
def test_renorm_is_what_the_text_says(text: str, renorm: bool) -> None:
    assert build_router(f"switch:k=2:renorm={text}", 64, 8).renorm is renorm
    assert build_router(f"top2:renorm={text}", 64, 8).renorm is renorm


def test_none_is_the_default_of_the_router() -> None:
    assert build_router("top2:renorm=none", 64, 8).renorm is True
    assert build_router("top-p:k_max=None:target=2.5", 64, 8).target == 2.5


@pytest.mark.parametrize("name", [None, 3, ["switch"]])
def test_the_name_of_a_router_is_text(name: Any) -> None:
    with pytest.raises(UsageError, match="router: expected its name as text, got"):
        build_router(name, 8, 8)


def test_a_text_sets_no_kinds_of_experts() -> None:
    with pytest.raises(UsageError, match="unknown setting") as told:
        build_router("sigmoid:sequence_balance=1", 8, 8)
    assert "kinds" not in str(told.value)


class Plain:
    def __init__(
        self, *, mode: Literal[1, 2] = 1, parts: tuple[str, ...] = (), thing: Any = None,
        call: Callable[[], int] | None = None, width: int | None = None,
        form: Literal["a", "b"] | None = None,
    ) -> None: ...  # fmt: skip


def test_settings_that_are_no_plain_values_are_the_constructors_to_check() -> None:
    kinds = setting_kinds(Plain)
    assert set(kinds) == {"width", "form"}
    assert describe_kind(kinds["form"]) == "one of a, b or none"
