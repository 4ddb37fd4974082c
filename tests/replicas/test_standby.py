"""A standby that is queried under load, and what ends its queries: docs/growing.md, "Replicas".

That it is the same as its primary, page by page: tests/server/test_index_crash.py. Takes half a
minute, so it is no part of `make test`: `make test-replicas`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import psycopg
from indexlib import (
    CODES,
    HALF_COSINE,
    Column,
    assert_index_equals_sort,
    by_index,
    check,
    clustered_vectors,
    connect,
    info,
    insert,
    of_columns,
    prepare,
    random_vectors,
    run_threads,
    start_standby,
    wait_for,
    wait_for_replay,
)
from shared import SEED, Conn

import pybq

DIM = 32
SECONDS = 120  # at most, for what is waited for

each_column = of_columns(CODES, HALF_COSINE)


def create_grown(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """An index of one list, of which the next VACUUM makes 40; there is no other vacuum."""
    prepare(conn, column)
    conn.execute("ALTER SYSTEM SET autovacuum = off")
    conn.execute("SELECT pg_reload_conf()")
    conn.execute(f"CREATE TABLE items (id int, {column.name} {column.type}({DIM}), other int)")
    conn.execute(f"CREATE INDEX items_near ON items USING bq ({column.key}) WITH (lists = 40)")
    insert(conn, clustered_vectors(rng, 4000, DIM), column=column)


def count(conn: Conn) -> int:
    (rows,) = conn.execute("SELECT count(*) FROM items").fetchone() or (0,)
    return int(rows)


@each_column
def test_standby_answers_as_a_sort_under_load(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """While rows come and go, and vacuum removes them and splits lists: in one snapshot each."""
    queries = random_vectors(rng, 4, DIM)
    with connect(own_server.dsn) as primary, start_standby(own_server) as server:
        create_grown(primary, rng, column)
        with connect(server.dsn) as standby:
            wait_for_replay(primary, standby)
            before = info(standby, "items_near")["lists"]
        seen: list[set[int]] = [set(), set()]  # by each reader: how many rows there were
        end = time.monotonic() + SECONDS
        ended = threading.Event()

        def is_shown() -> bool:
            """Enough was seen by both, or they have failed, or this takes too long."""
            return ended.is_set() or min(map(len, seen)) >= 5 or time.monotonic() > end

        def write() -> None:
            own = np.random.default_rng(1)
            with connect(own_server.dsn) as conn:
                turn = 0
                while turn < 5 or not is_shown():
                    vectors = clustered_vectors(own, 200, DIM)
                    insert(conn, vectors, first=10_000 + 200 * turn, column=column)
                    conn.execute("DELETE FROM items WHERE (id * 7 + %s) %% 30 = 0", (turn,))
                    conn.execute("UPDATE items SET other = 1 WHERE id %% 40 = %s", (turn % 40,))
                    conn.execute("VACUUM items")
                    turn += 1

        def read(reader: int) -> Callable[[], None]:
            def run() -> None:
                try:
                    with connect(server.dsn) as conn:
                        while not is_shown():
                            with conn.transaction():
                                conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                                seen[reader].add(count(conn))
                                query = queries[len(seen[reader]) % 4]
                                assert_index_equals_sort(
                                    conn, query[None], limit=200, column=column
                                )
                finally:
                    if not is_shown():
                        ended.set()

            return run

        run_threads(write, read(0), read(1))
        assert min(map(len, seen)) >= 5, "the standby's rows did not change"
        with connect(server.dsn) as standby:
            wait_for_replay(primary, standby)
            assert info(standby, "items_near")["lists"] >= 40 > before
            check(standby, "items_near")
            operator = column.operators[-1]
            for vector in queries:
                q = column.operand(operator, vector)
                found, expected = (
                    by_index(conn, operator, q, limit=50, probes=None, column=column)
                    for conn in (standby, primary)
                )
                assert found == expected and len(found) == 50


# -- conflicts ------------------------------------------------------------------------------


def remove_rows(primary: Conn, rng: np.random.Generator) -> None:
    primary.execute("DELETE FROM items WHERE id % 2 = 0")
    primary.execute("VACUUM (TRUNCATE OFF) items")


def use_blocks_again(primary: Conn, rng: np.random.Generator) -> None:
    """Lists are split, which by itself is in nobody's way; then their old blocks get new rows."""
    primary.execute("VACUUM (TRUNCATE OFF) items")
    assert info(primary, "items_near")["lists"] == 40
    primary.execute("SELECT pg_current_xact_id()")
    primary.execute("VACUUM (TRUNCATE OFF) items")
    insert(primary, clustered_vectors(rng, 4000, DIM), first=10_000)


