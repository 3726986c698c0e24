"""The weights of a bank of experts, as every path reads them."""

from __future__ import annotations

from dataclasses import dataclass

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
