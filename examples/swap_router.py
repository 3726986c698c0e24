"""Train one small language model with three routers and compare them.

    python examples/swap_router.py            # about a minute on one core
    python examples/swap_router.py --steps 20 # a look

Everything but the router is the same: first weights of the backbone, batches, compute per token.
"""

import argparse
from dataclasses import replace

import torch

from crossroads.core.routed import routed_layers
from crossroads.moe.beds import get_bed
from crossroads.moe.probing import figures, probe
from crossroads.moe.training import train

ROUTERS = ("top2", "top-p:p=0.4", "adamoe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    if steps < 1:
        parser.error(f"--steps: expected at least 1, got {steps}")
    torch.set_num_threads(1)

    bed = get_bed("lm")
    config = replace(bed.config("quick"), steps=steps)
    print(f"{bed.description}; {steps} steps")
    print(f"{'router':<14}{'bits per byte':>15}{'experts/token':>15}{'load CV':>9}{'MFLOP':>8}")
    for router in ROUTERS:
        trained = train(bed, bed.spec(router), config)
        with torch.no_grad():
            output, tokens = bed.probe(trained.model)
        kinds = [layer.experts.kinds for layer in routed_layers(trained.model)]
        found = figures(probe(output.records, kinds), tokens)
        print(
            f"{router:<14}{trained.figures['bpb']:>15.3f}"
            f"{found.get('active_experts', 1):>15.2f}{found.get('load_cv', 0):>9.2f}"
            f"{output.flops / len(tokens) / 1e6:>8.3f}"
        )


if __name__ == "__main__":
    main()
