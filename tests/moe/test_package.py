"""The room's front door: every public name is there, and opening it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from crossroads import moe


@pytest.mark.parametrize("name", moe.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(moe, name).__name__ == name


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, crossroads.moe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import crossroads.moe\n"
        "from crossroads.core.errors import MissingExtraError\n"
        "try:\n    crossroads.moe.MoELayer\n"
        "except MissingExtraError as error:\n    assert 'neural' in str(error), error\n"
        "else:\n    raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
