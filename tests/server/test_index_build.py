"""CREATE INDEX with parallel workers: the same index as without, whatever becomes of them."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    HALF_IP,
    Column,
    assert_index_equals_sort,
    check,
    clustered_vectors,
    connect,
    create,
    info,
    insert,
    of_columns,
    operand,
    prepare,
    random_vectors,
)
from shared import Conn

import pybq

DIM = 32


def build(conn: Conn, workers: int, command: str) -> int:
    """Run a command that builds an index; returns how many workers took part."""
    launched: list[str] = []

    def receive(diagnostic: Any) -> None:
        launched.extend(
            re.findall(r"bq: (\d+) of \d+ parallel workers", diagnostic.message_primary)
        )

    conn.execute(f"ALTER TABLE items SET (parallel_workers = {workers})")
    conn.execute("SET client_min_messages = debug1")
    conn.add_notice_handler(receive)
    try:
        conn.execute(command)
    finally:
        conn.remove_notice_handler(receive)
        conn.execute("RESET client_min_messages")
    return int(launched[0]) if launched else 0


def pages(conn: Conn, index: str) -> list[bytes]:
    """The pages of an index without what WAL and checksums put into their headers."""
    conn.execute("CHECKPOINT")
    row = conn.execute("SELECT pg_read_binary_file(pg_relation_filepath(%s))", (index,)).fetchone()
    assert row is not None
    content = bytes(row[0])
    return [content[i + 12 : i + 8192] for i in range(0, len(content), 8192)]


@pytest.fixture
def column() -> Column:
    return CODES


each_column = of_columns(CODES, HALF_IP)


@pytest.fixture
def items(own_server: pybq.Server, rng: np.random.Generator, column: Column) -> str:
    """A table that is worth workers; the dsn of its server."""
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, clustered_vectors(rng, 30_000, DIM), column=column)
    return own_server.dsn


@pytest.mark.parametrize("lists", [150, 1200])
@each_column
def test_workers_do_not_change_the_index(
    items: str, rng: np.random.Generator, column: Column, lists: int
) -> None:
    index = column.index
    command = f"CREATE INDEX {index} ON items USING bq ({column.key}) WITH (lists = {lists})"
    with connect(items) as conn:
        assert build(conn, 0, command) == 0
        serial = pages(conn, index)
        conn.execute(f"DROP INDEX {index}")
        assert build(conn, 2, command) == 2
        assert pages(conn, index) == serial
        check(conn, index)
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=300, column=column)


def test_workers_with_little_memory(items: str, rng: np.random.Generator) -> None:
    """Rows go through a sort, batch by batch; each is assigned with the workers' help."""
    with connect(items) as conn:
        conn.execute("SET maintenance_work_mem = '1MB'")
        assert build(conn, 2, "CREATE INDEX items_code ON items USING bq (code)") == 2
        check(conn, "items_code")
        assert info(conn, "items_code")["lists"] == 187
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=300)


def test_memory_goes_before_workers(items: str) -> None:
    """Rows that fit memory only without workers are built without, not in two passes."""
    with connect(items) as conn:
        conn.execute("SET maintenance_work_mem = '1550kB'")
        assert build(conn, 2, "CREATE INDEX items_code ON items USING bq (code)") == 0
        check(conn, "items_code")


def test_shared_memory_is_for_rows_that_are_there(items: str) -> None:
    """The array of rows doubles as it grows; what workers share is taken whole by the system."""
    nbytes: list[int] = []

    def receive(diagnostic: Any) -> None:
        nbytes.extend(
            map(int, re.findall(r"assign codes in (\d+) bytes", diagnostic.message_primary))
        )

    with connect(items) as conn:
        conn.add_notice_handler(receive)
        for rows in (17_000, 16_000):
            conn.execute("DELETE FROM items WHERE id >= %s OR code IS NULL", (rows,))
            command = "CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10)"
            assert build(conn, 1, command) == 1
            assert info(conn, "items_code")["live_rows"] == rows
            conn.execute("DROP INDEX items_code")
    assert nbytes[0] < 1.1 * nbytes[1]


