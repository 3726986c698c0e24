"""Experts: what tokens, slots or whole sequences are sent through.

``FFNBank`` stacks the weights of feed-forward experts and runs them in one kernel;
``ModuleExperts`` takes any modules, one expert each, on tokens, sequences or pooled sequences. Null
experts are listed in ``kinds``, own no parameters and are never run.

Axes: N tokens, B sequences of T positions, D width, F hidden width, E selectable experts, K places,
R experts with parameters, C slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossroads.core import dispatch
from crossroads.core.dispatch.activations import Kind, activate
from crossroads.core.errors import InputError, UsageError
from crossroads.moe.checks import check_known
from crossroads.moe.contract import NOBODY, ExpertKind

Activation = Kind
View = Literal["token", "sequence", "pooled"]


class Experts(nn.Module):
    """Base of all experts.

    Attributes
    ----------
    kinds : one entry per selectable expert
    view : what an expert is applied to: single tokens (and slots), whole sequences, or a sequence
        to one vector
    d_out : width of the output
    pack : sequence view only: run an expert on its own tokens, packed in order of position,
        instead of on every token of the sequences it serves
    """

    view: View = "token"
    pack: bool = False

    def __init__(self, kinds: Sequence[ExpertKind], d_out: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.n_experts = len(self.kinds)
        self.d_out = d_out

    def run_tokens(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        """Return sum_k w_NK * f_idx(x_ND); places with idx = -1 cost and contribute nothing."""
        raise NotImplementedError

    def run_slots(self, x_ECD: Tensor) -> Tensor:
        """Return every expert applied to its own slots; null experts return zeros."""
        raise NotImplementedError

    def expert(self, index: int, x: Tensor, **arguments: Any) -> Tensor:
        """Return one expert applied to ``x``, for reference and diagnostics."""
        raise NotImplementedError

    def flops_E(self, length: int = 1) -> Tensor:
        """Return multiply-adds x 2 of each expert for one token in a sequence of ``length``."""
        raise NotImplementedError


class FFNBank(Experts):
    """Feed-forward experts of one shape with stacked weights.

    ``swiglu``: down (silu(gate x) * up x), no bias, gate_up (R, 2F, D) and down (R, D, F). Others:
    down act(up x + b) + b', up (R, F, D). ``identity`` experts return the token, ``const`` experts
    a learnt vector; both are free of matrix products.

    ``identical`` starts all experts from the same weights (V-MoE's recipe).
    """

    def __init__(
        self,
        d: int,
        hidden: int,
        kinds: int | Sequence[ExpertKind],
        *,
        activation: Activation = "swiglu",
        bias: bool | None = None,
        path: dispatch.Path = "auto",
        identical: bool = False,
    ) -> None:
        ffn: ExpertKind = "ffn"
        super().__init__((ffn,) * kinds if isinstance(kinds, int) else kinds, d)
        unknown = set(self.kinds) - {"ffn", "null", "identity", "const"}
        if unknown:
            raise UsageError(
                f"experts: an FFN bank has no {', '.join(sorted(unknown))} experts; "
                "use ModuleExperts for those"
            )
        if hidden < 1:
            raise UsageError(f"hidden: expected at least 1, got {hidden}")
        check_known("activation", activation, Activation)
        self.d, self.hidden = d, hidden
        self.activation: Activation = activation
        self.path: dispatch.Path = path
        n_ffn = self.kinds.count("ffn")
        rows = {"swiglu": 2 * hidden}.get(activation, hidden)
        with_bias = activation != "swiglu" if bias is None else bias
        if with_bias and activation == "swiglu":
            raise UsageError("bias: SwiGLU experts have none; choose another activation")
        self.up = nn.Parameter(torch.empty(n_ffn, rows, d))
        self.down = nn.Parameter(torch.empty(n_ffn, d, hidden))
        self.up_bias = nn.Parameter(torch.zeros(n_ffn, rows)) if with_bias else None
        self.down_bias = nn.Parameter(torch.zeros(n_ffn, d)) if with_bias else None
        n_const = self.kinds.count("const")
        self.const = nn.Parameter(torch.zeros(n_const, d)) if n_const else None
        for kind in ("ffn", "const"):
            self.register_buffer(f"_{kind}_E", _positions(self.kinds, kind), persistent=False)
        identity = torch.tensor([kind == "identity" for kind in self.kinds])
        self.register_buffer("_identity_E", identity, persistent=False)
        self.reset_parameters(identical=identical)

    @property
    def _all_ffn(self) -> bool:
        return self.kinds.count("ffn") == len(self.kinds)

    def reset_parameters(self, *, identical: bool = False) -> None:
        """Draw Xavier-uniform matrices, each expert as if it stood alone; biases are zero."""
        for matrix in (self.up, self.down):
            for index in range(matrix.shape[0]):
                if identical and index:
                    matrix.data[index] = matrix.data[0]
                else:
                    nn.init.xavier_uniform_(matrix.data[index])

    def run_tokens(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        if self._all_ffn:
            return self._bank(x_ND, idx_NK, w_NK)
        there_NK = idx_NK >= 0
        ffn_NK = torch.where(there_NK, self._ffn_E[idx_NK.clamp_min(0)], NOBODY)
        y_ND = self._bank(x_ND, ffn_NK, w_NK) if self.up.shape[0] else torch.zeros_like(x_ND)
        if "identity" in self.kinds:
            picked_NK = there_NK & self._identity_E[idx_NK.clamp_min(0)]
            w_N1 = torch.where(picked_NK, w_NK, 0.0).sum(-1, keepdim=True)
            y_ND = y_ND + w_N1.to(y_ND.dtype) * x_ND
        if self.const is not None:
            const_NK = torch.where(there_NK, self._const_E[idx_NK.clamp_min(0)], NOBODY)
            w_NKC = nn.functional.one_hot(const_NK + 1, self.const.shape[0] + 1)[..., 1:]
            w_NC = (w_NKC.to(w_NK.dtype) * w_NK.unsqueeze(-1)).sum(1)
            y_ND = y_ND + (w_NC.to(self.const.dtype) @ self.const).to(y_ND.dtype)
        return y_ND

    def _bank(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return dispatch.swiglu_bank(x_ND, idx_NK, w_NK, self.up, self.down, path=self.path)
        return dispatch.mlp_bank(
            x_ND,
            idx_NK,
            w_NK,
            self.up,
            self.up_bias,
            self.down,
            self.down_bias,
            activation=self.activation,
            path=self.path,
        )

    def run_slots(self, x_ECD: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled(x_ECD.device.type)
        if x_ECD.dtype != self.up.dtype and not autocast:
            raise InputError(
                f"experts are {self.up.dtype} and their slots {x_ECD.dtype}; cast one of them, or "
                "use autocast"
            )
        if self._all_ffn:
            return self._slots(x_ECD)
        y_ECD = torch.zeros_like(x_ECD)
        ffn = [e for e, kind in enumerate(self.kinds) if kind == "ffn"]
        pieces = list(y_ECD.unbind(0))
        if ffn:
            for e, y_CD in zip(ffn, self._slots(x_ECD[ffn]).unbind(0), strict=True):
                pieces[e] = y_CD
        for e, kind in enumerate(self.kinds):
            if kind in ("identity", "const"):
                pieces[e] = self.expert(e, x_ECD[e])
        return torch.stack(pieces)

    def _slots(self, x_RCD: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return dispatch.swiglu_slots(x_RCD, self.up, self.down)
        return dispatch.mlp_slots(
            x_RCD, self.up, self.up_bias, self.down, self.down_bias, activation=self.activation
        )

    def expert(self, index: int, x: Tensor, **arguments: Any) -> Tensor:
        kind = self.kinds[index]
        if kind == "null":
            return torch.zeros_like(x)
        if kind == "identity":
            return x
        if kind == "const":
            assert self.const is not None
            return self.const[int(self._const_E[index])].expand_as(x)
        row = int(self._ffn_E[index])
        up_bias = None if self.up_bias is None else self.up_bias[row]
        down_bias = None if self.down_bias is None else self.down_bias[row]
        h = activate(self.activation, nn.functional.linear(x, self.up[row], up_bias))
        return nn.functional.linear(h, self.down[row], down_bias)

    def flops_E(self, length: int = 1) -> Tensor:
        one = 2.0 * self.d * (self.up.shape[1] + self.hidden)
        return torch.tensor([one if kind == "ffn" else 0.0 for kind in self.kinds])


class ModuleExperts(Experts):
    """Any modules as experts; parameters may be shared between them.

    ``flops_per_token`` is one number per module, or a function of the sequence's length (attention
    experts). In the ``sequence`` view a module is called as ``module(x_BTD, mask_BT, pos_BT,
    causal)`` and in the ``pooled`` view likewise, returning (B, d_out).
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        d_out: int,
        *,
        view: View = "token",
        kinds: Sequence[ExpertKind] | None = None,
        pack: bool = False,
        flops_per_token: Sequence[Any] | None = None,
    ) -> None:
        module: ExpertKind = "module"
        super().__init__(kinds or (module,) * len(modules), d_out)
        with_module = [e for e, kind in enumerate(self.kinds) if kind != "null"]
        if len(with_module) != len(modules):
            raise UsageError(
                f"kinds: {len(with_module)} experts have a module, but {len(modules)} were given"
            )
        self.members = nn.ModuleList(modules)
        self.view = view
        self.pack = pack
        self._member = dict(zip(with_module, range(len(modules)), strict=True))
        self._flops = list(flops_per_token) if flops_per_token is not None else None

    def expert(self, index: int, x: Tensor, **arguments: Any) -> Tensor:
        if index not in self._member:
            return x.new_zeros(*x.shape[:-1], self.d_out)
        return self.members[self._member[index]](x, **arguments)

    def run_tokens(self, x_ND: Tensor, idx_NK: Tensor, w_NK: Tensor) -> Tensor:
        if self.view != "token":
            raise InputError(f"experts with a {self.view} view cannot be run on single tokens")
        plan = dispatch.plan_rows(idx_NK, self.n_experts)
        x_SD = dispatch.gather_rows(x_ND, plan)
        outs = [self.expert(e, x_SD[first:last]) for e, first, last in plan.blocks]
        y_SD = torch.cat(outs) if outs else x_ND.new_zeros(0, self.d_out)
        return dispatch.combine_rows(y_SD, w_NK, plan)

    def run_slots(self, x_ECD: Tensor) -> Tensor:
        return torch.stack([self.expert(e, x_CD) for e, x_CD in enumerate(x_ECD.unbind(0))])

    def flops_E(self, length: int = 1) -> Tensor:
        if self._flops is None:
            counts = [
                2.0 * sum(p.numel() for p in m.parameters() if p.ndim >= 2) for m in self.members
            ]
        else:
            counts = [f(length) if callable(f) else float(f) for f in self._flops]
        return torch.tensor(
            [counts[self._member[e]] if e in self._member else 0.0 for e in range(self.n_experts)]
        )


def _positions(kinds: Sequence[str], wanted: str) -> Tensor:
    """Return, per expert, its number among those of a kind; -1 for the others."""
    found, count = [], 0
    for kind in kinds:
        found.append(count if kind == wanted else NOBODY)
        count += kind == wanted
    return torch.tensor(found, dtype=torch.int64)
