"""Indexes on columns of pgvector: what is refused, kinds of them and of tables, changes of rows."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from indexlib import (
    COSINE,
    HALF_IP,
    L2,
    METRICS,
    Column,
    assert_index_equals_sort,
    assert_same_order,
    by_index,
    by_sort,
    check,
    clustered_vectors,
    create,
    create_index,
    each_column,
    explain,
    info,
    insert,
    of_columns,
    random_vectors,
    refused,
    vector_column,
)
from shared import Conn

pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]


# -- what is refused ---------------------------------------------------------------------------


@each_column
def test_wrong_dimensions(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """A query of other dimensions fails in pgvector's words, those of a sequential scan."""
    create(conn, random_vectors(rng, 20, 8), column=column)
    create_index(conn, column)
    operator = column.operators[0]
    other = column.operand(operator, np.ones(9, np.float32))
    distance = f"{column.name} {operator} %s"
    conn.execute("SET enable_seqscan = off")
    query = f"SELECT id FROM items ORDER BY {distance} LIMIT 1"
    by_bq = refused(conn, query, (other,))
    conn.execute("DROP INDEX items_embedding")
    assert by_bq == refused(conn, query, (other,))
    assert by_bq.startswith(f"different {column.type} dimensions 8 and 9")
    # the column itself takes no others, in any index's words
    assert "expected 8 dimensions, not 9" in refused(
        conn, "INSERT INTO items VALUES (1, %s, 1)", (other,)
    )


def test_what_cannot_be_indexed(conn: Conn) -> None:
    conn.execute(
        "CREATE TABLE t (id int, other int, untyped vector, half halfvec, wide vector(8001),"
        " v vector(3), s sparsevec(3), b bit(3))"
    )
    hint = "ALTER TABLE ... ALTER COLUMN ... TYPE"
    for column, opclass in (("untyped", "vector_l2_ops"), ("half", "halfvec_l2_ops")):
        message = refused(conn, f"CREATE INDEX ON t USING bq ({column} {opclass})")
        assert message.startswith("column does not have dimensions / ")
        assert f"{hint} {opclass.split('_')[0]}(384)" in message
    assert "more than 8000 dimensions" in refused(
        conn, "CREATE INDEX ON t USING bq (wide vector_l2_ops)"
    )
    assert "does not support included columns" in refused(
        conn, "CREATE INDEX ON t USING bq (v vector_l2_ops) INCLUDE (id)"
    )
    assert "has no type to filter by" in refused(
        conn, "CREATE INDEX ON t USING bq (v vector_l2_ops, v vector_ip_ops)"
    )
    assert "does not support unique indexes" in refused(
        conn, "CREATE UNIQUE INDEX ON t USING bq (v vector_l2_ops)"
    )
    assert "no default operator class" in refused(conn, "CREATE INDEX ON t USING bq (v)")
    assert "does not accept data type halfvec" in refused(
        conn, "CREATE INDEX ON t USING bq (half vector_l2_ops)"
    )
    for option in ("lists = -1", "probes = 65537", "recall = 1.01", "transform = 65536", "m = 16"):
        refused(conn, f"CREATE INDEX ON t USING bq (v vector_l2_ops) WITH ({option})")


def test_column_that_loses_its_dimensions(conn: Conn, rng: np.random.Generator) -> None:
    """The index keeps its own; other vectors then have no place in it."""
    create(conn, random_vectors(rng, 30, 8), column=L2)
    create_index(conn, L2)
    conn.execute("UPDATE pg_attribute SET atttypmod = -1 WHERE attname = 'embedding'")
    assert "different vector dimensions 8 and 9" in refused(
        conn, "INSERT INTO items VALUES (1, '[1,2,3,4,5,6,7,8,9]', 1)"
    )
    check(conn, "items_embedding")
    assert_index_equals_sort(conn, random_vectors(rng, 1, 8), column=L2)


# -- kinds of indexes and tables ---------------------------------------------------------------


