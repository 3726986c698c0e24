"""Arrow: tokens go to the adapters along whose main input direction they point.

Score of an expert = |x . p_e|, p_e the top right-singular vector of its B A; no data, no training.
Source: Towards Modular LLMs by Building and Reusing a Library of LoRAs (Ostapenko et al. 2024).
Outputs are mixed, as PEFT does; the authors' code averages A and B apart for each token, and the
survey lists it under "Parameter" therefore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.prototypes import prototypes_EI
from crossroads.adapters.selection import check_settings, select
from crossroads.adapters.survey.schema import Cells


class Arrow(Router):
    """Top-k of |x . p_e| / temperature, of the raw input and without regard to sign.

    Scores grow with the input, so that weights are near one-hot where inputs are large. An adapter
    without effect at a layer has no direction and counts as dead there. ``k=0`` keeps all experts.
    PHATGOOSE's variant is ``temperature = 10 sqrt(d)``.
    """

    name: ClassVar[str] = "arrow"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Standard",
        expert_data="Private",
        routing_dataset="None",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="Out-of-Distribution",
        user_dataset="Zero-Shot",
    )

    def __init__(self, *, k: int = 3, temperature: float = 1.0) -> None:
        super().__init__()
        check_settings(self.name, least=0, k=k, temperature=temperature)
        self.k, self.temperature = k, temperature
        self._prototypes: dict[str, Tensor] = {}

    def prepare(self, bank: AdapterBank) -> None:
        self._prototypes = {layer: prototypes_EI(module) for layer, module in bank.layers.items()}

    def route(self, given: RouteInput) -> Routing:
        prototypes = self._prototypes[given.module]
        scores_BTE = (given.x_BTI.float() @ prototypes.T).abs()
        works_E = given.bank.alive_E & prototypes.any(-1)
        return select(
            scores_BTE.unsqueeze(2), works_E, k=self.k or None, temperature=self.temperature
        )

    def settings(self) -> Mapping[str, Any]:
        return {"k": self.k, "temperature": self.temperature}