@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process's memory is in Linux's /proc"
)
@pytest.mark.parametrize("lists", [30, 800])
def test_a_build_in_two_passes_keeps_to_its_memory(
    conn: Conn, rng: np.random.Generator, lists: int
) -> None:
    """Of a temporary table: without workers, and nothing of it lies in shared buffers."""
    memory, rows = 12 << 20, 40_000
    conn.autocommit = True
    conn.execute("SET temp_buffers = 100")
    conn.execute(f"SET maintenance_work_mem = '{memory >> 10}kB'")
    create(conn, random_vectors(rng, rows, 384), nulls=0, kind="TEMP TABLE")
    conn.execute("INSERT INTO items SELECT id, code, other FROM items, generate_series(1, 2)")

    def bytes_of(*names: str) -> int:
        status = Path(f"/proc/{conn.info.backend_pid}/status").read_text()
        found = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
        return sum(int(found[name]) for name in names) * 1024

    command = "CREATE INDEX items_code ON items USING bq (code)"
    before = bytes_of("RssAnon")
    assert build(conn, 0, f"{command} WITH (lists = {lists})") == 0
    peak = bytes_of("VmHWM") - bytes_of("RssShmem", "RssFile")
    assert info(conn, "items_code")["live_rows"] == 3 * rows
    print(f"{(peak - before) / memory:.2f} of maintenance_work_mem")
    assert 0.8 * memory < peak - before < 1.1 * memory + (1 << 20)


@each_column
def test_workers_in_every_kind_of_build(items: str, column: Column) -> None:
    index = column.index
    with connect(items) as conn:
        for command in (
            f"CREATE INDEX CONCURRENTLY {index} ON items USING bq ({column.key})",
            f"REINDEX INDEX {index}",
            f"REINDEX INDEX CONCURRENTLY {index}",
            "ALTER TABLE items SET UNLOGGED",
            "VACUUM FULL items",
        ):
            assert build(conn, 2, command) == 2, command
            check(conn, index)
        conn.execute("CREATE TEMP TABLE own AS SELECT * FROM items")
        conn.execute("DROP TABLE items")
        conn.execute("ALTER TABLE own RENAME TO items")
        assert build(conn, 2, f"CREATE INDEX own_index ON items USING bq ({column.key})") == 0
        check(conn, "own_index")


@pytest.mark.parametrize("memory", ["64MB", "1MB"])
@pytest.mark.parametrize("first_alive", [False, True])
def test_dead_rows_of_another_transform(
    own_server: pybq.Server, rng: np.random.Generator, first_alive: bool, memory: str
) -> None:
    """They are left out, and who still sees them does without the index."""
    vectors = clustered_vectors(rng, 25_000, DIM)
    q = operand("<=>", vectors[1], 7)
    with connect(own_server.dsn) as old, connect(own_server.dsn) as conn:
        create(conn, vectors[:1], nulls=0, transform=7 if first_alive else 0)
        insert(conn, vectors, first=1)
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        before = old.execute("SELECT sum(vector_norm(code)) FROM items").fetchone()
        condition = "transform(code) = 0"
        conn.execute(f"DELETE FROM items WHERE {condition}")
        insert(conn, vectors, first=100_000, transform=7)
        conn.execute(f"SET maintenance_work_mem = '{memory}'")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        conn.execute("RESET maintenance_work_mem")
        check(conn, "items_code")
        assert_index_equals_sort(conn, vectors[:1], transform=7, limit=200)

        plan = "\n".join(
            row[0]
            for row in old.execute(
                "EXPLAIN SELECT id FROM items ORDER BY code <=> %s LIMIT 5", (q,)
            )
        )
        assert "items_code" not in plan
        assert old.execute("SELECT sum(vector_norm(code)) FROM items").fetchone() == before
        old.execute("COMMIT")
        plan = "\n".join(
            row[0]
            for row in old.execute(
                "EXPLAIN SELECT id FROM items ORDER BY code <=> %s LIMIT 5", (q,)
            )
        )
        assert "items_code" in plan


