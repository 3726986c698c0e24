"""Networks from a task vector to the logits of every layer of a model: four forms.

===========  ===================================================================================
layer        an MLP of its own for every layer, W2_l gelu(W1_l e)
joint        one MLP whose output is the logits of all layers
recurrent    a GRU over the layers in both directions, each with its own projection of e
transformer  one encoder layer with 4 heads over the layers, likewise
===========  ===================================================================================

Source: Eliciting and Understanding Cross-Task Skills with Task-Level Mixture-of-Experts (Ye et al.
2022), section 3.3. Axes: B task vectors, D their width, L layers, E experts, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from crossroads.core.errors import unknown_name

Form = Literal["layer", "joint", "recurrent", "transformer"]
HEADS = 4
_BY_EXPERT = frozenset({"last_LEH", "bias_LE", "out"})  # what the logits of an expert come from


class TaskNetwork(nn.Module):
    """Maps (B, D) to logits (B, L, E), float32.

    Parameters
    ----------
    form : see the module's table
    width, hidden : D and H; H a multiple of 4 for "transformer"
    layers, experts : L and E
    seed : of the first numbers
    """

    def __init__(
        self, form: Form, *, width: int, hidden: int, layers: int, experts: int, seed: int = 0
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise unknown_name("form of router task-moe", form, get_args(Form))
        self.form, self.layers, self.experts = form, layers, experts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._make(width, hidden)

    def forward(self, e_BD: Tensor) -> Tensor:
        if self.form == "joint":
            return self.out(nn.functional.gelu(self.into(e_BD))).unflatten(-1, (self.layers, -1))
        each_BLH = self.into(e_BD).unflatten(-1, (self.layers, -1))
        if self.form == "layer":
            logits_BLE = torch.einsum("blh,leh->ble", nn.functional.gelu(each_BLH), self.last_LEH)
            return logits_BLE + self.bias_LE
        over = self.over(each_BLH)
        return self.out(over[0] if self.form == "recurrent" else over)

    @torch.no_grad()
    def take_over(self, before: TaskNetwork, carried: Callable[..., Tensor]) -> None:
        """Take what a network of the same form and layers learnt, and of its experts what fits.

        ``carried(rows before, fresh rows, axis=...)`` says which experts stay, as
        ``AdapterBank.carried`` does. Parameters stay trainable where they were.
        """
        for name, fresh in self.named_parameters():
            old = before.get_parameter(name)
            fresh.requires_grad_(old.requires_grad)
            if name.partition(".")[0] not in _BY_EXPERT:
                fresh.copy_(old)
                continue
            units = () if "bias" in name else fresh.shape[-1:]
            rows = carried(
                old.reshape(-1, before.experts, *units),
                fresh.reshape(-1, self.experts, *units),
                axis=1,
            )
            fresh.copy_(rows.reshape(fresh.shape))

    def _make(self, width: int, hidden: int) -> None:
        together = 1 if self.form == "joint" else self.layers
        self.into = nn.Linear(width, together * hidden)
        if self.form == "layer":
            bound = hidden**-0.5  # as nn.Linear has
            self.last_LEH = nn.Parameter(
                torch.empty(self.layers, self.experts, hidden).uniform_(-bound, bound)
            )
            self.bias_LE = nn.Parameter(
                torch.empty(self.layers, self.experts).uniform_(-bound, bound)
            )
        elif self.form == "joint":
            self.out = nn.Linear(hidden, self.layers * self.experts)
        elif self.form == "recurrent":
            self.over = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
            self.out = nn.Linear(2 * hidden, self.experts)
        else:
            # Without dropout: a decision is a function of the task.
            self.over = nn.TransformerEncoderLayer(
                hidden, HEADS, dim_feedforward=hidden, dropout=0.0, batch_first=True
            )
            self.out = nn.Linear(hidden, self.experts)
