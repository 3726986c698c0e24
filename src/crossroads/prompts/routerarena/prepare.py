"""Making a submission: asking a router of this library about every row of a board."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.fitted import FittedRouter, load_router
from crossroads.prompts.routerarena.evaluation import EvaluationSet
from crossroads.prompts.routerarena.submission import INDEX, Submission

ALWAYS, RANDOM = "always:", "random"
_NUM_TIMED = 50  # single decisions whose median is the stated latency

Choose = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """A router as the board sees it: names for texts, from these models."""

    name: str
    models: tuple[str, ...]
    choose: Choose
    source: str = ""  # the table it was fitted on


def chooser_of(
    spec: str, evaluation: EvaluationSet, *, rule: str | None = None, seed: int = 0
) -> Chooser:
    """Return the router of a folder that ``crossroads fit`` wrote, or a reference.

    ``always:MODEL`` takes one model, ``random`` any of the pool. Raises UsageError for models the
    board does not know, and for a rule where there is nothing to weigh.
    """
    if not spec.startswith(ALWAYS) and spec != RANDOM:
        fitted = load_router(spec)
        return chooser_of_fitted(fitted, Path(spec).resolve().name, rule=rule, seed=seed)
    if rule is not None:
        raise UsageError(f"router {spec!r} follows no decision rule; leave out --rule")
    names = evaluation.pool.names
    if spec == RANDOM:
        rng = np.random.default_rng(seed)
        return Chooser(
            name=RANDOM,
            models=names,
            choose=lambda texts: [names[n] for n in rng.integers(len(names), size=len(texts))],
        )
    model = spec.removeprefix(ALWAYS)
    if model not in names:
        raise unknown_name("model", model, names)
    return Chooser(
        name=f"always-{_plain(model)}", models=(model,), choose=lambda texts: [model] * len(texts)
    )


def chooser_of_fitted(
    fitted: FittedRouter, name: str, *, rule: str | None = None, seed: int = 0
) -> Chooser:
    """Return a fitted router as the board sees it."""
    return Chooser(
        name=_plain(name),
        models=fitted.models,
        choose=lambda texts: [d.model for d in fitted.decide(list(texts), rule=rule, seed=seed)],
        source=str(fitted.provenance.get("source", "")),
    )


def prepare_submission(
    chooser: Chooser, evaluation: EvaluationSet, *, name: str | None = None
) -> Submission:
    """Return the router's choices for every row and every reworded prompt, and its latency.

    The latency is the median wall time of single decisions, encoding included. Raises UsageError
    where the router may choose a model that the board has no price for.
    """
    known = evaluation.pool.names
    for model in chooser.models:
        if model not in known:
            raise unknown_name("model", model, known)
    prompts = [row.prompt for row in evaluation.rows]
    choices = chooser.choose(prompts)
    again = chooser.choose([pair.prompt for pair in evaluation.reworded])
    predictions = [
        _entry(row.global_index, row.prompt, model)
        for row, model in zip(evaluation.rows, choices, strict=True)
    ]
    robustness = [
        {INDEX: pair.global_index, "kind": pair.kind, "prediction": model}
        for pair, model in zip(evaluation.reworded, again, strict=True)
    ]
    config: dict[str, Any] = {
        "router_name": name or chooser.name,
        "models": list(chooser.models),
        "decision_ms": _decision_ms(chooser.choose, prompts[:_NUM_TIMED]),
    }
    if _saw_the_rows(chooser, evaluation):
        config["remarks"] = ["fitted on the very rows it is judged on: no figure of new prompts"]
    return Submission(config=config, predictions=predictions, robustness=robustness)


def _saw_the_rows(chooser: Chooser, evaluation: EvaluationSet) -> bool:
    table = evaluation.replay
    is_same = table is not None and chooser.source != "" and chooser.source == table.source
    return is_same and table is not None and table.split is None


def _entry(index: str, prompt: str, model: str) -> dict[str, Any]:
    return {
        INDEX: index,
        "prompt": prompt,
        "prediction": model,
        "generated_result": None,
        "cost": None,
        "accuracy": None,
        "for_optimality": False,
    }


def _decision_ms(choose: Choose, prompts: Sequence[str]) -> float:
    taken = []
    for prompt in prompts:
        start = time.perf_counter()
        choose([prompt])
        taken.append(1000 * (time.perf_counter() - start))
    return max(round(statistics.median(taken), 4), 1e-4)  # a lookup may round to nothing


def _plain(name: str) -> str:
    """Return a name fit for a file."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
