"""The database that a command is about, and its tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row

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
        dsn = running_dsn(default_data_dir())
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


def default_data_dir() -> Path:
    """Where `pybq serve` keeps its database: PYBQ_DATA_DIR, or the system's place for data."""
    if "PYBQ_DATA_DIR" in os.environ:
        return Path(os.environ["PYBQ_DATA_DIR"]).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/pybq/data")  # the server's user cannot look into root's home
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/pybq/data").expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "pybq/data"


def running_dsn(data_dir: Path) -> str | None:
    """Connection string of the server that runs on a folder."""
    try:
        # PostgreSQL, src/include/utils/pidfile.h: line 4 port, line 5 socket folder
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        port, host = lines[3].strip(), lines[4].strip()
    except (OSError, IndexError):
        return None
    dsn = psycopg.conninfo.make_conninfo(host=host, port=port, user="postgres", dbname="postgres")
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return None  # left behind by a crash
    return dsn


def open_table(
    conn: psycopg.Connection[Any], name: str, schema: str | None, column: str | None
) -> Table:
    try:
        return Table(conn, name, schema=schema, column=column)
    except TableError as error:
        with conn.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute("SELECT table_name::text FROM bq_columns ORDER BY 1").fetchall()
        known = ", ".join(row[0] for row in rows)
        hint = f"tables of pybq here: {known}" if known else "make one with: pybq ingest, or create"
        raise CommandError(str(error).replace("; give dim to create it", ""), hint) from error
