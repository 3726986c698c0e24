"""Arch-Router: a small language model, tuned, names policies it never saw.

Rules of the verdict, set before any figure was seen. ``holds``: the matcher names at least 70 % of
the policies of held-out subjects, and tuning adds at least 15 points to SmolLM2's own choice on
the same conversations. ``holds in direction``: tuning adds more than two standard errors of the
paired difference. ``fails``: it costs more than that. ``null``: anything between, or not tuned.

Without MMLU's questions the same is measured on the prompts that ship with the package, with fewer
policies; nothing can be tuned there, and the verdict's ``data`` says so.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np

from crossroads.core.catalog import Outcome, Verdict
from crossroads.core.errors import MissingExtraError, UnavailableError
from crossroads.core.progress import progress_bar
from crossroads.prompts.preferences.backend import Backend
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.evaluation import best_tau, draw_cases, last_turns
from crossroads.prompts.preferences.matcher import PolicyMatcher
from crossroads.prompts.preferences.policies import OTHER, Policy
from crossroads.prompts.preferences.questions import NUM_FOLDS, fold_subjects, mmlu_questions
from crossroads.prompts.preferences.scorer import NameScorer, load_scorer
from crossroads.prompts.preferences.synthetic import SINGLE_TURN, Dialogue, Prompts

MATCHER_FLOOR = 0.70
GAIN_FLOOR = 0.15
FOLD = 0  # whose subjects are held out from the language model
SEEDS = (0, 1, 2)
PAPER = {"accuracy": 0.9317, "gain_over_proprietary_points": 7.7}
SHIPPED_POLICIES = {
    "arithmetic": "work out a calculation: plus, minus, times, divided by, sums, numbers",
    "units": "convert miles, kilometers, pounds, hours, degrees and other units of measure",
    "general": "short questions of general knowledge: places, people, animals, words, colours",
}
SHIPPED_ON_OFFER = 2  # of these policies
SHIPPED_SCORED = 20  # conversations a seed for the language model


def verify(full: bool) -> Verdict:
    """Measure the back ends on held-out MMLU subjects, 5 policies and ``other``.

    The small run measures the matcher and SmolLM2 as published; nothing is tuned, so its verdict
    cannot be better than ``null``. ``full`` trains an adapter first, the better part of an hour on
    one core. Without MMLU's questions the shipped prompts take their place and nothing is tuned;
    without torch or SmolLM2 the matcher alone is measured, and the language model's figures say why
    they are not.
    """
    try:
        questions = mmlu_questions()
    except UnavailableError:
        return _on_shipped_prompts()
    matched = [matcher_accuracy(questions, fold) for fold in range(NUM_FOLDS)]
    held_out = only(questions, fold_subjects(FOLD))
    measured: dict[str, Any] = {
        "matcher_accuracy_by_fold": [round(value, 3) for value in matched],
    }
    scorer = _scorer()
    verdict: Outcome = "null"
    if isinstance(scorer, str):
        measured["untuned_accuracy_by_seed"] = scorer
    else:
        untuned = rights(scorer, held_out, route_sets=4)
        measured |= _untuned_figures(untuned)
    if full and not isinstance(scorer, str):
        tuned = rights(trained(questions), held_out, route_sets=4)
        difference = np.concatenate(tuned).astype(float) - np.concatenate(untuned).astype(float)
        gain = float(difference.mean())
        error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
        verdict = judge(float(np.mean(matched)), gain, error)
        measured |= {
            "tuned_accuracy_by_seed": [round(float(np.mean(part)), 3) for part in tuned],
            "gain": round(gain, 3),
            "gain_standard_error": round(error, 3),
        }
    how = "not tuned in the small run"
    if full:
        how = "not tuned" if isinstance(scorer, str) else "tuned on one fold"
    return Verdict(
        name="arch-router",
        verdict=verdict,
        paper=PAPER,
        measured=measured,
        seeds=SEEDS,
        data="MMLU questions in templates, policies are held-out subjects, SmolLM2-135M for a "
        f"1.5-billion model; {how}",
    )


def _on_shipped_prompts() -> Verdict:
    """Measure what can be without MMLU; the matcher keeps its own threshold, nothing is tuned."""
    cases = [shipped_cases(seed) for seed in SEEDS]
    matcher, scorer = PolicyMatcher(), _scorer()
    measured: dict[str, Any] = {
        "matcher_accuracy_by_seed": [
            round(float(np.mean(last_turns(matcher, c))), 3) for c in cases
        ],
        "matcher_conversations": sum(map(len, cases)),
    }
    if isinstance(scorer, str):
        measured["untuned_accuracy_by_seed"] = scorer
    else:
        measured |= _untuned_figures([last_turns(scorer, c[:SHIPPED_SCORED]) for c in cases])
    return Verdict(
        name="arch-router",
        verdict="null",
        paper=PAPER,
        measured=measured,
        seeds=SEEDS,
        data=f"shipped prompts of {len(SHIPPED_POLICIES)} domains, {SHIPPED_ON_OFFER} policies on "
        "offer, SmolLM2-135M for a 1.5-billion model; nothing tuned; MMLU not measured: needs "
        "routellm_mmlu_gsm8k",
    )


def _untuned_figures(untuned: list[list[bool]]) -> dict[str, Any]:
    return {
        "untuned_accuracy_by_seed": [round(float(np.mean(part)), 3) for part in untuned],
        "conversations": sum(map(len, untuned)),
    }


def _scorer() -> NameScorer | str:
    """Return SmolLM2 as published, or why it is not measured."""
    try:
        return load_scorer()
    except (MissingExtraError, UnavailableError) as missing:
        return f"not measured: {missing}"


def shipped_cases(seed: int) -> list[Dialogue]:
    """Return one request for each shipped prompt, in random order, with some policies on offer.

    The prompt's own policy is missing as often as with MMLU; the right route is ``other`` then.
    Prompts that only look like a calculation are left out: no domain is clearly theirs.
    """
    rng = np.random.default_rng(seed)
    text = (
        resources.files("crossroads.prompts")
        .joinpath("data/local_prompts.jsonl")
        .read_text("utf-8")
    )
    rows = [row for row in map(json.loads, text.splitlines()) if row["domain"] in SHIPPED_POLICIES]
    return [_shipped_case(rows[i], rng) for i in rng.permutation(len(rows))]


def _shipped_case(row: dict[str, Any], rng: np.random.Generator) -> Dialogue:
    own = row["domain"]
    others = [name for name in SHIPPED_POLICIES if name != own]
    is_absent = rng.random() < SINGLE_TURN.absent
    offered = others[:SHIPPED_ON_OFFER]
    if not is_absent:
        offered = [own, *rng.choice(others, SHIPPED_ON_OFFER - 1, replace=False).tolist()]
    return Dialogue(
        policies=tuple(Policy(name=n, description=SHIPPED_POLICIES[n]) for n in offered),
        turns=(Turn("user", row["prompt"]),),
        routes=(OTHER if is_absent else own,),
    )


def trained(questions: Prompts) -> NameScorer:
    """Return SmolLM2 tuned on the subjects outside ``FOLD``."""
    from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer
    from crossroads.prompts.preferences.training import TrainingSettings, train

    model, tokenizer = load_smollm2(dtype="bfloat16"), smollm2_tokenizer()
    prompts = only(questions, frozenset(questions) - fold_subjects(FOLD))
    with progress_bar("tuning") as progress:
        train(model, tokenizer, prompts, TrainingSettings(seed=FOLD), progress=progress)
    return NameScorer(model.float(), tokenizer, name="tuned", is_calibrated=False)


def judge(matched: float, gain: float, error: float) -> Outcome:
    """Return the verdict for the matcher's accuracy, tuning's gain and its standard error."""
    if matched >= MATCHER_FLOOR and gain >= GAIN_FLOOR and gain > 2 * error:
        return "holds"
    if abs(gain) <= 2 * error:
        return "null"
    return "holds in direction" if gain > 0 else "fails"


def matcher_accuracy(questions: Prompts, fold: int, *, encoder: str = "static") -> float:
    """Return the matcher's accuracy on a fold, with tau chosen on the fold's training subjects."""
    held_out = fold_subjects(fold)
    learnt = draw_cases(
        only(questions, frozenset(questions) - held_out),
        SINGLE_TURN,
        route_sets=60,
        each=10,
        seed=fold,
    )
    tau = best_tau(PolicyMatcher(encoder=encoder), learnt)
    cases = draw_cases(
        only(questions, held_out), SINGLE_TURN, route_sets=60, each=10, seed=100 + fold
    )
    return float(np.mean(last_turns(PolicyMatcher(encoder=encoder, tau=tau), cases)))


def rights(backend: Backend, prompts: Prompts, *, route_sets: int) -> list[list[bool]]:
    """Return for each seed whether each of 5 conversations per route set was routed right."""
    return [
        last_turns(
            backend, draw_cases(prompts, SINGLE_TURN, route_sets=route_sets, each=5, seed=seed)
        )
        for seed in SEEDS
    ]


def only(questions: Prompts, subjects: frozenset[str]) -> Prompts:
    """Return the questions of these subjects."""
    return {name: texts for name, texts in questions.items() if name in subjects}
