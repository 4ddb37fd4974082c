"""serve, doctor."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table as Grid

import pybq
from pybq._cli import doctor as doctors
from pybq._cli.arguments import Dsn, Json, split_pair
from pybq._cli.connect import CommandError, connect
from pybq._cli.output import out, print_json
from pybq._server.folders import default_data_dir
from pybq._server.running import find_dsn


def ways_in(server: pybq.Server) -> list[str]:
    """Commands for another terminal: psql, the server's own where the system has none; PYBQ_DSN."""
    psql = "psql" if shutil.which("psql") else shlex.quote(f"{server.bin_dir}/psql")
    return [f"{psql} '{server.dsn}'", f"export PYBQ_DSN='{server.dsn}'"]


def serve(
    data_dir: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the database, made if missing; else PYBQ_DATA_DIR, or the system's "
            "place for data.",
            show_default=False,
        ),
    ] = None,
    postgres: Annotated[int, typer.Option(help="Major version, 18 or 16.")] = 18,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A server setting; may be repeated."),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="PYBQ_PASSWORD",
            help="Password of clients on the network, with --set listen_addresses=...",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a private PostgreSQL with bq and pgvector until interrupted (Ctrl-C).

    Other commands find it by themselves if no folder is named here, and no --dsn there. For
    programs it prints a connection string.
    """
    folder = default_data_dir() if data_dir is None else data_dir
    pairs = [split_pair(setting, "NAME=VALUE", "--set") for setting in settings or []]
    running = find_dsn(folder)
    if running is not None:
        raise CommandError(f"a server already runs on {folder}", f"use it: --dsn '{running}'")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with pybq.serve(folder, postgres, dict(pairs), password) as server:
        if as_json:
            print_json({"dsn": server.dsn, "data_dir": folder, "log": server.log_path})
        else:
            out.print(f"PostgreSQL {postgres} with bq is running on {folder}")
            for line in ways_in(server):
                out.print(f"  {line}", soft_wrap=True, highlight=False)
            out.print("Ctrl-C stops it; the data stay.")
        sys.stdout.flush()
        stopped.wait()


def doctor(
    check_indexes: Annotated[
        bool, typer.Option(help="Read every index in full; keeps writers out meanwhile.")
    ] = False,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Check server, extensions, kernels, codes and tables. Exit status 1 if anything is wrong."""
    with connect(dsn) as conn:
        findings = doctors.examine(conn, check_indexes)
    healthy = all(finding.state != "error" for finding in findings)
    if as_json:
        found = [dataclasses.asdict(finding) for finding in findings]
        print_json({"healthy": healthy, "findings": found})
    else:
        colors = {"ok": "green", "warning": "yellow", "error": "red"}
        grid = Grid("", "what", "found", "what to do")
        for finding in findings:
            state = f"[{colors[finding.state]}]{finding.state}[/]"
            grid.add_row(state, *map(escape, (finding.name, finding.text, finding.hint)))
        out.print(grid)
    if not healthy:
        raise typer.Exit(1)
