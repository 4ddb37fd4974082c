"""Lists follow the data: VACUUM splits those that grew, beside readers and writers."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    COSINE,
    HALF_L2,
    Column,
    Places,
    assert_index_equals_sort,
    assert_same_order,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    connect,
    create,
    damage,
    info,
    insert,
    of_columns,
    operand,
    prepare,
    random_vectors,
    run_threads,
    start_standby,
    wait_for,
    wait_for_replay,
)
from psycopg import sql
from shared import Conn, Vectors

import pybq

DIM = 32


@pytest.fixture(params=[CODES, HALF_L2], ids=lambda column: column.type)
def column(request: pytest.FixtureRequest) -> Column:
    return cast(Column, request.param)


def create_grown(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """An index made on an empty table, 4,000 rows, 40 lists wanted; no autovacuum."""
    prepare(conn, column)
    conn.execute("ALTER SYSTEM SET autovacuum = off")
    conn.execute("SELECT pg_reload_conf()")
    conn.execute(f"CREATE TABLE items (id int, {column.name} {column.type}({DIM}), other int)")
    conn.execute(f"CREATE INDEX items_code ON items USING bq ({column.key}) WITH (lists = 40)")
    insert(conn, clustered_vectors(rng, 4000, DIM), column=column)


@pytest.fixture
def grown(own_server: pybq.Server, rng: np.random.Generator, column: Column) -> Iterator[Conn]:
    with connect(own_server.dsn) as conn:
        create_grown(conn, rng, column)
        yield conn


def operator_of(column: Column) -> str:
    return "<=>" if column == CODES else column.operators[0]


def pass_horizon(conn: Conn) -> None:
    """Use up a transaction id: snapshots taken from now on are younger than what was before."""
    conn.execute("SELECT pg_current_xact_id()")


def topics(rng: np.random.Generator, rows: int, dim: int, kinds: int, axis: int) -> Vectors:
    """Rows of many topics that have one direction in common, shape (rows, dim)."""
    centres = rng.standard_normal((kinds, dim))
    centres[:, axis] += 4
    noise = 0.7 * rng.standard_normal((rows, dim))
    vectors: Vectors = (centres[rng.integers(0, kinds, rows)] + noise).astype(np.float32)
    return vectors


codes_and_cosines = of_columns(CODES, COSINE)


def recall(conn: Conn, queries: Vectors, column: Column) -> float:
    """Recall@10 of codes, or of vectors, at the default settings, by distance."""
    hits = 0
    for vector in queries:
        q = column.operand("<=>", vector)
        exact = by_index(conn, "<=>", q, limit=10, column=column)
        found = by_index(conn, "<=>", q, limit=10, probes=None, column=column)
        hits += sum(distance <= exact[-1][1] for _, distance in found)
    return hits / (10 * len(queries))


# -- recall -----------------------------------------------------------------------------------


@codes_and_cosines
def test_lists_follow_rows_of_another_kind(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """20,000 rows of one kind, an index, 20,000 of another: after VACUUM as good as new."""
    dim = 64
    old = topics(rng, 20_000, dim, 300, 0)
    new = topics(rng, 20_100, dim, 300, 1)
    queries, new = new[:100], new[100:]
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, old, nulls=0, column=column)
        conn.execute(f"CREATE INDEX items_code ON items USING bq ({column.key})")
        insert(conn, new, first=20_000, column=column)
        before = info(conn, "items_code")
        conn.execute("VACUUM items")
        after = info(conn, "items_code")
        assert after["lists"] > 1.3 * before["lists"]
        assert after["max_rows"] < before["max_rows"]
        # probes were measured again; without dead rows their number is an estimate
        assert after["build_rows"] == pytest.approx(40_000, rel=0.01)
        check(conn, "items_code")
        found = recall(conn, queries, column)
        conn.execute("REINDEX INDEX items_code")
        fresh = recall(conn, queries, column)
    print(f"recall of newcomers: {found:.3f}, fresh index {fresh:.3f}")
    assert found >= fresh - 0.02


@codes_and_cosines
def test_one_list_becomes_many(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """An index made on an empty table, and one that grew tenfold by steps, are as good as new."""
    dim = 64
    vectors = topics(rng, 20_100, dim, 200, 0)
    queries, vectors = vectors[:100], vectors[100:]
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        for table, steps in (("once", [20_000]), ("steps", [2000, *[3000] * 6])):
            columns = f"id int, {column.name} {column.type}({dim}), other int"
            conn.execute(f"CREATE TABLE {table} ({columns})")
            conn.execute(f"CREATE INDEX {table}_code ON {table} USING bq ({column.key})")
            first = 0
            for step in steps:
                rows = vectors[first : first + step]
                insert(conn, rows, first=first, table=table, column=column)
                first += step
                conn.execute(f"VACUUM {table}")
            facts = info(conn, f"{table}_code")
            assert facts["live_rows"] == 20_000
            assert facts["lists"] >= 20_000 // 160 // 1.5, table
            assert facts["hint"] is None or "VACUUM" not in facts["hint"]
            check(conn, f"{table}_code")
        conn.execute("ALTER TABLE once RENAME TO items")
        found = recall(conn, queries, column)
        conn.execute("ALTER TABLE items RENAME TO once")
        conn.execute("ALTER TABLE steps RENAME TO items")
        by_steps = recall(conn, queries, column)
        conn.execute("REINDEX INDEX steps_code")
        fresh = recall(conn, queries, column)
    print(f"recall: {found:.3f} at once, {by_steps:.3f} by steps, fresh index {fresh:.3f}")
    assert min(found, by_steps) >= fresh - 0.02


def test_option_lists_is_reached(conn: Conn, rng: np.random.Generator) -> None:
    """An index that had too few rows for as many lists gets them later, and never more."""
    conn.autocommit = True
    create(conn, np.empty((0, DIM), np.float32), typmod=DIM, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 200)")
    insert(conn, random_vectors(rng, 30, DIM))
    conn.execute("VACUUM items")
    assert info(conn, "items_code")["lists"] <= 30
    first = 30
    for _ in range(4):
        insert(conn, random_vectors(rng, 1000, DIM), first=first)
        first += 1000
        conn.execute("VACUUM items")
        check(conn, "items_code")
    assert 150 <= info(conn, "items_code")["lists"] <= 200
    assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=100)


def test_the_first_vacuum_may_have_been_cancelled(conn: Conn, rng: np.random.Generator) -> None:
    """The next one reads the last pages only, and takes the whole table to be as empty."""
    conn.autocommit = True
    create(conn, np.empty((0, DIM), np.float32), typmod=DIM, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    insert(conn, clustered_vectors(rng, 16_000, DIM))
    # what it leaves where a writer's lock ended it: pages seen, and nothing counted
    seen = "SELECT relpages > 1 AND relallvisible = relpages FROM pg_class WHERE relname = 'items'"
    for _ in range(100):
        # a transaction of any database can keep pages from being so, as of a test beside this one
        conn.execute("VACUUM (INDEX_CLEANUP OFF, TRUNCATE OFF) items")
        if conn.execute(seen).fetchone() == (True,):
            break
    conn.execute("UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname = 'items'")
    conn.execute("INSERT INTO items SELECT 16000, code, 0 FROM items LIMIT 1")
    conn.execute("VACUUM items")
    (counted,) = conn.execute(
        "SELECT reltuples FROM pg_class WHERE relname = 'items'"
    ).fetchone() or (None,)
    assert counted < 8000, "this test needs more pages"
    assert info(conn, "items_code")["lists"] > 50


def test_equal_rows_are_not_split_for_ever(conn: Conn, rng: np.random.Generator) -> None:
    vectors = np.repeat(random_vectors(rng, 1, DIM), 3000, axis=0)
    conn.autocommit = True
    create(conn, np.empty((0, DIM), np.float32), typmod=DIM, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 20)")
    insert(conn, vectors)
    notices: list[str] = []
    conn.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    conn.execute("SET client_min_messages = debug1")
    conn.execute("VACUUM items")
    assert any("was not split: its rows are too much alike" in notice for notice in notices)
    size = info(conn, "items_code")["total_bytes"]
    notices.clear()
    for _ in range(3):
        conn.execute("VACUUM (INDEX_CLEANUP ON) items")
    assert not any("was not split" in notice for notice in notices), "it was tried again"
    assert info(conn, "items_code")["lists"] == 1
    assert info(conn, "items_code")["total_bytes"] == size


def test_vacuum_says_what_it_split(grown: Conn) -> None:
    notices: list[str] = []
    grown.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    grown.execute("SET client_min_messages = debug1")
    grown.execute("VACUUM items")
    assert any("1 of 1 lists were split, there are 40 now" in notice for notice in notices), notices


# -- readers ----------------------------------------------------------------------------------


def fetch_slowly(reader: Conn, vector: Vectors, column: Column) -> psycopg.ServerCursor[Any]:
    """A cursor over all rows by distance; the transaction keeps its snapshot.

    Its lock is one that VACUUM waits for, if it may: tests tell it not to truncate the table.
    """
    operator = operator_of(column)
    distance = f"{column.name} {operator} '{column.operand(operator, vector).to_text()}'"
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    reader.execute("SET LOCAL enable_seqscan = off")
    reader.execute("SET LOCAL enable_sort = off")
    reader.execute("SET LOCAL bq.probes = 1")
    reader.execute("SET LOCAL bq.iterative_scan = relaxed_order")
    cursor = reader.cursor("slow")
    cursor.execute(sql.SQL(cast(Any, f"SELECT id, {distance} FROM items ORDER BY {distance}")))
    return cursor


def by_distance(conn: Conn, vector: Vectors, column: Column) -> list[tuple[int, float]]:
    operator = operator_of(column)
    return by_sort(conn, operator, column.operand(operator, vector), column=column)


def test_cursor_reads_on_while_lists_are_split_and_blocks_used_again(
    grown: Conn, own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    vector = random_vectors(rng, 1, DIM)[0]
    grown.execute("VACUUM items")
    expected = by_distance(grown, vector, column)
    grown.execute("ALTER INDEX items_code SET (lists = 400)")
    with connect(own_server.dsn) as reader:
        cursor = fetch_slowly(reader, vector, column)
        found = cursor.fetchmany(3)
        used = []
        for step in range(4):
            pass_horizon(grown)
            insert(
                grown, clustered_vectors(rng, 1500, DIM), first=10_000 + 1500 * step, column=column
            )
            grown.execute("VACUUM (TRUNCATE OFF) items")
            check(grown, "items_code")
            used.append(info(grown, "items_code")["free_blocks"])
            found += cursor.fetchmany(3)
        assert info(grown, "items_code")["lists"] > 100
        assert min(used) >= 125, "the old chains went, with a scan in them"
        found += cursor.fetchall()
        cursor.close()
        reader.execute("COMMIT")
    assert sorted(found) == sorted(expected)
    assert_index_equals_sort(grown, vector[None], limit=300, column=column)

    # nobody needs them any more: the next blocks are these
    pass_horizon(grown)
    grown.execute("VACUUM items")
    before = info(grown, "items_code")
    insert(grown, clustered_vectors(rng, 3000, DIM), first=50_000, column=column)
    after = info(grown, "items_code")
    assert before["free_blocks"] - after["free_blocks"] > 50
    assert after["total_bytes"] == before["total_bytes"]
    check(grown, "items_code")
    assert_index_equals_sort(grown, vector[None], limit=300, column=column)


def test_scan_that_ends_after_a_split_sees_rows_once(
    grown: Conn, own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Lists that are read after the split are those from before."""
    vector = random_vectors(rng, 1, DIM)[0]
    grown.execute("VACUUM items")
    for wanted in (80, 160, 320):
        pass_horizon(grown)
        expected = by_distance(grown, vector, column)
        grown.execute(f"ALTER INDEX items_code SET (lists = {wanted})")
        with connect(own_server.dsn) as reader:
            cursor = fetch_slowly(reader, vector, column)
            found = cursor.fetchmany(2)
            before = info(grown, "items_code")["lists"]
            grown.execute("VACUUM (INDEX_CLEANUP ON, TRUNCATE OFF) items")
            if wanted > 80:
                assert info(grown, "items_code")["lists"] > before
            found += cursor.fetchall()
            cursor.close()
            reader.execute("COMMIT")
        assert sorted(found) == sorted(expected)
        check(grown, "items_code")


