"""What a diffusion transformer is trained on, and how images are drawn from it.

- Rectified flow (Liu et al. 2023; logit-normal times as in Esser et al. 2024):
  ``x = (1 - sigma) z + sigma eps``, the model predicts ``eps - z``, Euler steps from noise to data.
- DDPM (Ho et al. 2020): ``x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps``, the model predicts
  ``eps``; ancestral sampling with the fixed variance of the posterior, or DDIM (Song et al. 2021)
  with fewer, noiseless steps.

Classifier-free guidance (Ho and Salimans 2022) wraps a model into a field that either samples.
The final sigma of the Euler sampler is 0, so its last step lands on data; the shift is applied
once. Every draw comes from the generator handed in, on the CPU, whatever the model's device.

Axes: B images (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from crossroads.core.errors import UsageError
from crossroads.core.routed import ModelOutput, RouteContext
from crossroads.models.dit import drop_labels

Field = Callable[[Tensor, Tensor], Tensor]  # (images, time (B,)) -> field of the images' shape
TIME_SCALE = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """A training example: what the model sees, when, and what it should answer."""

    image: Tensor
    time_B: Tensor
    target: Tensor


class Objective(Protocol):
    """A way to noise images and to draw them again."""

    def noised(self, image: Tensor, generator: torch.Generator) -> Noised: ...

    def sample(self, field: Field, noise: Tensor, *, num_steps: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RectifiedFlow:
    """Straight paths between data and noise.

    Attributes
    ----------
    shift : s > 0; sigma becomes ``s sigma / (1 + (s - 1) sigma)``, more noise above 1
    mean, std : of the normal whose sigmoid is sigma in training
    """

    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise UsageError(f"shift: expected a positive number, got {self.shift!r}")
        if self.std <= 0:
            raise UsageError(f"std: expected a positive number, got {self.std!r}")

    def shifted(self, sigma: Tensor) -> Tensor:
        """Return sigma after the shift; 0 and 1 stay."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def interpolate(self, image: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        """Return ``(1 - sigma) z + sigma eps``: data at 0, noise at 1."""
        sigma = _per_image(sigma_B, image)
        return (1 - sigma) * image + sigma * noise

    def noised(self, image: Tensor, generator: torch.Generator) -> Noised:
        """Return images at logit-normal times; the target is ``eps - z``, the time 1000 sigma."""
        u_B = self.mean + self.std * torch.randn(len(image), generator=generator)
        sigma_B = self.shifted(u_B.sigmoid()).to(image.device)
        noise = _normal_like(image, generator)
        return Noised(
            image=self.interpolate(image, noise, sigma_B),
            time_B=TIME_SCALE * sigma_B,
            target=noise - image,
        )

    def sample(self, field: Field, noise: Tensor, *, num_steps: int = 250) -> Tensor:
        """Return images after ``num_steps`` Euler steps from noise."""
        _check_steps(num_steps)
        sigmas = self.shifted(torch.linspace(1, 0, num_steps + 1))
        image = noise
        for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            time_B = torch.full((len(image),), TIME_SCALE * sigma, device=image.device)
            image = image + (following - sigma) * field(image, time_B)
        return image


@dataclass(frozen=True, kw_only=True, slots=True)
class DDPM:
    """Discrete diffusion with linearly growing variances; times are 0 ... num_times - 1.

    Attributes
    ----------
    num_times : steps of the forward process
    first_beta, last_beta : its variances, linear in between
    """

    num_times: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 2e-2

    def __post_init__(self) -> None:
        if self.num_times < 2:
            raise UsageError(f"num_times: expected at least 2, got {self.num_times!r}")
        if not 0 < self.first_beta <= self.last_beta < 1:
            raise UsageError(
                f"first_beta, last_beta: expected 0 < first <= last < 1, got "
                f"{self.first_beta!r} and {self.last_beta!r}"
            )

    @property
    def betas(self) -> Tensor:
        """beta_t in float64."""
        return torch.linspace(self.first_beta, self.last_beta, self.num_times, dtype=torch.float64)

    @property
    def kept(self) -> Tensor:
        """abar_t, the product of all 1 - beta up to t, in float64."""
        return (1 - self.betas).cumprod(0)

    def noised(self, image: Tensor, generator: torch.Generator) -> Noised:
        """Return images at uniform times; the target is the noise."""
        time_B = torch.randint(self.num_times, (len(image),), generator=generator)
        noise = _normal_like(image, generator)
        kept_B = self.kept[time_B].to(image)
        seen, hidden = _per_image(kept_B.sqrt(), image), _per_image((1 - kept_B).sqrt(), image)
        return Noised(
            image=seen * image + hidden * noise,
            time_B=time_B.to(image.device),
            target=noise,
        )

    def posterior_variance(self) -> Tensor:
        """Return the variance of x_{t-1} given x_t and the data, float64; 0 at the first time."""
        kept = self.kept
        before = torch.cat((kept.new_ones(1), kept[:-1]))
        return (1 - before) / (1 - kept) * self.betas

    def sample(self, field: Field, noise: Tensor, *, num_steps: int = 50) -> Tensor:
        """Return images from noise by DDIM without noise, over evenly spaced times.

        Raises UsageError for more steps than there are times.
        """
        _check_steps(num_steps)
        if num_steps > self.num_times:
            raise UsageError(f"num_steps: expected at most {self.num_times}, got {num_steps}")
        times = torch.linspace(self.num_times - 1, 0, num_steps).round().long().tolist()
        kept = self.kept
        image = noise
        for time, following in zip(times, [*times[1:], None], strict=True):
            here = float(kept[time])
            there = 1.0 if following is None else float(kept[following])
            eps = field(image, torch.full((len(image),), time, device=image.device))
            data = (image - (1 - here) ** 0.5 * eps) / here**0.5
            image = there**0.5 * data + (1 - there) ** 0.5 * eps
        return image

    def sample_ancestral(
        self, field: Field, noise: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """Return images from noise by all ``num_times`` steps of the reverse chain."""
        betas, kept = self.betas.tolist(), self.kept.tolist()
        spread = self.posterior_variance().sqrt().tolist()
        image = noise
        for time in reversed(range(self.num_times)):
            eps = field(image, torch.full((len(image),), time, device=image.device))
            slope = betas[time] / (1 - kept[time]) ** 0.5
            image = (image - slope * eps) / (1 - betas[time]) ** 0.5
            if time:
                image = image + spread[time] * _normal_like(image, generator)
        return image


def training_pass(
    model: nn.Module,
    objective: Objective,
    image: Tensor,
    label_B: Tensor,
    *,
    generator: torch.Generator,
    label_dropout: float = 0.1,
    context: RouteContext | None = None,
) -> tuple[Tensor, ModelOutput]:
    """Return the mean squared error of a batch, and the model's answer with its records.

    Draws labels to drop, times and noise, in this order and from ``generator`` alone, so arms of
    a comparison see the same examples.
    """
    null_label: int = model.config.null_label
    label_B = drop_labels(label_B, label_dropout, null_label, generator)
    example = objective.noised(image, generator)
    context = context or RouteContext(training=True)
    answer: ModelOutput = model(example.image, example.time_B, label_B, context=context)
    return (answer.out - example.target).square().mean(), answer


def guided_field(
    model: nn.Module, label_B: Tensor, *, guidance: float = 1.0, context: RouteContext | None = None
) -> Field:
    """Return the field ``f_u + g (f_c - f_u)`` of a model at labels, without gradients.

    ``f_c`` is the model at the labels and ``f_u`` at the null label; g = 1 needs ``f_c`` only.
    """
    null_B = torch.full_like(label_B, model.config.null_label)
    context = context or RouteContext()

    @torch.no_grad()
    def field(image: Tensor, time_B: Tensor) -> Tensor:
        conditional: Tensor = model(image, time_B, label_B, context=context).out
        if guidance == 1.0:
            return conditional
        unconditional: Tensor = model(image, time_B, null_B, context=context).out
        return unconditional + guidance * (conditional - unconditional)

    return field


def _normal_like(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(image.shape, generator=generator, dtype=image.dtype).to(image.device)


def _per_image(value_B: Tensor, image: Tensor) -> Tensor:
    return value_B.to(image.dtype).view(-1, *[1] * (image.dim() - 1))


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise UsageError(f"num_steps: expected at least 1, got {num_steps!r}")
