"""Writers, readers and VACUUM at the same time, and churn: no row lost, nothing grows."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    HALF_COSINE,
    L2,
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
    wait_for,
)
from shared import Conn

import pybq

DIM = 32

each_column = of_columns(CODES, HALF_COSINE)


def count_zeros(conn: Conn, column: Column) -> int:
    """Rows that an index leaves out, because they have no cosine."""
    if "cosine" not in column.opclass:
        return 0
    query = f"SELECT count(*) FROM items WHERE vector_norm({column.name}::vector) = 0"
    (n,) = conn.execute(query).fetchone() or ()
    return int(n)


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
    [(CODES, 1), (CODES, 50), (L2, 50)],
    ids=lambda value: getattr(value, "type", None),
)
def test_concurrent_changes(
    own_server: pybq.Server,
    rng: np.random.Generator,
    column: Column,
    lists: int,
    dim: int = DIM,
    seconds: float = 2,
) -> None:
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, clustered_vectors(rng, 1000, dim), nulls=0, column=column)
        index = f"{column.index} ON items USING bq ({column.key})"
        conn.execute(f"CREATE INDEX {index} WITH (lists = {lists})")
        _concurrent_work(own_server.dsn, seconds, rng, dim, column)
        check(conn, column.index)
        conn.execute("VACUUM items")
        check(conn, column.index)
        assert_index_equals_sort(conn, random_vectors(rng, 1, dim), column=column)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [8, 1536])
def test_more_concurrent_changes(
    own_server: pybq.Server, rng: np.random.Generator, dim: int
) -> None:
    test_concurrent_changes(own_server, rng, CODES, 20, dim, seconds=4)


@each_column
def test_splitting_beside_writers(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Vacuum makes new lists while rows come in: all of them are in the new ones."""
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        conn.execute(f"CREATE TABLE items (id int, {column.name} {column.type}({DIM}), other int)")
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        writing = [True, True]

        def write(writer: int) -> None:
            own = np.random.default_rng(writer)
            with connect(own_server.dsn) as one:
                for first in range(0, 8000, 100):
                    rows = clustered_vectors(own, 100, DIM)
                    insert(one, rows, first=writer * 10_000_000 + first, column=column)
            writing[writer] = False

        def vacuum() -> None:
            end = time.monotonic() + 240
            with connect(own_server.dsn) as worker:
                while any(writing) and time.monotonic() < end:
                    worker.execute("VACUUM items")

        run_threads(lambda: write(0), lambda: write(1), vacuum)
        conn.execute("VACUUM items")
        check(conn, column.index)
        facts = info(conn, column.index)
        assert facts["live_rows"] == 16_000 - count_zeros(conn, column)
        assert facts["lists"] > 50
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
    index, rows = column.index, 12_000
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