def test_living_rows_must_agree(own_server: pybq.Server, rng: np.random.Generator) -> None:
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 50, DIM))
        insert(conn, random_vectors(rng, 50, DIM), transform=7)
        with pytest.raises(psycopg.errors.DataException, match="different transforms 0 and 7"):
            conn.execute("CREATE INDEX items_code ON items USING bq (code)")


@contextlib.contextmanager
def slow_build(dsn: str) -> Any:
    """A build that takes seconds, in a thread; yields a function that waits for its error."""
    errors: list[psycopg.Error] = []
    with connect(dsn) as conn, connect(dsn) as observer:
        conn.execute("SET bq.kernel = portable")

        def run() -> None:
            try:
                build(conn, 1, "CREATE INDEX slow ON items USING bq (code) WITH (lists = 12000)")
            except psycopg.Error as error:
                errors.append(error)

        def fail() -> psycopg.Error:
            thread.join(60)
            assert len(errors) == 1, "the build went through"
            return errors[0]

        thread = threading.Thread(target=run)
        thread.start()
        yield conn, observer, fail


def worker_of(observer: Conn, conn: Conn) -> int:
    """The process of a worker, once it is there."""
    for _ in range(1000):
        row = observer.execute(
            "SELECT pid FROM pg_stat_activity WHERE leader_pid = %s AND pid <> leader_pid",
            (conn.info.backend_pid,),
        ).fetchone()
        if row:
            return int(row[0])
        time.sleep(0.01)
    raise TimeoutError("there is no worker")


def test_cancelled_build_takes_its_workers_along(items: str) -> None:
    with slow_build(items) as (conn, observer, fail):
        pid = worker_of(observer, conn)
        conn.cancel()
        assert isinstance(fail(), psycopg.errors.QueryCanceled)
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert observer.execute(query, (pid,)).fetchone() == (0,)
    with connect(items) as conn:
        assert build(conn, 2, "CREATE INDEX items_code ON items USING bq (code)") == 2
        check(conn, "items_code")


def test_lost_worker_is_an_error(items: str) -> None:
    with slow_build(items) as (conn, observer, fail):
        observer.execute("SELECT pg_terminate_backend(%s)", (worker_of(observer, conn),))
        assert fail().sqlstate == "57P01"  # admin_shutdown
        assert observer.execute("SELECT to_regclass('slow')").fetchone() == (None,)


def test_an_expression_without_dimensions_says_what_to_cast_and_to_drop(
    conn: Conn,
) -> None:
    conn.autocommit = True
    conn.execute("CREATE TABLE items (v real[])")
    conn.execute("INSERT INTO items VALUES ('{1, 2, 3}')")
    create = "CREATE INDEX CONCURRENTLY encoded ON items USING bq ((bq_encode(v, 1){}))"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="expression does not") as error:
        conn.execute(create.format(""))
    hint = error.value.diag.message_hint or ""
    assert "1)::bqvec(384))." in hint and 'drop index "encoded", which is left invalid' in hint
    conn.execute("DROP INDEX encoded")  # it was there
    conn.execute(create.format("::bqvec(3)"))
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'encoded'::regclass"
    assert conn.execute(valid).fetchone() == (True,)


def test_a_domain_has_the_dimensions_of_its_type(conn: Conn, rng: np.random.Generator) -> None:
    vectors = random_vectors(rng, 500, DIM)
    create(conn, vectors)
    conn.execute(f"CREATE DOMAIN code AS bqvec({DIM}) CHECK (transform(VALUE) = 0)")
    conn.execute("CREATE DOMAIN narrow AS code")
    conn.execute("CREATE DOMAIN loose AS bqvec")
    for name in ("code", "narrow"):
        conn.execute(f"ALTER TABLE items ALTER code TYPE {name}")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        insert(conn, vectors[:20], first=1000)
        check(conn, "items_code")
        assert_index_equals_sort(conn, vectors[:2])
        conn.execute("DROP INDEX items_code")
        conn.execute("DELETE FROM items WHERE id >= 1000")
    conn.execute("ALTER TABLE items ALTER code TYPE loose")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="does not have dimensions"):
        conn.execute("CREATE INDEX ON items USING bq (code)")
