"""Scans as queries use them: how far they go, limits, cursors, joins, kinds of tables."""

from __future__ import annotations

import threading

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    COSINE,
    DIM,
    LISTS,
    OPERATORS,
    OPTIONS,
    ROWS,
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
    create_index,
    damage,
    explain,
    info,
    insert,
    measure_scan,
    of_columns,
    operand,
    prepare,
    random_vectors,
)
from shared import Conn

import pybq
from pybq import Query

each_column = of_columns(CODES, COSINE)


pytestmark = pytest.mark.autocommit


@pytest.fixture
def own_items(conn: Conn, rng: np.random.Generator) -> Conn:
    """The same of one's own."""
    create(conn, clustered_vectors(rng, ROWS, DIM))
    create_index(conn, CODES, OPTIONS)
    conn.execute("VACUUM ANALYZE items")
    return conn


# -- how far a scan goes -----------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_limit_beyond_the_first_lists_gets_every_row_once(
    items: Conn, rng: np.random.Generator, operator: str
) -> None:
    right = operand(operator, random_vectors(rng, 1, DIM)[0])
    everything = by_sort(items, operator, right)
    items.execute("SET bq.iterative_scan = relaxed_order")
    for limit in (100, ROWS, 2 * ROWS):
        found = by_index(items, operator, right, limit=limit, probes=None)
        assert len(found) == len({i for i, _ in found}) == min(limit, len(everything))
        assert set(found) <= set(everything)


def test_relaxed_order_is_exact_within_a_segment(items: Conn, q: Query) -> None:
    """One list first, then twice as many as before, each time in order of distance."""
    items.execute("SET bq.iterative_scan = relaxed_order")
    distances = np.array([d for _, d in by_index(items, "<=>", q, probes=None)])
    falls = int((np.diff(distances) < 0).sum())
    assert 1 <= falls <= 5  # after 1, 3, 7, 15 and 31 lists


def test_relaxed_order_gives_rows_of_half_read_blocks(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """A row of a block that should not have been left half read is given late, as all late rows."""
    vectors = random_vectors(rng, 3000, 768)
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10)")
    # as if the rows had changed since it was measured: no deviation is to be expected
    damage(own_server, ("items_code", *Places(768, 10).meta("deviations"), bytes(8 * 4)))
    with connect(own_server.dsn) as conn:
        check(conn, "items_code")
        conn.execute("SET bq.iterative_scan = relaxed_order; SET bq.probes = 9")
        for operator in ("<=>", "<#>", "<->"):
            for vector in vectors[:5]:
                found = by_index(conn, operator, operand(operator, vector), probes=None)
                assert len({i for i, _ in found}) == len(found) == 3000


@pytest.mark.parametrize("operator", OPERATORS)
def test_order_is_strict_by_default(items: Conn, rng: np.random.Generator, operator: str) -> None:
    """Rows of later lists that are nearer than one given before are passed over, no row twice."""
    right = operand(operator, random_vectors(rng, 1, DIM)[0])
    everything = set(by_sort(items, operator, right))
    for limit in (100, 1000, ROWS):
        found = by_index(items, operator, right, limit=limit, probes=None)
        distances = [d for _, d in found]
        assert distances == sorted(distances)
        assert len(found) == len({i for i, _ in found})
        assert set(found) <= everything
        # it reads ahead of what it gives; norms may put far rows into near lists
        assert len(found) > (0.9 if operator in ("<~>", "<=>") else 0.7) * limit


@pytest.mark.parametrize("work_mem", ["64kB", "4MB"])
def test_draining_reads_no_list_often(items: Conn, q: Query, work_mem: str) -> None:
    """Rows beyond memory are sorted, not read again and again."""
    if items.info.server_version < 180000:
        pytest.skip("EXPLAIN tells of scans from PostgreSQL 18 on")
    items.execute(f"SET work_mem = '{work_mem}'")
    items.execute("SET enable_seqscan = off; SET enable_sort = off")
    query = "SELECT id FROM items ORDER BY code <=> %s"
    node = measure_scan(items, query, (q,))
    assert node["Actual Rows"] > 0.9 * ROWS
    # 64 rows kept, then 4 times as many, and so on until work_mem, then all
    assert node["Codes Compared"] < 8 * ROWS * 1.5


