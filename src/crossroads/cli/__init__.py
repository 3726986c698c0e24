"""The command line: parses, calls, prints. Each command is one module, imported when it runs."""

from __future__ import annotations

import sys

import click

from crossroads import __version__
from crossroads.cli.lazy import LazyGroup
from crossroads.core.errors import CrossroadsError

_COMMANDS = {
    "list": ("crossroads.cli.list", "Show the catalogue of systems and routers."),
    "verify": ("crossroads.cli.verify", "Measure a paper's claim here and give a verdict."),
    "arena": ("crossroads.cli.arena", "Compare routers on your outcomes: quality, cost, latency."),
    "train": ("crossroads.cli.train", "Train a small model with experts from a YAML file."),
    "collect": (
        "crossroads.cli.collect",
        "Run prompts through a pool of models and score the answers.",
    ),
    "fit": ("crossroads.cli.fit", "Fit a router on an outcome table and save it."),
    "route": ("crossroads.cli.route", "Ask a fitted router where a prompt should go, and why."),
    "serve": (
        "crossroads.cli.serve",
        "Serve models and policies behind the APIs of OpenAI and Anthropic.",
    ),
    "check-config": (
        "crossroads.cli.check_config",
        "Find what is wrong with a configuration of the gateway.",
    ),
    "keys": ("crossroads.cli.keys", "Create, list, revoke and rotate keys of the gateway."),
    "ledger": ("crossroads.cli.ledger", "Show, export, prune and judge what the gateway did."),
    "evaluate": (
        "crossroads.cli.evaluate",
        "Estimate from a ledger how another policy would have done.",
    ),
    "replay": ("crossroads.cli.replay", "Decide a ledger's calls again and show what changes."),
    "demo": ("crossroads.cli.demo", "Compare, fit, serve and ask, on what ships with the package."),
    "adapters": ("crossroads.cli.adapters", "Route among LoRA adapters that others trained."),
    "doctor": ("crossroads.cli.doctor", "Check this installation: extras, models, data, ports."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="crossroads")
def cli() -> None:
    """Route each input to the expert that suits it best, compare routers, serve the winner."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors are one line on stderr and exit code 1 or 2."""
    try:
        code = cli.main(args=arguments, prog_name="crossroads", standalone_mode=False)
    except CrossroadsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)
