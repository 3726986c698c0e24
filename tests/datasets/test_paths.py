from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.datasets import paths


def test_the_variable_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").mkdir()
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    assert paths.data_folder("toy") == tmp_path / "toy"


def test_a_missing_data_set_names_folder_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path))
    with pytest.raises(UnavailableError, match=rf"{tmp_path}/toy.*set {paths.VARIABLE}"):
        paths.data_folder("toy")


def test_a_wrong_variable_is_not_replaced_by_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path / "typing error"))
    with pytest.raises(UnavailableError, match="typing error"):
        paths.data_folder("toy")


def test_without_variable_and_checkout_the_remedy_is_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(paths.VARIABLE, raising=False)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "a/b/src/crossroads/datasets/paths.py"))
    assert paths.data_root() is None
    with pytest.raises(UnavailableError, match=f"set {paths.VARIABLE}"):
        paths.data_folder("toy")


def test_the_folder_beside_the_checkout_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(paths.VARIABLE, raising=False)
    (tmp_path / "shared/data").mkdir(parents=True)
    module = tmp_path / "checkout/src/crossroads/datasets/paths.py"
    monkeypatch.setattr(paths, "__file__", str(module))
    assert paths.data_root() == tmp_path / "shared/data"