@pytest.mark.parametrize("operator", OPERATORS)
def test_planner_may_trust_the_order(items: Conn, rng: np.random.Generator, operator: str) -> None:
    """Window functions, incremental sorts, and what asks for all rows: as a sort has them."""
    right = operand(operator, random_vectors(rng, 1, DIM)[0])
    d = f"code {operator} %(q)s"
    ordered = [
        f"SELECT {d}, id FROM items WHERE code IS NOT NULL ORDER BY {d}, id LIMIT 300",
        f"SELECT rank() OVER w, dense_rank() OVER w, {d} FROM items"
        f" WINDOW w AS (ORDER BY {d}) ORDER BY {d} LIMIT 300",
        f"SELECT {d} FROM items WHERE other = 7 ORDER BY {d} LIMIT 100",
    ]
    if items.info.server_version < 170000:
        del ordered[0]  # only from 17 on is an order by distance alone good for part of another
    items.execute("SET enable_seqscan = off")
    for query in ordered:
        items.execute("SET enable_sort = off; SET bq.probes = 0")
        assert "items_code" in explain(items, query, {"q": right})
        rows = items.execute(query, {"q": right}).fetchall()
        assert len(rows) >= 100
        distances = [next(v for v in row if isinstance(v, float)) for row in rows]
        assert distances == sorted(distances)
        items.execute("SET bq.probes = 40")
        exact = items.execute(query, {"q": right}).fetchall()
        items.execute("RESET enable_sort; SET enable_indexscan = off")
        expected = items.execute(query, {"q": right}).fetchall()
        items.execute("RESET enable_indexscan")
        # the distances alone where ties may come in any order
        assert [row[0] for row in exact] == [row[0] for row in expected]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT DISTINCT {d} AS d FROM items ORDER BY d LIMIT 60",
        "SELECT DISTINCT {d} AS d FROM items ORDER BY d DESC NULLS FIRST LIMIT 3",
        "SELECT DISTINCT ON ({d}) {d}, id FROM items ORDER BY {d}, id LIMIT 60",
        "SELECT {d} AS d FROM items UNION SELECT {d} FROM items ORDER BY d LIMIT 60",
        "SELECT min({d}), max({d}) FROM items",
        "SELECT min({d}) FROM items WHERE other = 3",
        "SELECT {d} AS d, count(*) FROM items GROUP BY d ORDER BY d LIMIT 60",
        "SELECT count(*) OVER (PARTITION BY {d}) FROM items ORDER BY {d} LIMIT 60",
        "SELECT count(*) OVER () FROM items ORDER BY {d} LIMIT 2",
    ],
)
def test_questions_about_all_rows_are_not_the_index_s(
    items: Conn, rng: np.random.Generator, query: str
) -> None:
    items.execute("SET enable_seqscan = off; SET enable_sort = off")
    for vector in random_vectors(rng, 5, DIM):
        right = operand("<~>", vector)
        text = query.format(d="code <~> %(q)s")
        assert "items_code" not in explain(items, text, {"q": right})
        found = items.execute(text, {"q": right}).fetchall()
        items.execute("SET enable_indexscan = off")
        assert found == items.execute(text, {"q": right}).fetchall()
        items.execute("RESET enable_indexscan")


