"""An index on columns of pgvector answers as pgvector does, where all lists are read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    METRICS,
    VECTOR_COLUMNS,
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
    explain,
    info,
    insert,
    random_vectors,
    vector_column,
)
from psycopg import sql
from shared import Conn, Vectors

import pybq
from pybq._choice.probe import searched
from pybq._choice.statistics import Statistics

each_column = pytest.mark.parametrize("column", VECTOR_COLUMNS, ids=lambda column: column.opclass)
each_metric = pytest.mark.parametrize("column", VECTOR_COLUMNS[:3], ids=lambda c: c.opclass)

COSINE = vector_column("vector", "cosine")
L2 = vector_column("vector", "l2")
IP = vector_column("vector", "ip")


@pytest.fixture
def conn(conn: Conn, bq_pgvector: None) -> Conn:
    conn.autocommit = True
    return conn


def create_index(
    conn: Conn, column: Column, options: str = "lists = 1", table: str = "items"
) -> None:
    name = f"{table}_{column.name}"
    conn.execute(
        cast(Any, f"CREATE INDEX {name} ON {table} USING bq ({column.key}) WITH ({options})")
    )


def some_queries(rng: np.random.Generator, vectors: Vectors) -> Vectors:
    """A new vector, one of the table, and the zero vector."""
    dim = vectors.shape[1]
    zero = np.zeros((1, dim), np.float32)
    return np.vstack([random_vectors(rng, 1, dim), vectors[:1], zero]).astype(np.float32)


# -- the same as a sequential scan -------------------------------------------------------------


@pytest.mark.parametrize("make", [random_vectors, clustered_vectors])
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 9, 127, 384])
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


def sparse(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return random_vectors(rng, n, dim) * (rng.random((n, dim)) < 0.05)


def one_hot(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, np.eye(dim, dtype=np.float32)[rng.integers(0, dim, n)])


def counts(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Bags of words: no coordinate is negative, most are 0."""
    shares = np.arange(1, dim + 1) ** -0.8
    return rng.multinomial(40, shares / shares.sum(), n).astype(np.float32)


def shifted(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, (rng.standard_normal((n, dim)) * 0.01 + 1).astype(np.float32))


def corners(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, rng.choice([-1, 1], (n, dim)).astype(np.float32))


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


@pytest.mark.parametrize("column", [IP, L2], ids=lambda column: column.opclass)
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
        text = sql.SQL(cast(Any, query.format(table=table)))
        assert f"Index Scan using {table}_embedding" in explain(conn, text, parameters)
        found.append(conn.execute(text, parameters).fetchall())
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
    assert column.index in explain(conn, sql.SQL("EXECUTE n(NULL)"))
    for recall in (0, 1):
        conn.execute(cast(Any, f"SET bq.recall = {recall}"))
        found = conn.execute("EXECUTE n(NULL)").fetchall()
        assert sorted(i for i, _ in found) == list(range(600))
        assert {d for _, d in found} == {None}
        assert len(conn.execute("EXECUTE few(NULL)").fetchall()) == 7


# -- what is refused ---------------------------------------------------------------------------


def refused(conn: Conn, statement: str, parameters: Any = None) -> str:
    with pytest.raises(psycopg.Error) as error:
        conn.execute(cast(Any, statement), parameters)
    diag = error.value.diag
    assert diag.sqlstate != "XX000", diag.message_primary
    return f"{diag.message_primary} / {diag.message_hint}"


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
    assert "Index Scan using items_e" in explain(conn, sql.SQL(cast(Any, query)), parameters)
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
        plan = explain(conn, sql.SQL(cast(Any, query)), (str([1] * 16),))
        assert f"Index Scan using by_{metric}" in plan
        column = vector_column("vector", metric)
        assert_index_equals_sort(conn, vectors[:2], column=column)


@each_column
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
    conn.execute("ALTER TABLE items SET (fillfactor = 40)")
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
    query = sql.SQL("SELECT id, embedding <-> %(q)s FROM items ORDER BY embedding <-> %(q)s")
    plan = explain(conn, query, {"q": q})
    assert "Merge Append" in plan and plan.count("Index Scan") == 3
    assert_same_order(conn.execute(query, {"q": q}).fetchall(), expected)


# -- how the choice is made --------------------------------------------------------------------


