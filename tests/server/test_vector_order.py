"""An index on columns of pgvector answers as a sequential scan does, where all lists are read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from indexlib import (
    IP,
    L2,
    METRICS,
    Column,
    assert_index_equals_sort,
    assert_same_order,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    corners,
    create,
    create_index,
    each_column,
    each_metric,
    explain,
    info,
    insert,
    of_columns,
    random_vectors,
    some_queries,
    sparse,
    vector_column,
)
from shared import Conn, Vectors

pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]


@pytest.mark.parametrize(
    "make, dim",
    [
        *((clustered_vectors, dim) for dim in (1, 2, 3, 8, 9, 127, 384)),
        *((random_vectors, dim) for dim in (9, 384)),
    ],
)
@each_column
def test_index_equals_sort(
    conn: Conn, rng: np.random.Generator, column: Column, dim: int, make: Any
) -> None:
    vectors = make(rng, 1000, dim)
    create(conn, vectors, column=column)
    create_index(conn, column)
    check(conn, column.index)
    assert_index_equals_sort(conn, some_queries(rng, vectors), column=column)


@pytest.mark.parametrize("dim", [1536, 2000, 4000, 8000])
@each_column
def test_high_dimensions(conn: Conn, rng: np.random.Generator, column: Column, dim: int) -> None:
    """Values lie out of line; codes span pages; half of the rows are inserted later."""
    vectors = clustered_vectors(rng, 160, dim)
    create(conn, vectors[:80], column=column)
    create_index(conn, column, "lists = 4")
    insert(conn, vectors[80:], first=80, column=column)
    check(conn, column.index)
    assert_index_equals_sort(conn, some_queries(rng, vectors)[:2], column=column)


@pytest.mark.parametrize("lists", [2, 40])
@pytest.mark.parametrize("transform", [0, 1])
@each_column
def test_all_lists_equal_sort(
    conn: Conn, rng: np.random.Generator, column: Column, transform: int, lists: int
) -> None:
    vectors = clustered_vectors(rng, 3000, 48)
    create(conn, vectors, column=column)
    create_index(conn, column, f"lists = {lists}, transform = {transform}")
    facts = info(conn, column.index)
    assert (facts["lists"], facts["transform"]) == (lists, transform)
    check(conn, column.index)
    queries = some_queries(rng, vectors)
    assert_index_equals_sort(conn, queries, column=column)
    for limit in (1, 10, 999):
        assert_index_equals_sort(conn, queries[:2], column=column, limit=limit)


def one_hot(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, np.eye(dim, dtype=np.float32)[rng.integers(0, dim, n)])


def counts(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Bags of words: no coordinate is negative, most are 0."""
    shares = np.arange(1, dim + 1) ** -0.8
    return rng.multinomial(40, shares / shares.sum(), n).astype(np.float32)


def shifted(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, (rng.standard_normal((n, dim)) * 0.01 + 1).astype(np.float32))


@pytest.mark.parametrize("make", [sparse, one_hot, counts, shifted, corners])
@pytest.mark.parametrize("transform", [0, 1])
@each_metric
def test_any_data_equals_sort(
    conn: Conn, rng: np.random.Generator, column: Column, transform: int, make: Any
) -> None:
    """Errors of codes are those of directions at random only after a rotation."""
    vectors = make(rng, 1000, 384).astype(np.float32)
    create(conn, vectors, column=column)
    create_index(conn, column, f"lists = 1, transform = {transform}")
    queries = np.vstack([make(rng, 3, 384), vectors[:1], np.ones((1, 384)), np.eye(384)[:1]])
    assert_index_equals_sort(conn, queries.astype(np.float32), column=column, limit=30)


@pytest.mark.parametrize("exponent", [-40, -25, -18, 15])
@each_metric
def test_norms_of_any_size(
    conn: Conn, rng: np.random.Generator, column: Column, exponent: int
) -> None:
    """Products of norms leave the range of floats: pgvector's distances are 0, inf, or NaN then.

    Its cosines are noise where squares of norms do: such rows come somewhere, as all others do.
    """
    size = 10.0 ** (exponent + rng.integers(0, 4, (400, 1)))
    vectors = (random_vectors(rng, 400, 24) * size).astype(np.float32)
    create(conn, vectors, column=column)
    create_index(conn, column)
    check(conn, column.index)
    norms = np.linalg.norm(vectors.astype(float), axis=1)
    operator = column.operators[0]
    for scale in (1e-43, 1e-36, 1e-25, 1e-18, 1, 1e15):
        query = (random_vectors(rng, 1, 24) * scale).astype(np.float32)
        expected = by_sort(conn, operator, column.operand("", query[0]), column=column)
        found = by_index(conn, operator, column.operand("", query[0]), column=column)
        assert len({i for i, _ in found}) == len(found) == info(conn, column.index)["live_rows"]
        if operator == "<=>":
            assert {i for i, _ in found} == set(np.flatnonzero(norms > 0))
            safe = set(np.flatnonzero((norms > 1e-17) & (norms < 1e19)))
            if np.linalg.norm(query.astype(float)) < 1e-17:
                safe = set()
            found = [row for row in found if row[0] in safe]
            expected = [row for row in expected if row[0] in safe]
        assert_same_order(found, expected, scale)


