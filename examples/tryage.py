"""Goals as flags in the prompt: one question sent by quality alone, then with wishes.

The router predicts each model's loss on a prompt; flags add penalties for size, cost or a goal of
your own. Runs on the table that ships with the package: replayed outcomes of 26 models of 2024.
"""

from crossroads.prompts import fit_router, read_outcomes, read_pool
from crossroads.prompts.tryage.flagged import route_flagged
from crossroads.prompts.tryage.flags import FLAGS
from crossroads.prompts.tryage.goals import GOALS

PROMPTS = (
    "Which enzyme unwinds DNA during replication?",
    "[lambda size=0.4] Which enzyme unwinds DNA during replication?",
    "[Flag: smallest model] Which enzyme unwinds DNA during replication?",
    "[lambda cost=4] Which enzyme unwinds DNA during replication?",
    "[Flag: long document] Which enzyme unwinds DNA during replication?",
)


def main() -> None:
    table = read_outcomes("mmlu-pro:complete")
    fitted = fit_router("tryage", table, pool=read_pool("mmlu-pro:complete"))
    # A goal of your own is a function of the pool; here: how little a model can read at once.
    goals = {**GOALS, "context": lambda pool: [-float(card.context or 0) for card in pool]}
    flags = {**FLAGS, "long document": ("context", 0.5)}
    for prompt in PROMPTS:
        found = route_flagged(fitted, prompt, goals=goals, flags=flags)
        card = fitted.pool[found.decision.model]
        print(f"{prompt}\n    -> {card.name}, {(card.parameters or 0) / 1e9:g}B parameters")


if __name__ == "__main__":
    main()