def far_from_zero(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """The axes are clearly better (as tests/unit/test_strategy.py has it)."""
    return cast(Vectors, (rng.standard_normal((n, dim)) + 3).astype(np.float32))


def only_few_matter(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Rotation is clearly better: a few coordinates have nearly all of the variance."""
    return random_vectors(rng, n, dim) * np.where(np.arange(dim) % 16, 0.1, 1).astype(np.float32)


@pytest.mark.parametrize(
    "make, transform",
    [(corners, 0), (far_from_zero, 0), (sparse, 1), (only_few_matter, 1), (random_vectors, 1)],
)
def test_transform_suits_the_rows(
    conn: Conn, rng: np.random.Generator, make: Any, transform: int
) -> None:
    """The better side by what it finds; what is as good either way is rotated."""
    create(conn, make(rng, 1200, 256).astype(np.float32), column=COSINE)
    create_index(conn, COSINE, "recall = 0.98")
    assert info(conn, "items_embedding")["transform"] == transform
    for forced in (0, 1, 65535):
        conn.execute(cast(Any, f"ALTER INDEX items_embedding SET (transform = {forced})"))
        conn.execute("REINDEX INDEX items_embedding")
        assert info(conn, "items_embedding")["transform"] == forced
        check(conn, "items_embedding")


def test_few_rows_are_rotated(conn: Conn, rng: np.random.Generator) -> None:
    """Fewer than 100 tell nothing; also where none are left of many."""
    create(conn, corners(rng, 99, 64), column=COSINE)
    create_index(conn, COSINE)
    assert info(conn, "items_embedding")["transform"] == 1
    conn.execute("TRUNCATE items")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["transform"] == 1
    check(conn, "items_embedding")


# -- statistics that the choice was made from, and drift -----------------------------------------


def index_statistics(conn: Conn, index: str = "items_embedding") -> Statistics | None:
    row = conn.execute("SELECT (s).* FROM bq_index_statistics(%s) AS s", (index,)).fetchone()
    assert row is not None
    return None if row[0] is None else Statistics.from_row(row)


@each_metric
def test_index_keeps_statistics(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """Those of its sample, here all rows but zero vectors: by cosine, of vectors of norm 1."""
    vectors = random_vectors(rng, 1000, 150) * np.linspace(0.2, 2, 150).astype(np.float32)
    vectors[7] = 0
    create(conn, vectors, column=column)
    create_index(conn, column)
    check(conn, column.index)
    kept = index_statistics(conn, column.index)
    assert kept is not None
    cosine = "cosine" in column.opclass
    wanted = Statistics(150, normalize=cosine)
    wanted.update(np.delete(vectors, 7, axis=0))
    assert kept.count == wanted.count == 999
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        a, b = getattr(kept, name), getattr(wanted, name)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert kept.searches == 50
    found = searched(kept, "inner_product" if "ip" in column.opclass else "cosine")
    assert found is not None
    told = info(conn, column.index)["choice"]
    assert told == (
        f"rotation: of the ten nearest among {kept.count} rows, codes on the axes find "
        f"{found.recall_axis:.3f}, rotated {found.recall_rotate:.3f}"
    )
    assert found.recall_rotate > found.recall_axis


def test_statistics_live_on_pages_of_their_own(conn: Conn, rng: np.random.Generator) -> None:
    """Also across pages, after a rebuild, and with rows that come and go."""
    create(conn, random_vectors(rng, 300, 2000), column=COSINE)
    create_index(conn, COSINE, "lists = 4")
    before = index_statistics(conn)
    assert before is not None and before.count == 300
    insert(conn, random_vectors(rng, 300, 2000), first=300, column=COSINE)
    conn.execute("DELETE FROM items WHERE id % 2 = 0")
    conn.execute("VACUUM items")
    check(conn, "items_embedding")
    after = index_statistics(conn)
    assert after is not None and after.to_row() == before.to_row()
    conn.execute("REINDEX INDEX items_embedding")
    check(conn, "items_embedding")
    rebuilt = index_statistics(conn)
    assert rebuilt is not None and rebuilt.count == 300 and rebuilt.to_row() != before.to_row()


def test_choice_that_was_not_measured_is_told(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 50, 32), column=COSINE)
    create_index(conn, COSINE)
    assert info(conn, "items_embedding")["choice"] == "rotation: there were too few rows to measure"
    few = index_statistics(conn)
    assert few is not None and (few.count, few.searches) == (50, 0)
    conn.execute("ALTER INDEX items_embedding SET (transform = 0)")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["choice"] == "axes: as the option transform says"
    assert index_statistics(conn) is None
    conn.execute("TRUNCATE items")
    conn.execute("ALTER INDEX items_embedding RESET (transform)")
    conn.execute("REINDEX INDEX items_embedding")
    assert index_statistics(conn) is None
    check(conn, "items_embedding")


@pytest.mark.parametrize(
    "before, after, better",
    [(corners, only_few_matter, "a rotation"), (only_few_matter, corners, "the original axes")],
)
def test_drift_is_hinted(
    conn: Conn, rng: np.random.Generator, before: Any, after: Any, better: str
) -> None:
    """Rows of the same kind are no drift; where the other choice is better, REINDEX makes it."""
    create(conn, before(rng, 2000, 128), column=COSINE)
    create_index(conn, COSINE)
    transform = info(conn, "items_embedding")["transform"]
    assert info(conn, "items_embedding")["hint"] is None
    insert(conn, before(rng, 2000, 128), first=2000, column=COSINE)
    assert info(conn, "items_embedding")["hint"] is None
    conn.execute("DELETE FROM items WHERE id >= 1000")
    insert(conn, after(rng, 4000, 128), first=5000, column=COSINE)
    hint = info(conn, "items_embedding")["hint"]
    assert hint.startswith(f"REINDEX: {better} would now be better; of the ten nearest among ")
    conn.execute("REINDEX INDEX items_embedding")
    facts = info(conn, "items_embedding")
    assert facts["transform"] == 1 - transform
    assert facts["hint"] is None
    # who asked for a transform is not advised against it
    conn.execute(f"ALTER INDEX items_embedding SET (transform = {transform})")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["hint"] is None


def test_drift_is_looked_for_in_what_a_query_sees(conn: Conn, rng: np.random.Generator) -> None:
    """Not in rows that another transaction is writing; and nobody is warned of them."""
    create(conn, corners(rng, 1000, 64), column=COSINE)
    create_index(conn, COSINE)
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    with connect(conn.info.dsn) as other, other.transaction():
        insert(other, only_few_matter(rng, 4000, 64), first=1000, column=COSINE)
        assert info(conn, "items_embedding")["hint"] is None
    assert info(conn, "items_embedding")["hint"] is not None
    assert notices == []


def test_statistics_are_for_who_may_read_the_rows(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 200, 16), column=COSINE)
    create_index(conn, COSINE)
    conn.execute("DROP ROLE IF EXISTS reader")
    conn.execute("CREATE ROLE reader")
    question = "SELECT (bq_index_statistics('items_embedding')).count"
    try:
        conn.execute("SET ROLE reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            conn.execute(question)
        conn.execute("RESET ROLE")
        conn.execute("GRANT SELECT ON items TO reader")
        conn.execute("SET ROLE reader")
        assert conn.execute(question).fetchone() == (200,)
        conn.execute("RESET ROLE")
        conn.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        conn.execute("SET ROLE reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides"):
            conn.execute(question)
    finally:
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY reader")
        conn.execute("DROP ROLE reader")


def test_damaged_statistics_are_found(own_server: pybq.Server, rng: np.random.Generator) -> None:
    with connect(own_server.dsn) as conn:
        for extension in ("vector", "bq", "bq_pgvector"):
            conn.execute(cast(Any, f"CREATE EXTENSION IF NOT EXISTS {extension}"))
        create(conn, random_vectors(rng, 500, 300), column=COSINE)
        create_index(conn, COSINE)
    sample_rows = Places(300, 1).meta("choice")[1] + 4
    for blkno, offset, data, message in (
        (1, 24, b"\0\0\0\0\0\0\xf8\x7f", "no 500 rows have the statistics of its sample"),
        (2, 8184, b"\3", "of one kind at its start, of another at its end"),
        (0, sample_rows, b"\0\0\0\0", "data begin on page 3 after 0 pages of statistics"),
        (0, sample_rows - 4, b"\x09", "for reason 9"),
    ):
        with connect(own_server.dsn) as conn:
            conn.execute("REINDEX INDEX items_embedding")
            check(conn, "items_embedding")
        damage(own_server, ("items_embedding", blkno, offset, data))
        with connect(own_server.dsn) as conn:
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
                check(conn, "items_embedding")
