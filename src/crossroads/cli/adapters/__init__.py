"""``crossroads adapters``: collections of LoRA adapters, and the methods that route among them."""

from __future__ import annotations

import click

from crossroads.cli.lazy import LazyGroup

_COMMANDS = {
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
