"""Decisions of forward passes as a routing trace.

    recorder = Recorder(meta={"model": "tiny", "seed": 0}).describe(model)
    recorder.record(model(x_BT, context), context, token_id_BT=x_BT)
    recorder.trace().save(Path("run.npz"))

Recording keeps detached tensors and converts them in bulk, so that it costs a forward pass next to
nothing; masks and ids, which a caller may fill anew for the next pass, are copied. Only real tokens
are kept; the columns of the trace are the routers' calls in their order, one per layer, iteration
and branch.

Axes: B sequences, T positions, N = B * T tokens, E experts, K places, L columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.core import gating
from crossroads.core.errors import InputError
from crossroads.core.routed import ModelOutput, RouteContext, routed_layers
from crossroads.core.trace import DECODE, PREFILL, RoutingTrace
from crossroads.moe.compaction import Column, Pass, assembled, compacted
from crossroads.moe.contract import (
    Dense,
    ExpertChoice,
    RoutingDecision,
    TokenChoice,
)
from crossroads.moe.conversions import expert_choice_to_token_choice
from crossroads.moe.trace_facts import trace_facts

PENDING_PASSES = 64  # kept as tensors before they are turned into compact arrays


def kinds_of(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Return the kinds of experts of every routed layer, by layer index."""
    return {int(m.layer): tuple(m.routers[0].kinds) for m in _layers(model)}


def _layers(model: nn.Module) -> list[Any]:
    return list(routed_layers(model))


