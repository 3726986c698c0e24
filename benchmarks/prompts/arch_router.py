"""Does a tuned SmolLM2 name the policies of subjects it never saw? MMLU, folds of 19 subjects.

    python benchmarks/prompts/arch_router.py --work DIR --train 0 1 2     # adapters, resumable
    python benchmarks/prompts/arch_router.py --work DIR                   # measure what is there
    python benchmarks/prompts/arch_router.py --work DIR --only matcher    # or a part of it

Needs the questions of RouteLLM's MMLU table (``CROSSROADS_DATA``) and SmolLM2. The second command
writes ``benchmarks/results/prompts-arch-router.json``: {machine, training, matcher: {encoder:
[accuracy by fold]}, folds: [{fold, conversations, untuned, untuned_raw, tuned, gain,
gain_standard_error, drift: {back end: {turn, span, conversation}}, order_changes: {back end}}]}.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from crossroads.core.files import write_atomically
from crossroads.core.progress import progress_bar
from crossroads.core.provenance import machine
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer
from crossroads.prompts.claims.arch_router import matcher_accuracy, only
from crossroads.prompts.preferences.evaluation import (
    accuracy_by_level,
    draw_cases,
    last_turns,
    order_sensitivity,
)
from crossroads.prompts.preferences.lora import save_lora
from crossroads.prompts.preferences.matcher import PolicyMatcher
from crossroads.prompts.preferences.questions import NUM_FOLDS, fold_subjects, mmlu_questions
from crossroads.prompts.preferences.scorer import load_scorer, load_tuned
from crossroads.prompts.preferences.synthetic import DRIFT, SINGLE_TURN
from crossroads.prompts.preferences.training import TrainingSettings, train

TARGET = Path(__file__).parents[1] / "results" / "prompts-arch-router.json"


def train_fold(fold: int, work: Path, *, steps: int) -> None:
    """Train on the subjects outside the fold; writes ``adapter-<fold>.npz``."""
    questions = mmlu_questions()
    held_out = fold_subjects(fold)
    settings = TrainingSettings(seed=fold, steps=steps)
    model = load_smollm2(dtype="bfloat16")

    def log(step: int, loss: float) -> None:
        with (work / f"loss-{fold}.csv").open("a") as file:
            file.write(f"{step},{loss:.4f}\n")

    with progress_bar(f"fold {fold}") as progress:
        train(
            model,
            smollm2_tokenizer(),
            only(questions, frozenset(questions) - held_out),
            settings,
            checkpoint=work / f"checkpoint-{fold}.npz",
            progress=progress,
            on_step=log,
        )
    facts = {**settings.facts(), "fold": fold, "held_out": sorted(held_out)}
    save_lora(work / f"adapter-{fold}.npz", model, facts)


def measure_fold(fold: int, adapter: Path, *, route_sets: int, dtype: str) -> dict[str, Any]:
    """Return the figures of one fold's adapter beside the untuned scorer and the matcher."""
    prompts = only(mmlu_questions(), fold_subjects(fold))
    cases = draw_cases(prompts, SINGLE_TURN, route_sets=route_sets, each=8, seed=200 + fold)
    chats = draw_cases(prompts, DRIFT, route_sets=route_sets // 3, each=4, seed=300 + fold)
    backends = {
        "matcher": PolicyMatcher(),
        "untuned": load_scorer(dtype=dtype),
        "tuned": load_tuned(adapter=adapter, dtype=dtype),
    }
    right: dict[str, Any] = {}
    for name, backend in backends.items():
        with progress_bar(f"fold {fold}, {name}") as progress:
            right[name] = np.array(last_turns(backend, cases, progress), dtype=float)
        print(fold, name, round(float(right[name].mean()), 3), flush=True)
    difference = right["tuned"] - right["untuned"]
    drift = {}
    for name, backend in backends.items():
        drift[name] = accuracy_by_level(backend, chats)
        print(fold, name, drift[name], flush=True)
    tuned = backends["tuned"]
    tuned.keeps_order = True
    return {
        "fold": fold,
        "conversations": len(cases),
        **{name: round(float(values.mean()), 4) for name, values in right.items()},
        "gain": round(float(difference.mean()), 4),
        "gain_standard_error": round(float(difference.std(ddof=1) / np.sqrt(len(difference))), 4),
        "drift_chats": len(chats),
        "drift": drift,
        "order_changes_if_not_sorted": {"tuned": order_sensitivity(tuned, cases[::4], seed=fold)},
    }


def training_record(work: Path, fold: int) -> dict[str, Any]:
    """Return the settings of an adapter and its loss by step."""
    with np.load(work / f"adapter-{fold}.npz") as file:
        facts = json.loads(file["facts"].tobytes())
    with (work / f"loss-{fold}.csv").open(newline="") as file:
        losses = [float(loss) for _, loss in csv.reader(file)]
    return {**facts, "loss_by_step": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="*", type=int, default=None, metavar="FOLD")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=TrainingSettings.steps)
    parser.add_argument("--route-sets", type=int, default=25, help="of 8 conversations each")
    parser.add_argument("--only", choices=["matcher", "folds"], help="and keep the other figures")
    parser.add_argument("--dtype", default="float32", help="of SmolLM2 while measuring")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.train is not None:
        for fold in options.train or range(NUM_FOLDS):
            train_fold(fold, options.work, steps=options.steps)
        return
    kept = json.loads(TARGET.read_text("utf-8")) if TARGET.is_file() else {}
    result = {**kept, "machine": machine(), "dtype": options.dtype}
    if options.only != "folds":
        result["matcher"] = measure_matchers()
    if options.only != "matcher":
        trained = [f for f in range(NUM_FOLDS) if (options.work / f"adapter-{f}.npz").is_file()]
        result["training"] = [training_record(options.work, fold) for fold in trained]
        result["folds"] = [
            measure_fold(
                fold,
                options.work / f"adapter-{fold}.npz",
                route_sets=options.route_sets,
                dtype=options.dtype,
            )
            for fold in trained
        ]
    write_atomically(TARGET, json.dumps(result, indent=1) + "\n")


def measure_matchers() -> dict[str, list[float]]:
    """Return the matcher's accuracy on each fold, by encoder."""
    questions = mmlu_questions()
    return {
        encoder: [
            round(matcher_accuracy(questions, fold, encoder=encoder), 4)
            for fold in range(NUM_FOLDS)
        ]
        for encoder in ("static", "minilm")
    }


if __name__ == "__main__":
    main()