@pytest.mark.parametrize(
    "expression, opclass, operator, cast_to",
    [
        ("embedding::halfvec(24)", "halfvec_cosine_ops", "<=>", "halfvec(24)"),
        ("subvector(embedding, 1, 8)::vector(8)", "vector_l2_ops", "<->", "vector(8)"),
        ("l2_normalize(embedding)::vector(24)", "vector_ip_ops", "<#>", "vector(24)"),
    ],
)
def test_expression_index(
    conn: Conn, rng: np.random.Generator, expression: str, opclass: str, operator: str, cast_to: str
) -> None:
    """As in pgvector's README, also of part of the rows; after changes, too."""
    vectors = random_vectors(rng, 800, 24)
    create(conn, vectors[:400], column=L2)
    conn.execute(
        cast(
            Any,
            f"CREATE INDEX items_e ON items USING bq (({expression}) {opclass}) WHERE other < 5",
        )
    )
    insert(conn, vectors[400:], first=400, column=L2)
    conn.execute("UPDATE items SET other = other + 1 WHERE id % 3 = 0")
    conn.execute("DELETE FROM items WHERE id % 7 = 0")
    dim = int(cast_to[cast_to.index("(") + 1 : -1])
    query = f"""
        SELECT id, ({expression}) {operator} %(q)s::{cast_to} FROM items WHERE other < 5
            AND embedding IS NOT NULL ORDER BY ({expression}) {operator} %(q)s::{cast_to}"""
    parameters = {"q": str(rng.standard_normal(dim).tolist())}
    conn.execute("SET enable_indexscan = off")
    expected = conn.execute(cast(Any, query), parameters).fetchall()
    conn.execute("RESET enable_indexscan")
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET enable_sort = off")
    conn.execute("SET bq.recall = 1")
    assert "Index Scan using items_e" in explain(conn, query, parameters)
    assert_same_order(conn.execute(cast(Any, query), parameters).fetchall(), expected)
    assert len(expected) > 300
    check(conn, "items_e")
    assert conn.execute("SELECT bq_recall('items_e', 20)").fetchone() == (1.0,)


def test_two_indexes_on_one_column(conn: Conn, rng: np.random.Generator) -> None:
    """Each distance has its own; a query finds the one for it."""
    vectors = clustered_vectors(rng, 500, 16)
    create(conn, vectors, column=L2)
    for metric in METRICS:
        column = vector_column("vector", metric)
        conn.execute(cast(Any, f"CREATE INDEX by_{metric} ON items USING bq ({column.key})"))
    conn.execute("SET enable_seqscan = off")
    for metric, operator in METRICS.items():
        query = f"SELECT id FROM items ORDER BY embedding {operator} %s::vector LIMIT 5"
        plan = explain(conn, query, (str([1] * 16),))
        assert f"Index Scan using by_{metric}" in plan
        column = vector_column("vector", metric)
        assert_index_equals_sort(conn, vectors[:2], column=column)


@of_columns(COSINE, HALF_IP, L2)
def test_after_changes(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """Insert, delete, vacuum, update of the vector and of others, reindex, truncate."""
    vectors = clustered_vectors(rng, 2400, 24)
    query = random_vectors(rng, 1, 24)
    name = column.name
    create(conn, vectors[:1200], column=column)
    create_index(conn, column, "lists = 10")

    def same() -> None:
        check(conn, column.index)
        assert_index_equals_sort(conn, query, column=column)

    insert(conn, vectors[1200:2000], first=1200, column=column)
    same()
    conn.execute("DELETE FROM items WHERE id % 3 = 0")
    same()
    conn.execute("VACUUM items")
    same()
    insert(conn, vectors[2000:], first=2000, column=column)
    same()
    conn.execute("UPDATE items SET other = 7 WHERE id % 5 = 1")  # HOT where the page has room
    same()
    statement = (
        f"UPDATE items SET {name} = (SELECT {name} FROM items WHERE id = 1) WHERE id % 7 = 2"
    )
    conn.execute(cast(Any, statement))
    same()
    conn.execute(cast(Any, f"UPDATE items SET {name} = NULL WHERE id % 11 = 4"))
    same()
    for command in (
        "VACUUM FULL items",
        f"REINDEX INDEX {column.index}",
        f"REINDEX INDEX CONCURRENTLY {column.index}",
        "ALTER TABLE items SET UNLOGGED",
        "ALTER TABLE items SET LOGGED",
    ):
        conn.execute(cast(Any, command))
        same()
    conn.execute("TRUNCATE items")
    check(conn, column.index)
    q = column.operand(column.operators[0], query[0])
    assert by_index(conn, column.operators[0], q, column=column) == []
    insert(conn, vectors[:300], column=column)
    same()


def test_hot_updates_leave_the_index_alone(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 200, 8), nulls=0, column=COSINE)
    conn.execute("ALTER TABLE items SET (fillfactor = 20)")
    conn.execute("VACUUM FULL items")
    create_index(conn, COSINE)
    for _ in range(3):
        conn.execute("UPDATE items SET other = other + 1")
    assert info(conn, "items_embedding")["live_rows"] == 200
    check(conn, "items_embedding")
    assert_index_equals_sort(conn, random_vectors(rng, 1, 8), column=COSINE)


