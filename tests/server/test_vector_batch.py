"""bq_search(): many queries at once find what they find one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from databases import Databases
from indexlib import (
    COSINE,
    DIM,
    HALF_L2,
    IP,
    LISTS,
    ROWS,
    Column,
    assert_same_order,
    by_index,
    by_sort,
    clustered_vectors,
    connect,
    create,
    create_index,
    explain,
    provide_items,
    random_vectors,
    some_queries,
)
from shared import SEED, Conn, Vectors

pytestmark = pytest.mark.autocommit

Found = list[list[tuple[int, float]]]


@pytest.fixture(scope="module", params=[COSINE, HALF_L2, IP], ids=lambda column: column.opclass)
def column(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases, column: Column) -> Iterator[str]:
    vectors = clustered_vectors(np.random.default_rng((SEED, 1)), ROWS, DIM)
    with provide_items(databases_of_tests, vectors, f"lists = {LISTS}", column) as dsn:
        yield dsn


@pytest.fixture
def cosine(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> Conn:
    """A table of one's own, by cosine."""
    create(conn, clustered_vectors(rng, ROWS, DIM), column=COSINE)
    create_index(conn, COSINE, f"lists = {LISTS}")
    return conn


def search(conn: Conn, column: Column, queries: list[Any], k: int = 10) -> Found:
    """The rows (id, distance) that each query finds, by the place of each."""
    rows = conn.execute(
        cast(
            Any,
            f"SELECT s.query, id, s.distance FROM bq_search('{column.index}',"
            f" %s::{column.type}[], {k}) AS s JOIN items ON items.ctid = s.tid"
            " ORDER BY s.query, s.distance, id",
        ),
        [queries],
    ).fetchall()
    assert {row[0] for row in rows} <= set(range(1, len(queries) + 1))
    return [[row[1:] for row in rows if row[0] == i + 1] for i in range(len(queries))]


def read_everything(conn: Conn) -> None:
    conn.execute("SET bq.recall = 1")
    conn.execute(f"SET bq.probes = {LISTS}")


def make_queries(rng: np.random.Generator, vectors: Vectors, n: int = 8) -> Vectors:
    return np.vstack([some_queries(rng, vectors), random_vectors(rng, n, vectors.shape[1])])


def stored(conn: Conn, n: int) -> list[Any]:
    """Vectors of the table, but zero ones, which have no cosine."""
    return [
        row[0]
        for row in conn.execute(
            "SELECT embedding FROM items WHERE vector_norm(embedding::vector) > 0"
            " ORDER BY id LIMIT %s",
            [n],
        ).fetchall()
    ]


def assert_equals_sort(conn: Conn, column: Column, queries: Vectors, k: int) -> None:
    operator = column.operators[0]
    values = [column.operand(operator, q) for q in queries]
    found = search(conn, column, values, k)
    for vector, q, rows in zip(queries, values, found, strict=True):
        expected = by_sort(conn, operator, q, column=column, limit=None)
        if operator == "<=>":
            if not vector.any():  # all cosines with it are NaN
                assert all(np.isnan(distance) for _, distance in rows)
                assert len(rows) == len(by_index(conn, operator, q, column=column, limit=k))
                continue
            expected = [row for row in expected if not np.isnan(row[1])]
        assert_same_order(rows, expected[:k], (operator, k))


@pytest.mark.parametrize("k", [1, 10, 100, ROWS + 1000])
def test_equals_sort_where_everything_is_read(
    items: Conn, rng: np.random.Generator, column: Column, k: int
) -> None:
    read_everything(items)
    queries = make_queries(rng, random_vectors(rng, 1, DIM), 8 if k <= 100 else 1)
    assert_equals_sort(items, column, queries, k)


def test_equals_sort_in_little_memory(
    items: Conn, rng: np.random.Generator, column: Column
) -> None:
    """Few queries at a time, and few lists of each."""
    read_everything(items)
    items.execute("SET work_mem = '64kB'")
    assert_equals_sort(items, column, make_queries(rng, random_vectors(rng, 1, DIM)), 20)


