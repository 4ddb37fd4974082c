"""Crashes, standbys, concurrent writers and churn: no row lost, no page damaged."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    Column,
    Places,
    assert_index_equals_sort,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    connect,
    create,
    damage,
    info,
    insert,
    operand,
    prepare,
    random_vectors,
    run_threads,
    start_standby,
    vector_column,
    wait_for,
    wait_for_replay,
)
from psycopg import sql
from shared import Conn

import pybq

DIM = 32

each_column = pytest.mark.parametrize(
    "column", [CODES, vector_column("halfvec", "cosine")], ids=lambda column: column.type
)


def count_zeros(conn: Conn, column: Column) -> int:
    """Rows that an index leaves out, because they have no cosine."""
    if "cosine" not in column.opclass:
        return 0
    query = f"SELECT count(*) FROM items WHERE vector_norm({column.name}::vector) = 0"
    (n,) = conn.execute(query).fetchone() or ()
    return int(n)


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
    _crash(own_server, rng, column, rounds=12)


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
        end = time.monotonic() + 3
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


# -- concurrency ------------------------------------------------------------------------------


def _concurrent_work(
    dsn: str, seconds: float, rng: np.random.Generator, dim: int, column: Column
) -> None:
    name, operator = column.name, column.operators[-1]
    end = time.monotonic() + seconds
    seeds = iter(rng.spawn(20))

    def write(first: int) -> None:
        own = next(seeds)
        with connect(dsn) as conn:
            while time.monotonic() < end:
                insert(conn, clustered_vectors(own, 40, dim), first=first, column=column)
                first += 40
                with conn.transaction(force_rollback=True):
                    insert(conn, clustered_vectors(own, 10, dim), first=first, column=column)

    def delete() -> None:
        with connect(dsn) as conn:
            while time.monotonic() < end:
                conn.execute(
                    "DELETE FROM items WHERE ctid = ANY(ARRAY(SELECT ctid FROM items"
                    " WHERE random() < 0.2 FOR UPDATE SKIP LOCKED))"
                )

    def update() -> None:
        with connect(dsn) as conn:
            while time.monotonic() < end:
                with contextlib.suppress(psycopg.errors.SerializationFailure):
                    conn.execute("UPDATE items SET other = other + 1 WHERE random() < 0.05")
                    conn.execute(
                        f"UPDATE items SET {name} = {name}, id = -id WHERE random() < 0.02"
                    )

    def vacuum() -> None:
        with connect(dsn) as conn:
            while time.monotonic() < end:
                conn.execute("VACUUM (INDEX_CLEANUP ON) items")

    def read() -> None:
        """In one snapshot, the index and a sort agree whatever happens beside."""
        own = next(seeds)
        with connect(dsn) as conn:
            while time.monotonic() < end:
                q = column.operand(operator, random_vectors(own, 1, dim)[0])
                with conn.transaction():
                    conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    expected = by_sort(conn, operator, q, column=column)
                    found = by_index(conn, operator, q, column=column)
                assert [d for _, d in found] == [d for _, d in expected]
                assert sorted(i for i, _ in found) == sorted(i for i, _ in expected)

    run_threads(
        *(lambda i=i: write(i * 10_000_000) for i in range(1, 4)),  # type: ignore[misc]
        delete,
        update,
        vacuum,
        read,
        read,
    )


@pytest.mark.parametrize(
    "column, lists",
    [(CODES, 1), (CODES, 50), (vector_column("vector", "l2"), 50)],
    ids=lambda value: getattr(value, "type", None),
)
def test_concurrent_changes(
    own_server: pybq.Server, rng: np.random.Generator, column: Column, lists: int, dim: int = DIM
) -> None:
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, clustered_vectors(rng, 1000, dim), nulls=0, column=column)
        index = f"{column.index} ON items USING bq ({column.key})"
        conn.execute(f"CREATE INDEX {index} WITH (lists = {lists})")
        _concurrent_work(own_server.dsn, 4, rng, dim, column)
        check(conn, column.index)
        conn.execute("VACUUM items")
        check(conn, column.index)
        assert_index_equals_sort(conn, random_vectors(rng, 1, dim), column=column)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [8, 1536])
def test_more_concurrent_changes(
    own_server: pybq.Server, rng: np.random.Generator, dim: int
) -> None:
    test_concurrent_changes(own_server, rng, CODES, 20, dim)


@each_column
def test_splitting_beside_writers(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Vacuum makes new lists while rows come in: all of them are in the new ones."""
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        conn.execute(f"CREATE TABLE items (id int, {column.name} {column.type}({DIM}), other int)")
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        end = time.monotonic() + 3

        def write(first: int) -> None:
            own = np.random.default_rng(first)
            with connect(own_server.dsn) as writer:
                while time.monotonic() < end:
                    insert(writer, clustered_vectors(own, 100, DIM), first=first, column=column)
                    first += 100

        def vacuum() -> None:
            with connect(own_server.dsn) as worker:
                while time.monotonic() < end:
                    worker.execute("VACUUM items")

        run_threads(lambda: write(0), lambda: write(10_000_000), vacuum)
        conn.execute("VACUUM items")
        check(conn, column.index)
        (n,) = conn.execute("SELECT count(*) FROM items").fetchone() or ()
        facts = info(conn, column.index)
        assert facts["live_rows"] == n - count_zeros(conn, column)
        assert n < 10_000 or facts["lists"] > 1
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=100, column=column)


