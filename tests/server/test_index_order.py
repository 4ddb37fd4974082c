"""An index answers as a sequential scan does, when it has one list or reads all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from indexlib import (
    OPERATORS,
    assert_index_equals_sort,
    assert_same_order,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    create,
    info,
    insert,
    operand,
    random_vectors,
)
from shared import Conn

from pybq import Code, Quantizer, Query

pytestmark = pytest.mark.autocommit


@pytest.mark.parametrize("make", [random_vectors, clustered_vectors])
@pytest.mark.parametrize("dim", [1, 2, 8, 9, 127, 384])
def test_flat_index_equals_sort(conn: Conn, rng: np.random.Generator, dim: int, make: Any) -> None:
    vectors = make(rng, 1500, dim)
    create(conn, vectors)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    assert info(conn, "items_code")["lists"] == 1
    queries = np.vstack([random_vectors(rng, 1, dim), vectors[:1], np.zeros((1, dim), np.float32)])
    assert_index_equals_sort(conn, queries)


@pytest.mark.parametrize("dim, rows", [(1536, 600), (3072, 300), (8000, 150)])
def test_high_dimensions(conn: Conn, rng: np.random.Generator, dim: int, rows: int) -> None:
    """A code spans pages; inserted ones take more than one WAL record."""
    vectors = clustered_vectors(rng, rows, dim)
    create(conn, vectors[: rows // 2], transform=1)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 4)")
    insert(conn, vectors[rows // 2 :], first=rows // 2, transform=1)
    check(conn, "items_code")
    assert_index_equals_sort(conn, random_vectors(rng, 1, dim), transform=1)


@pytest.mark.parametrize("make", [random_vectors, clustered_vectors])
@pytest.mark.parametrize("lists", [2, 40])
def test_all_lists_equal_sort(conn: Conn, rng: np.random.Generator, lists: int, make: Any) -> None:
    vectors = make(rng, 3000, 64)
    create(conn, vectors)
    conn.execute(f"CREATE INDEX items_code ON items USING bq (code) WITH (lists = {lists})")
    assert info(conn, "items_code")["lists"] == lists
    assert_index_equals_sort(conn, np.vstack([random_vectors(rng, 1, 64), vectors[:1]]))
    assert_index_equals_sort(conn, vectors[1:2], limit=10)


def test_queries_that_repeat_values(conn: Conn, rng: np.random.Generator) -> None:
    """Rounding errors of such a query's table are the same in many rows: they must not add up."""
    queries = [
        np.ones(384),
        np.tile([1, -1, -1], 128),
        np.arange(384) % 4,
        np.eye(384)[17],
        np.eye(384)[17] * 50 + 1,
    ]
    create(conn, random_vectors(rng, 3000, 384))
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    assert_index_equals_sort(conn, np.array(queries, np.float32))


@pytest.mark.parametrize("exponent", [-43, -38, -36, -25, 0])
def test_norms_near_nothing(conn: Conn, rng: np.random.Generator, exponent: int) -> None:
    """Products of tiny norms leave the range of floats at the other end."""
    vectors = random_vectors(rng, 800, 64) * 10.0 ** (
        exponent + (rng.integers(0, 6, (800, 1)) if exponent < 0 else 0)
    )
    create(conn, vectors.astype(np.float32))
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    for scale in (1e-44, 8e-38, 1e-30, 1e-25, 1e-19, 1):
        query = (random_vectors(rng, 1, 64) * scale).astype(np.float32)
        assert_index_equals_sort(conn, query)
        assert_index_equals_sort(conn, query, limit=10)


@pytest.mark.parametrize("scale", [1e-20, 1e15, 1e24])
def test_norms_of_any_size(conn: Conn, rng: np.random.Generator, scale: float) -> None:
    """Products of norms leave the range of floats; rows near the query may be tiny or vast."""
    vectors = random_vectors(rng, 1000, 64) * np.float32(10) ** rng.integers(-15, 25, (1000, 1))
    create(conn, vectors.astype(np.float32))
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    query = random_vectors(rng, 1, 64) * np.float32(scale)
    assert_index_equals_sort(conn, query)


