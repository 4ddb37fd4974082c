"""Crashes and standbys: no row lost, no page damaged."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    HALF_COSINE,
    Column,
    assert_index_equals_sort,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    connect,
    create,
    info,
    insert,
    of_columns,
    prepare,
    random_vectors,
    run_threads,
    start_standby,
    wait_for_replay,
)
from shared import Conn

import pybq

DIM = 32

each_column = of_columns(CODES, HALF_COSINE)


# -- crashes --------------------------------------------------------------------------------


def kill_backend(conn: Conn) -> None:
    """Kill -9 a backend: the server ends all others and recovers as after a power cut."""
    os.kill(conn.info.backend_pid, signal.SIGKILL)


def reconnect(dsn: str) -> Conn:
    for _ in range(300):
        with contextlib.suppress(psycopg.OperationalError):
            return connect(dsn)
        time.sleep(0.1)
    raise TimeoutError("the server did not recover")


def crash_during(dsn: str, delay: float, work: Callable[[Conn], None]) -> Conn:
    """Kill the backend that does the work after `delay` seconds; a connection after recovery."""
    conn = connect(dsn)

    def victim() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            work(conn)

    thread = threading.Thread(target=victim)
    with connect(dsn) as other:
        thread.start()
        time.sleep(delay)
        if thread.is_alive():
            kill_backend(conn)
            # The server ends this one as soon as it knows: a new connection outlives that.
            with contextlib.suppress(psycopg.OperationalError):
                other.execute("SELECT pg_sleep(60)")
        thread.join()
    with contextlib.suppress(psycopg.OperationalError):
        conn.close()
    return reconnect(dsn)


def _crash(server: pybq.Server, rng: np.random.Generator, column: Column, rounds: int) -> None:
    index, grown = column.index, f"grown_{column.name}"
    with connect(server.dsn) as conn:
        prepare(conn, column)
        create(conn, clustered_vectors(rng, 20_000, DIM), column=column)
        conn.execute("ALTER TABLE items SET (parallel_workers = 2)")
        conn.execute(f"CREATE INDEX {index} ON items USING bq ({column.key})")

    # during builds, with parallel workers
    for delay in rng.uniform(0.02, 0.3, rounds):
        with crash_during(
            server.dsn, delay, lambda conn: conn.execute(f"REINDEX INDEX {index}") and None
        ) as conn:
            check(conn, index)

    # during insertion: what was committed is there, what was not is not
    committed = 20_000
    for delay in rng.uniform(0.05, 0.5, rounds):

        def insert_batches(conn: Conn) -> None:
            nonlocal committed
            while True:
                insert(conn, clustered_vectors(rng, 100, DIM), first=committed, column=column)
                committed += 100

        with crash_during(server.dsn, delay, insert_batches) as conn:
            check(conn, index)
            (n,) = conn.execute("SELECT count(*) FROM items WHERE id >= 0").fetchone() or ()
            # the answer to the last COMMIT may have been lost
            assert n in (committed, committed + 100)
            committed = n

    # during vacuum and the insertions that follow it
    for delay in rng.uniform(0.01, 0.2, rounds):

        def churn(conn: Conn) -> None:
            nonlocal committed
            while True:
                conn.execute("DELETE FROM items WHERE random() < 0.2")
                conn.execute("VACUUM items")
                committed += 2000  # ids are never used again, whatever becomes of these rows
                insert(conn, clustered_vectors(rng, 2000, DIM), first=committed, column=column)

        with crash_during(server.dsn, delay, churn) as conn:
            check(conn, index)
            conn.execute("VACUUM items")
            check(conn, index)

    # during the making of new lists
    with connect(server.dsn) as conn:
        conn.execute(f"CREATE TABLE grown (id int, {column.name} {column.type}({DIM}), other int)")
        conn.execute(f"CREATE INDEX {grown} ON grown USING bq ({column.key})")
        insert(conn, clustered_vectors(rng, 20_000, DIM), table="grown", column=column)
    for delay in rng.uniform(0.02, 0.1, rounds):
        with crash_during(
            server.dsn, delay, lambda conn: conn.execute("VACUUM grown") and None
        ) as conn:
            check(conn, grown)
            insert(
                conn,
                clustered_vectors(rng, 500, DIM),
                table="grown",
                first=committed,
                column=column,
            )
            committed += 500
            check(conn, grown)

    with connect(server.dsn) as conn:
        for table in ("items", "grown"):
            query = random_vectors(rng, 1, DIM)
            assert_index_equals_sort(conn, query, table=table, limit=200, column=column)


@each_column
def test_crashes(own_server: pybq.Server, rng: np.random.Generator, column: Column) -> None:
    _crash(own_server, rng, column, rounds=1)


@pytest.mark.slow
@each_column
def test_many_crashes(own_server: pybq.Server, rng: np.random.Generator, column: Column) -> None:
    _crash(own_server, rng, column, rounds=6)


@each_column
def test_crash_empties_an_unlogged_index(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    vectors = clustered_vectors(rng, 3000, DIM)
    index, operator = column.index, column.operators[0]
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, vectors, kind="UNLOGGED TABLE", column=column)
        conn.execute(f"CREATE INDEX {index} ON items USING bq ({column.key}) WITH (lists = 9)")
        insert(conn, vectors[:100], first=5000, column=column)
        check(conn, index)
    with crash_during(
        own_server.dsn, 0, lambda conn: conn.execute("SELECT pg_sleep(10)") and None
    ) as conn:
        assert conn.execute("SELECT count(*) FROM items").fetchone() == (0,)
        check(conn, index)
        q = column.operand(operator, vectors[0])
        assert by_index(conn, operator, q, column=column) == []
        insert(conn, vectors, column=column)
        check(conn, index)
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), column=column)
        conn.execute("ALTER TABLE items SET LOGGED")
        check(conn, index)


# -- standbys -----------------------------------------------------------------------------


@each_column
def test_standby_answers_the_same(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """After each kind of change; replay compares each page with what the primary had."""
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
    tables = {"flat": (24, 1), "lists": (24, 20), "wide": (3072, 3)}
    with (
        start_standby(own_server) as server,
        connect(own_server.dsn) as primary,
        connect(server.dsn) as standby,
    ):

        def same() -> None:
            wait_for_replay(primary, standby)
            for table, (dim, _) in tables.items():
                check(primary, f"{table}_{column.name}")
                check(standby, f"{table}_{column.name}")
                for operator in column.operators[::3]:
                    q = column.operand(operator, random_vectors(rng, 1, dim)[0])
                    for probes in (1, 65536):
                        found, expected = (
                            by_index(conn, operator, q, table=table, probes=probes, column=column)
                            for conn in (standby, primary)
                        )
                        assert found == expected
                    rows = by_sort(standby, operator, q, table=table, column=column)
                    # zero vectors have no cosine
                    assert len(found) == sum(distance == distance for _, distance in rows)
                    if column.type != "bqvec":
                        many = cast(
                            Any,
                            f"SELECT id, s.distance FROM bq_search('{table}_{column.name}',"
                            f" ARRAY[%s, %s]) AS s JOIN {table} AS t ON t.ctid = s.tid"
                            " ORDER BY 2, 1",
                        )
                        found, expected = (
                            conn.execute(many, [q, q]).fetchall() for conn in (standby, primary)
                        )
                        assert found == expected and found

        for table, (dim, lists) in tables.items():
            vectors = clustered_vectors(rng, 40 if dim > 1000 else 800, dim)
            create(primary, vectors, table=table, column=column)
            primary.execute(
                f"CREATE INDEX {table}_{column.name} ON {table}"
                f" USING bq ({column.key}) WITH (lists = {lists})"
            )
        same()
        for cycle in range(3):
            for table, (dim, _) in tables.items():
                n = 40 if dim > 1000 else 800
                vectors = clustered_vectors(rng, n, dim)
                insert(primary, vectors, first=1000 * cycle, table=table, column=column)
                primary.execute(f"DELETE FROM {table} WHERE random() < 0.5")
            same()
            for table in tables:
                primary.execute(f"VACUUM {table}")
                primary.execute(f"UPDATE {table} SET other = 0 WHERE random() < 0.2")
            same()
        for table, (dim, _) in tables.items():
            primary.execute(f"TRUNCATE {table}")
            insert(primary, clustered_vectors(rng, 300, dim), table=table, column=column)
            primary.execute(f"VACUUM {table}")  # more lists, where there were fewer
        assert info(primary, f"lists_{column.name}")["lists"] == 20
        same()
        primary.execute(f"REINDEX INDEX lists_{column.name}")
        same()

        standby.execute("SELECT pg_promote()")
        vectors = clustered_vectors(rng, 200, 24)
        insert(standby, vectors, first=9000, table="lists", column=column)
        check(standby, f"lists_{column.name}")


@each_column
def test_standby_reads_while_it_replays(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Replay and readers lock pages in the same order: neither waits for the other for ever."""
    with start_standby(own_server) as server, connect(own_server.dsn) as primary:
        prepare(primary, column)
        create(primary, clustered_vectors(rng, 3000, 512), column=column)
        primary.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        with connect(server.dsn) as standby:
            wait_for_replay(primary, standby)
        end = time.monotonic() + 2
        distance = f"{column.name} {column.operators[-1]} %s"

        def write() -> None:
            with connect(own_server.dsn) as conn:
                while time.monotonic() < end:
                    insert(conn, clustered_vectors(rng, 50, 512), column=column)
                    conn.execute("DELETE FROM items WHERE random() < 0.02")

        def read() -> None:
            with connect(server.dsn) as conn:
                conn.execute("SET enable_seqscan = off")
                q = column.operand(column.operators[-1], np.ones(512, np.float32))
                while time.monotonic() < end:
                    conn.execute(f"SELECT id FROM items ORDER BY {distance} LIMIT 10", (q,))

        run_threads(write, read, read, read)
        with connect(server.dsn) as standby:
            wait_for_replay(primary, standby)
            check(standby, column.index)
