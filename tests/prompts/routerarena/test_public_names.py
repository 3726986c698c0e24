from __future__ import annotations

import subprocess
import sys

import pytest

from crossroads.prompts import routerarena


@pytest.mark.parametrize("name", routerarena.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(routerarena, name) is not None
    assert name in dir(routerarena)


def test_names_are_listed_once_and_unknown_ones_are_attribute_errors() -> None:
    assert len(set(routerarena.__all__)) == len(routerarena.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        routerarena.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys; import crossroads.prompts.routerarena; "
        "assert not {'numpy', 'pyarrow', 'scipy', 'pydantic', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