@pytest.mark.parametrize("mode", ["strict_order", "relaxed_order", "off"])
def test_finds_as_much_as_single_queries(items: Conn, column: Column, mode: str) -> None:
    items.execute("SET bq.recall = 0.9")
    items.execute(cast(Any, f"SET bq.iterative_scan = {mode}"))
    operator = column.operators[0]
    queries = stored(items, 30)
    hits = {"together": 0, "single": 0}
    for q, rows in zip(queries, search(items, column, queries), strict=True):
        expected = by_sort(items, operator, q, column=column, limit=None)
        kth = [d for _, d in expected if not np.isnan(d)][9]
        single = by_index(items, operator, q, column=column, limit=10, probes=None)
        assert len({i for i, _ in rows}) == len(rows) == len(single) == 10
        hits["together"] += sum(distance <= kth for _, distance in rows)
        hits["single"] += sum(distance <= kth for _, distance in single)
    # the index leaves something out, or this would show nothing
    assert hits["single"] < 300
    assert hits["together"] >= hits["single"] - 0.005 * 300


def test_distances_are_the_operator_s(
    items: Conn, rng: np.random.Generator, column: Column
) -> None:
    """To the last bit, also where rows cannot be put in order by them."""
    operator = column.operators[0]
    queries = make_queries(rng, random_vectors(rng, 1, DIM))
    values = [column.operand(operator, q) for q in queries * np.float32(1e-3)]
    rows = items.execute(
        cast(
            Any,
            f"WITH q AS MATERIALIZED (SELECT %s::{column.type}[] AS v) SELECT s.distance,"
            f" items.embedding {operator} q.v[s.query] FROM q,"
            f" bq_search('{column.index}', q.v, 5) AS s JOIN items ON items.ctid = s.tid",
        ),
        [values],
    ).fetchall()
    assert len(rows) == 5 * len(queries)
    given, expected = zip(*rows, strict=True)
    np.testing.assert_array_equal(given, expected)


def test_null_is_as_near_to_every_row(
    items: Conn, rng: np.random.Generator, column: Column
) -> None:
    """As of a flat query: rows come, their distances are null."""
    q = column.operand("", random_vectors(rng, 1, DIM)[0])
    null, rows, last = search(items, column, [None, q, None], 7)
    assert len({i for i, _ in null}) == len({i for i, _ in last}) == len(rows) == 7
    assert {d for _, d in null + last} == {None}
    assert all(d is not None for _, d in rows)


def test_queries_without_rows(cosine: Conn, rng: np.random.Generator) -> None:
    q = [COSINE.operand("", random_vectors(rng, 1, DIM)[0])]
    assert search(cosine, COSINE, [], 3) == []
    for arguments in ("NULL, '{}'::vector[], 3", "'items_embedding', NULL::vector[], 3"):
        call = cast(Any, f"SELECT * FROM bq_search({arguments})")
        assert cosine.execute(call).fetchall() == []
    cosine.execute("DELETE FROM items")
    assert search(cosine, COSINE, q) == [[]]
    cosine.execute("VACUUM items")
    assert search(cosine, COSINE, q) == [[]]
    cosine.execute("TRUNCATE items")
    assert search(cosine, COSINE, q) == [[]]