def test_after_changes(conn: Conn, rng: np.random.Generator) -> None:
    """Insert, delete, vacuum, update of the code and of others, reindex, truncate."""
    vectors = clustered_vectors(rng, 4000, 24)
    query = random_vectors(rng, 1, 24)
    create(conn, vectors[:2000])
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 10)")

    def same() -> None:
        check(conn, "items_code")
        assert_index_equals_sort(conn, query)

    insert(conn, vectors[2000:3000], first=2000)
    same()
    conn.execute("DELETE FROM items WHERE id % 3 = 0")
    same()
    conn.execute("VACUUM items")
    same()
    insert(conn, vectors[3000:], first=3000)
    same()
    conn.execute("UPDATE items SET other = 7 WHERE id % 5 = 1")  # HOT where the page has room
    same()
    conn.execute("UPDATE items SET code = (SELECT code FROM items WHERE id = 1) WHERE id % 7 = 2")
    same()
    conn.execute("UPDATE items SET code = NULL WHERE id % 11 = 4")
    same()
    conn.execute("VACUUM FULL items")
    same()
    conn.execute("REINDEX INDEX items_code")
    same()
    conn.execute("REINDEX INDEX CONCURRENTLY items_code")
    same()
    conn.execute("TRUNCATE items")
    check(conn, "items_code")
    assert by_index(conn, "<~>", operand("<~>", query[0])) == []
    insert(conn, vectors[:500])
    same()


def test_hot_updates_leave_the_index_alone(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 200, 8), nulls=0)
    conn.execute("ALTER TABLE items SET (fillfactor = 40)")
    conn.execute("VACUUM FULL items")
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    conn.execute("UPDATE items SET other = other + 1")
    assert info(conn, "items_code")["live_rows"] == 200
    check(conn, "items_code")
    assert_index_equals_sort(conn, random_vectors(rng, 1, 8))


def test_empty_table_and_one_row(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, np.empty((0, 16), np.float32), nulls=2, typmod=16)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    check(conn, "items_code")
    vector = random_vectors(rng, 1, 16)
    for operator in OPERATORS:
        assert by_index(conn, operator, operand(operator, vector[0])) == []
    insert(conn, vector)
    check(conn, "items_code")
    for operator in OPERATORS:
        assert [i for i, _ in by_index(conn, operator, operand(operator, vector[0]))] == [0]


def test_rows_inserted_one_by_one(conn: Conn, rng: np.random.Generator) -> None:
    """An index made on the empty table, every row through aminsert."""
    vectors = clustered_vectors(rng, 1000, 33)
    create(conn, np.empty((0, 33), np.float32), typmod=33)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    insert(conn, vectors)
    check(conn, "items_code")
    assert_index_equals_sort(conn, random_vectors(rng, 2, 33))


def test_vacuum_splits_the_one_list(conn: Conn, rng: np.random.Generator) -> None:
    """An index that outgrew its lists gets new ones; old and new scans see all rows."""
    vectors = clustered_vectors(rng, 1200, 16)
    create(conn, np.empty((0, 16), np.float32), typmod=16)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 30)")
    insert(conn, vectors[:1000])
    query = random_vectors(rng, 1, 16)
    q = operand("<=>", query[0])
    expected = by_sort(conn, "<=>", q)
    with psycopg.connect(conn.info.dsn) as reader:
        reader.execute("SET enable_seqscan = off")
        reader.execute("SET enable_sort = off")
        with reader.cursor("reader") as cursor:
            cursor.execute(
                f"SELECT id, code <=> '{q.to_text()}' FROM items ORDER BY code <=> '{q.to_text()}'"
            )
            found = cursor.fetchmany(10)
            conn.execute("VACUUM items")
            assert info(conn, "items_code")["lists"] == 30
            insert(conn, vectors[1000:], first=1000)
            found += cursor.fetchall()
    assert_same_order(found, expected)
    check(conn, "items_code")
    assert_index_equals_sort(conn, query)


