"""Scans of an index on vectors as queries use them: filters, cursors, joins, plans, snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from databases import Databases
from indexlib import (
    COSINE,
    HALF_L2,
    IP,
    L2,
    Column,
    assert_index_equals_sort,
    assert_same_order,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    connect,
    create,
    create_index,
    explain,
    info,
    insert,
    provide_items,
    random_vectors,
    statement,
)
from shared import SEED, Conn

DIM = 16
ROWS = 3000
LISTS = 30


pytestmark = pytest.mark.autocommit


OPTIONS = f"lists = {LISTS}, probes = 1"


@pytest.fixture(scope="module", params=[COSINE, HALF_L2, IP], ids=lambda column: column.opclass)
def column(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases, column: Column) -> Iterator[str]:
    vectors = clustered_vectors(np.random.default_rng((SEED, 1)), ROWS, DIM)
    with provide_items(databases_of_tests, vectors, OPTIONS, column) as dsn:
        yield dsn


@pytest.fixture
def own_items(conn: Conn, bq_pgvector: None, rng: np.random.Generator, column: Column) -> Conn:
    """The same of one's own."""
    create(conn, clustered_vectors(rng, ROWS, DIM), column=column)
    create_index(conn, column, OPTIONS)
    conn.execute("VACUUM ANALYZE items")
    return conn


@pytest.fixture
def q(rng: np.random.Generator, column: Any) -> Any:
    return column.operand("", random_vectors(rng, 1, DIM)[0])


def run(conn: Conn, query: str, parameters: Any = None) -> list[Any]:
    return conn.execute(cast(Any, query), parameters).fetchall()


def read_everything(conn: Conn) -> None:
    conn.execute("SET bq.recall = 1")
    conn.execute(f"SET bq.probes = {LISTS}")