def test_settings_of_a_cursor_stay(items: Conn, q: Query) -> None:
    """A scan goes on as it began, whatever is set meanwhile."""
    items.execute("SET enable_seqscan = off; SET enable_sort = off; SET work_mem = '64kB'")
    for first, then in [("strict_order", "relaxed_order"), ("relaxed_order", "strict_order")]:
        with items.transaction():
            items.execute(f"SET LOCAL bq.iterative_scan = {first}")
            expected = items.execute("SELECT id FROM items ORDER BY code <=> %s", (q,)).fetchall()
            cursor = items.cursor("c")
            cursor.execute("SELECT id FROM items ORDER BY code <=> %s", (q,))
            found = cursor.fetchmany(700)
            items.execute(f"SET LOCAL bq.iterative_scan = {then}; SET LOCAL bq.max_scan_tuples = 1")
            assert found + cursor.fetchall() == expected
            cursor.close()


@pytest.mark.parametrize("where", ["other = 3", "id BETWEEN 100 AND 110", "id = 77", "false"])
def test_filters_get_their_rows(items: Conn, q: Query, where: str) -> None:
    items.execute("SET bq.iterative_scan = relaxed_order")
    expected = by_sort(items, "<=>", q, where=where)
    if where != "false":
        found = by_index(items, "<=>", q, where=where, limit=ROWS, probes=None)
        assert set(found) == set(expected)
        found = by_index(items, "<=>", q, where=where, limit=5)
        assert_same_order(found, expected[:5])


def test_without_iterative_scan_only_the_probed_lists(items: Conn, q: Query) -> None:
    items.execute("SET bq.iterative_scan = off")
    counts = [len(by_index(items, "<=>", q, probes=n)) for n in (1, 2, 10, LISTS)]
    assert 0 < counts[0] < counts[1] < counts[2] < counts[3] == ROWS
    items.execute("SET bq.iterative_scan = relaxed_order")
    assert len(by_index(items, "<=>", q, probes=1)) == ROWS
    items.execute("SET bq.iterative_scan = on")
    assert items.execute("SHOW bq.iterative_scan").fetchone() == ("strict_order",)
    assert len(by_index(items, "<=>", q, probes=1)) > 0.9 * ROWS


def test_max_scan_tuples_ends_a_scan(items: Conn, q: Query) -> None:
    items.execute("SET bq.iterative_scan = relaxed_order")

    def count(limit: int) -> int:
        items.execute(f"SET bq.max_scan_tuples = {limit}")
        return len(by_index(items, "<=>", q, probes=1))

    first = count(0)
    assert 0 < first < ROWS / 4, "the first lists are read anyway"
    assert first < count(first + 1) < ROWS
    assert count(ROWS) == count(-1) == ROWS


def test_setting_beats_option_beats_measurement(own_items: Conn, q: Query) -> None:
    own_items.execute("SET bq.iterative_scan = off")
    one = len(by_index(own_items, "<=>", q, probes=None))
    own_items.execute("ALTER INDEX items_code SET (probes = 40)")
    assert len(by_index(own_items, "<=>", q, probes=None)) == ROWS
    assert len(by_index(own_items, "<=>", q, probes=1)) == one
    own_items.execute("ALTER INDEX items_code RESET (probes)")
    measured = info(own_items, "items_code")["probes"]
    own_items.execute("SET bq.iterative_scan = off")
    expected = len(by_index(own_items, "<=>", q, probes=measured))
    assert len(by_index(own_items, "<=>", q, probes=None)) == expected


def test_little_work_mem_gives_the_same_rows(items: Conn, q: Query) -> None:
    """The candidates of a list do not fit: it is read again from where it stopped."""
    everything = by_index(items, "<=>", q)
    items.execute("SET work_mem = '64kB'")
    assert_same_order(by_index(items, "<=>", q), everything)


# -- queries ----------------------------------------------------------------------------


def test_prepared_statement_with_generic_plan(items: Conn, rng: np.random.Generator) -> None:
    items.execute("SET plan_cache_mode = force_generic_plan")
    items.execute("SET bq.probes = 40")
    items.execute(
        "PREPARE nearest(bqquery, int) AS"
        " SELECT id, code <=> $1 FROM items ORDER BY code <=> $1 LIMIT $2"
    )
    assert "items_code" in explain(
        items, "EXECUTE nearest('0:[1]', 1)".replace("[1]", str([1] * DIM))
    )
    for vector in random_vectors(rng, 5, DIM):
        right = operand("<=>", vector)
        found = items.execute(f"EXECUTE nearest('{right.to_text()}', 10)").fetchall()
        assert_same_order(found, by_sort(items, "<=>", right, limit=10))