def test_one_list(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> None:
    vectors = clustered_vectors(rng, 500, DIM)
    create(conn, vectors, column=IP)
    create_index(conn, IP)
    conn.execute("SET bq.recall = 1")
    assert_equals_sort(conn, IP, make_queries(rng, vectors), 10)


def test_many_dimensions(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> None:
    """Blocks are left half read (bqstop.c), and vectors lie out of line."""
    vectors = random_vectors(rng, 1000, 1536)
    create(conn, vectors, column=COSINE)
    create_index(conn, COSINE, "lists = 10")
    queries = stored(conn, 20)
    found = search(conn, COSINE, queries, 20)
    hits = 0
    for q, rows in zip(queries, found, strict=True):
        expected = by_sort(conn, "<=>", q, column=COSINE, limit=20)
        hits += len({i for i, _ in rows} & {i for i, _ in expected})
    assert hits >= 0.9 * 20 * len(queries)


def test_rows_that_changed(cosine: Conn, rng: np.random.Generator) -> None:
    """Deleted, inserted, updated with the index and without (HOT): the version that is seen."""
    read_everything(cosine)
    cosine.execute("ALTER TABLE items SET (fillfactor = 50)")
    cosine.execute("VACUUM FULL items")
    cosine.execute("DELETE FROM items WHERE id % 3 = 0")
    with cosine.transaction():
        cosine.execute("UPDATE items SET other = other + 100 WHERE id % 3 = 1")
        hot = "SELECT pg_stat_get_xact_tuples_hot_updated('items'::regclass) > 100"
        assert cosine.execute(hot).fetchone() == (True,)
    cosine.execute("UPDATE items SET embedding = l2_normalize(embedding) WHERE id % 30 = 2")
    cosine.execute("INSERT INTO items SELECT id + 10000, embedding, other FROM items LIMIT 500")
    queries = make_queries(rng, random_vectors(rng, 1, DIM))
    assert_equals_sort(cosine, COSINE, queries, 50)
    cosine.execute("VACUUM items")
    assert_equals_sort(cosine, COSINE, queries, 50)


def test_repeatable_read_keeps_its_rows(cosine: Conn) -> None:
    read_everything(cosine)
    queries = stored(cosine, 20)
    before = search(cosine, COSINE, queries)
    with contextlib.closing(connect(cosine.info.dsn)) as reader:
        read_everything(reader)
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert search(reader, COSINE, queries) == before
        cosine.execute("UPDATE items SET other = -1")
        cosine.execute("DELETE FROM items WHERE id % 2 = 0")
        cosine.execute("VACUUM items")
        assert search(reader, COSINE, queries) == before
        reader.execute("COMMIT")
        assert all(i % 2 for rows in search(reader, COSINE, queries) for i, _ in rows)


def test_index_is_too_new_for_older_snapshots(
    conn: Conn, bq_pgvector: None, rng: np.random.Generator
) -> None:
    """It lacks the version that they see of a row updated in place: the planner keeps off, too."""
    create(conn, clustered_vectors(rng, 200, DIM), column=COSINE)
    conn.execute("ALTER TABLE items SET (fillfactor = 50)")
    conn.execute("VACUUM FULL items")
    with contextlib.closing(connect(conn.info.dsn)) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM items")
        conn.execute(
            cast(Any, f"UPDATE items SET embedding = '[1{',0' * (DIM - 1)}]' WHERE id = 1")
        )
        create_index(conn, COSINE)
        assert conn.execute(
            "SELECT indcheckxmin FROM pg_index WHERE indexrelid = 'items_embedding'::regclass"
        ).fetchone() == (True,)
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="too new for this transaction"
        ):
            search(reader, COSINE, stored(conn, 3))


def test_can_be_interrupted(cosine: Conn) -> None:
    read_everything(cosine)
    queries = stored(cosine, 1000) * 5
    cosine.execute("SET statement_timeout = '20ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        cosine.execute("SELECT count(*) FROM bq_search('items_embedding', %s, 10)", [queries])
    cosine.execute("RESET statement_timeout")
    assert len(search(cosine, COSINE, queries[:3])) == 3


@pytest.mark.parametrize(
    "call, message",
    [
        ("'items_embedding', ARRAY['[1,2]'::vector]", "different vector dimensions 16 and 2"),
        ("'items_embedding', '{}'::halfvec[]", "is on vector, and the queries are halfvec"),
        ("'items_embedding', '{}'::vector[], 0", "k must be positive, not 0"),
        ("'items_code', '{}'::bqquery[]", "is on codes, expected one on vectors"),
        ("'items_pkey', '{}'::vector[]", "is not a bq index"),
        ("'items', '{}'::vector[]", "is not a bq index"),
    ],
)
def test_wrong_arguments(cosine: Conn, call: str, message: str) -> None:
    cosine.execute(f"ALTER TABLE items ADD PRIMARY KEY (id), ADD code bqvec({DIM})")  # type: ignore[arg-type]
    cosine.execute("CREATE INDEX items_code ON items USING bq (code)")
    with pytest.raises(psycopg.Error, match=message):
        cosine.execute(cast(Any, f"SELECT * FROM bq_search({call})"))


def test_plan_reads_rows_by_their_place(cosine: Conn) -> None:
    cosine.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")
    plan = explain(
        cosine,
        "SELECT id FROM bq_search('items_embedding', %s) AS s JOIN items ON items.ctid = s.tid",
        [stored(cosine, 3)],
    )
    assert "Function Scan on bq_search" in plan and "Tid Scan on items" in plan, plan
