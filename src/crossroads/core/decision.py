"""A decision: who goes where, with what weight, and why.

``Decision`` records one routed item (a prompt, a truck) with everything needed to explain and
replay it. ``TokenChoice``, ``ExpertChoice`` and ``Dense`` are the three forms of a
batch of weighted decisions under capacity (one layer of a mixture of experts), with the conversions
between them and the reference of applying each. The sparse forms are the interface of the neural
rooms; the arrays here are numpy and the code is written to be read, not to be fast.

Axes: N tokens = G groups x S tokens, E experts, K places per token, C slots per expert and group,
D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Expert = Callable[[Floats], Floats]  # (n, D) -> (n, D)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Where one item was sent.

    Attributes
    ----------
    chosen : names of the targets, best first (one for ordinary routing)
    scores : estimated quality of every target, by name
    rule : the decision rule that was applied, as text that ``parse_rule`` reads back
    reason : one sentence a person can read
    propensity : probability with which the rule would pick ``chosen`` (1 for deterministic rules)
    predicted_quality : estimated quality of the first choice, in [0, 1]
    predicted_cost_usd : estimated cost of the first choice; None where prices are unknown
    confidence : lead of the first choice over the runner-up in the rule's own value, clipped to
        [0, 1]
    seconds : time spent deciding
    router, version, seed : what decided, enough to decide again
    """

    chosen: tuple[str, ...]
    scores: Mapping[str, float]
    rule: str
    reason: str
    propensity: float
    predicted_quality: float
    predicted_cost_usd: float | None
    confidence: float
    seconds: float
    router: str
    version: str
    seed: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The first choice."""
        return self.chosen[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ``model`` repeats the first of ``chosen``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        copies = {
            "chosen": list(self.chosen),
            "scores": dict(self.scores),
            "details": dict(self.details),
        }
        return {"model": self.model, **values, **copies}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a decision from `to_dict`. Raises InputError naming the key that is wrong."""
        given = {key: value for key, value in data.items() if key != "model"}
        known = {f.name for f in fields(cls)}
        missing = known - {"seed", "details"} - given.keys()
        if missing or given.keys() - known:
            word, keys = ("lacks", missing) if missing else ("has unknown", given.keys() - known)
            raise InputError(f"decision record {word} key: {', '.join(sorted(keys))}")
        chosen = given["chosen"]
        if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
            raise InputError(f"decision record: 'chosen' must be a list of names, got {chosen!r}")
        for key in ("scores", "details"):
            if not isinstance(given.get(key, {}), Mapping):
                raise InputError(f"decision record: {key!r} must be an object, got {given[key]!r}")
        return cls(**{**given, "chosen": tuple(chosen)})


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoice:
    """Each token names its experts.

    Attributes
    ----------
    idx : int, shape (N, K); expert of each place, best first; -1 = empty place
    w : float, shape (N, K); multiplies the expert's output; need not sum to 1 nor be positive
    dropped : bool, shape (N, K); True where the pick was lost to capacity: it keeps its id, its
        weight counts as 0. None means nowhere.
    """

    idx: Ints
    w: Floats
    dropped: Bools | None = None

    def __post_init__(self) -> None:
        _check_shapes("token choice", "(N, K)", self.idx, self.w, self.dropped)

    @property
    def executed(self) -> Bools:
        """Shape (N, K): True where an expert is really run."""
        picked = np.asarray(self.idx >= 0)
        return picked if self.dropped is None else picked & ~self.dropped

    def limited(self, *, num_experts: int, capacity: int, num_groups: int = 1) -> TokenChoice:
        """Return the decision with the picks that find their expert's buffer full marked dropped.

        Queues are per group: all first places before all second places, each by position.
        """
        row, place, slot = self._queues(num_experts, num_groups)
        dropped = np.zeros(self.idx.shape, bool) if self.dropped is None else self.dropped.copy()
        dropped[row, place] = slot >= capacity
        return replace(self, dropped=dropped)

    def to_expert_choice(
        self, *, num_experts: int, num_groups: int = 1, capacity: int | None = None
    ) -> ExpertChoice:
        """Return the executed pairs seen from the experts; empty and dropped places are left out.

        ``capacity`` None takes the longest queue. Raises InputError when a queue is longer than
        the capacity: drop first (`limited`).
        """
        row, place, slot = self._queues(num_experts, num_groups)
        longest = int(slot.max(initial=-1)) + 1
        if capacity is not None and longest > capacity:
            raise InputError(
                f"an expert is picked {longest} times in a group but has capacity {capacity}; "
                "raise the capacity or drop the overflow with limited()"
            )
        shape = (num_groups, num_experts, longest if capacity is None else capacity)
        tok, w = np.full(shape, -1, dtype=np.int64), np.zeros(shape, self.w.dtype)
        group, token = np.divmod(row, max(len(self.idx) // num_groups, 1))
        tok[group, self.idx[row, place], slot] = token
        w[group, self.idx[row, place], slot] = self.w[row, place]
        return ExpertChoice(tok=tok, w=w)

    def to_dense(
        self, *, num_experts: int, num_groups: int = 1, capacity: int | None = None
    ) -> Dense:
        """Return the dense form of `to_expert_choice`, with the same arguments."""
        choice = self.to_expert_choice(
            num_experts=num_experts, num_groups=num_groups, capacity=capacity
        )
        return choice.to_dense(group_size=len(self.idx) // num_groups)

    def apply(self, x: Floats, experts: Sequence[Expert]) -> Floats:
        """Return ``y_n = sum_k w_nk f_idx[n,k](x_n)``, shape (N, D); 0 where nothing ran.

        Ids past the last expert (null experts) add nothing.
        """
        y = np.zeros(x.shape, np.result_type(x, self.w))
        for e, expert in enumerate(experts):
            token, place = np.nonzero((self.idx == e) & self.executed)
            if len(token):
                np.add.at(y, token, self.w[token, place][:, None] * expert(x[token]))
        return y

    def _queues(self, num_experts: int, num_groups: int) -> tuple[Ints, Ints, Ints]:
        """Return row, place and position in its expert's queue of each executed pair."""
        _check_ids("expert", self.idx, num_experts)
        group_size = _group_size(len(self.idx), num_groups)
        row, place = np.nonzero(self.executed)
        queue = row // max(group_size, 1) * num_experts + self.idx[row, place]
        order = np.lexsort((row, place, queue))
        queue = queue[order]
        return row[order], place[order], np.arange(len(queue)) - np.searchsorted(queue, queue)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertChoice:
    """Each expert names its tokens.

    Attributes
    ----------
    tok : int, shape (G, E, C); token inside the group; -1 = empty slot
    w : float, shape (G, E, C); multiplies the expert's output
    """

    tok: Ints
    w: Floats

    def __post_init__(self) -> None:
        _check_shapes("expert choice", "(G, E, C)", self.tok, self.w)

    def to_dense(self, *, group_size: int) -> Dense:
        """Return the one-hot dense form for groups of ``group_size`` tokens."""
        _check_ids("token", self.tok, group_size)
        num_groups, num_experts, capacity = self.tok.shape
        shape = (num_groups, group_size, num_experts, capacity)
        dispatch, combine = np.zeros(shape, self.w.dtype), np.zeros(shape, self.w.dtype)
        group, expert, slot = full = np.nonzero(self.tok >= 0)
        dispatch[group, self.tok[full], expert, slot] = 1
        combine[group, self.tok[full], expert, slot] = self.w[full]
        return Dense(dispatch=dispatch, combine=combine)

    def to_token_choice(self, *, group_size: int) -> TokenChoice:
        """Return the pairs seen from the tokens, places by descending ``|w|`` (ties: lower id).

        K is the largest number of experts that any token got.
        """
        _check_ids("token", self.tok, group_size)
        group, expert, slot = np.nonzero(self.tok >= 0)
        row, weight = (
            group * group_size + self.tok[group, expert, slot],
            self.w[group, expert, slot],
        )
        order = np.lexsort((expert, -np.abs(weight), row))
        row = row[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        shape = (len(self.tok) * group_size, int(place.max(initial=-1)) + 1)
        idx, w = np.full(shape, -1, dtype=np.int64), np.zeros(shape, self.w.dtype)
        idx[row, place], w[row, place] = expert[order], weight[order]
        return TokenChoice(idx=idx, w=w)

    def apply(self, x: Floats, experts: Sequence[Expert]) -> Floats:
        """Return the weighted sum of the experts' outputs, shape (N, D), N = G * S."""
        group_size = _group_size(len(x), len(self.tok))
        return self.to_token_choice(group_size=group_size).apply(x, experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """Every token may enter every slot with a weight; soft routing needs this form.

    Attributes
    ----------
    dispatch : shape (G, S, E, C); what each token puts into each slot
    combine : float, shape (G, S, E, C); what each token takes from each slot's output
    """

    dispatch: Floats | Bools
    combine: Floats

    def __post_init__(self) -> None:
        _check_shapes("dense decision", "(G, S, E, C)", self.dispatch, self.combine)

    def to_expert_choice(self) -> ExpertChoice:
        """Return the sparse form. Raises InputError unless each slot holds at most one token."""
        entered = self.dispatch != 0
        one_hot = (self.dispatch[entered] == 1).all() and (entered.sum(axis=1) <= 1).all()
        if not one_hot or (self.combine[~entered] != 0).any():
            raise InputError(
                "a dense decision has sparse forms only if each slot takes at most one whole token "
                "and gives to that token alone; this one mixes tokens"
            )
        # At most one token enters a slot, so these sums have at most one term.
        tok = (entered * np.arange(1, entered.shape[1] + 1)[:, None, None]).sum(axis=1) - 1
        return ExpertChoice(tok=tok, w=self.combine.sum(axis=1))

    def to_token_choice(self) -> TokenChoice:
        """Return the sparse form, places by descending ``|w|``; raises as `to_expert_choice`."""
        return self.to_expert_choice().to_token_choice(group_size=self.dispatch.shape[1])

    def apply(self, x: Floats, experts: Sequence[Expert]) -> Floats:
        """Return ``y_gs = sum_ec combine_gsec f_e(sum_s dispatch_gsec x_gs)_c``, shape (N, D)."""
        num_groups, group_size, _, _ = self.dispatch.shape
        x_GSD = x.reshape(num_groups, group_size, x.shape[1])
        buffer_GECD = np.einsum("gsec,gsd->gecd", self.dispatch.astype(x.dtype), x_GSD)
        y_GSD = np.zeros(x_GSD.shape, np.result_type(x, self.combine))
        for e, expert in enumerate(experts):
            slots = buffer_GECD[:, e]
            output_GCD = expert(slots.reshape(-1, x.shape[1])).reshape(slots.shape)
            y_GSD += np.einsum("gsc,gcd->gsd", self.combine[:, :, e], output_GCD)
        return y_GSD.reshape(x.shape)


def _check_shapes(what: str, axes: str, *arrays: npt.NDArray[Any] | None) -> None:
    shapes = {a.shape for a in arrays if a is not None}
    if len(shapes) != 1 or len(next(iter(shapes))) != axes.count(",") + 1:
        found = " and ".join(map(str, sorted(shapes)))
        raise InputError(f"{what}: expected arrays of one shape {axes}, got {found}")


def _check_ids(what: str, ids: Ints, stop: int) -> None:
    if ids.size and not -1 <= ids.min() <= ids.max() < stop:
        raise InputError(f"{what} ids must lie in [-1, {stop}), got {ids.min()} to {ids.max()}")


def _group_size(num_tokens: int, num_groups: int) -> int:
    if num_groups < 1 or num_tokens % num_groups:
        raise InputError(f"{num_tokens} tokens do not divide into {num_groups} groups")
    return num_tokens // num_groups
