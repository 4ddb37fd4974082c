"""What docs/pools.md says of PgBouncer, behind one: PGBOUNCER names its program, if not in PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shared import Conn

import pybq
from pybq._server.process import _as_server

PROGRAM = (
    os.environ.get("PGBOUNCER")
    or shutil.which("pgbouncer")
    or shutil.which("pgbouncer", path="/usr/sbin")
)
GENEROUS = 60.0  # seconds

pytestmark = [
    pytest.mark.autocommit,
    pytest.mark.skipif(PROGRAM is None, reason="needs PgBouncer: PGBOUNCER=/usr/sbin/pgbouncer"),
]


def version() -> tuple[int, ...]:
    assert PROGRAM is not None
    output = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", output.stdout)
    assert found is not None
    return tuple(map(int, found.groups()))


@pytest.fixture
def notes(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> Conn:
    table = pybq.Table.create(conn, "notes", dim=8, columns={"lang": "text"})
    vectors = rng.standard_normal((500, 8), dtype=np.float32)
    table.ingest(range(500), vectors, {"lang": ["en", "de"] * 250})
    table.create_index()
    return conn


@pytest.fixture
def pooled(notes: Conn) -> Iterator[str]:
    """How to connect by way of one connection to the server, given away for each transaction."""
    parts = conninfo_to_dict(notes.info.dsn)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        prepared = "max_prepared_statements = 100" if version() >= (1, 21) else ""
        options = " ".join(
            f"{key}={parts[key]}" for key in ("host", "port", "user") if key in parts
        )
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = {options}\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n"
            f"unix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = 1\nlogfile = {folder}/log\n{prepared}\n"
        )
        folder.chmod(0o755)
        os.chmod(config, 0o644)
        options_of_user = _as_server()
        if options_of_user.get("user") is not None:
            os.chown(folder, options_of_user["user"], options_of_user["group"])
        process = subprocess.Popen([str(PROGRAM), "-q", str(config)], **options_of_user)
        dsn = make_conninfo(host=str(folder), port=6432, user="postgres", dbname=parts["dbname"])
        try:
            wait_for(dsn, process)
            yield dsn
        finally:
            process.terminate()
            process.wait()


def wait_for(dsn: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + GENEROUS
    while True:
        try:
            psycopg.connect(dsn).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)


def connect(dsn: str, **options: Any) -> Conn:
    options = {"autocommit": True, "prepare_threshold": None, **options}
    return psycopg.connect(dsn, **options)


def recall_of(conn: Conn) -> str:
    row = conn.execute("SHOW bq.recall").fetchone()
    assert row is not None
    return str(row[0])


def test_a_setting_is_handed_on_and_a_local_one_is_not(pooled: str) -> None:
    with connect(pooled) as one, connect(pooled) as other:
        with one.transaction():
            one.execute("SELECT bq_simd()")
            one.execute("SET LOCAL bq.recall = 0.5")
            assert recall_of(one) == "0.5"
        assert recall_of(other) == "0"
        one.execute("SET bq.recall = 0.5")
        assert recall_of(other) == "0.5"


def test_searches_of_a_table_leave_no_setting(pooled: str) -> None:
    with connect(pooled) as one, connect(pooled) as other:
        table = pybq.Table(one, "notes")
        query = np.ones(8, np.float32)
        for _ in range(7):  # psycopg would prepare it
            hits = table.search(query, k=3, recall=0.99, where="lang = 'de'", columns=["lang"])
            assert [hit["lang"] for hit in hits] == ["de"] * 3
            assert recall_of(other) == "0"
            assert other.execute("SHOW bq.iterative_scan").fetchone() == ("strict_order",)


def test_statements_are_prepared_from_1_21_on(pooled: str) -> None:
    """Of two clients that call theirs by the same name, the second fails behind an older one."""
    query = "SELECT id FROM notes ORDER BY embedding <=> %s::halfvec LIMIT 3"
    q = str([1.0] * 8)
    with connect(pooled, prepare_threshold=0) as one, connect(pooled, prepare_threshold=0) as other:
        found = one.execute(query, [q]).fetchall()
        if version() >= (1, 21):
            assert other.execute(query, [q]).fetchall() == found
            return
        with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
            other.execute(query, [q])
    with connect(pooled) as third:
        assert third.execute(query, [q]).fetchall() == found
