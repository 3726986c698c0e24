from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crossroads.adapters.collection import shipped
from crossroads.adapters.collection.making import Made
from crossroads.adapters.collection.recipe import RECIPE, Recipe
from crossroads.adapters.collection.shipped import (
    ATTRIBUTIONS,
    MANIFEST,
    check_files,
    read_manifest,
    shipped_folder,
    write_collection,
)
from crossroads.adapters.collection.tasks import task_names
from crossroads.adapters.layout import load_bank
from crossroads.core.errors import InputError, UnavailableError
from tests.adapters.collection.toys import task
from tests.adapters.toys import experts, tiny_llama

MOST_BYTES = 16 * 2**20


@pytest.fixture
def made() -> list[Made]:
    return [
        Made(expert=expert, losses=(3.0, 2.0, 1.0), seconds=1.25, gate_spread=0.5)
        for expert in experts(tiny_llama(), ["one", "two"])
    ]


@pytest.fixture
def written(tmp_path: Path, made: list[Made], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "get_task", task)
    monkeypatch.setattr(shipped, "default_encoder", lambda: "static")
    write_collection(tmp_path / "bank", made, Recipe(steps=3))
    return tmp_path / "bank"


@pytest.fixture(scope="module")
def packaged() -> Path:
    try:
        return shipped_folder()
    except UnavailableError as error:
        pytest.skip(str(error))


def test_a_collection_is_a_bank_with_gates_and_embedded_prompts(
    written: Path, made: list[Made]
) -> None:
    bank = load_bank(written)
    assert bank.names == ("one", "two")
    for one in made:
        found = bank.expert(one.expert.name)
        for layer, lora in one.expert.modules.items():
            torch.testing.assert_close(
                found.modules[layer].a_RI, lora.a_RI.half().float(), rtol=0, atol=0
            )
            torch.testing.assert_close(
                found.artifacts["gate"][layer],
                one.expert.artifacts["gate"][layer].half().float(),
                rtol=0,
                atol=0,
            )
        assert found.embedding_G is not None
        assert found.embedding_G.norm() == pytest.approx(1, abs=1e-3)


def test_the_manifest_tells_what_was_done_and_reached(written: Path) -> None:
    found = read_manifest(written)
    assert found["recipe"] == Recipe(steps=3).facts()
    assert found["experts"]["one"]["first_loss"] == found["experts"]["one"]["last_loss"] == 2.0
    assert found["experts"]["two"]["gate_spread"] == 0.5
    assert found["encoder"] == "static"
    assert check_files(written) == sum(p.stat().st_size for p in written.rglob("*") if p.is_file())


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: _append(f / "one" / "adapter_model.safetensors"),
            "is not the one that was made",
        ),
        (lambda f: (f / ATTRIBUTIONS).unlink(), "is missing"),
        (lambda f: (f / "new.bin").write_bytes(b"x"), "new.bin: is not the one that was made"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest.json: cannot be read"),
    ],
)
def test_a_changed_collection_is_refused_by_file(
    harm: Callable[[Path], object], message: str, written: Path
) -> None:
    harm(written)
    with pytest.raises(InputError, match=message):
        check_files(written)


def test_without_packaged_experts_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "files", lambda _: tmp_path)
    with pytest.raises(UnavailableError, match="crossroads adapters train-collection"):
        shipped_folder()


def test_the_packaged_collection_is_whole_and_small(packaged: Path) -> None:
    assert check_files(packaged) <= MOST_BYTES


def test_the_packaged_collection_was_made_by_the_recipe(packaged: Path) -> None:
    found = read_manifest(packaged)
    assert found["recipe"] == RECIPE.facts()
    assert list(found["experts"]) == task_names(held_in=True)


def test_every_packaged_expert_learnt_its_task_and_its_gates_can_be_told_apart(
    packaged: Path,
) -> None:
    bank = load_bank(packaged)
    for name, told in read_manifest(packaged)["experts"].items():
        assert told["last_loss"] < told["first_loss"]
        expert = bank.expert(name)
        assert expert.n_parameters == told["parameters"] == 437_760
        spreads = torch.stack([gate_I.std() for gate_I in expert.artifacts["gate"].values()])
        assert len(spreads) == 150 and spreads.median() >= 0.02


def test_attributions_name_every_packaged_expert(packaged: Path) -> None:
    text = (packaged / ATTRIBUTIONS).read_text("utf-8")
    assert all(name in text for name in read_manifest(packaged)["experts"])