def test_writers_do_not_wait_for_training(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Nearly all of the time that new lists take goes by beside writers."""
    with connect(own_server.dsn) as conn, connect(own_server.dsn) as vacuum:
        conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}), other int)")
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 2500)")
        insert(conn, clustered_vectors(rng, 20_000, DIM))
        vacuum.execute("SET bq.kernel = portable")
        thread = threading.Thread(target=lambda: vacuum.execute("VACUUM items"))
        thread.start()

        def is_training() -> bool:
            query = "SELECT phase FROM pg_stat_progress_vacuum"
            return conn.execute(query).fetchone() == ("cleaning up indexes",)

        for _ in range(1000):
            if is_training() or not thread.is_alive():
                break
            time.sleep(0.01)
        conn.execute("SET lock_timeout = '50ms'")
        for first in range(20_000, 20_100, 10):
            insert(conn, clustered_vectors(rng, 10, DIM), first=first)
        assert is_training(), "this test needs more rows: vacuum was done before the writer"
        thread.join()
        assert info(conn, "items_code")["lists"] == 2500
        assert info(conn, "items_code")["live_rows"] == 20_100
        check(conn, "items_code")
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=100)


def test_autovacuum_splits_within_its_memory(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Rows that do not fit autovacuum_work_mem are moved in batches; a sample trains the lists."""
    with connect(own_server.dsn) as conn:
        conn.execute("CREATE TABLE items (id int, code bqvec(512), other int)")
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 100)")
        conn.execute("ALTER TABLE items SET (autovacuum_vacuum_insert_threshold = 100)")
        for setting in ("work_mem = '1MB'", "naptime = '1s'"):
            conn.execute(f"ALTER SYSTEM SET autovacuum_{setting}")
        conn.execute("SELECT pg_reload_conf()")
        insert(conn, random_vectors(rng, 7000, 512))
        count = "SELECT autovacuum_count > 0 FROM pg_stat_all_tables WHERE relname = 'items'"
        wait_for(conn, count, (True,))
        facts = info(conn, "items_code")
        assert (facts["lists"], facts["live_rows"]) == (100, 7000)
        check(conn, "items_code")
        assert_index_equals_sort(conn, random_vectors(rng, 1, 512), limit=100)


def test_cancelled_split_leaves_no_waste(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """Writers that wait cancel autovacuum; the next attempt uses the same pages again."""
    with connect(own_server.dsn) as conn:
        conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}), other int)")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        insert(conn, clustered_vectors(rng, 30_000, DIM))
        conn.execute("VACUUM (INDEX_CLEANUP OFF) items")
        size = info(conn, "items_code")["total_bytes"]
        cancelled = 0
        for timeout in (*range(20, 300, 20), 0):
            conn.execute(f"SET statement_timeout = {timeout}")
            try:
                conn.execute("VACUUM items")
            except psycopg.errors.QueryCanceled:
                cancelled += 1
            conn.execute("RESET statement_timeout")
            check(conn, "items_code")
            facts = info(conn, "items_code")
            if facts["lists"] > 1:
                break
        assert cancelled > 0
        # two sets of lists, each of less than 1.2 times its rows
        assert facts["total_bytes"] < 2.3 * size


