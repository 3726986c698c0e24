from __future__ import annotations

import subprocess
import sys

import pytest

from crossroads import prompts


@pytest.mark.parametrize("name", prompts.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(prompts, name) is not None


def test_names_are_sorted_and_listed_once() -> None:
    assert sorted(set(prompts.__all__)) == prompts.__all__
    assert dir(prompts) == prompts.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'router_of_all'"):
        prompts.router_of_all  # noqa: B018


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys; import crossroads.prompts; "
        "assert not {'numpy', 'pyarrow', 'scipy', 'pydantic', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
