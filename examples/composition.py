"""Choose experts under a budget of parameters, route to them, and count the weights moved."""

import numpy as np

from crossroads.prompts import read_outcomes, read_pool
from crossroads.prompts.composition import compose, replay
from crossroads.prompts.composition.mapping import spell_size


def main() -> None:
    table, pool = read_outcomes("mmlu-pro:small"), read_pool("mmlu-pro")
    for budget in (8e9, 16e9, 24e9):
        found = compose(table, pool, budget)
        print(
            f"{spell_size(budget):>4}: {found.score:.3f} with {', '.join(found.parameters)} "
            f"({spell_size(round(found.active_parameters, -8))} active on average); "
            f"best single expert {found.best_single_score:.3f}"
        )
    for category, expert in found.mapping.items():
        print(f"  {category:17} -> {expert}")

    # Prompts in random order, with room for two of the experts at 2 bytes a parameter.
    sizes = {name: int(2 * parameters) for name, parameters in found.parameters.items()}
    asked = np.random.default_rng(0).permutation(table.domain)[:3000]
    stream = [found.mapping[str(category)] for category in asked]
    for group in (1, 16):
        counts = replay(stream, sizes, 32 * 10**9, group=group)
        print(f"prompts grouped by {group}: {counts.swaps_per_1k:.0f} swaps per 1,000 prompts")


if __name__ == "__main__":
    main()