# -- churn ------------------------------------------------------------------------------------


@each_column
def test_churn_does_not_grow(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Delete half, vacuum, insert it again: the index keeps its size and its recall."""
    index, rows = column.index, 24_000
    recall_of_index = f"SELECT bq_recall('{index}', 200)"
    centres = rng.standard_normal((200, DIM))
    noise = 0.5 * rng.standard_normal((rows, DIM))
    vectors = (centres[rng.integers(0, 200, rows)] + noise).astype(np.float32)
    ids = np.arange(rows)
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, vectors, nulls=0, column=column)
        conn.execute(f"CREATE INDEX {index} ON items USING bq ({column.key})")
        first = info(conn, index)
        (recall,) = conn.execute(recall_of_index).fetchone() or ()
        assert recall > 0.95
        for cycle in range(1, 4):
            gone = rng.random(rows) < 0.5
            conn.execute("DELETE FROM items WHERE id = ANY(%s)", [ids[gone].tolist()])
            conn.execute("VACUUM items")
            insert(conn, vectors[gone], first=rows * cycle, column=column)
            ids[gone] = rows * cycle + np.arange(gone.sum())
            facts = info(conn, index)
            assert facts["live_rows"] == rows
            assert facts["total_bytes"] <= 1.05 * first["total_bytes"], cycle
            row = conn.execute(recall_of_index).fetchone() or (0,)
            assert row[0] >= recall - 0.01, (cycle, recall)
        check(conn, index)


# -- damage ---------------------------------------------------------------------------------


def test_check_finds_damage(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """A changed byte in each part of the index is found, and scans do not crash on it."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
    at = Places(DIM, 5)
    cases = [
        ((0, 24), b"\1\2\3\4", "no bq signature"),
        ((0, 28), b"\x63\0\0\0", "format version 99"),
        # a query of no lists would go on for ever, in the planner already
        (at.meta("nprobes"), b"\0\0\0\0", "impossible values"),
        (at.meta("product_nprobes"), b"\0\0\0\0", "impossible values"),
        (at.meta("nkeys"), b"\1\0\0\0", "impossible values"),
        (at.meta("data_start"), b"\2\0\0\0", "unexpected kind|does not exist"),
        (at.meta("data_start"), b"\0\0\0\0", "impossible values"),
        (at.meta("capacity"), b"\x40\0\0\0", "directory|factor|leads|chain"),
        (at.meta("segment"), b"\xf0\xff\xff\x7f", "directory is where it cannot be"),
        (at.meta("free_head"), b"\x50\0\0\0", "free chain of the index"),
        (at.meta("nfree"), b"\1\0\0\0", "free chain of the index"),
        ((0, 8190), b"\0\0", "not of a bq index"),
        (at.factor(), b"\0\0\xc0\x7f", "has factor NaN"),
        (at.entry("head"), b"\xfe\xff\xff\x7f", "leads to block"),
        (at.entry("nblocks"), b"\1\0\0\0", "has . blocks, expected 1|belongs to|leads to"),
        (at.entry("epoch"), b"\2\0\0\0", "leads to block"),
        (at.header("list"), b"\4\0\0\0", "belongs to list|of list|not in the chain"),
        (at.header("epoch"), b"\2\0\0\0", "leads to block"),
        (at.header("next"), b"\0\0\0\0", "twice|of list|another use"),
        (at.header("packed"), b"\7\0", "has 7 packed rows of 16"),
        (at.header("tid"), b"\xff\xff\xff\x7f", "has position"),
        (at.code(), b"\x5a", "inverse length|another code"),
    ]
    tables = [f"case_{n}" for n in range(len(cases))]
    with connect(own_server.dsn) as conn:
        for table in tables:
            conn.execute(f"CREATE TABLE {table} AS TABLE items")
            conn.execute(f"CREATE INDEX {table}_code ON {table} USING bq (code) WITH (lists = 5)")
            check(conn, f"{table}_code")
    damage(
        own_server,
        *(
            (f"{table}_code", *place, data)
            for table, (place, data, _) in zip(tables, cases, strict=True)
        ),
    )
    for table, (_, _, message) in zip(tables, cases, strict=True):
        with connect(own_server.dsn) as conn:
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message) as error:
                check(conn, f"{table}_code")
            assert error.value.diag.message_hint == "Rebuild the index with REINDEX."
            # a position out of range is found by the table, in words of its own
            with contextlib.suppress(psycopg.errors.IndexCorrupted, psycopg.errors.InternalError_):
                by_index(conn, "<=>", operand("<=>", np.ones(DIM, np.float32)), table=table)
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_fewer_keys_than_filter_columns_are_damage(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """A condition on a column that headers have no keys of would read beyond them."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code, id, other)")
    for nkeys in (0, 1, 3):
        damage(own_server, ("items_code", *Places(DIM, 1).meta("nkeys"), bytes([nkeys, 0, 0, 0])))
        with connect(own_server.dsn) as conn:
            conn.execute("SET enable_seqscan = off; SET enable_sort = off")
            q = operand("<=>", np.ones(DIM, np.float32))
            nearest = "SELECT id FROM items WHERE other = 3 ORDER BY code <=> %s LIMIT 5"
            for query, parameters in (
                (nearest, (q,)),
                ("SELECT bq_index_check('items_code')", ()),
                ("INSERT INTO items SELECT * FROM items LIMIT 1", ()),
            ):
                with pytest.raises(psycopg.errors.IndexCorrupted, match="impossible values"):
                    conn.execute(query, parameters)


def test_pages_that_do_not_exist_are_damage(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Block numbers out of range, in lists and blocks: scans, inserts and vacuum name REINDEX."""
    vectors = random_vectors(rng, 1000, DIM)
    q = operand("<=>", vectors[0])
    actions: dict[str, Callable[[Conn, str], object]] = {
        "scan": lambda conn, table: by_index(conn, "<=>", q, table=table),
        "insert": lambda conn, table: insert(conn, vectors[:40], table=table),
        "vacuum": lambda conn, table: conn.execute(f"VACUUM (INDEX_CLEANUP ON) {table}"),
    }
    at = Places(DIM, 1)
    places = [
        (at.entry("head"), "scan"),
        (at.entry("nblocks"), "scan"),
        (at.entry("free"), "insert"),
        (at.header("next"), "scan"),
        (at.meta("nblocks"), "vacuum"),
        (at.meta("free_head"), "insert"),
    ]
    numbers = (b"\xfe\xff\xff\x7f", b"\xf0\xff\xff\xff", b"\x00\x10\x00\x00")
    cases = [(*place, number) for place in places for number in numbers]
    tables = [f"case_{n}" for n in range(len(cases))]
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
        for table in tables:
            conn.execute(f"CREATE TABLE {table} AS TABLE items")
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            conn.execute(f"CREATE INDEX {table}_code ON {table} USING bq (code) WITH (lists = 1)")
    damage(
        own_server,
        *(
            (f"{table}_code", *place, number)
            for table, (place, _, number) in zip(tables, cases, strict=True)
        ),
    )
    for table, (place, action, _) in zip(tables, cases, strict=True):
        with connect(own_server.dsn) as conn:
            for act in (actions[action], lambda conn, table: check(conn, f"{table}_code")):
                with pytest.raises(psycopg.errors.IndexCorrupted) as error:
                    act(conn, table)
                hint = error.value.diag.message_hint
                assert hint == "Rebuild the index with REINDEX.", (place, action)


def test_nothing_is_asked_for_beyond_the_end(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Where a list goes on is a guess; it may lead to a file (of 1 GB) that there is not yet."""
    file_pages = 131_072
    at = Places(DIM, 1)
    block = next(b for b in range(1_000_000, 9_000_000) if at.row(b * at.nrows)[0] > 131_000)
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 1)")
    damage(
        own_server,
        ("items_code", file_pages - 2, 0, bytes(8192)),
        ("items_code", *at.meta("nblocks"), (block + 2000).to_bytes(4, "little")),
        ("items_code", *at.entry("nblocks"), (2000).to_bytes(4, "little")),
        ("items_code", *at.entry("head"), block.to_bytes(4, "little")),
    )
    with (
        connect(own_server.dsn) as conn,
        pytest.raises(psycopg.errors.IndexCorrupted, match="page is empty"),
    ):
        by_index(conn, "<=>", operand("<=>", np.ones(DIM, np.float32)))


@each_column
def test_check_finds_what_is_missing(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """A row that vanished from the index, or differs, is found by comparison with the table."""
    place = Places(DIM, 1, statistics=column != CODES)
    page, tids = place.header("tid")
    inverses = tids + 32 * 6
    norms = inverses + 32 * 2
    cases = [
        (place.header("live"), b"\xfe\xff\xff\xff", r"row \(0,1\) .* is missing"),  # no slot 0
        ((page, norms), np.float32(7).tobytes(), r"row \(0,1\) .* another code than slot 0"),
    ]
    if column != CODES:
        # of codes it follows from them, so that needs no table
        cases.append(((page, inverses), b"\1\0", r"row \(0,1\) .* another code than slot 0"))
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, random_vectors(rng, 64, DIM), nulls=0, column=column)
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
    for where, data, message in cases:
        damage(own_server, (column.index, *where, data))
        with connect(own_server.dsn) as conn:
            conn.execute("SELECT bq_index_check(%s)", (column.index,))
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
                check(conn, column.index)
            conn.execute(sql.SQL(f"REINDEX INDEX {column.index}"))
            check(conn, column.index)


def test_check_compares_filter_keys(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """A row with the key of another value would not be found by its own."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 64, DIM), nulls=0)
        conn.execute("ALTER TABLE items ADD label text")
        conn.execute("UPDATE items SET other = NULL, label = 'even' WHERE id % 2 = 0")
        conn.execute("CREATE INDEX items_code ON items USING bq (code, other, label, id)")
        check(conn, "items_code")
        conn.execute("DELETE FROM items WHERE id % 5 = 0")
        conn.execute("VACUUM items")
        insert_rows = "INSERT INTO items SELECT id, code, {}, {} FROM items"
        conn.execute(insert_rows.format("NULL", "'new'"))
        conn.execute(insert_rows.format("id", "NULL"))
        check(conn, "items_code")
        conn.execute("REINDEX INDEX items_code")
    place = Places(DIM, 1, nkeys=3)
    for where, data in (
        (place.header("keys"), b"\1\2\3\4"),
        (place.header("nulls"), b"\xff\xff\xff\xff"),
    ):
        damage(own_server, ("items_code", *where, data))
        with connect(own_server.dsn) as conn:
            conn.execute("SELECT bq_index_check('items_code')")
            with pytest.raises(
                psycopg.errors.IndexCorrupted, match="has other filter keys than slot"
            ):
                check(conn, "items_code")
            conn.execute("REINDEX INDEX items_code")
            check(conn, "items_code")


def test_check_finds_zero_vectors(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """They have no cosine: an index for it that has one has kept a vector that is no more."""
    column = vector_column("vector", "cosine")
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, random_vectors(rng, 10, DIM), nulls=0, column=column)
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        conn.execute("UPDATE items SET embedding = %s WHERE id = 3", (str([0] * DIM),))
        check(conn, column.index)
    page, tids = Places(DIM, 1, statistics=True).header("tid")
    # the row was at (0,4), and is now at (0,11)
    damage(own_server, (column.index, page, tids + 3 * 6, b"\0\0\0\0\x0b\0"))
    with connect(own_server.dsn) as conn:
        with pytest.raises(psycopg.errors.IndexCorrupted, match="zero vector, is in slot 3"):
            check(conn, column.index)
