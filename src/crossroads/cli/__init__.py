"""The command line: parses, calls, prints. Each command is one module, imported when it runs."""

from __future__ import annotations

import importlib
import sys

import click

from crossroads import __version__
from crossroads.core.errors import CrossroadsError

# name -> (module, one-line help). The help stands here so that --help imports no command.
_COMMANDS = {
    "list": ("list", "Show the catalogue of systems and routers."),
    "verify": ("verify", "Measure a paper's claim here and give a verdict."),
    "arena": ("arena", "Compare routers on your outcomes: quality, cost, latency."),
    "collect": ("collect", "Run prompts through a pool of models and score the answers."),
    "fit": ("fit", "Fit a router on an outcome table and save it."),
    "route": ("route", "Ask a fitted router where a prompt should go, and why."),
    "serve": ("serve", "Serve a fitted router behind an OpenAI-compatible endpoint."),
    "demo": ("demo", "Compare, fit, serve and ask, on what ships with the package."),
    "doctor": ("doctor", "Check this installation: extras, models, data, ports."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"crossroads.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
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
