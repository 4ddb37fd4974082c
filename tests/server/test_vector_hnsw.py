"""An index of bq answers as one of HNSW: pgvector is the judge, where its recall is 1."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from indexlib import (
    Column,
    assert_same_order,
    by_index,
    clustered_vectors,
    create,
    create_index,
    each_column,
    explain,
    random_vectors,
    refused,
    some_queries,
)
from shared import Conn

pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]


@each_column
def test_same_rows_as_hnsw(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """pgvector is the judge: NULLs, zero vectors and duplicates, where its recall is 1."""
    vectors = clustered_vectors(rng, 300, 16)
    create(conn, vectors, column=column)
    create_index(conn, column)
    conn.execute("CREATE TABLE others AS TABLE items")
    conn.execute(
        cast(
            Any,
            f"CREATE INDEX ON others USING hnsw ({column.key})"
            " WITH (m = 48, ef_construction = 400)",
        )
    )
    conn.execute("SET hnsw.ef_search = 1000")
    assert len(np.unique(vectors, axis=0)) < 280 and not vectors.any(axis=1).all()
    operator = column.operators[0]
    for vector in some_queries(rng, vectors):
        q = column.operand(operator, vector)
        found = by_index(conn, operator, q, column=column)
        expected = by_index(conn, operator, q, column=column, table="others")
        ids = {i for i, _ in found}
        if operator == "<#>":
            # it may not reach all rows
            assert ids >= {i for i, _ in expected}
            assert_same_order(found[:10], expected[:10])
            continue
        assert ids == {i for i, _ in expected}
        if operator == "<->" or vector.any():
            # by halfvec's cosine it sorts vectors that were rounded again
            assert_same_order(found, sorted(expected, key=lambda row: row[1]))


@pytest.fixture
def beside_hnsw(conn: Conn, rng: np.random.Generator, column: Column) -> Conn:
    """The same rows in `items`, by bq, and in `others`, by hnsw; both find all that there are."""
    vectors = clustered_vectors(rng, 300, 16)
    if column.operators == ("<#>",):
        # hnsw does not reach zero vectors by inner product, nor all others of different norms
        vectors[~vectors.any(axis=1)] = 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    create(conn, vectors, column=column)
    create_index(conn, column)
    conn.execute("CREATE TABLE others AS TABLE items")
    options = "m = 48, ef_construction = 400"
    hnsw = f"CREATE INDEX others_embedding ON others USING hnsw ({column.key}) WITH ({options})"
    conn.execute(cast(Any, hnsw))
    conn.execute("SET hnsw.ef_search = 1000; SET bq.recall = 1")
    conn.execute("SET enable_seqscan = off; SET enable_sort = off")
    return conn


def answers(conn: Conn, query: str, parameters: Any = None) -> list[list[tuple[Any, ...]]]:
    """Of bq, then of hnsw, to a query of {table}; their indexes are used."""
    found = []
    for table in ("items", "others"):
        text = query.format(table=table)
        assert f"Index Scan using {table}_embedding" in explain(conn, text, parameters)
        found.append(conn.execute(cast(Any, text), parameters).fetchall())
    return found


@each_column
def test_parts_of_the_order_are_those_of_hnsw(
    beside_hnsw: Conn, rng: np.random.Generator, column: Column
) -> None:
    """LIMIT and OFFSET, a condition, a join, a cursor, a prepared statement; up to ties."""
    conn, operator = beside_hnsw, column.operators[0]
    distance = f"embedding {operator} %(q)s"
    nearest = f"SELECT id, {distance} FROM {{table}} WHERE {{where}} ORDER BY {distance} LIMIT 15"
    for vector in random_vectors(rng, 3, 16):
        q = {"q": column.operand(operator, vector)}
        for where in ("true", "other < 6", "other = 3 AND id % 20 = 3"):
            query = nearest.replace("{where}", where.replace("%", "%%"))
            found, expected = answers(conn, query, q)
            assert_same_order(found, expected, where)
        for part in ("LIMIT 5 OFFSET 3", "OFFSET 10 LIMIT 1", "LIMIT 0"):
            query = f"SELECT {distance} FROM {{table}} ORDER BY {distance} {part}"
            found, expected = answers(conn, query, q)
            assert found == expected, part

        fetched: list[list[Any]] = []
        for table in ("items", "others"):
            with conn.transaction():
                query = f"SELECT {distance} FROM {table} ORDER BY {distance}"
                conn.execute(cast(Any, f"DECLARE c CURSOR FOR {query}"), q)
                counts = ("2", "3", "5")
                fetched.append([conn.execute(f"FETCH {n} FROM c").fetchall() for n in counts])
        assert fetched[0] == fetched[1]

    join = f"""
        SELECT q.id, near.id, near.d FROM (SELECT * FROM {{table}} WHERE id BETWEEN 1 AND 9) AS q,
            LATERAL (SELECT id, embedding {operator} q.embedding AS d FROM {{table}}
                ORDER BY embedding {operator} q.embedding LIMIT 4) AS near
        ORDER BY q.id, near.d"""
    conn.execute("SET enable_sort = on")
    found, expected = answers(conn, join)
    assert len(found) == 36
    assert [(i, d) for i, _, d in found if d == d] == [(i, d) for i, _, d in expected if d == d]

    conn.execute("SET plan_cache_mode = force_generic_plan")
    for table in ("items", "others"):
        query = f"SELECT id, embedding {operator} $1 FROM {table} ORDER BY embedding {operator} $1"
        conn.execute(cast(Any, f"PREPARE by_{table}({column.type}) AS {query} LIMIT 10"))
    for vector in random_vectors(rng, 3, 16):
        q = column.operand(operator, vector).to_text()
        found, expected = (
            conn.execute(cast(Any, f"EXECUTE by_{table}('{q}')")).fetchall()
            for table in ("items", "others")
        )
        assert_same_order(found, expected)


@each_column
def test_queries_without_an_order_are_as_hnsw_has_them(beside_hnsw: Conn, column: Column) -> None:
    """NULL, and by cosine the zero vector, are near to nothing: the same number of rows comes."""
    conn, operator = beside_hnsw, column.operators[0]
    zero = {"q": column.operand(operator, np.zeros(16, np.float32))}
    for limit in (7, 30):
        for q in ("%(q)s", "(SELECT embedding FROM {table} WHERE id = -1)"):
            distance = f"embedding {operator} {q}"
            query = f"SELECT {distance} FROM {{table}} ORDER BY {distance} LIMIT {limit}"
            found, expected = answers(conn, query, zero)
            assert len(found) == len(expected) == limit
            assert str(found) == str(expected)  # as text: NaN equals nothing


@each_column
def test_wrong_dimensions_are_refused_in_the_words_of_hnsw(
    beside_hnsw: Conn, column: Column
) -> None:
    distance = f"embedding {column.operators[0]} %(q)s"
    wrong = {"q": column.operand(column.operators[0], np.ones(9, np.float32))}
    messages = [
        refused(beside_hnsw, f"SELECT id FROM {table} ORDER BY {distance} LIMIT 3", wrong)
        for table in ("items", "others")
    ]
    assert messages[0].startswith(f"different {column.type} dimensions 16 and 9")
    # as a sequential scan has it; hnsw names the query first
    assert messages[1] == messages[0].replace("16 and 9", "9 and 16")
