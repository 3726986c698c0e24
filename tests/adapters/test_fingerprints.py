from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossroads.adapters.fingerprints import SOURCES, code_fingerprint, model_fingerprint
from crossroads.core import fingerprints
from tests.adapters.toys import tiny_llama


def test_models_with_the_same_weights_have_the_same_hash() -> None:
    assert model_fingerprint(tiny_llama()) == model_fingerprint(tiny_llama())


@pytest.mark.parametrize("place", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_change_of_one_number_changes_the_hash(place: str) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(place)[0, 0] += 0.5
    assert model_fingerprint(model) != model_fingerprint(tiny_llama())


@pytest.mark.parametrize("changed", ["adapters/module.py", "core/gating.py", "datasets/batches.py"])
def test_a_change_of_the_source_changes_its_hash(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "files", lambda _: tmp_path)
    for source in SOURCES:
        place = tmp_path / source if source.endswith(".py") else tmp_path / source / "module.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a = 0", "utf-8")
    found = []
    for text in ("a = 1", "a = 1", "a = 2"):
        (tmp_path / changed).write_text(text, "utf-8")
        fingerprints.code_fingerprint.cache_clear()
        found.append(code_fingerprint())
    fingerprints.code_fingerprint.cache_clear()
    assert found[0] == found[1] != found[2]
