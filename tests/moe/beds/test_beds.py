"""The test beds: real data, the same for every arm, and judged on what was held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossroads.core.errors import UnavailableError, UsageError
from crossroads.core.routed import RouteContext
from crossroads.datasets import digits
from crossroads.datasets.paths import data_folder
from crossroads.moe.beds import BEDS, ArenaBed, get_bed
from crossroads.moe.beds.diffusion import DiffusionBed
from crossroads.moe.training import train


def bed(name: str) -> ArenaBed:
    if name == "speech":
        try:
            data_folder("fsdd")
        except UnavailableError as missing:
            pytest.skip(str(missing))
    return get_bed(name)


@pytest.mark.parametrize("name", BEDS)
def test_a_few_steps_train_and_judge(name: str) -> None:
    made = bed(name)
    config = replace(made.config("quick"), steps=2, batch_size=4)
    done = train(made, made.spec("top2"), config, progress=False)
    judged = made.metrics[:1] if name == "diffusion" else made.metrics  # too early to draw
    assert set(done.figures) == {metric.name for metric in judged}
    assert all(np.isfinite(value) for value in done.figures.values())
    output, labels_N = made.probe(done.model)
    assert len(output.records) == len([r for r in range(4) if made.spec("top2").routed(r)])
    assert len(labels_N) == int(output.records[0].decisions[0].mask_N.sum())


@pytest.mark.parametrize("name", BEDS)
def test_arms_of_a_seed_see_the_same_batches_and_start_from_the_same_backbone(name: str) -> None:
    made = bed(name)
    config = replace(made.config("quick"), batch_size=4)
    losses = []
    for router in ("dense", "switch"):
        torch.manual_seed(config.seed)
        model = made.build(made.spec(router))
        zeroed = [p for n, p in model.named_parameters() if "ffn" in n or "shared" in n]
        for parameter in zeroed:
            parameter.data.zero_()
        batch = made.batch(config, 3, 0)
        losses.append(float(made.loss(model, batch, RouteContext())[0].detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", BEDS)
def test_steps_differ_and_a_step_is_repeatable(name: str) -> None:
    made = bed(name)
    config = replace(made.config("quick"), batch_size=4)
    torch.manual_seed(0)
    model = made.build(made.spec("dense"))
    losses = [
        float(made.loss(model, made.batch(config, step, 0), RouteContext())[0].detach())
        for step in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.slow
def test_drawn_digits_are_judged_by_a_fixed_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.moe.beds.diffusion.DRAWS_FROM", 1)
    monkeypatch.setattr("crossroads.moe.beds.diffusion.SAMPLES", 40)
    monkeypatch.setattr("crossroads.moe.beds.diffusion.SAMPLING_STEPS", 3)
    made = bed("diffusion")
    config = replace(made.config("quick"), steps=1, batch_size=4)
    found = train(made, made.spec("dense"), config, progress=False).figures
    assert found["frechet"] > 1
    assert 0 <= found["recognised"] <= 1


def test_drawing_the_test_images_themselves_is_a_distance_of_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crossroads.moe.beds.diffusion.HELD_OUT_DRAWS", 1)
    made = get_bed("diffusion")
    torch.manual_seed(0)
    model = made.build(made.spec("dense")).eval()
    distance = {}
    for name in ("train", "test"):
        part = getattr(digits.load(), name)
        drawn = (digits.to_signed(part.pixels), part.label)
        monkeypatch.setattr(DiffusionBed, "draw", lambda *_, drawn=drawn: drawn)
        with torch.no_grad():
            distance[name] = made.evaluate(model, made.config("full"))["frechet"]
    assert distance["test"] == pytest.approx(0, abs=1e-3)
    assert distance["train"] > 0.01


def test_an_unknown_bed_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="vision"):
        get_bed("visions")