def with_distance(column: Any, rows: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [row for row in rows if not np.isnan(row[1])]


def test_any_limit_gets_its_rows(items: Conn, column: Any, q: Any) -> None:
    """One list is read first; strict order passes rows over, never gives them twice."""
    operator = column.operators[0]
    everything = with_distance(column, by_sort(items, operator, q, column=column))
    for limit in (1, 10, 64, 300, 1000, len(everything) - 1, None):
        found = by_index(items, operator, q, column=column, limit=limit, probes=None)
        distances = [d for _, d in found]
        assert distances == sorted(distances), limit
        assert set(found) <= set(everything)
        assert len({i for i, _ in found}) == len(found)
        if limit in (1, 10, 64, 300):
            assert len(found) == limit
    assert found == [] or len(found) > 0.5 * len(everything)


def test_relaxed_order_gives_every_row_once(items: Conn, column: Any, q: Any) -> None:
    items.execute("SET bq.iterative_scan = relaxed_order")
    operator = column.operators[0]
    everything = with_distance(column, by_sort(items, operator, q, column=column))
    found = by_index(items, operator, q, column=column, probes=None)
    assert sorted(found) == sorted(everything)
    assert [d for _, d in found] != sorted(d for _, d in found)
    items.execute("SET bq.iterative_scan = off")
    few = by_index(items, operator, q, column=column, probes=None)
    assert 0 < len(few) < len(everything) / 2
    items.execute("SET bq.iterative_scan = relaxed_order")
    items.execute("SET bq.max_scan_tuples = 1")
    few = by_index(items, operator, q, column=column, probes=None)
    assert 0 < len(few) < len(everything) / 2


def test_relaxed_order_remembers_no_more_than_it_must(items: Conn, column: Any, q: Any) -> None:
    """Of each round of lists the rows given, so that none comes twice; not of those before."""
    items.execute("SET bq.iterative_scan = relaxed_order; SET enable_seqscan = off")
    items.execute("SET enable_sort = off")
    with items.transaction():
        query = f"SELECT id FROM items ORDER BY embedding {column.operators[0]} %s"
        items.execute(cast(Any, f"DECLARE c CURSOR FOR {query}"), (q,))
        assert len(run(items, "FETCH 2500 FROM c")) == 2500
        contexts = "SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'bq rows given'"
        assert run(items, contexts) == [(1,)]


@pytest.mark.parametrize("where", ["other = 7", "id %% 100 = 3", "id < 30", "id = -9", "id = 77"])
@pytest.mark.parametrize("mode", ["strict_order", "relaxed_order"])
def test_filters_get_their_rows(items: Conn, column: Any, q: Any, where: str, mode: str) -> None:
    """With all lists exactly those of a sort; with the default as many."""
    items.execute(cast(Any, f"SET bq.iterative_scan = {mode}"))
    operator = column.operators[0]
    expected = with_distance(column, by_sort(items, operator, q, column=column, where=where))
    found = by_index(items, operator, q, column=column, where=where)
    assert_same_order(found, expected)
    found = by_index(items, operator, q, column=column, where=where, limit=10, probes=None)
    assert set(found) <= set(expected)
    if mode == "relaxed_order":
        assert len(found) == min(10, len(expected))


def declare_cursor(conn: Conn, operator: str, q: Any) -> None:
    """`c` reads all rows by the index."""
    conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
    conn.execute("SET LOCAL bq.recall = 1; SET LOCAL bq.probes = 65536")
    query = statement(operator, "items", "true", None, COSINE)  # the names are those of all columns
    assert "Index Scan" in explain(conn, query, {"q": q})
    conn.execute(cast(Any, f"DECLARE c CURSOR FOR {query}"), {"q": q})


def test_cursor_sees_its_snapshot(
    own_items: Conn, rng: np.random.Generator, column: Any, q: Any
) -> None:
    """Rows come, change, go, and are vacuumed while a cursor is half way."""
    operator = column.operators[0]
    expected = with_distance(column, by_sort(own_items, operator, q, column=column))
    with connect(own_items.info.dsn) as reader, reader.transaction():
        declare_cursor(reader, operator, q)
        found = run(reader, "FETCH 10 FROM c")
        insert(own_items, clustered_vectors(rng, 500, DIM), first=10_000, column=column)
        own_items.execute("UPDATE items SET other = -1 WHERE id % 2 = 0")
        own_items.execute("UPDATE items SET embedding = NULL WHERE id % 5 = 0")
        own_items.execute("DELETE FROM items WHERE id % 3 = 0")
        own_items.execute("VACUUM items")
        insert(own_items, clustered_vectors(rng, 500, DIM), first=20_000, column=column)
        found += run(reader, "FETCH 500 FROM c")
        # nor does it see what its own transaction does later
        insert(reader, clustered_vectors(rng, 50, DIM), first=30_000, column=column)
        found += run(reader, "FETCH ALL FROM c")
    assert_same_order(found, expected)
    check(own_items, "items_embedding")


def test_vacuum_removes_rows_that_a_cursor_waits_for(own_items: Conn, column: Any, q: Any) -> None:
    """Deleted before the snapshot, removed after the scan began: candidates that are no more."""
    operator = column.operators[0]
    own_items.execute("DELETE FROM items WHERE id % 2 = 0")
    expected = with_distance(column, by_sort(own_items, operator, q, column=column))
    with connect(own_items.info.dsn) as reader, reader.transaction():
        declare_cursor(reader, operator, q)
        found = run(reader, "FETCH 5 FROM c")
        own_items.execute("VACUUM (INDEX_CLEANUP ON) items")
        insert(own_items, np.ones((300, DIM), np.float32), first=50_000, column=column)
        found += run(reader, "FETCH ALL FROM c")
    assert_same_order(found, expected)


def test_lateral_join_rescans(own_items: Conn, rng: np.random.Generator, column: Any) -> None:
    """Many queries of one scan, some with NULL or the zero vector between them."""
    operator = column.operators[0]
    own_items.execute(cast(Any, f"CREATE TABLE queries (n int, embedding {column.type}({DIM}))"))
    queries = random_vectors(rng, 6, DIM)
    for n, vector in enumerate(queries):
        own_items.execute("INSERT INTO queries VALUES (%s, %s)", (n, column.operand("", vector)))
    own_items.execute("INSERT INTO queries VALUES (6, NULL)")
    read_everything(own_items)
    join = f"""
        SELECT queries.n, near.id, near.d FROM queries, LATERAL (
            SELECT id, items.embedding {operator} queries.embedding AS d FROM items
            ORDER BY items.embedding {operator} queries.embedding LIMIT 7) AS near
        ORDER BY n"""
    own_items.execute("SET enable_seqscan = off")
    assert "Index Scan using items_embedding" in explain(own_items, join)
    rows = run(own_items, join)
    own_items.execute("RESET enable_seqscan")
    for n, vector in enumerate(queries):
        q = column.operand("", vector)
        expected = by_sort(own_items, operator, q, column=column, limit=7)
        found = [(i, d) for k, i, d in rows if k == n]
        assert_same_order(sorted(found, key=lambda row: row[1]), expected)
    assert sum(k == 6 for k, _, _ in rows) == 7


def test_prepared_statement_with_generic_plan(
    items: Conn, rng: np.random.Generator, column: Any
) -> None:
    """The operand is computed once, whichever plan is used; NULL, zero and vectors in turn."""
    operator = column.operators[0]
    items.execute("SET plan_cache_mode = force_generic_plan")
    vectors = random_vectors(rng, 8, DIM)
    queries = [column.operand("", vector) for vector in vectors]
    expected = [by_sort(items, operator, q, column=column, limit=10) for q in queries]
    items.execute("SET enable_seqscan = off")
    read_everything(items)
    items.execute(
        cast(
            Any,
            f"PREPARE nearest ({column.type}) AS SELECT id, embedding {operator} $1 FROM items"
            f" ORDER BY embedding {operator} $1 LIMIT 10",
        )
    )
    assert "Index Scan" in explain(items, "EXECUTE nearest(NULL)")
    for q, rows in zip(queries, expected, strict=True):
        text = q.to_text()
        found = run(items, f"EXECUTE nearest('{text}')")
        assert len(run(items, "EXECUTE nearest(NULL)")) == 10
        assert len(run(items, f"EXECUTE nearest('{[0] * DIM}')")) == 10
        assert_same_order(found, rows)


def test_parallel_query(own_items: Conn, column: Any, q: Any) -> None:
    """The index beside parallel workers, in one and the same statement."""
    operator = column.operators[0]
    expected = by_sort(own_items, operator, q, column=column, limit=10)
    own_items.execute("ALTER TABLE items SET (parallel_workers = 2)")
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        own_items.execute(cast(Any, f"SET {setting} = 0"))
    query = (
        "WITH near AS MATERIALIZED (SELECT id, d FROM (SELECT id, embedding"
        f" {operator} %(q)s AS d FROM items ORDER BY embedding {operator} %(q)s LIMIT 10) AS n)"
        " SELECT near.id, near.d, (SELECT count(*) FROM items) FROM near ORDER BY d"
    )
    read_everything(own_items)
    plan = explain(own_items, query, {"q": q})
    assert "Index Scan using items_embedding" in plan and "Gather" in plan
    rows = run(own_items, query, {"q": q})
    assert_same_order([(i, d) for i, d, _ in rows], expected)
    assert {n for _, _, n in rows} == {ROWS + 3}


def test_repeatable_read_keeps_its_rows(own_items: Conn, column: Any, q: Any) -> None:
    """Deleted, changed and vacuumed by others after the snapshot: all as it was."""
    operator = column.operators[0]
    with connect(own_items.info.dsn) as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        expected = with_distance(column, by_sort(reader, operator, q, column=column))
        assert_same_order(by_index(reader, operator, q, column=column), expected)
        own_items.execute("DELETE FROM items WHERE id % 2 = 0")
        own_items.execute(
            "UPDATE items SET embedding = (SELECT embedding FROM items WHERE id = 1)"
            " WHERE id % 3 = 1"
        )
        own_items.execute("VACUUM items")
        own_items.execute("UPDATE items SET other = 5")
        assert_same_order(by_index(reader, operator, q, column=column), expected)
    later = with_distance(column, by_sort(own_items, operator, q, column=column))
    assert len(later) < len(expected)
    assert_same_order(by_index(own_items, operator, q, column=column), later)


def test_rows_of_open_transactions(
    own_items: Conn, rng: np.random.Generator, column: Any, q: Any
) -> None:
    """What another one has inserted or deleted counts from its commit on."""
    operator = column.operators[0]
    with connect(own_items.info.dsn) as other:
        before = by_sort(own_items, operator, q, column=column)
        with other.transaction():
            insert(other, clustered_vectors(rng, 300, DIM), first=10_000, column=column)
            other.execute("DELETE FROM items WHERE id % 2 = 0")
            assert_same_order(
                by_index(own_items, operator, q, column=column), with_distance(column, before)
            )
            assert_index_equals_sort(other, random_vectors(rng, 1, DIM), column=column)
        assert_index_equals_sort(own_items, random_vectors(rng, 1, DIM), column=column)


def test_subtransaction_and_rollback(
    own_items: Conn, rng: np.random.Generator, column: Any
) -> None:
    vectors = clustered_vectors(rng, 300, DIM)
    query = random_vectors(rng, 1, DIM)
    with own_items.transaction():
        insert(own_items, vectors[:100], first=10_000, column=column)
        with own_items.transaction(force_rollback=True):
            insert(own_items, vectors[100:200], first=20_000, column=column)
            own_items.execute("DELETE FROM items WHERE id < 500")
            assert_index_equals_sort(own_items, query, column=column)
        assert_index_equals_sort(own_items, query, column=column)
    assert_index_equals_sort(own_items, query, column=column)
    with own_items.transaction(force_rollback=True):
        insert(own_items, vectors[200:], first=30_000, column=column)
    own_items.execute("VACUUM items")
    check(own_items, "items_embedding")
    assert_index_equals_sort(own_items, query, column=column)


def test_create_index_concurrently(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> None:
    vectors = clustered_vectors(rng, 1500, DIM)
    create(conn, vectors, column=COSINE)
    for command in (
        "CREATE INDEX CONCURRENTLY items_embedding ON items USING bq (embedding vector_cosine_ops)"
        " WITH (lists = 8)",
        "REINDEX INDEX CONCURRENTLY items_embedding",
        "REINDEX TABLE CONCURRENTLY items",
    ):
        conn.execute(cast(Any, command))
        check(conn, "items_embedding")
        assert info(conn, "items_embedding")["lists"] == 8
        assert_index_equals_sort(conn, vectors[:2], column=COSINE)


def test_for_update_and_changes_by_the_index(own_items: Conn, column: Any, q: Any) -> None:
    """The rows that a statement changes are those that its scan finds."""
    operator = column.operators[0]
    expected = by_sort(own_items, operator, q, column=column, limit=20)
    own_items.execute("SET enable_seqscan = off")
    read_everything(own_items)
    distance = f"embedding {operator} %(q)s"
    near = f"SELECT id FROM items ORDER BY {distance} LIMIT 20 FOR UPDATE"
    change = f"UPDATE items SET other = 999 WHERE id IN ({near}) RETURNING {distance}"
    rows = run(own_items, change, {"q": q})
    assert sorted(d for (d,) in rows) == [d for _, d in expected]
    own_items.execute("SET enable_sort = off")
    assert_same_order(by_index(own_items, operator, q, column=column, limit=20), expected)


@pytest.mark.parametrize("operator", ["<=>", "<#>", "<->"])
def test_questions_about_all_rows_are_not_the_index_s(
    conn: Conn, bq_pgvector: None, rng: np.random.Generator, operator: str
) -> None:
    column = next(c for c in (COSINE, IP, L2) if operator in c.operators)
    create(conn, clustered_vectors(rng, 2000, DIM), column=column)
    conn.execute(cast(Any, f"CREATE INDEX ON items USING bq ({column.key}) WITH (probes = 1)"))
    q = {"q": column.operand("", random_vectors(rng, 1, DIM)[0])}
    d = f"embedding {operator} %(q)s"
    conn.execute("SET enable_seqscan = off")
    for query in (
        f"SELECT min({d}) FROM items",
        f"SELECT DISTINCT {d} AS d FROM items ORDER BY d LIMIT 60",
        f"SELECT count(*) FROM items GROUP BY {d} LIMIT 5",
        f"SELECT id FROM items WHERE {d} < 0.5",
    ):
        plan = explain(conn, query, q)
        assert "items_embedding_idx" not in plan, (query, plan)


def test_distances_beyond_the_first_are_not_its_order(items: Conn, column: Any, q: Any) -> None:
    """A second key sorts ties; the answer is that of a sort."""
    read_everything(items)
    operator = column.operators[0]
    query = f"""
        SELECT id FROM items WHERE embedding IS NOT NULL
        ORDER BY embedding {operator} %(q)s, id LIMIT 50"""
    items.execute("SET enable_seqscan = off")
    found = run(items, query, {"q": q})
    items.execute("SET enable_indexscan = off")
    items.execute("SET enable_seqscan = on")
    assert found == run(items, query, {"q": q})


def test_explain_counts_rows_of_the_table(items: Conn, column: Any, q: Any) -> None:
    if items.info.server_version < 180000:
        pytest.skip("EXPLAIN has no place for it before 18")
    items.execute("SET enable_seqscan = off")
    query = f"""
        EXPLAIN (ANALYZE) SELECT id FROM items
        ORDER BY embedding {column.operators[0]} %s LIMIT 5"""
    plan = "\n".join(row[0] for row in run(items, query, (q,)))
    assert "Index Scan using items_embedding" in plan
    assert "Lists" in plan, plan


@pytest.mark.parametrize("column", [COSINE], ids=lambda column: column.opclass, indirect=True)
def test_statement_that_is_planned_first_is_planned_again(items: Conn) -> None:
    """Its planner began before the library was loaded, which leaves the distance out of plans."""
    dsn, password = items.info.dsn, items.info.password
    with psycopg.connect(dsn, password=password, autocommit=True) as session:
        session.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
        session.execute(
            "PREPARE nearest(vector) AS SELECT id FROM items ORDER BY embedding <=> $1 LIMIT 5"
        )
        q = str(np.arange(1, DIM + 1).tolist())
        assert len(session.execute(f"EXECUTE nearest('{q}')".encode()).fetchall()) == 5
        rows = session.execute(f"EXPLAIN (VERBOSE, COSTS OFF) EXECUTE nearest('{q}')".encode())
        plan = [row[0] for row in rows]
    scan = next(i for i, line in enumerate(plan) if "Index Scan using items_embedding" in line)
    assert "<=>" not in plan[scan + 1], plan
