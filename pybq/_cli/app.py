"""The `pybq` command: its commands, in the order of `pybq --help`, and what becomes of errors.

Commands parse arguments, call the other modules, and print for people or as JSON. Exit status:
0 success, 1 it failed and the message says why, 2 wrong arguments.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import psycopg
import typer
from typer.core import TyperGroup

import pybq
from pybq._cli.commands import advise, measure, search, server, tables
from pybq._cli.connect import CommandError
from pybq._cli.output import fail
from pybq.errors import Error


class _Group(TyperGroup):
    """Turns what the modules raise into a message and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as by `| head`; click ends in silence
            raise
        except (
            CommandError,
            Error,
            ModuleNotFoundError,
            OSError,
            TypeError,
            ValueError,
            psycopg.Error,
        ) as error:
            if "PYBQ_TRACEBACK" in os.environ:
                raise
            fail(error, ctx.meta.get("json", False))


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Vector search in PostgreSQL on 2-bit codes. Start with: pybq serve",
)


def _print_version(value: bool) -> None:
    if value:
        print(pybq.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None: ...


for _panel, _commands in {
    "Server": (server.serve, server.doctor),
    "Tables": (tables.create, tables.ingest, tables.adopt, tables.status, tables.reencode),
    "Search": (search.search, measure.recall, measure.bench, measure.calibrate),
    "Choice of axes or rotation": (advise.advise,),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
