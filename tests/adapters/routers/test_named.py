"""Experts by name, one a sequence, as PEFT's ``adapter_names`` does and beyond."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.adapters.calls import calling
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError, UsageError
from tests.adapters.layout.tiny import base, inputs, save_with_peft

MADE: dict[str, dict[str, Any]] = {
    "german": {"target_modules": ["q_proj", "v_proj"], "r": 2},
    "python": {"seed": 9, "use_rslora": True},  # another rank, another scale, more layers
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("adapters")
    for name, settings in MADE.items():
        save_with_peft(found / name, **settings)
    return found


def routed(folder: Path) -> RoutedModel:
    return RoutedModel(base(), load_bank(folder), build_router("named"))


def answer(model: RoutedModel, tokens: Tensor, experts: Sequence[str | None]) -> Tensor:
    with calling(experts=experts), torch.no_grad():
        found: Tensor = model.model(tokens).logits
    return found


def test_a_mixed_batch_computes_what_it_does_in_peft(folder: Path) -> None:
    import peft

    names = ["python", "__base__", "german", "python"]
    tokens = torch.cat([inputs()["input_ids"], inputs()["input_ids"].flip(0)])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base(), str(folder / "german"), "german")
        model.load_adapter(str(folder / "python"), "python")
        expected = model.eval()(tokens, adapter_names=names).logits
    found = answer(routed(folder), tokens, names)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(found[1:2], base()(tokens[1:2]).logits)


def test_none_is_the_base_model(folder: Path) -> None:
    tokens = inputs()["input_ids"]
    found = answer(routed(folder), tokens, [None, "german"])
    with torch.no_grad():
        torch.testing.assert_close(found[:1], base()(tokens[:1]).logits)
    assert not torch.allclose(found[1:], base()(tokens[1:]).logits)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},  # PEFT refuses more answers than prompts
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    ],
)
def test_beams_and_several_answers_follow_their_prompts_expert(
    folder: Path, options: dict[str, Any]
) -> None:
    model, tokens = routed(folder), inputs()["input_ids"]
    options = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, **options}
    together = {"attention_mask": torch.ones_like(tokens), **options}
    alone = {"attention_mask": torch.ones_like(tokens[:1]), **options}
    with calling(experts=["german", "python"]):
        found = model.model.generate(tokens, **together)  # type: ignore[operator]
    for row, name in enumerate(["german", "python"]):
        with calling(experts=[name]):
            expected = model.model.generate(tokens[row : row + 1], **alone)  # type: ignore[operator]
        count = len(expected)
        assert torch.equal(found[row * count : (row + 1) * count], expected)


def test_unknown_names_and_wrong_counts_are_refused(folder: Path) -> None:
    model, tokens = routed(folder), inputs()["input_ids"]
    with pytest.raises(UsageError, match="unknown expert 'germn'; did you mean 'german'"):
        answer(model, tokens, ["germn", "python"])
    with pytest.raises(InputError, match="speaks of 3 sequences, the batch has 2"):
        answer(model, tokens, ["german"] * 3)
    with pytest.raises(InputError, match="needs 'experts' of every batch"), torch.no_grad():
        model.model(tokens)


def test_names_follow_the_bank(folder: Path) -> None:
    model, tokens = routed(folder), inputs()["input_ids"]
    before = answer(model, tokens, ["python", "python"])
    model.bank.rename("python", "code")
    assert torch.equal(answer(model, tokens, ["code", "code"]), before)
    model.bank.remove("german")
    assert torch.equal(answer(model, tokens, ["code", "code"]), before)
    with pytest.raises(UsageError, match="unknown expert 'german'"):
        answer(model, tokens, ["code", "german"])


def test_one_decision_serves_all_layers(folder: Path) -> None:
    model = routed(folder)
    answer(model, inputs()["input_ids"], ["german", "python"])
    assert len(model.current.decided) == 1
    assert len(model.current.seen) == len(model.bank.layers)
