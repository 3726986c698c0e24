from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.datasets import python_source


def test_the_running_standard_library_is_found() -> None:
    found = python_source.load()
    assert found.name.startswith("python-3.")
    assert "def parse(" in found.files["ast.py"]
    assert list(found.files) == sorted(found.files)


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnavailableError, match="no Python source files"):
        python_source.load(tmp_path)
