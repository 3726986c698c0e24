"""The weights of a bank of experts, as every path reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossroads.core.dispatch.activations import Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """The weights of E experts: first projection, activation, second projection."""

    kind: Kind
    first_EGD: Tensor
    first_bias_EG: Tensor | None
    second_EDF: Tensor
    second_bias_ED: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.first_EGD, self.first_bias_EG, self.second_EDF, self.second_bias_ED

    def keeps_gradient(self, *inputs: Tensor) -> bool:
        """Return whether a result of these weights and inputs can be differentiated."""
        tensors = (*inputs, *self.tensors)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
