"""The application that the commands are added to, and what it does with this library's errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cachepolicies.base.errors import CachePoliciesError

ERROR_CODE = 2


class CleanErrors(TyperGroup):
    """Prints an error of this library as one message on stderr and exits with code 2; a defect keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except CachePoliciesError as error:
            # Made here, not at import: stderr may have been replaced since.
            console = Console(stderr=True)
            console.print("error:", style="bold red", end=" ")
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(ERROR_CODE) from error


app = typer.Typer(
    name="cachepolicies",
    cls=CleanErrors,
    help="Sample diffusion and flow-matching models with fewer network evaluations.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cachepolicies {version('cachepolicies')}")
        raise typer.Exit


@app.callback()
def _main(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Keep the name of the command in the command line even while there is only one."""
