"""PHATGOOSE: every expert brings one gate vector a layer, trained on its own data after the LoRA.

Score of an expert = LN(x) . LN(v_e) / sqrt(d), which is sqrt(d) times the correlation of input and
gate; the two best of every token and layer are mixed. Source: Learning to Route Among Specialized
Experts for Zero-Shot Generalization (Muqeeth et al. 2024), section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.selection import select
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError

_LOG = logging.getLogger(__name__)
_FLAT = 1e-2  # standard deviation of a gate below which LayerNorm's eps takes a share of its score


class Phatgoose(Router):
    """Top-k of the correlation of a token with every expert's gate.

    ``untrained`` allows gates that are constant: such a gate scores 0 and would beat every expert
    with a negative score.
    """

    name: ClassVar[str] = "phatgoose"
    artifact: ClassVar[str] = "gate"
    artifacts: ClassVar[frozenset[str]] = frozenset({"gate"})
    survey_row: ClassVar[str | None] = "PHATGOOSE"
    cells: ClassVar[Cells | None] = Cells(
        expert_training="Custom",
        expert_data="Private",
        routing_dataset="None",
        input_granularity="Step",
        depth_granularity="Module",
        expert_selection="Sparse",
        expert_aggregation="Output",
        generalization="Out-of-Distribution",
        user_dataset="Zero-Shot",
    )

    def __init__(self, *, k: int = 2, temperature: float = 1.0, untrained: bool = False) -> None:
        super().__init__()
        self.k, self.temperature, self.untrained = k, temperature, untrained
        self._gates: dict[str, Tensor] = {}

    def prepare(self, bank: AdapterBank) -> None:
        """Normalise the gates. Raises InputError for missing and for constant ones."""
        self._gates = {}
        flat = []
        for layer, module in bank.layers.items():
            gate_EI = module.artifact(self.artifact)[:, :].float()
            spread_E = gate_EI.std(-1, unbiased=False)
            constant = (spread_E == 0) & module.alive_E
            if bool(constant.any()) and not self.untrained:
                who = bank.names[int(constant.nonzero()[0, 0])]
                raise InputError(
                    f"router {self.name}: the {self.artifact} of expert {who!r} at {layer} is "
                    "constant, as before training; train it, or allow it with untrained=true"
                )
            if bool((spread_E[module.alive_E] < _FLAT).any()):
                flat.append(layer)
            self._gates[layer] = normalised(gate_EI).nan_to_num()
        if flat:
            _LOG.warning(
                "router %s: %d of %d layers have a %s with a standard deviation below %g, where "
                "the eps of the normalisation lowers its scores; train it longer",
                self.name, len(flat), len(bank.layers), self.artifact, _FLAT,
            )  # fmt: skip

    def route(self, given: RouteInput) -> Routing:
        scores_BTE = normalised(given.x_BTI) @ self._gates[given.module].T
        scores_BTHE = (scores_BTE * given.bank.inputs**-0.5).unsqueeze(2)
        return select(scores_BTHE, given.bank.alive_E, k=self.k, temperature=self.temperature)

    def settings(self) -> Mapping[str, Any]:
        return {"k": self.k, "temperature": self.temperature, "untrained": self.untrained}


def normalised(x: Tensor) -> Tensor:
    """Return LayerNorm without affine parameters of the last axis, in float32, eps 1e-5."""
    return nn.functional.layer_norm(x.float(), x.shape[-1:])