def test_rescans_in_lateral_join(items: Conn) -> None:
    items.execute("SET bq.probes = 40")
    statement = (
        "SELECT a.id, b.id, b.distance FROM (SELECT * FROM items WHERE id < 50) AS a,"
        " LATERAL (SELECT i.id, i.code <~> a.code AS distance FROM items AS i{condition}"
        " ORDER BY i.code <~> a.code LIMIT 4) AS b ORDER BY a.id, b.distance, b.id"
    )
    plan = explain(items, statement.format(condition=""))
    assert "Nested Loop" in plan and "Index Scan using items_code" in plan
    found = items.execute(statement.format(condition="")).fetchall()  # type: ignore[call-overload]
    items.execute("SET enable_indexscan = off")
    expected = items.execute(  # type: ignore[call-overload]
        statement.format(condition=" WHERE i.code IS NOT NULL")
    ).fetchall()
    assert len(found) == 4 * 53  # with three codes that are null
    assert [(row[0], row[2]) for row in found] == [(row[0], row[2]) for row in expected]


def test_cursor_outlives_vacuum(own_items: Conn, rng: np.random.Generator, q: Query) -> None:
    """Rows deleted, vacuumed away and replaced in their slots: a snapshot sees none of it."""
    # strict order passes over more or fewer rows by how many it has met, seen or not
    own_items.execute("SET bq.iterative_scan = relaxed_order")
    expected = by_index(own_items, "<=>", q, probes=1)
    with psycopg.connect(own_items.info.dsn) as reader:
        reader.execute("SET enable_seqscan = off; SET enable_sort = off; SET bq.probes = 1")
        reader.execute("SET bq.iterative_scan = relaxed_order")
        text = f"code <=> '{q.to_text()}'"
        with reader.cursor("reader") as cursor:
            cursor.execute(f"SELECT id, {text} FROM items ORDER BY {text}")
            found = cursor.fetchmany(100)
            for step in range(5):
                own_items.execute("DELETE FROM items WHERE id %% 5 = %s", (step,))
                own_items.execute("VACUUM items")
                insert(own_items, clustered_vectors(rng, 500, DIM), first=ROWS + 1000 * step)
                found += cursor.fetchmany(400)
            found += cursor.fetchall()
    assert found == expected
    check(own_items, "items_code")


def test_cursor_does_not_see_later_commands(own_items: Conn, q: Query) -> None:
    text = f"code <=> '{q.to_text()}'"
    own_items.execute("SET bq.iterative_scan = relaxed_order")
    with own_items.transaction():
        own_items.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        with own_items.cursor("reader") as cursor:
            cursor.execute(f"SELECT id FROM items ORDER BY {text}")
            first = cursor.fetchmany(10)
            own_items.execute("UPDATE items SET id = id + 100000, code = code")
            rest = cursor.fetchall()
    assert sorted(i for (i,) in first + rest) == list(range(ROWS))


def test_scroll_cursor_goes_back(items: Conn, q: Query) -> None:
    text = f"code <=> '{q.to_text()}'"
    with items.transaction():
        items.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        with items.cursor("reader", scrollable=True) as cursor:
            cursor.execute(f"SELECT id FROM items ORDER BY {text}")
            first = cursor.fetchmany(20)
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchmany(20) == first


@pytest.mark.parametrize("operator, kind", [("<=>", "bqquery"), ("<~>", "bqvec")])
def test_nothing_is_nearer_to_null(items: Conn, operator: str, kind: str) -> None:
    """As in a sort: all rows come, in any order."""
    items.execute("SET plan_cache_mode = force_generic_plan")
    items.execute("SET enable_seqscan = off; SET enable_sort = off")
    items.execute(f"PREPARE n({kind}) AS SELECT id FROM items ORDER BY code {operator} $1")
    assert "items_code" in explain(items, "EXECUTE n(NULL)")
    rows = items.execute("EXECUTE n(NULL)").fetchall()
    assert sorted(i for (i,) in rows) == list(range(ROWS))


