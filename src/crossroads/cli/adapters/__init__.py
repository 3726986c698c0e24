"""``crossroads adapters``: collections of LoRA adapters, and the methods that route among them."""

from __future__ import annotations

import click

from crossroads.cli.lazy import LazyGroup

_COMMANDS = {
    "route": (
        "crossroads.cli.adapters.route",
        "Route prompts among the adapters of a folder, and answer them.",
    ),
    "compare": (
        "crossroads.cli.adapters.compare",
        "Compare routers over the adapters of a folder: loss, accuracy, speed, memory.",
    ),
    "teach": (
        "crossroads.cli.adapters.teach",
        "Teach a router that has to learn, and save it with the adapters.",
    ),
    "serve": (
        "crossroads.cli.adapters.serve",
        "Serve a folder of adapters as one model behind OpenAI's API.",
    ),
    "export": (
        "crossroads.cli.adapters.export",
        "Write an adapter that PEFT loads, or a bank with its router.",
    ),
    "train-collection": (
        "crossroads.cli.adapters.train_collection",
        "Train the twelve experts that routers are compared on.",
    ),
    "survey": (
        "crossroads.cli.adapters.survey",
        "Which published methods route among trained experts, and which suit your case.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def command() -> None:
    """Route inputs among adapters that others trained."""
