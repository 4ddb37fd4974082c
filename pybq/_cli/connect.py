"""The database that a command is about, and its tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.registry import find_all
from pybq._server.folders import default_data_dir
from pybq._server.running import find_dsn
from pybq._tables.table import Table
from pybq.errors import TableError

# Variables of libpq that say which server or database is meant.
NAMING = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGDATABASE")


class CommandError(Exception):
    """Something the user can put right; the hint says how."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@contextmanager
def connect(dsn: str | None) -> Iterator[psycopg.Connection[Any]]:
    """Connect to the database asked for, that of libpq's variables, or that of `pybq serve`."""
    if dsn is None and not any(name in os.environ for name in NAMING):
        dsn = find_dsn(default_data_dir())
        if dsn is None:
            raise CommandError(
                "no database named, and no server of pybq runs",
                "start one in another terminal with: pybq serve; or give --dsn, or set PYBQ_DSN",
            )
    try:
        conn = psycopg.connect(dsn or "", autocommit=True)
    except psycopg.OperationalError as error:
        raise CommandError(
            str(error).strip(), "check --dsn (or PYBQ_DSN, PGHOST), and that the server runs"
        ) from error
    with conn:
        yield conn


def open_table(
    conn: psycopg.Connection[Any], name: str, schema: str | None, column: str | None
) -> Table:
    try:
        return Table(conn, name, schema=schema, column=column)
    except TableError as error:
        known = ", ".join(each.table for each in run(find_all(BlockingDatabase(conn))))
        hint = f"tables of pybq here: {known}" if known else "make one with: pybq ingest, or create"
        raise CommandError(str(error).replace("; give dim to create it", ""), hint) from error