def test_subtransaction_and_rollback(own_items: Conn, rng: np.random.Generator, q: Query) -> None:
    before = by_index(own_items, "<=>", q)
    with own_items.transaction(force_rollback=True):
        insert(own_items, random_vectors(rng, 100, DIM), first=ROWS)
        with own_items.transaction(force_rollback=True):
            insert(own_items, random_vectors(rng, 100, DIM), first=ROWS + 100)
            assert len(by_index(own_items, "<=>", q)) == ROWS + 200
        assert len(by_index(own_items, "<=>", q)) == ROWS + 100
        with own_items.transaction(force_rollback=True):
            own_items.execute("REINDEX INDEX items_code")
            assert len(by_index(own_items, "<=>", q)) == ROWS + 100
        with own_items.transaction(force_rollback=True):
            own_items.execute("TRUNCATE items")
            assert by_index(own_items, "<=>", q) == []
        assert len(by_index(own_items, "<=>", q)) == ROWS + 100
    assert by_index(own_items, "<=>", q) == before
    check(own_items, "items_code")
    own_items.execute("VACUUM items")
    check(own_items, "items_code")
    assert info(own_items, "items_code")["live_rows"] == ROWS


# -- kinds of tables and indexes -----------------------------------------------------------


def test_partitioned_table(conn: Conn, rng: np.random.Generator, q: Query) -> None:
    """Partitions are merged in order of distance."""
    conn.execute(
        f"CREATE TABLE items (id int, code bqvec({DIM}), other int) PARTITION BY HASH (id)"
    )
    for i in range(3):
        conn.execute(
            f"CREATE TABLE items_{i} PARTITION OF items FOR VALUES WITH (MODULUS 3, REMAINDER {i})"
        )
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    insert(conn, clustered_vectors(rng, 900, DIM))
    for i in range(3):
        check(conn, f"items_{i}_code_idx")
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        found = conn.execute(
            "SELECT id, code <=> %(q)s FROM items ORDER BY code <=> %(q)s LIMIT 50", {"q": q}
        ).fetchall()
    assert_same_order(found, by_sort(conn, "<=>", q, limit=50))


def test_temporary_table(conn: Conn, rng: np.random.Generator) -> None:
    vectors = clustered_vectors(rng, 2000, DIM)
    create(conn, vectors[:1000], kind="TEMP TABLE")
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10)")
    insert(conn, vectors[1000:], first=1000)
    conn.execute("DELETE FROM items WHERE id % 4 = 0")
    conn.execute("VACUUM items")
    check(conn, "items_code")
    assert_index_equals_sort(conn, random_vectors(rng, 1, DIM))
    with psycopg.connect(conn.info.dsn) as other:
        (name,) = conn.execute("SELECT 'items_code'::regclass::oid").fetchone() or ()
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="other sessions"):
            other.execute("SELECT bq_index_check(%s::regclass)", (name,))


@each_column
def test_create_index_concurrently_while_rows_change(
    conn: Conn, rng: np.random.Generator, column: Column
) -> None:
    vectors = clustered_vectors(rng, 6000, DIM)
    prepare(conn, column)
    create(conn, vectors[:3000], column=column)
    index = f"{column.index} ON items USING bq ({column.key})"
    stop = threading.Event()

    def change() -> None:
        with connect(conn.info.dsn) as writer:
            for start in range(3000, 6000, 50):
                insert(writer, vectors[start : start + 50], first=start, column=column)
                writer.execute("DELETE FROM items WHERE id = %s", (start - 2900,))
                writer.execute("UPDATE items SET other = -1 WHERE id = %s", (start - 2000,))
            stop.set()

    writer = threading.Thread(target=change)
    writer.start()
    rounds = 0
    while not stop.is_set() or rounds == 0:
        conn.execute(f"CREATE INDEX CONCURRENTLY {index} WITH (lists = 9)")
        check(conn, column.index)
        conn.execute(f"REINDEX INDEX CONCURRENTLY {column.index}")
        check(conn, column.index)
        if not stop.is_set():
            conn.execute(f"DROP INDEX {column.index}")
        rounds += 1
    writer.join()
    if conn.execute("SELECT to_regclass(%s)", (column.index,)).fetchone() == (None,):
        conn.execute(f"CREATE INDEX {index}")
    check(conn, column.index)
    assert_index_equals_sort(conn, random_vectors(rng, 1, DIM), column=column)