@each_column
def test_empty_table_and_one_row(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    create(conn, np.empty((0, 16), np.float32), nulls=2, typmod=16, column=column)
    create_index(conn, column)
    check(conn, column.index)
    vector = random_vectors(rng, 1, 16)
    operator = column.operators[0]
    q = column.operand(operator, vector[0])
    assert by_index(conn, operator, q, column=column) == []
    assert conn.execute("SELECT bq_recall('items_embedding')").fetchone() == (None,)
    insert(conn, vector, column=column)
    check(conn, column.index)
    assert [i for i, _ in by_index(conn, operator, q, column=column)] == [0]


@pytest.mark.parametrize("kind", ["TEMPORARY TABLE", "UNLOGGED TABLE"])
def test_kinds_of_tables(conn: Conn, rng: np.random.Generator, kind: str) -> None:
    vectors = clustered_vectors(rng, 500, 16)
    create(conn, vectors[:250], kind=kind, column=L2)
    create_index(conn, L2, "lists = 4")
    insert(conn, vectors[250:], first=250, column=L2)
    check(conn, "items_embedding")
    assert_index_equals_sort(conn, vectors[:2], column=L2)


def test_temporary_table_emptied_at_commit(conn: Conn, rng: np.random.Generator) -> None:
    conn.execute(
        "CREATE TEMP TABLE items (id int, embedding vector(8), other int) ON COMMIT DELETE ROWS"
    )
    create_index(conn, COSINE, "lists = 2")
    for _ in range(2):
        with conn.transaction():
            insert(conn, random_vectors(rng, 200, 8), column=COSINE)
            assert_index_equals_sort(conn, random_vectors(rng, 1, 8), column=COSINE)
        check(conn, "items_embedding")


def test_partitioned_table(conn: Conn, rng: np.random.Generator) -> None:
    vectors = clustered_vectors(rng, 900, 16)
    conn.execute(
        "CREATE TABLE items (id int, embedding vector(16), other int) PARTITION BY RANGE (id)"
    )
    for i in range(3):
        conn.execute(
            cast(
                Any,
                f"CREATE TABLE part_{i} PARTITION OF items"
                f" FOR VALUES FROM ({300 * i}) TO ({300 * i + 300})",
            )
        )
    conn.execute("CREATE INDEX ON items USING bq (embedding vector_l2_ops)")
    insert(conn, vectors, column=L2)
    q = L2.operand("<->", vectors[5])
    expected = by_sort(conn, "<->", q, column=L2)
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET enable_sort = off")
    conn.execute("SET bq.recall = 1")
    query = "SELECT id, embedding <-> %(q)s FROM items ORDER BY embedding <-> %(q)s"
    plan = explain(conn, query, {"q": q})
    assert "Merge Append" in plan and plan.count("Index Scan") == 3
    assert_same_order(conn.execute(query, {"q": q}).fetchall(), expected)
