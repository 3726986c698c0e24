"""The trainer: groups, schedule, resumption to the same numbers, divergence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossroads.adapters.contract import AuxTerm, Call, Routing
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.routers import build_router
from crossroads.adapters.routers.uniform import Uniform
from crossroads.adapters.skills import factors
from crossroads.adapters.training import Group, TrainSettings, train, train_routed
from crossroads.core.errors import DivergedError, InputError
from tests.adapters import toys

SETTINGS = TrainSettings(steps=12, warmup=3)


class StoppedError(Exception):
    """Ends a run from within, as a killed process would."""


def problem() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1).requires_grad_(False)


def loss_of(layer: nn.Linear, stop: int | None = None):  # type: ignore[no-untyped-def]
    def loss(step: int) -> Tensor:
        if step == stop:
            raise StoppedError
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (layer(x) - x.sum(-1, keepdim=True)).square().mean()

    return loss


def groups(layer: nn.Linear) -> list[Group]:
    return [Group(parameters=[layer.weight], lr=0.1), Group(parameters=[layer.bias], lr=0.01)]


def test_the_router_is_told_the_seed_and_the_step() -> None:
    told: list[tuple[int, int | None]] = []

    class Asking(Uniform):
        def losses(self, decided: Mapping[str, Routing], call: Call) -> Mapping[str, AuxTerm]:
            told.append((call.seed, call.step))
            return {}

    model = toys.tiny_llama()
    bank = toys.bank_for(model, 2)
    train_routed(
        model, bank, Asking(), lambda step: toys.batch(toys.ids(seed=step)),
        TrainSettings(steps=2, seed=7), groups=[Group(parameters=factors(bank), lr=1e-3)],
    )  # fmt: skip
    assert set(told) == {(7, 0), (7, 1)}


def test_the_loss_falls_and_everything_is_frozen_again() -> None:
    layer = problem()
    losses = train(loss_of(layer), groups(layer), SETTINGS)
    assert len(losses) == SETTINGS.steps
    assert losses[-1] < losses[0] / 2
    assert not any(p.requires_grad or p.grad is not None for p in layer.parameters())


def test_each_group_has_its_own_rate() -> None:
    layer = problem()
    before = [p.clone() for p in (layer.weight, layer.bias)]
    first = TrainSettings(steps=1, warmup=0, clip=None)
    train(loss_of(layer), groups(layer), first)
    moved = [
        (p - b).abs().max().item() for p, b in zip((layer.weight, layer.bias), before, strict=True)
    ]
    assert moved == pytest.approx([0.1, 0.01], rel=1e-3)  # AdamW's first step is the rate


def test_a_run_that_was_cut_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole, cut = problem(), problem()
    wanted = train(loss_of(whole), groups(whole), SETTINGS)
    kept = tmp_path / "run" / "state.pt"
    with pytest.raises(StoppedError):
        train(loss_of(cut, 8), groups(cut), SETTINGS, modules=[cut], checkpoint=kept, every=5)
    fresh = problem()
    found = train(loss_of(fresh), groups(fresh), SETTINGS, modules=[fresh], checkpoint=kept)
    assert found == wanted
    assert torch.equal(fresh.weight, whole.weight)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    layer, kept = problem(), tmp_path / "state.pt"
    train(loss_of(layer), groups(layer), SETTINGS, modules=[layer], checkpoint=kept, every=5)
    with pytest.raises(InputError, match="other settings or data"):
        train(loss_of(layer), groups(layer), SETTINGS, checkpoint=kept, identity="more data")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    layer = problem()
    with pytest.raises(DivergedError, match="step 4"):
        train(lambda step: layer.weight.sum() * (float("nan") if step == 4 else 1.0),
              groups(layer), SETTINGS)  # fmt: skip


def test_a_run_that_ends_in_an_error_leaves_everything_frozen(tmp_path: Path) -> None:
    layer, kept = problem(), tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        train(loss_of(layer, 5), groups(layer), SETTINGS, checkpoint=kept, every=2)
    assert not any(p.requires_grad or p.grad is not None for p in layer.parameters())
    with pytest.raises(InputError):
        train(loss_of(layer), groups(layer), SETTINGS, checkpoint=kept, identity="more data")
    assert not any(p.requires_grad for p in layer.parameters())


def test_the_schedule_warms_up_and_falls_to_nothing() -> None:
    linear = [SETTINGS.factor(step) for step in range(12)]
    assert linear[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert linear[-1] == pytest.approx(1 / 9)
    assert TrainSettings(steps=12, warmup=3, decay="constant").factor(11) == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of a library that is not ours
def test_the_trainer_of_transformers_trains_the_adapters_alone(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the trainer of transformers needs accelerate")
    from transformers import Trainer, TrainingArguments

    model = toys.tiny_llama()
    bank = toys.bank_for(model, 2, kinds=())
    routed = RoutedModel(model, bank, build_router("uniform"))
    trained = {name: values.requires_grad_(True) for name, values in bank.named_parameters()}
    before = {name: values.detach().clone() for name, values in trained.items()}
    base = {name: values.clone() for name, values in model.state_dict().items()}
    # Experts are no submodules of the model: they are handed over with their optimiser.
    trainer = Trainer(
        model=routed.model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in toys.ids(4, 6)],
        optimizers=(torch.optim.AdamW(trained.values(), lr=1e-2), None),
    )
    assert trainer.train().global_step == 2
    assert all(not torch.equal(values, before[name]) for name, values in trained.items())
    assert all(torch.equal(values, base[name]) for name, values in model.state_dict().items())
    after = model(toys.ids(2, 6)).logits
    routed.unwrap()
    assert not torch.equal(model(toys.ids(2, 6)).logits, after)