@of_columns(IP, L2)
@pytest.mark.parametrize("lists", [1, 8])
def test_products_beyond_floats(
    conn: Conn, rng: np.random.Generator, column: Column, lists: int
) -> None:
    """Infinitely far, to either side, is a distance: no row is lost, nor what is measured."""
    # each row to one side, as infinities of both signs would add up to NaN
    signs = rng.choice([-1, 1], (1000, 1))
    size = signs * 10.0 ** rng.integers(17, 22, (1000, 1))
    vectors = (np.abs(rng.standard_normal((1000, 24))) * size).astype(np.float32)
    create(conn, vectors, column=column)
    create_index(conn, column, f"lists = {lists}, transform = 1")
    check(conn, column.index)
    for scale in (1, 1e17, 1e19, 1e21):
        query = (np.abs(rng.standard_normal(24)) * scale).astype(np.float32)
        q = column.operand("", query)
        expected = by_sort(conn, column.operators[0], q, column=column)
        found = by_index(conn, column.operators[0], q, column=column)
        assert_same_order(found, expected, scale)
    assert np.isinf([distance for _, distance in expected]).any()


def test_what_is_measured_is_a_number(conn: Conn, rng: np.random.Generator) -> None:
    """How far blocks must be read, where some products are infinite and estimates are not."""
    vectors = rng.standard_normal((1000, 768)) * 4e18
    create(conn, vectors.astype(np.float32), column=IP)
    create_index(conn, IP, "lists = 8, transform = 1")
    check(conn, IP.index)


def test_halves_of_any_size(conn: Conn, rng: np.random.Generator) -> None:
    """From the smallest subnormal number to the largest."""
    for metric in METRICS:
        column = vector_column("halfvec", metric)
        size = 10.0 ** rng.integers(-7, 5, (600, 1))
        vectors = np.clip(rng.standard_normal((600, 24)) * size, -65504, 65504).astype(np.float32)
        create(conn, vectors, column=column, table="items")
        create_index(conn, column)
        check(conn, column.index)
        for scale in (1e-6, 1, 1e4):
            query = np.clip(rng.standard_normal((1, 24)) * scale, -65504, 65504)
            stored = query.astype(np.float16).astype(np.float32)
            if np.any(stored):
                assert_index_equals_sort(conn, stored, column=column)
        conn.execute("DROP TABLE items")


@pytest.mark.parametrize("type", ["vector", "halfvec"])
def test_zero_vectors(conn: Conn, rng: np.random.Generator, type: str) -> None:
    """They have no cosine, and are left out for it; they have the other distances."""
    vectors = random_vectors(rng, 50, 8)
    vectors[::5] = 0
    for metric in METRICS:
        column = vector_column(type, metric)
        create(conn, vectors[:25], column=column)
        create_index(conn, column)
        insert(conn, vectors[25:], first=25, column=column)
        check(conn, column.index)
        found = by_index(conn, METRICS[metric], column.operand("", vectors[1]), column=column)
        zeros = {i for i, _ in found if i % 5 == 0}
        assert zeros == (set() if metric == "cosine" else set(range(0, 50, 5))), metric
        # nor does an update to one leave its old vector behind
        conn.execute(
            cast(Any, f"UPDATE items SET {column.name} = %s WHERE id = 1"),
            (column.operand("", np.zeros(8, np.float32)),),
        )
        found = by_index(conn, METRICS[metric], column.operand("", vectors[1]), column=column)
        assert (1 in {i for i, _ in found}) == (metric != "cosine")
        check(conn, column.index)
        conn.execute("VACUUM items")
        check(conn, column.index)
        conn.execute("DROP TABLE items")


@each_column
def test_nothing_is_nearer_to_null(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """All rows of the index come, in any order, and the scan ends."""
    vectors = random_vectors(rng, 600, 16)
    create(conn, vectors, column=column)
    create_index(conn, column, "lists = 12, probes = 1")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.execute("SET enable_seqscan = off; SET enable_sort = off")
    query = f"SELECT id, embedding {column.operators[0]} $1 FROM items"
    query += f" ORDER BY embedding {column.operators[0]} $1"
    conn.execute(cast(Any, f"PREPARE n({column.type}) AS {query}"))
    conn.execute(cast(Any, f"PREPARE few({column.type}) AS {query} LIMIT 7"))
    assert column.index in explain(conn, "EXECUTE n(NULL)")
    for recall in (0, 1):
        conn.execute(cast(Any, f"SET bq.recall = {recall}"))
        found = conn.execute("EXECUTE n(NULL)").fetchall()
        assert sorted(i for i, _ in found) == list(range(600))
        assert {d for _, d in found} == {None}
        assert len(conn.execute("EXECUTE few(NULL)").fetchall()) == 7
