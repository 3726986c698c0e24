"""Fit a router on your own outcomes, save it, load it, and let it decide within a budget."""

import tempfile
from pathlib import Path

from crossroads.prompts import (
    fit_router,
    load_router,
    parse_rule,
    read_outcomes,
    read_pool,
    save_router,
)


def main() -> None:
    pool = read_pool("local")  # SmolLM2-135M, a calculator and a unit converter
    fitted = fit_router("auto", read_outcomes("local"), pool=pool)
    with tempfile.TemporaryDirectory() as folder:
        artefact = Path(folder) / "router"
        save_router(fitted, artefact)
        router = load_router(artefact)
    prompts = ["What is 37 * 48?", "Convert 5 miles to kilometres.", "Name the capital of Japan."]
    for prompt, decision in zip(prompts, router.decide(prompts), strict=True):
        print(f"{prompt:32} -> {decision.model:12} {decision.reason}")
    frugal = router.decide(prompts, rule=parse_rule("max-cost:0"))
    print("with nothing to spend:", ", ".join(decision.model for decision in frugal))


if __name__ == "__main__":
    main()