@pytest.mark.parametrize("lists", [1, 300])
@pytest.mark.parametrize("dim", [8, 384])
def test_little_memory_builds_the_same(
    conn: Conn, rng: np.random.Generator, dim: int, lists: int
) -> None:
    """More rows than maintenance_work_mem holds: lists from a sample, rows through a sort."""
    vectors = clustered_vectors(rng, 50_000 if dim == 8 else 12_000, dim)
    create(conn, vectors)
    conn.execute("SET maintenance_work_mem = '1MB'")
    conn.execute(f"CREATE INDEX items_code ON items USING bq (code) WITH (lists = {lists})")
    conn.execute("RESET maintenance_work_mem")
    assert info(conn, "items_code")["lists"] == lists
    check(conn, "items_code")
    assert_index_equals_sort(conn, vectors[:1], limit=100)


def test_transform_of_the_first_row_holds(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, np.empty((0, 16), np.float32), typmod=16, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    vectors = random_vectors(rng, 2, 16)
    insert(conn, vectors, transform=3)
    assert info(conn, "items_code")["transform"] == 3
    with pytest.raises(psycopg.DataError, match="different transforms 3 and 0"):
        insert(conn, vectors, transform=0)
    with pytest.raises(psycopg.DataError, match="different transforms 3 and 0"):
        by_index(conn, "<=>", operand("<=>", vectors[0], 0))
    with pytest.raises(psycopg.DataError, match="expected 16 dimensions, not 17"):
        by_index(conn, "<=>", Query(np.ones(17), 3))
    check(conn, "items_code")
    assert_index_equals_sort(conn, vectors, transform=3)


def test_expression_and_partial_index(conn: Conn, rng: np.random.Generator) -> None:
    """The codes need not be stored, nor all rows be in the index."""
    conn.execute("CREATE TABLE items (id int, x real[], other int)")
    vectors = random_vectors(rng, 300, 16)
    with conn.cursor().copy("COPY items FROM STDIN") as copy:
        for i, vector in enumerate(vectors):
            copy.write_row((i, vector.tolist(), i % 10))
    conn.execute(
        "CREATE INDEX items_code ON items USING bq ((bq_encode(x, 0)::bqvec(16))) WHERE other < 5"
    )
    check(conn, "items_code")
    code = Code(Quantizer(16).encode(vectors[7]))
    query = (
        "SELECT bq_encode(x, 0)::bqvec(16) <~> %(q)s AS d FROM items WHERE other < 5"
        " ORDER BY bq_encode(x, 0)::bqvec(16) <~> %(q)s"
    )
    expected = sorted(row[0] for row in conn.execute(query, {"q": code}))
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET enable_sort = off")
    plan = conn.execute("EXPLAIN " + query, {"q": code}).fetchall()
    assert "Index Scan using items_code" in str(plan)
    found = [row[0] for row in conn.execute(query, {"q": code})]
    assert found == expected
    assert len(found) == 150


def test_kernels_agree(conn: Conn, rng: np.random.Generator) -> None:
    """The same rows from an index that another kernel built, at any number of probes."""
    vectors = clustered_vectors(rng, 2000, 100)
    create(conn, vectors)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 30)")
    q = operand("<=>", random_vectors(rng, 1, 100)[0])
    answers = {}
    for kernel in ("auto", "portable", "avx2", "avx512", "neon"):
        try:
            conn.execute(f"SET bq.kernel = {kernel}")
        except psycopg.errors.InvalidParameterValue:
            continue
        conn.execute("REINDEX INDEX items_code")
        answers[kernel] = by_index(conn, "<=>", q, limit=50, probes=3)
    assert len(answers) >= 2
    assert all(answer == answers["auto"] for answer in answers.values()), answers.keys()