def test_a_check_of_something_else_waits_for_nobody(own_items: Conn) -> None:
    """Else anybody could keep writers out of any table, by waiting for its lock."""
    with psycopg.connect(own_items.info.dsn) as writer:
        writer.execute("INSERT INTO items VALUES (-9, NULL, 0)")
        own_items.execute("SET lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.WrongObjectType, match="not a bq index"):
            own_items.execute("SELECT bq_index_check('items')")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            own_items.execute("SELECT bq_index_check('items_code')")


# -- interrupts and memory -------------------------------------------------------------------


def test_statement_timeout_ends_build_and_scan(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 20_000, 384), nulls=0)
    conn.execute("SET statement_timeout = '100ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10000)")
    conn.execute("RESET statement_timeout")
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10)")
    q = operand("<=>", np.ones(384, np.float32))
    conn.execute("SET enable_seqscan = off; SET enable_sort = off")
    conn.execute("SET work_mem = '64kB'")  # many readings of the same lists
    conn.execute("SET statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):  # so many scans never end by themselves
        conn.execute(
            """
            SELECT count(*) FROM generate_series(1, 10000000) n,
                LATERAL (SELECT id FROM items ORDER BY code <=> %s OFFSET n %% 2) scan
            """,
            (q,),
        )
    conn.execute("RESET statement_timeout")
    check(conn, "items_code")


def _memory(conn: Conn) -> int:
    """Bytes of all memory contexts of the backend."""
    row = conn.execute("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts").fetchone()
    assert row is not None
    return int(row[0])


def test_no_memory_is_lost(own_items: Conn, rng: np.random.Generator) -> None:
    """By 10,000 rescans, nor by 10,000 insertions in one statement."""

    def largest(statement: str) -> int:
        """Peak of the backend's resident memory in kB, the statement included."""
        own_items.execute(statement)  # type: ignore[call-overload]
        pid = own_items.info.backend_pid
        try:
            with open(f"/proc/{pid}/status") as status:
                lines = dict(line.split(":", 1) for line in status)
        except OSError:
            pytest.skip("no /proc, or the server is elsewhere")
        return int(lines["RssAnon"].split()[0])

    rescans = (
        "SELECT count(s.id) FROM generate_series(1, {n}) AS n, LATERAL (SELECT id FROM items"
        " WHERE n > 0 ORDER BY code <~> (SELECT code FROM items WHERE id = 1) LIMIT 1) AS s"
    )
    own_items.execute("SET enable_seqscan = off")
    plan = own_items.execute("EXPLAIN ANALYZE " + rescans.format(n=10)).fetchall()
    scan = next(line for (line,) in plan if "Index Scan using items_code" in line)
    assert "loops=10)" in scan
    before = largest(rescans.format(n=100))
    assert largest(rescans.format(n=10_000)) - before < 2048

    insertions = "INSERT INTO items SELECT id, code FROM items LIMIT {n}"
    own_items.execute("SET enable_seqscan = on")
    before = largest(insertions.format(n=100))
    assert largest(insertions.format(n=4_000)) - before < 2048
    total = _memory(own_items)
    for vector in random_vectors(rng, 200, DIM):
        by_index(own_items, "<=>", operand("<=>", vector), limit=3, probes=None)
    assert _memory(own_items) - total < 1 << 20
