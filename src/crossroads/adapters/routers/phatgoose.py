"""PHATGOOSE: every expert brings one gate vector a layer, trained on its own data after the LoRA.

Score of an expert = LN(x) . LN(v_e) / sqrt(d), which is sqrt(d) times the correlation of input and
gate; the two best of every token and layer are mixed. Source: Learning to Route Among Specialized
Experts for Zero-Shot Generalization (Muqeeth et al. 2024), section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import RouteInput, Router, Routing
from crossroads.adapters.selection import check_settings, select
from crossroads.adapters.survey.schema import Cells
from crossroads.core.errors import InputError

_LOG = logging.getLogger(__name__)
_FLAT = 1e-2  # standard deviation of a gate below which LayerNorm's eps takes a share of its score
_COLUMNS = 16  # gates are padded to a multiple: a product's last bits depend on its width, and an
# expert that joins must not change the scores of the others


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
        check_settings(self.name, least=1, k=k, temperature=temperature)
        self.k, self.temperature, self.untrained = k, temperature, untrained
        self._gates: dict[str, Tensor] = {}

    def prepare(self, bank: AdapterBank) -> None:
        """Normalise the gates. Raises InputError for missing and for constant ones."""
        self._gates = {}
        flat = []
        for layer, module in bank.layers.items():
            gate_EI = module.artifact(self.artifact).float()
            spread_E = gate_EI.std(-1, unbiased=False)
            # Not by the spread, which rounding keeps from 0.
            constant = (gate_EI.amax(-1) == gate_EI.amin(-1)) & module.alive_E
            if bool(constant.any()) and not self.untrained:
                who = bank.names[int(constant.nonzero()[0, 0])]
                raise InputError(
                    f"router {self.name}: the {self.artifact} of expert {who!r} at {layer} is "
                    "constant, as before training; train it, or allow it with untrained=true"
                )
            if bool((spread_E[module.alive_E] < _FLAT).any()):
                flat.append(layer)
            spare = -len(gate_EI) % _COLUMNS
            unit_EI = normalised(gate_EI).nan_to_num() * module.inputs**-0.5
            self._gates[layer] = nn.functional.pad(unit_EI, (0, 0, 0, spare))
        if flat:
            _LOG.warning(
                "router %s: %d of %d layers have a %s with a standard deviation below %g, where "
                "the eps of the normalisation lowers its scores; train it longer",
                self.name, len(flat), len(bank.layers), self.artifact, _FLAT,
            )  # fmt: skip

    def scores(self, given: RouteInput) -> Tensor:
        """Return LN(x) . LN(v_e) / sqrt(d) of every token and expert, (B, T, 1, E), float32."""
        scores_BTE = nn.functional.linear(normalised(given.x_BTI), self._gates[given.module])
        return scores_BTE[..., None, : given.bank.n_experts]

    def route(self, given: RouteInput) -> Routing:
        bank = given.bank
        return select(
            self.scores(given),
            bank.alive_E,
            k=self.k,
            temperature=self.temperature,
            n_alive=bank.n_alive,
        )

    def settings(self) -> Mapping[str, Any]:
        return {"k": self.k, "temperature": self.temperature, "untrained": self.untrained}


class GateTraining(Router):
    """Step 2 of a contributor: sigmoid(v.x) of the raw input weighs its one expert.

    y = W x + sigmoid(v.x) s B A x, v a parameter for each layer that starts at 0, so that the
    weight starts at 1/2. The bank holds that expert alone.
    """

    name: ClassVar[str] = "phatgoose-gate-training"

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.ParameterList()
        self._places: dict[str, int] = {}

    def prepare(self, bank: AdapterBank) -> None:
        """Make the vectors, zeros, unless there are some. Raises InputError for two experts."""
        if len(bank.names) != 1:
            raise InputError(
                f"gate training: expected a bank of one expert, got {len(bank.names)}; "
                "take bank.subset([name])"
            )
        if list(self._places) != list(bank.layers):
            self._places = {layer: place for place, layer in enumerate(bank.layers)}
            self.vectors = nn.ParameterList(torch.zeros(m.inputs) for m in bank.layers.values())

    def route(self, given: RouteInput) -> Routing:
        v_I = self.vectors[self._places[given.module]]
        weights_BT = torch.sigmoid(given.x_BTI.float() @ v_I)
        return Routing(weights=weights_BT[..., None, None], normalised=False)

    def gates(self) -> dict[str, Tensor]:
        """Return the vectors by layer, (I,), as the artifact "gate" has them."""
        return {layer: self.vectors[p].detach().clone() for layer, p in self._places.items()}


def normalised(x: Tensor) -> Tensor:
    """Return LayerNorm without affine parameters of the last axis, in float32, eps 1e-5."""
    return nn.functional.layer_norm(x.float(), x.shape[-1:])
