from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.core.errors import UsageError
from crossroads.models.diffusion import (
    DDPM,
    Field,
    RectifiedFlow,
    guided_field,
    training_pass,
)
from crossroads.models.dit import DiT, DiTConfig, drop_labels

MEAN, STD = 0.4, 0.5  # of the Gaussian "data" whose exact fields are known


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = seeded(seed)
    image, noise = torch.randn(2, 4, 1, 3, 3, generator=draws, dtype=torch.float64)
    return image, noise


def stirred() -> DiT:
    """Return a small model away from adaLN-zero."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(width=16, num_layers=2, num_heads=2, hidden=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_interpolation_ends_at_data_and_noise() -> None:
    image, noise = pair()
    flow = RectifiedFlow()
    assert torch.equal(flow.interpolate(image, noise, torch.zeros(4)), image)
    assert torch.equal(flow.interpolate(image, noise, torch.ones(4)), noise)


@given(st.integers(1, 20), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_true_velocity_of_a_straight_pair_leads_back_in_any_number_of_steps(
    num_steps: int, shift: float, seed: int
) -> None:
    image, noise = pair(seed)
    found = RectifiedFlow(shift=shift).sample(
        lambda x, time_B: noise - image, noise, num_steps=num_steps
    )
    torch.testing.assert_close(found, image, atol=1e-6, rtol=0)


def test_the_flow_target_is_the_derivative_of_the_path() -> None:
    image, _ = pair()
    example = RectifiedFlow().noised(image, seeded(3))
    sigma = (example.time_B / 1000).double().view(-1, 1, 1, 1)
    assert ((sigma > 0) & (sigma < 1)).all()
    noise = example.target + image
    torch.testing.assert_close(
        example.image, (1 - sigma) * image + sigma * noise, atol=1e-6, rtol=0
    )
    assert noise.std() == pytest.approx(1.0, abs=0.35)


def test_a_shift_moves_times_to_noise_and_keeps_the_ends() -> None:
    sigma = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert RectifiedFlow(shift=3.0).shifted(sigma).tolist() == [0.0, 0.5, 0.75, 1.0]
    assert torch.equal(RectifiedFlow().shifted(sigma), sigma)


def test_training_times_are_logit_normal() -> None:
    example = RectifiedFlow().noised(torch.zeros(20_000, 1), seeded())
    u = (example.time_B / 1000).logit()
    assert float(u.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(u.std()) == pytest.approx(1.0, abs=0.03)


def flow_field(x: Tensor, time_B: Tensor) -> Tensor:
    """E[eps - z | x] for z ~ N(MEAN, STD^2)."""
    sigma = (time_B / 1000).view(-1, 1)
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    surprise = (x - (1 - sigma) * MEAN) / variance
    return sigma * surprise - (MEAN + (1 - sigma) * STD**2 * surprise)


def noise_field(process: DDPM) -> Field:
    """E[eps | x_t] for z ~ N(MEAN, STD^2)."""

    def field(x: Tensor, time_B: Tensor) -> Tensor:
        kept = process.kept[time_B].view(-1, 1).to(x)
        variance = kept * STD**2 + 1 - kept
        return (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / variance

    return field


def test_samplers_with_exact_fields_draw_the_data_distribution() -> None:
    noise = torch.randn(6000, 1, generator=seeded(), dtype=torch.float64)
    process = DDPM()
    drawn = {
        "flow": RectifiedFlow().sample(flow_field, noise),
        "ddim": process.sample(noise_field(process), noise, num_steps=250),
        "ancestral": process.sample_ancestral(noise_field(process), noise, generator=seeded(1)),
    }
    for name, images in drawn.items():
        assert float(images.mean()) == pytest.approx(MEAN, abs=0.03), name
        assert float(images.std()) == pytest.approx(STD, abs=0.03), name


@pytest.mark.parametrize("num_steps", [1, 7, 50, 1000])
def test_ddim_with_the_true_noise_of_one_image_recovers_it(num_steps: int) -> None:
    image, noise = pair()
    process = DDPM()

    def field(x: Tensor, time_B: Tensor) -> Tensor:
        kept = process.kept[time_B].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * image) / (1 - kept).sqrt()

    torch.testing.assert_close(
        process.sample(field, noise, num_steps=num_steps), image, atol=1e-9, rtol=0
    )


def test_the_ancestral_chain_ends_on_the_image_whose_noise_it_is_told() -> None:
    image, noise = pair()
    process = DDPM(num_times=20, last_beta=0.3)

    def field(x: Tensor, time_B: Tensor) -> Tensor:
        kept = process.kept[time_B].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * image) / (1 - kept).sqrt()

    found = process.sample_ancestral(field, noise, generator=seeded(2))
    torch.testing.assert_close(found, image, atol=1e-9, rtol=0)


@given(st.integers(1, 999), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_the_reverse_step_is_the_mean_of_the_posterior(t: int, data: float, eps: float) -> None:
    process = DDPM()
    beta, kept, before = (
        float(v) for v in (process.betas[t], process.kept[t], process.kept[t - 1])
    )
    x = kept**0.5 * data + (1 - kept) ** 0.5 * eps
    posterior = (
        before**0.5 * beta / (1 - kept) * data
        + (1 - beta) ** 0.5 * (1 - before) / (1 - kept) * x
    )  # fmt: skip
    from_noise = (x - beta / (1 - kept) ** 0.5 * eps) / (1 - beta) ** 0.5
    assert from_noise == pytest.approx(posterior, abs=1e-9)
    # Bayes: precisions of the prior x_{t-1} | x_0 and of the step x_t | x_{t-1} add up.
    precision = 1 / (1 - before) + (1 - beta) / beta
    assert float(process.posterior_variance()[t]) == pytest.approx(1 / precision, rel=1e-9)


def test_the_schedule_has_its_published_ends() -> None:
    process = DDPM()
    assert process.betas[[0, -1]].tolist() == pytest.approx([1e-4, 2e-2])
    assert float(process.kept[-1]) == pytest.approx(4.0358e-05, rel=1e-4)
    assert float(process.posterior_variance()[0]) == 0.0


def test_ddpm_examples_mix_data_and_noise_by_the_schedule() -> None:
    image, _ = pair()
    process = DDPM()
    example = process.noised(image, seeded(4))
    kept = process.kept[example.time_B].view(-1, 1, 1, 1)
    torch.testing.assert_close(
        example.image, kept.sqrt() * image + (1 - kept).sqrt() * example.target
    )
    assert example.time_B.dtype == torch.int64


@pytest.mark.parametrize("objective", [RectifiedFlow(), DDPM()])
def test_examples_are_a_function_of_the_generator(objective: RectifiedFlow | DDPM) -> None:
    image, _ = pair()
    one, same, other = (objective.noised(image, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.time_B, same.time_B)
    assert not torch.equal(one.target, other.target)


def test_guidance_weighs_the_two_fields() -> None:
    model = stirred()
    x = torch.randn(3, 1, 8, 8, generator=seeded())
    time_B, label_B = torch.full((3,), 300.0), torch.tensor([0, 5, 9])
    with torch.no_grad():
        conditional = model(x, time_B, label_B).out
        unconditional = model(x, time_B, torch.full((3,), 10)).out
    fields = [guided_field(model, label_B, guidance=g)(x, time_B) for g in (1.0, 0.0, 1.5)]
    assert torch.equal(fields[0], conditional)
    torch.testing.assert_close(fields[1], unconditional)
    torch.testing.assert_close(fields[2], 1.5 * conditional - 0.5 * unconditional)
    assert not fields[2].requires_grad


def test_a_training_pass_is_the_mean_squared_error_of_its_example() -> None:
    model = stirred()
    image, label_B = torch.rand(4, 1, 8, 8, generator=seeded()), torch.tensor([1, 2, 3, 4])
    loss, answer = training_pass(
        model, RectifiedFlow(), image, label_B, generator=seeded(7), label_dropout=0.5
    )
    draws = seeded(7)
    dropped_B = drop_labels(label_B, 0.5, 10, draws)
    example = RectifiedFlow().noised(image, draws)
    out = model(example.image, example.time_B, dropped_B).out
    assert torch.equal(answer.out, out)
    torch.testing.assert_close(loss, (out - example.target).square().mean())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_tenth_of_the_labels_is_dropped_unless_told() -> None:
    model, image = stirred(), torch.zeros(500, 1, 8, 8)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    with torch.no_grad():
        training_pass(
            model, RectifiedFlow(), image, torch.zeros(500, dtype=torch.int64), generator=seeded()
        )
    # Standard error of the share: sqrt(.09 / 500) = .013.
    assert float((seen[0] == 10).float().mean()) == pytest.approx(0.1, abs=0.045)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RectifiedFlow(shift=0.0), "shift: expected a positive"),
        (lambda: RectifiedFlow(std=-1.0), "std: expected a positive"),
        (lambda: DDPM(num_times=1), "num_times"),
        (lambda: DDPM(first_beta=0.5, last_beta=0.1), "first_beta, last_beta"),
        (lambda: DDPM().sample(flow_field, torch.zeros(1, 1), num_steps=1001), "at most 1000"),
        (lambda: RectifiedFlow().sample(flow_field, torch.zeros(1, 1), num_steps=0), "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