def shorten_table(primary: Conn, rng: np.random.Generator) -> None:
    """By its last pages, which have been empty for everybody: but that takes a lock."""
    primary.execute("VACUUM items")


ROWS_REMOVED = "User query might have needed to see row versions that must be removed."
LOCK_HELD = "User was holding a relation lock for too long."


class Standby:
    """A primary, its standby, and a session there that reads for long."""

    def __init__(self, primary: Conn, standby: Conn, reader: Conn, seed: int) -> None:
        self.primary, self.standby, self.reader = primary, standby, reader
        self.rng = np.random.default_rng(seed)

    def begin(self, feedback: bool) -> None:
        """A new table, of which the last rows were deleted; the standby knows all that."""
        self.standby.execute(f"ALTER SYSTEM SET hot_standby_feedback = {feedback}".encode())
        self.standby.execute("SELECT pg_reload_conf()")
        known = "SELECT bool_and((backend_xmin IS NOT NULL) = {}) FROM pg_stat_replication"
        wait_for(self.primary, known.format(feedback), (True,), SECONDS)
        self.primary.execute("DROP TABLE IF EXISTS items")
        create_grown(self.primary, self.rng, CODES)
        self.primary.execute("DELETE FROM items WHERE id >= 3000")
        wait_for_replay(self.primary, self.standby)

    def end_query(self, change: Callable[[Conn, np.random.Generator], None]) -> psycopg.Error:
        """Make a change on the primary while a query sleeps that reads by the index."""
        errors: list[psycopg.Error] = []
        query = CODES.operand("<=>", random_vectors(self.rng, 1, DIM)[0])

        def read() -> None:
            rows = "(SELECT FROM items ORDER BY code <=> %s LIMIT 3000) AS rows"
            try:
                self.reader.execute(
                    f"SELECT count(pg_sleep(%s)) FROM {rows}".encode(), (SECONDS / 3000, query)
                )
            except psycopg.Error as error:
                errors.append(error)

        def write() -> None:
            asleep = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {}"
            wait_for(self.standby, asleep.format(self.reader.info.backend_pid), (True,), SECONDS)
            change(self.primary, self.rng)

        run_threads(read, write)
        (error,) = errors
        assert isinstance(error, psycopg.errors.SerializationFailure)
        assert error.diag.message_primary == "canceling statement due to conflict with recovery"
        # tried again, it is answered
        wait_for_replay(self.primary, self.standby)
        assert count(self.reader) == count(self.primary)
        return error

    def read_on(self, change: Callable[[Conn, np.random.Generator], None]) -> None:
        """The same, but the session has its snapshot still, and answers by it, afterwards."""
        with self.reader.transaction():
            self.reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            rows = count(self.reader)
            snapshot = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
            (xmin,) = self.reader.execute(snapshot).fetchone() or (None,)
            known = f"SELECT bool_and(backend_xmin::text = '{xmin}') FROM pg_stat_replication"
            wait_for(self.primary, known, (True,), SECONDS)
            change(self.primary, self.rng)
            wait_for_replay(self.primary, self.standby)
            assert count(self.standby) == count(self.primary) != rows == count(self.reader)
            assert_index_equals_sort(self.reader, random_vectors(self.rng, 2, DIM))
        assert_index_equals_sort(self.standby, random_vectors(self.rng, 2, DIM))
        check(self.standby, "items_near")


def test_feedback_keeps_what_queries_of_the_standby_need(own_server: pybq.Server) -> None:
    """Without it they end, as those by any index do, when that is about to go."""
    settings = {"max_standby_streaming_delay": 0, "wal_receiver_status_interval": "1s"}
    with (
        start_standby(own_server, **settings) as server,
        connect(own_server.dsn) as primary,
        connect(server.dsn) as conn,
        connect(server.dsn) as reader,
    ):
        standby = Standby(primary, conn, reader, SEED)
        for change in (remove_rows, use_blocks_again):
            standby.begin(feedback=False)
            error = standby.end_query(change)
            assert error.diag.message_detail == ROWS_REMOVED
            standby.begin(feedback=True)
            standby.read_on(change)
        standby.begin(feedback=True)
        error = standby.end_query(shorten_table)
        assert error.diag.message_detail == LOCK_HELD
