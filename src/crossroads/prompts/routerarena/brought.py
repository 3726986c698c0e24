"""Answers that come with a submission: what of them is believed.

The answer is scored as it is. What it cost is the submitter's word, and a small word is worth a
place on the board: unless the board itself paid for that very answer, its tokens are estimated from
the texts of prompt and answer. A larger count is taken for a row's choice, where it can only harm
the submitter, and not for the further answers that a choice is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from crossroads.prompts.routerarena.cache import ResponseCache
from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.inference import Call, Result
from crossroads.prompts.routerarena.names import canonical_name
from crossroads.prompts.routerarena.submission import INDEX, Submission, token_counts

CHARACTERS_PER_TOKEN = 4


def given_results(submission: Submission, evaluation: EvaluationSet) -> dict[Call, Result]:
    """Return the results a submission brings along; a replay believes none of them."""
    if evaluation.replay is not None:
        return {}
    names = evaluation.model_by_canonical
    return {
        (str(entry[INDEX]), names[canonical_name(entry["prediction"])]): entry["generated_result"]
        for entry in submission.predictions
        if isinstance(entry.get("generated_result"), Mapping)
    }


def believed(
    given: Mapping[Call, Result],
    evaluation: EvaluationSet,
    cache: Path,
    *,
    chosen: Collection[Call],
) -> dict[Call, Result]:
    """Return checked results with the token counts to charge, marked where they are estimated.

    ``chosen`` are the calls of the submission's choices. A failure keeps no counts of its own.
    """
    caches = {model: ResponseCache(cache, model) for model in {model for _, model in given}}
    found = {}
    for call, result in given.items():
        prompt = evaluation.rows[evaluation.by_index[call[0]]].prompt
        if result.get("success") is False:
            found[call] = {**result, "token_usage": None}
            continue
        kept = caches[call[1]].get(call[0], prompt)
        if kept is not None and _is_same_answer(kept, result):
            found[call] = {**result, "token_usage": kept["token_usage"]}
            continue
        counts = [estimated_tokens(prompt), estimated_tokens(result["generated_answer"])]
        claimed = token_counts(result)
        if claimed is not None and call in chosen:
            counts = [max(pair) for pair in zip(counts, claimed, strict=True)]
        usage = {"input_tokens": counts[0], "output_tokens": counts[1], "estimated": True}
        found[call] = {**result, "token_usage": usage}
    return found


def _is_same_answer(kept: Result, result: Result) -> bool:
    is_counted = token_counts(kept) is not None
    return is_counted and kept.get("generated_answer") == result["generated_answer"]


def is_estimated(result: Result) -> bool:
    """Whether a result's token counts are an estimate made here."""
    usage = result.get("token_usage")
    return isinstance(usage, Mapping) and usage.get("estimated") is True


def estimated_tokens(text: str) -> float:
    """Return about how many tokens a text has: a quarter of its characters, rounded up."""
    return float(math.ceil(len(text) / CHARACTERS_PER_TOKEN))
