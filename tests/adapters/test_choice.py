from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from crossroads.adapters import choice
from crossroads.adapters.bank import AdapterBank, Expert, LoRA
from crossroads.adapters.choice import choose_router, told
from crossroads.adapters.comparing import candidates
from crossroads.adapters.contract import Router
from crossroads.adapters.routers import build_router
from crossroads.core.errors import InputError, UsageError
from tests.adapters.saved import EXPERTS, bank, save_adapters
from tests.adapters.toys import experts, tiny_llama


class Embeds(Router):
    name: ClassVar[str] = "embeds"
    call_data: ClassVar[frozenset[str]] = frozenset({"embedding_BG"})


def _without_gates() -> AdapterBank:
    from dataclasses import replace

    return AdapterBank([replace(expert, artifacts={}) for expert in experts(tiny_llama(), EXPERTS)])


def test_without_a_choice_it_is_the_saved_one_or_what_the_bank_has_data_for(tmp_path: Path) -> None:
    folder = save_adapters(tmp_path / "bank", router=build_router("phatgoose:k=1"))
    saved = choose_router(None, bank(), folder)
    assert saved.name == "phatgoose" and saved.settings()["k"] == 1
    assert choose_router("saved", bank(), folder).settings()["k"] == 1
    assert choose_router(None, bank()).settings()["k"] == 2
    assert choose_router(None, _without_gates()).name == "arrow"
    assert choose_router("uniform", bank(), folder).name == "uniform"


def test_what_the_bank_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"saved: .* holds none; name one"):
        choose_router("saved", bank(), save_adapters(tmp_path / "bank"))
    with pytest.raises(
        InputError, match=r"'gate' of every adapter, letters, words, lines have none"
    ):
        choose_router("phatgoose", _without_gates())
    mixed = bank()
    mixed.remove("words")
    mixed.add(_without_gates().expert("words"))
    with pytest.raises(InputError, match=r"words has none; .*gates\.train_gate, .*arrow"):
        choose_router("phatgoose", mixed)
    with pytest.raises(UsageError, match="did you mean 'phatgoose'"):
        choose_router("fatgoose", bank())


@pytest.mark.parametrize("name", ["ties", "dare"])
def test_factors_of_unlike_ranks_are_refused_before_the_model_is_touched(name: str) -> None:
    factors = {
        rank: LoRA(a_RI=torch.ones(rank, 3), b_OR=torch.ones(2, rank), scale=1.0) for rank in (2, 4)
    }
    mixed = AdapterBank([Expert(name=f"r{r}", modules={"q": f}) for r, f in factors.items()])
    with pytest.raises(InputError, match=r"differ at q \(2 and 4\); with :on=delta after"):
        choose_router(name, mixed)
    assert choose_router(f"{name}:on=delta", mixed).settings()["on"] == "delta"
    able, left_out = candidates(mixed)
    assert name in left_out and name not in able


@pytest.mark.parametrize("name", ["x-lora", "dynmole", "lora-mixer", "lorahub"])
def test_a_router_that_nobody_trained_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"router {name}: nobody trained its"):
        choose_router(name, bank())


def test_a_router_is_told_what_it_asks_for_about_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "embed", lambda texts, encoder: torch.ones(len(texts), 3))
    assert told(build_router("uniform"), bank(), ["a"]) == {}
    assert told(build_router("named"), bank(), ["a", "b"], expert="words") == {
        "experts": ["words", "words"]
    }
    assert told(build_router("oracle"), bank(), ["a"], expert="words")["labels"].tolist() == [1]
    assert told(Embeds(), bank(), ["a", "b"])["embedding"].shape == (2, 3)


def test_what_a_prompt_cannot_tell_is_refused() -> None:
    with pytest.raises(UsageError, match=r"named: does not choose.*letters, words, lines"):
        told(build_router("named"), bank(), ["a"])
    with pytest.raises(UsageError, match="unknown expert 'word'; did you mean 'words'"):
        told(build_router("oracle"), bank(), ["a"], expert="word")
    with pytest.raises(UsageError, match="poly: decides by the number of a task"):
        told(build_router("poly"), bank(), ["a"])
