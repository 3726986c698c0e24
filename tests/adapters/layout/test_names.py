"""Experts of any name have a folder of their own inside the bank's."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.layout import load_bank, save_bank
from tests.adapters import toys


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("..", "%2E."),
        (".", "%2E"),
        (".hidden", "%2Ehidden"),
        ("../up", "%2E.%2Fup"),
        ("v1.5", "v1.5"),
    ],
)
def test_a_name_that_is_no_folders_is_escaped(tmp_path: Path, name: str, folder: str) -> None:
    model = toys.tiny_llama(num_hidden_layers=1)
    bank = AdapterBank(toys.experts(model, [name, "plain"], ends=["q_proj"]))
    save_bank(tmp_path / "bank", bank)
    assert {path.name for path in tmp_path.iterdir()} == {"bank"}
    inside = {path.parent.name for path in (tmp_path / "bank").glob("*/adapter_config.json")}
    assert inside == {folder, "plain"}
    assert load_bank(tmp_path / "bank").names == (name, "plain")
