"""What is written is loaded by PEFT and computes the same there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crossroads.adapters.bank import Expert, LoRA
from crossroads.adapters.layout import export_expert, read_adapter
from crossroads.core.errors import InputError
from tests.adapters.layout.tiny import (
    KINDS,
    base,
    load_with_peft,
    logits,
    save_with_peft,
    with_delta,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"v_proj": 3}},
    "ranks and alphas": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"v_proj": 7},
    },
}


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_exported_expert_computes_the_same_in_peft(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = save_with_peft(tmp_path / "in", **settings)
    expert, _ = read_adapter(tmp_path / "in")
    export_expert(expert, tmp_path / "out")
    torch.testing.assert_close(load_with_peft(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)
    again, _ = read_adapter(tmp_path / "out")
    for layer, lora in expert.modules.items():
        assert torch.equal(again.modules[layer].a_RI, lora.a_RI)
        assert torch.equal(again.modules[layer].b_OR, lora.b_OR)
        assert again.modules[layer].scale == pytest.approx(lora.scale, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_other_kinds_of_models_are_exported(tmp_path: Path, kind: str) -> None:
    expected = save_with_peft(tmp_path / "in", kind)
    export_expert(read_adapter(tmp_path / "in")[0], tmp_path / "out")
    found = load_with_peft(tmp_path / "out", kind)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def random_expert(ranks: dict[str, int], scale: float) -> Expert:
    generator = torch.Generator().manual_seed(0)
    sizes = {layer: base().get_submodule(layer).weight.shape for layer in ranks}
    modules = {
        layer: LoRA(
            a_RI=torch.randn(rank, sizes[layer][1], generator=generator) / 4,
            b_OR=torch.randn(sizes[layer][0], rank, generator=generator) / 4,
            scale=scale,
        )
        for layer, rank in ranks.items()
    }
    return Expert(name="made", modules=modules)


Q = "model.layers.{}.self_attn.q_proj"


@pytest.mark.parametrize("scale", [0.37, -1.5, 2 / 3])
def test_any_scale_can_be_exported(tmp_path: Path, scale: float) -> None:
    expert = random_expert({Q.format(0): 2, Q.format(1): 3, "lm_head": 1}, scale)
    export_expert(expert, tmp_path / "out")
    found = load_with_peft(tmp_path / "out")
    assert (found - logits(base())).abs().max() > 1e-2
    torch.testing.assert_close(found, with_delta(expert), atol=1e-4, rtol=1e-4)
    assert isinstance(config(tmp_path / "out")["lora_alpha"], int)


def test_factors_are_left_as_they_are_where_a_whole_alpha_gives_the_scale(tmp_path: Path) -> None:
    expert = random_expert({Q.format(0): 4}, scale=5 / 2)  # 5 / sqrt(4), or 10 / 4
    export_expert(expert, tmp_path)
    again, _ = read_adapter(tmp_path)
    assert torch.equal(again.modules[Q.format(0)].b_OR, expert.modules[Q.format(0)].b_OR)
    assert (config(tmp_path)["lora_alpha"], config(tmp_path)["use_rslora"]) == (10, False)


def test_a_layer_whose_name_ends_anothers_keeps_its_rank(tmp_path: Path) -> None:
    # "q" is the end of "x.q", so that a key "q" matches both: the longer name comes first.
    lora = {name: LoRA(a_RI=torch.ones(r, 4), b_OR=torch.ones(4, r), scale=1.0)
            for name, r in {"q": 2, "x.q": 3, "y": 3}.items()}  # fmt: skip
    export_expert(Expert(name="made", modules=lora), tmp_path)
    again, _ = read_adapter(tmp_path)
    assert {name: one.scale for name, one in again.modules.items()} == {"q": 1, "x.q": 1, "y": 1}
    assert next(iter(config(tmp_path)["rank_pattern"])) == "x.q"


def test_the_type_of_the_file_is_chosen(tmp_path: Path) -> None:
    export_expert(random_expert({Q.format(0): 2}, 1.0), tmp_path, dtype=torch.float16)
    expert, _ = read_adapter(tmp_path, dtype="auto")
    assert expert.modules[Q.format(0)].a_RI.dtype == torch.float16


def test_what_peft_needs_to_know_is_kept(tmp_path: Path) -> None:
    save_with_peft(tmp_path / "in", "gpt2", task_type="CAUSAL_LM", fan_in_fan_out=True)
    export_expert(read_adapter(tmp_path / "in")[0], tmp_path / "out")
    assert config(tmp_path / "out")["task_type"] == "CAUSAL_LM"
    assert config(tmp_path / "out")["fan_in_fan_out"] is True
    export_expert(read_adapter(tmp_path / "in")[0], tmp_path / "o2", task_type="SEQ_CLS")
    assert config(tmp_path / "o2")["task_type"] == "SEQ_CLS"


def test_a_folder_that_is_there_is_overwritten_only_when_asked_and_only_an_adapter(
    tmp_path: Path,
) -> None:
    expert = random_expert({Q.format(0): 2}, 1.0)
    (tmp_path / "empty").mkdir()
    export_expert(expert, tmp_path / "empty")
    with pytest.raises(InputError, match="exists already"):
        export_expert(expert, tmp_path / "empty")
    export_expert(random_expert({Q.format(1): 2}, 1.0), tmp_path / "empty", overwrite=True)
    assert set(read_adapter(tmp_path / "empty")[0].modules) == {Q.format(1)}
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep", "utf-8")
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        export_expert(expert, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "mine.txt").read_text("utf-8") == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "letters"]


def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = random_expert({Q.format(0): 2}, 1.0)
    export_expert(expert, tmp_path / "out")

    def full(self: Path, *_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        export_expert(random_expert({Q.format(1): 2}, 1.0), tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    assert set(read_adapter(tmp_path / "out")[0].modules) == {Q.format(0)}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
