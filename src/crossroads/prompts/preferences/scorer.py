"""Score every route's name by its likelihood under SmolLM2: no free decoding, always a legal name.

    s_j = log P(name_j | routes, conversation) / len_j  -  the same with an empty conversation

The second term takes out how likely a name is by itself; ``len_j`` counts the name's tokens and
the end of the answer, so that no name profits from being the beginning of another.

The routes come first in the prompt and are the same for every conversation: their keys and
values, and the second term, are computed once for a route set and kept for the latest few. The
names are scored together, in one batch on a copy of that memory. Routes stand in the order of
their names, so that the order in which policies are written cannot matter.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import MissingExtraError
from crossroads.prompts.preferences import prompt
from crossroads.prompts.preferences.backend import RouteChoice
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import OTHER, Policy

Floats = npt.NDArray[np.float64]
_MOST_KEPT = 8  # route sets; about 10 MB each


@dataclass(frozen=True, kw_only=True, slots=True)
class _RouteSet:
    """What is computed once: keys and values of the routes, and the names' scores by themselves."""

    memory: Any
    prior: Floats  # shape (J,)


class NameScorer:
    """The back ends ``scorer`` and ``tuned``.

    Parameters
    ----------
    model, tokenizer : as ``crossroads.models.smollm2_torch`` gives them
    name, version : of the back end
    is_calibrated : whether the score with an empty conversation is taken off
    keeps_order : whether routes are read in the order given, to measure what that changes
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "scorer",
        version: str = "1",
        is_calibrated: bool = True,
        keeps_order: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.is_calibrated = is_calibrated
        self.keeps_order = keeps_order
        self._model = model
        self._tokenizer = tokenizer
        self._kept: OrderedDict[tuple[Policy, ...], _RouteSet] = OrderedDict()

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice:
        ordered = tuple(policies)
        if not self.keeps_order:
            ordered = tuple(sorted(policies, key=lambda policy: policy.name))
        names = [*(policy.name for policy in ordered), OTHER]
        known = self._route_set(ordered, names)
        values_J = self._log_likelihoods(known.memory, turns, names) - known.prior
        scores = {name: float(value) for name, value in zip(names, values_J, strict=True)}
        return RouteChoice(route=names[int(values_J.argmax())], scores=scores)

    def _route_set(self, policies: tuple[Policy, ...], names: Sequence[str]) -> _RouteSet:
        if policies in self._kept:
            self._kept.move_to_end(policies)
            return self._kept[policies]
        memory = self._read(prompt.head(policies), None)[1]
        prior_J = np.zeros(len(names))
        if self.is_calibrated:
            prior_J = self._log_likelihoods(memory, (), names)
        self._kept[policies] = _RouteSet(memory=memory, prior=prior_J)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[policies]

    def _log_likelihoods(self, memory: Any, turns: Sequence[Turn], names: Sequence[str]) -> Floats:
        """Return the mean log-probability of each name's tokens after the prompt, shape (J,)."""
        import torch

        last_D, memory = self._read(prompt.tail(turns), copy.deepcopy(memory))
        tokens = [self._encode(prompt.name_text(name)) for name in names]
        width = max(map(len, tokens))
        ids_JL = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
        is_name_JL = torch.tensor([[i < len(row) for i in range(width)] for row in tokens])
        memory.batch_repeat_interleave(len(names))
        with torch.inference_mode():
            # The padding is on the right: what counts never sees it.
            hidden_JLD = self._model.model(
                input_ids=ids_JL[:, :-1], past_key_values=memory, use_cache=True
            ).last_hidden_state
            before_JLD = torch.cat([last_D.expand(len(names), 1, -1), hidden_JLD], 1)
            rows_XD, ids_X = before_JLD[is_name_JL], ids_JL[is_name_JL]
            logits_XV = torch.nn.functional.linear(rows_XD, self._model.lm_head.weight).float()
            found_X = logits_XV.log_softmax(-1).gather(1, ids_X[:, None])[:, 0]
            log_p_JL = torch.zeros(ids_JL.shape).masked_scatter(is_name_JL, found_X)
            mean_J = log_p_JL.sum(1) / is_name_JL.sum(1)
        return np.asarray(mean_J.numpy(), dtype=np.float64)

    def _read(self, text: str, memory: Any) -> tuple[Any, Any]:
        """Return the last hidden state, shape (1, 1, D), and the memory with the text in it."""
        import torch

        ids_1T = torch.tensor([self._encode(text)])
        with torch.inference_mode():
            out = self._model.model(input_ids=ids_1T, past_key_values=memory, use_cache=True)
        return out.last_hidden_state[:, -1:], out.past_key_values

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def load_scorer(*, is_calibrated: bool = True, dtype: str = "float32") -> NameScorer:
    """Return SmolLM2 as it was published, scoring names.

    Raises MissingExtraError without torch, UnavailableError without the model file.
    """
    model, tokenizer = _smollm2(dtype)
    return NameScorer(model, tokenizer, is_calibrated=is_calibrated)


def load_tuned(
    *, adapter: str | Path, is_calibrated: bool = False, dtype: str = "float32"
) -> NameScorer:
    """Return SmolLM2 with the adapter of a file that ``training`` and ``save_lora`` made.

    An adapter is trained on likelihoods as they are: its scores are not calibrated unless asked
    for. Raises as ``load_scorer``, InputError for a file that is no adapter.
    """
    from crossroads.prompts.preferences.lora import load_lora

    path = Path(adapter)
    model, tokenizer = _smollm2(dtype)
    load_lora(path, model)
    return NameScorer(
        model, tokenizer, name="tuned", version=path.stem, is_calibrated=is_calibrated
    )


def _smollm2(dtype: str) -> tuple[Any, Any]:
    try:
        from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer
    except ImportError as error:
        raise MissingExtraError(f"SmolLM2 in torch: {error.name}", extra="neural") from None
    return load_smollm2(dtype=dtype), smollm2_tokenizer()
