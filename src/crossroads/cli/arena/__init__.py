"""``crossroads arena``: one command per family, and those around a leaderboard."""

from __future__ import annotations

import click

from crossroads.cli.lazy import LazyGroup
from crossroads.core.errors import UsageError

_COMMANDS = {
    "prompts": ("crossroads.cli.arena.prompts", "Prompts to language models, on an outcome table."),
    "moe": ("crossroads.cli.arena.moe", "Tokens to experts: small models trained side by side."),
    "adapters": (
        "crossroads.cli.arena.adapters",
        "Inputs to LoRA adapters: routers over one bank of experts.",
    ),
    "submit": (
        "crossroads.cli.arena.submit",
        "Judge a submission to a RouterArena leaderboard.",
    ),
    "leaderboard": (
        "crossroads.cli.arena.leaderboard",
        "Show a RouterArena leaderboard.",
    ),
}


class _Families(LazyGroup):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            raise UsageError(f"no arena or command {args[0]!r}; there is: {', '.join(_COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Families, lazy=_COMMANDS)
def command() -> None:
    """Compare routers of a family: quality, cost, latency, with their uncertainty."""
