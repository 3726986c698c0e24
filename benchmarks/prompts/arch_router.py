"""Does a tuned SmolLM2 name the policies of subjects it never saw? MMLU, 3 folds of 19 subjects.

    python benchmarks/prompts/arch_router.py --train 0 1 2 --work DIR     # adapters, resumable
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from crossroads.core.progress import progress_bar
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer
from crossroads.prompts.preferences.lora import save_lora
from crossroads.prompts.preferences.questions import fold_subjects, mmlu_questions
from crossroads.prompts.preferences.training import TrainingSettings, train


def train_fold(fold: int, work: Path, *, steps: int) -> None:
    """Train on the subjects outside the fold; writes ``adapter-<fold>.npz``."""
    torch.set_num_threads(1)
    questions = mmlu_questions()
    held_out = fold_subjects(fold)
    prompts = {name: texts for name, texts in questions.items() if name not in held_out}
    settings = TrainingSettings(seed=fold, steps=steps)
    model = load_smollm2(dtype="bfloat16")

    def log(step: int, loss: float) -> None:
        with (work / f"loss-{fold}.csv").open("a") as file:
            file.write(f"{step},{loss:.4f}\n")

    with progress_bar(f"fold {fold}") as progress:
        train(
            model,
            smollm2_tokenizer(),
            prompts,
            settings,
            checkpoint=work / f"checkpoint-{fold}.npz",
            progress=progress,
            on_step=log,
        )
    facts = {**settings.facts(), "fold": fold, "held_out": sorted(held_out)}
    save_lora(work / f"adapter-{fold}.npz", model, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="*", type=int, default=None, metavar="FOLD")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=TrainingSettings.steps)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for fold in options.train or ():
        train_fold(fold, options.work, steps=options.steps)


if __name__ == "__main__":
    main()