# the process that replays
WAITS_FOR_READER = """
    SELECT wait_event = 'RecoveryConflictSnapshot' FROM pg_stat_activity
    WHERE backend_type = 'startup'
"""


def test_standby_reads_old_chains_until_their_blocks_are_used_again(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    vector = random_vectors(rng, 1, DIM)[0]
    with start_standby(own_server) as server, connect(own_server.dsn) as primary:
        create_grown(primary, rng, column)
        with connect(server.dsn) as standby, connect(server.dsn) as reader:
            wait_for_replay(primary, standby)
            expected = by_distance(standby, vector, column)
            cursor = fetch_slowly(reader, vector, column)
            found = cursor.fetchmany(3)
            primary.execute("VACUUM (TRUNCATE OFF) items")
            wait_for_replay(primary, standby)
            assert info(standby, "items_code")["lists"] == 40
            found += cursor.fetchmany(3)
            # its snapshot does not count on the primary, which uses the blocks again
            pass_horizon(primary)
            primary.execute("VACUUM (TRUNCATE OFF) items")
            insert(primary, clustered_vectors(rng, 4000, DIM), first=10_000, column=column)
            wait_for(standby, WAITS_FOR_READER, (True,))
            found += cursor.fetchall()
            cursor.close()
            reader.execute("COMMIT")
            assert sorted(found) == sorted(expected)
            wait_for_replay(primary, standby)
            check(standby, "items_code")
            assert_index_equals_sort(standby, vector[None], limit=300, column=column)
            standby.execute("SELECT pg_promote()")
            insert(standby, clustered_vectors(rng, 4000, DIM), first=20_000, column=column)
            standby.execute("VACUUM items")
            check(standby, "items_code")
            assert_index_equals_sort(standby, vector[None], limit=300, column=column)


# -- writers ----------------------------------------------------------------------------------


def test_rows_that_the_table_does_not_count_make_lists(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Rows that come in during a vacuum are missing in pg_class, and may stay so."""
    with connect(own_server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum = off")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}), other int)")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        insert(conn, clustered_vectors(rng, 16_000, DIM))
        conn.execute("VACUUM (INDEX_CLEANUP OFF) items")
        conn.execute("UPDATE pg_class SET reltuples = 9500 WHERE oid = 'items'::regclass")
        conn.execute("VACUUM items")
        (known,) = conn.execute(
            "SELECT reltuples FROM pg_class WHERE oid = 'items'::regclass"
        ).fetchone() or (0,)
        assert known == 9500, "vacuum has counted the table"
        facts = info(conn, "items_code")
        assert facts["lists"] > 50 and facts["hint"] is None
        check(conn, "items_code")


def test_nobody_waits_long_for_a_split(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """Autovacuum comes to its end beside steady writers, and none of them waits for it."""
    with connect(own_server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        conn.execute("SELECT pg_reload_conf()")
        conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}), other int)")
        options = "insert_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0"
        conn.execute(f"ALTER TABLE items SET (autovacuum_vacuum_{options})")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        end = time.monotonic() + 240
        query = "SELECT autovacuum_count FROM pg_stat_all_tables WHERE relname = 'items'"

        def come_to_end() -> bool:
            (count,) = conn.execute(query).fetchone() or (0,)
            return count >= 2 and info(conn, "items_code")["lists"] > 50

        def write(first: int) -> None:
            own = np.random.default_rng(first)
            with connect(own_server.dsn) as writer:
                writer.execute("SET lock_timeout = '20s'")
                while not ended.is_set() and time.monotonic() < end:
                    insert(writer, clustered_vectors(own, 100, DIM), first=first)
                    first += 100
                    time.sleep(0.01)  # else there is ever more to be split

        def watch() -> None:
            while not come_to_end() and time.monotonic() < end:
                time.sleep(0.1)
            ended.set()

        ended = threading.Event()
        run_threads(lambda: write(0), lambda: write(10_000_000), watch)
        assert come_to_end(), "autovacuum did not split the lists beside writers"
        (rows,) = conn.execute("SELECT count(*) FROM items").fetchone() or (0,)
        assert info(conn, "items_code")["live_rows"] == rows
        check(conn, "items_code")
        assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), limit=100)


def test_writers_wait_for_new_rows_only(grown: Conn) -> None:
    """While a list is closed, no block is read whose rows had all been moved before."""
    notices: list[str] = []
    grown.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    grown.execute("SET client_min_messages = debug1")
    grown.execute("VACUUM items")
    found = re.findall(r"became 40; (\d+) of its (\d+) blocks were read", "\n".join(notices))
    assert found == [("0", "125")]


def test_an_index_grows_by_steps(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """Writers that need pages wait for a step, not for all that a split needs."""
    dim = 1500
    with connect(own_server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum = off")
        conn.execute("SELECT pg_reload_conf()")
        create(conn, np.empty((0, dim), np.float32), typmod=dim, nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 100)")
        insert(conn, clustered_vectors(rng, 10_000, dim))
        where = "SELECT pg_current_wal_insert_lsn(), pg_relation_filenode('items_code')"
        start, node = conn.execute(where).fetchone() or ()
        conn.execute("VACUUM items")
        end, _ = conn.execute(where).fetchone() or ()
        assert info(conn, "items_code")["lists"] > 50
        conn.execute("SELECT pg_switch_wal()")
    assert own_server.data_dir is not None and own_server._bin is not None
    command = [own_server._bin / "pg_waldump", f"--path={own_server.data_dir / 'pg_wal'}"]
    command += [f"--start={start}", f"--end={end}"]
    last, added, steps = 0, 0, []
    for line in subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        pages = [int(page) for page in re.findall(rf"rel \d+/\d+/{node} blk (\d+)", line)]
        if 0 in pages and added > 0:  # the metapage tells others
            steps.append(added)
            added = 0
        if last > 0:
            added += sum(page > last for page in pages)
        last = max([last, *pages])
    assert sum(steps) > 500 and max(steps) <= 256, steps


def test_lists_left_closed_are_opened_again(
    grown: Conn, own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """Cancelled and killed splits leave nothing behind that a writer or a vacuum does not mend."""
    cancelled = 0
    grown.execute("SET bq.kernel = portable")
    for timeout in range(5, 200, 10):
        grown.execute(f"SET statement_timeout = {timeout}")
        try:
            grown.execute("VACUUM items")
            break
        except psycopg.errors.QueryCanceled:
            cancelled += 1
        finally:
            grown.execute("RESET statement_timeout")
        with connect(own_server.dsn) as writer:
            writer.execute("SET lock_timeout = '20s'")
            rows = clustered_vectors(rng, 10, DIM)
            insert(writer, rows, first=10_000 + 10 * timeout, column=column)
        check(grown, "items_code")
    assert cancelled > 0
    grown.execute("VACUUM items")
    notices: list[str] = []
    grown.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    check(grown, "items_code")
    assert notices == [], "blocks were lost"
    assert info(grown, "items_code")["lists"] == 40


def test_a_row_costs_little_wal(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """384 dimensions, a code of 96 bytes; it was 1,177 bytes beyond the table itself."""
    with connect(own_server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum = off")
        conn.execute("SELECT pg_reload_conf()")
        # of the tests' servers: an image of each page in each record
        conn.execute("SET wal_consistency_checking = ''")
        create(conn, random_vectors(rng, 3000, 384), table="source", nulls=0)

        def bytes_per_row(table: str) -> float:
            conn.execute(f"INSERT INTO {table} SELECT * FROM source")
            (start,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
            conn.execute(f"INSERT INTO {table} SELECT * FROM source")
            query = "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn"
            (nbytes,) = conn.execute(query, (start,)).fetchone() or ()
            return float(nbytes) / 3000

        for table in ("plain", "items"):
            conn.execute(f"CREATE TABLE {table} (LIKE source)")
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
        conn.execute("CHECKPOINT")
        plain = bytes_per_row("plain")
        assert bytes_per_row("items") - plain < 400


def test_vacuum_of_new_rows_reads_few_pages(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Nothing to remove, nothing to split: the directory is all there is to see."""
    with connect(own_server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET autovacuum = off")
        conn.execute("SELECT pg_reload_conf()")
        create(conn, clustered_vectors(rng, 30_000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 1)")
        insert(conn, clustered_vectors(rng, 100, DIM), first=50_000)

        def pages() -> int:
            conn.execute("SELECT pg_stat_force_next_flush()")
            query = (
                "SELECT idx_blks_read + idx_blks_hit FROM pg_statio_user_indexes"
                " WHERE indexrelname = 'items_code'"
            )
            (n,) = conn.execute(query).fetchone() or ()
            return int(n)

        before = pages()
        conn.execute("VACUUM items")
        headers = info(conn, "items_code")["header_bytes"] // 8192
        assert headers > 40
        assert pages() - before < headers


# -- damage ---------------------------------------------------------------------------------


def test_circles_end(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """A chain that comes back to a block is read as often as the index has blocks, and no more."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 3000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 1)")
    at = Places(DIM, 1)
    damage(own_server, ("items_code", *at.header("next"), at.first_block.to_bytes(4, "little")))
    q = operand("<=>", np.ones(DIM, np.float32))
    with connect(own_server.dsn) as conn:
        conn.execute("SET statement_timeout = '20s'")
        by_index(conn, "<=>", q, limit=10)
        with pytest.raises(psycopg.errors.IndexCorrupted, match="twice"):
            check(conn, "items_code")
    damage(own_server, ("items_code", *at.entry("nblocks"), b"\xff\xff\xff\x7f"))
    with connect(own_server.dsn) as conn:
        conn.execute("SET statement_timeout = '20s'")
        with pytest.raises(psycopg.errors.IndexCorrupted, match="list 0 has 2147483647 blocks"):
            by_index(conn, "<=>", q, limit=10)


def test_vacuum_beside_cancelled_readers(
    grown: Conn, own_server: pybq.Server, column: Column
) -> None:
    """Readers that end at any time keep nothing locked."""
    stop = threading.Event()
    operator = operator_of(column)
    q = column.operand(operator, np.ones(DIM, np.float32))
    query = f"SELECT id FROM items ORDER BY {column.name} {operator} %s LIMIT 3000"

    def read() -> None:
        with connect(own_server.dsn) as conn:
            conn.execute("SET enable_seqscan = off")
            conn.execute("SET statement_timeout = 2")
            while not stop.is_set():
                with contextlib.suppress(psycopg.errors.QueryCanceled):
                    conn.execute(cast(Any, query), (q,))

    def vacuum() -> None:
        try:
            for lists in (80, 200, 400):
                grown.execute(f"ALTER INDEX items_code SET (lists = {lists})")
                pass_horizon(grown)
                grown.execute("VACUUM (INDEX_CLEANUP ON) items")
        finally:
            stop.set()

    run_threads(read, read, vacuum)
    check(grown, "items_code")
    assert_same_order(
        by_index(grown, operator, q, limit=50, column=column),
        by_sort(grown, operator, q, limit=50, column=column),
    )