class Recorder:
    """Collects the decisions of forward passes.

    Parameters
    ----------
    kinds : kinds of experts by layer index, see ``kinds_of``; null experts keep their ids
    keep_logits : keep the scores too (float16, E numbers per token and column)
    approx_topk : record dense decisions by the k experts of largest total combine weight, and say
        so in the metadata; None refuses them, since they name no experts
    domains : names of the domains that ``domain`` numbers
    meta : what else to keep with the trace: ``model``, ``seed``, ``source``, ...
    """

    def __init__(
        self,
        *,
        kinds: Mapping[int, Sequence[str]] | None = None,
        keep_logits: bool = False,
        approx_topk: int | None = None,
        domains: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        if kinds is not None and not isinstance(kinds, Mapping):
            raise InputError(
                f"kinds: expected a mapping from layer to kinds, as kinds_of gives, got {kinds!r}"
            )
        self.kinds = dict(kinds or {})
        self.keep_logits = keep_logits
        self.approx_topk = approx_topk
        self.meta = {"kind": "moe", **(meta or {})}
        if domains:
            self.meta["domains"] = list(domains)
        self._pending: list[Pass] = []
        self._parts: list[Pass] = []
        self._home: dict[int, int] = {}
        self._domain: dict[int, int] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._whats: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._real: dict[tuple[int, int], Tensor] = {}
        self._n_sequences = 0
        self._step = 0

    def describe(self, model: nn.Module) -> Recorder:
        """Take from a model what it can say of itself; return the recorder.

        That is ``kinds`` where none were given, and metadata (``crossroads.moe.trace_facts``); what
        the recorder was given wins.
        """
        facts, self._facts = trace_facts(model)
        self.meta = {**facts, **self.meta}
        if not self.kinds and not self._step:
            self.kinds = dict(kinds_of(model))
        return self

    def record(
        self,
        output: ModelOutput,
        context: RouteContext | None = None,
        *,
        token_id_BT: Tensor | None = None,
        sequences: Sequence[int] | None = None,
        home: Sequence[int] | None = None,
        domain: Sequence[int] | None = None,
    ) -> list[int]:
        """Take one forward pass and return the numbers of its sequences.

        Give these back as ``sequences`` when a later pass (a decoding step) continues them. Token
        ids default to ``cond["token_id"]``; ``cond["pos"]`` and ``cond["doc_id"]`` are used where
        they are. ``home`` (rank) and ``domain`` have one number a sequence. The second pass of a
        two-pass loss is left out. Raises InputError for a pass without decisions, of other columns
        than the first, or with dense decisions, and for ids, homes or domains of another shape.
        """
        context = context or RouteContext()
        batch, length = _shape(output)
        token_id = context.cond.get("token_id") if token_id_BT is None else token_id_BT
        _check_facts(batch, length, token_id, {"home": home, "domain": domain})
        named = len(self.meta.get("domains", ()))
        if named and domain is not None and not all(0 <= n < named for n in domain):
            raise InputError(
                f"domain: expected numbers from 0 to {named - 1} (the domains named), "
                f"got {list(domain)}"
            )
        numbers = self._numbers(sequences, batch)
        if context.pass_id:
            return numbers
        columns = [c for r in output.records for c in self._columns(r.layer, r.decisions)]
        first = (self._parts + self._pending)[:1]
        if first and [c.what for c in first[0].columns] != [c.what for c in columns]:
            raise InputError(
                f"records: pass {self._step} has other columns than the first pass; "
                "use a recorder for each model"
            )
        mask = context.mask_BT
        self._pending.append(
            Pass(
                step=self._step,
                columns=columns,
                mask=self._all_real(batch, length) if mask is None else _kept(mask),
                token_id=_kept(token_id),
                pos=_kept(context.cond.get("pos")),
                doc=_kept(context.cond.get("doc_id")),
                sequence=np.array(numbers, np.int64),
                phase=np.full(batch, PREFILL if sequences is None else DECODE, np.uint8),
            )
        )
        for kept, given in ((self._home, home), (self._domain, domain)):
            if given is not None:
                kept.update(zip(numbers, given, strict=True))
        self._step += 1
        if len(self._pending) >= PENDING_PASSES:
            self._compact()
        return numbers

    def trace(self) -> RoutingTrace:
        """Return everything recorded so far. Raises InputError when there is nothing."""
        self._compact()
        if not self._parts:
            raise InputError("recorder: no forward pass was recorded; call record first")
        return assembled(self._parts, self.meta, self._facts, self._home, self._domain).check()

    def _numbers(self, sequences: Sequence[int] | None, batch: int) -> list[int]:
        if sequences is None:
            fresh = list(range(self._n_sequences, self._n_sequences + batch))
            self._n_sequences += batch
            return fresh
        known = len(sequences) == batch and all(0 <= s < self._n_sequences for s in sequences)
        if not known or len(set(sequences)) != batch:
            raise InputError(
                f"sequences: expected {batch} different numbers that record returned, "
                f"got {list(sequences)}"
            )
        return list(sequences)

    def _all_real(self, batch: int, length: int) -> Tensor:
        if (batch, length) not in self._real:
            self._real[batch, length] = torch.ones(batch, length, dtype=torch.bool)
        return self._real[batch, length]

    def _columns(self, layer: int, decisions: Sequence[RoutingDecision]) -> list[Column]:
        columns = []
        for iteration, decision in enumerate(decisions):
            if decision.choice is not None:
                routes = [("", decision.choice, None)]
            else:
                routes = [(b.name, b.choice, b.gate_N1) for b in decision.branches]
            for name, choice, gate_N1 in routes:
                weights = decision.weights if gate_N1 is None else "unnormalised"
                sizes = (decision.n_experts, weights, decision.granularity)
                what = self._what(layer, iteration, name, type(choice), *sizes)
                columns.append(self._column(what, choice, decision, gate_N1))
        return columns

    def _what(
        self, layer: int, iteration: int, branch: str, form: type[Any], *sizes: Any
    ) -> dict[str, Any]:
        """Return what a column is; passes of a model have the same, made and checked once."""
        n_experts, weights, granularity = sizes
        kinds = list(self.kinds.get(layer, ("ffn",) * n_experts))
        key = (layer, iteration, branch, form, self.approx_topk, *kinds, *sizes)
        if key in self._whats:
            return self._whats[key]
        if len(kinds) != n_experts:
            raise InputError(
                f"kinds: layer {layer} has {n_experts} experts, got {len(kinds)}; "
                "take kinds_of(model)"
            )
        if form is Dense and self.approx_topk is None:
            raise InputError(
                f"layer {layer}: a dense decision names no experts; record it with "
                "approx_topk=k for the k of largest weight"
            )
        what = {
            "layer": layer,
            "iteration": iteration,
            "branch": branch,
            "n_experts": n_experts,
            "weights": weights,
            "granularity": granularity,
            "expert_kinds": kinds,
        }
        if form is ExpertChoice:
            what["form"] = "expert choice"
        elif form is Dense:
            what["approx_topk"] = self.approx_topk
        return self._whats.setdefault(key, what)

    def _column(
        self,
        what: dict[str, Any],
        choice: TokenChoice | ExpertChoice | Dense,
        decision: RoutingDecision,
        gate_N1: Tensor | None,
    ) -> Column:
        places = self._token_choice(choice)
        w_NK = _bare(places.w_NK)
        logits_NE = decision.logits_NE if self.keep_logits else None
        return Column(
            what=what,
            idx=_bare(places.idx_NK),
            # The gate of a branch multiplies what its experts return, as the weights do.
            w=w_NK if gate_N1 is None else w_NK * gate_N1.detach(),
            dropped=None if places.dropped_NK is None else _bare(places.dropped_NK),
            logits=None if logits_NE is None else _bare(logits_NE),
        )

    def _token_choice(self, choice: TokenChoice | ExpertChoice | Dense) -> TokenChoice:
        if isinstance(choice, TokenChoice):
            return choice
        if isinstance(choice, ExpertChoice):
            return _detached_transpose(choice)
        assert self.approx_topk is not None
        return _heaviest(choice, self.approx_topk)

    def _compact(self) -> None:
        self._parts.extend(compacted(self._pending))
        self._pending.clear()


def _bare(given: Tensor) -> Tensor:
    """Return what carries no gradient as it is: a decoding step has a dozen such."""
    return given.detach() if given.requires_grad else given


def _kept(given: Tensor | None) -> Tensor | None:
    """Return a copy of what belongs to the caller."""
    return None if given is None else given.detach().clone()


def _shape(output: ModelOutput) -> tuple[int, int]:
    if not isinstance(output, ModelOutput):
        raise InputError(f"output: expected a model's ModelOutput, got {type(output).__name__}")
    for record in output.records:
        for decision in record.decisions:
            return decision.shape
    raise InputError("records: the pass made no decision; give the output of a routed model")


def _check_facts(
    batch: int,
    length: int,
    token_id: Tensor | None,
    of_sequences: Mapping[str, Sequence[int] | None],
) -> None:
    if token_id is not None:
        whole = not (token_id.is_floating_point() or token_id.is_complex())
        if tuple(token_id.shape) != (batch, length) or not whole:
            raise InputError(
                f"token ids: expected integers of shape ({batch}, {length}), got {token_id.dtype} "
                f"of shape {tuple(token_id.shape)}"
            )
    for name, given in of_sequences.items():
        if given is not None and len(given) != batch:
            raise InputError(f"{name}: expected one number a sequence ({batch}), got {len(given)}")


@torch.no_grad()
def _detached_transpose(choice: ExpertChoice) -> TokenChoice:
    return expert_choice_to_token_choice(replace(choice, w_GEC=choice.w_GEC.detach()))


@torch.no_grad()
def _heaviest(choice: Dense, k: int) -> TokenChoice:
    total_NE = choice.combine_GSEC.detach().sum(-1).flatten(0, 1)
    idx_NK = gating.top_k(total_NE.abs(), k)
    return TokenChoice(idx_NK=idx_NK, w_NK=total_NE.gather(-1, idx_NK))
