"""What the planner makes of the index, and what EXPLAIN tells of scans."""

from __future__ import annotations

import numpy as np
import pytest
from indexlib import (
    CODES,
    COSINE,
    DIM,
    HALF_IP,
    ROWS,
    Column,
    clustered_vectors,
    create,
    explain,
    measure_scan,
    of_columns,
    operand,
    prepare,
    random_vectors,
)
from shared import Conn

from pybq import Query

each_column = of_columns(CODES, COSINE)


pytestmark = pytest.mark.autocommit


@pytest.mark.parametrize(
    "column, dim",
    [(CODES, 64), (CODES, 384), (CODES, 3072), (COSINE, 64), (HALF_IP, 384), (COSINE, 1536)],
    ids=lambda value: getattr(value, "type", None),
)
def test_planner_takes_the_index_for_the_nearest(
    conn: Conn, rng: np.random.Generator, column: Column, dim: int
) -> None:
    prepare(conn, column)
    create(conn, random_vectors(rng, 2000, dim), nulls=0, column=column)
    conn.execute(f"CREATE INDEX by_distance ON items USING bq ({column.key})")
    conn.execute("VACUUM ANALYZE items")
    for operator in column.operators:
        right = column.operand(operator, np.ones(dim, np.float32))
        order = f"SELECT id FROM items{{where}} ORDER BY {column.name} {operator} %s"
        nearest = order + " LIMIT 10"
        assert "by_distance" in explain(conn, nearest.format(where=""), (right,))
        assert "by_distance" in explain(conn, nearest.format(where=" WHERE other < 5"), (right,))
        descending = order.format(where="") + " DESC LIMIT 10"
        assert "by_distance" not in explain(conn, descending, (right,))


@each_column
def test_planner_leaves_the_index_where_it_does_not_help(
    conn: Conn, rng: np.random.Generator, column: Column
) -> None:
    prepare(conn, column)
    create(conn, clustered_vectors(rng, ROWS, DIM), column=column)
    conn.execute(f"CREATE INDEX by_distance ON items USING bq ({column.key})")
    conn.execute("CREATE INDEX ON items (id)")
    conn.execute("VACUUM ANALYZE items")
    operator = column.operators[-1]
    q = {"q": column.operand(operator, random_vectors(rng, 1, DIM)[0])}
    distance = f"{column.name} {operator} %(q)s"
    for statement in (
        "SELECT id FROM items",
        f"SELECT count(*) FROM items WHERE {column.name} IS NOT NULL",
        f"SELECT id FROM items WHERE {distance} < 0.1",
        "SELECT id FROM items ORDER BY id LIMIT 1",
        f"SELECT id FROM items WHERE id = 5 ORDER BY {distance} LIMIT 1",
    ):
        assert "by_distance" not in explain(conn, statement, q), statement
    conn.execute("SET enable_seqscan = off")
    assert "by_distance" not in explain(conn, "SELECT count(*) FROM items")
    conn.execute("RESET enable_seqscan")
    conn.execute("SET enable_indexscan = off")
    nearest = f"SELECT id FROM items ORDER BY {distance} LIMIT 1"
    assert "by_distance" not in explain(conn, nearest, q)


def test_a_second_distance_orders_ties(conn: Conn, rng: np.random.Generator) -> None:
    """A scan knows one distance: it must not be taken to sort by two."""
    create(conn, random_vectors(rng, ROWS, 8), nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    conn.execute("VACUUM ANALYZE items")
    parameters = {
        "a": operand("<~>", random_vectors(rng, 1, 8)[0]),
        "b": operand("<~>", random_vectors(rng, 1, 8)[0]),
    }
    ties = "SELECT code <~> %(a)s, code <~> %(b)s FROM items ORDER BY 1, 2 LIMIT 100"
    assert "items_code" not in explain(conn, ties, parameters)
    rows = conn.execute(ties, parameters).fetchall()
    assert rows == sorted(rows)


def test_groups_have_all_their_rows(items: Conn) -> None:
    """Lists come in no exact order, and not at all for rows without a code."""
    code = "0:1:" + "3210" * (DIM // 4)
    groups = f"SELECT code <~> '{code}' AS d, count(*) FROM items GROUP BY 1 ORDER BY 1"
    ordered = f"SELECT array_agg(id ORDER BY code <~> '{code}', id) FROM items"
    expected = [items.execute(statement).fetchall() for statement in (groups, ordered)]
    assert (None, 3) in expected[0]
    items.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_hashagg = off")
    for statement, rows in zip((groups, ordered), expected, strict=True):
        assert "items_code" not in explain(items, statement)
        assert items.execute(statement).fetchall() == rows


def test_a_path_not_to_be_taken_has_a_cost(items: Conn) -> None:
    """A cost that is no number would be lower than none: such a path was taken."""
    code = "0:1:" + "3210" * (DIM // 4)
    minimum = f"SELECT min(code <~> '{code}') FROM items WHERE other = 3"
    for use in ("on", "off"):
        items.execute(f"SET enable_seqscan = {use}; SET enable_sort = {use}")
        plan = explain(items, minimum, options="COSTS ON")
        assert "items_code" not in plan
        assert "NaN" not in plan


def test_explain_shows_what_was_read(items: Conn, q: Query) -> None:
    if items.info.server_version < 180000:
        pytest.skip("hooks of EXPLAIN came with PostgreSQL 18")
    nearest = "SELECT id FROM items ORDER BY code <#> %s LIMIT 1"
    items.execute("SET bq.probes = 7")
    scan = measure_scan(items, nearest, (q,))
    assert scan["Index Name"] == "items_code"
    assert scan["Lists Read"] == 7
    assert 32 * 7 <= scan["Codes Compared"] <= ROWS
    (plan,) = items.execute(f"EXPLAIN (FORMAT JSON) {nearest}", (q,)).fetchone() or ()
    assert "Lists Read" not in plan[0]["Plan"]["Plans"][0]
    # all rounds of a join together
    join = (
        "SELECT * FROM generate_series(1, 5), LATERAL"
        f" (SELECT id FROM items WHERE id <> generate_series ORDER BY code <#> '{q.to_text()}'"
        " LIMIT 1) AS s"
    )
    rows = items.execute(f"EXPLAIN (ANALYZE) {join}").fetchall()
    assert any("Lists Read: 35" in row[0] for row in rows), rows


def test_each_query_reads_the_lists_that_it_needs(conn: Conn, rng: np.random.Generator) -> None:
    """By cosine the lists read differ; the setting is their mean over rows like the table's."""
    if conn.info.server_version < 180000:
        pytest.skip("hooks of EXPLAIN came with PostgreSQL 18")
    vectors = clustered_vectors(rng, 12_000, DIM)
    create(conn, vectors, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 100)")
    conn.execute("SET enable_seqscan = off; SET enable_sort = off; SET bq.probes = 12")
    counts = []
    for vector in vectors[::100]:
        right = operand("<=>", vector)
        nearest = "SELECT id FROM items ORDER BY code <=> %s LIMIT 1"
        counts.append(measure_scan(conn, nearest, (right,))["Lists Read"])
    assert 3 <= min(counts) < max(counts) <= 48
    assert 8 < np.mean(counts) < 18, np.mean(counts)


def test_a_recall_of_one_reads_blocks_to_their_end(conn: Conn, rng: np.random.Generator) -> None:
    """Also where the lists are fewer: of those, all rows."""
    if conn.info.server_version < 180000:
        pytest.skip("hooks of EXPLAIN came with PostgreSQL 18")
    centres = rng.standard_normal((30, 768))
    vectors = np.repeat(centres, 100, axis=0) + 0.3 * rng.standard_normal((3000, 768))
    vectors = vectors.astype(np.float32)
    create(conn, vectors, nulls=0)
    conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 30)")
    conn.execute("SET enable_seqscan = off; SET enable_sort = off; SET bq.probes = 25")

    def codes_compared(recall: float) -> int:
        conn.execute(f"SET bq.recall = {recall}")
        nearest = "SELECT id FROM items ORDER BY code <#> %s LIMIT 1"
        scan = measure_scan(conn, nearest, (operand("<#>", vectors[7]),))
        assert scan["Lists Read"] == 25
        return int(scan["Codes Compared"])

    assert codes_compared(0.8) < 1500
    assert codes_compared(1) > 2000


# -- distances that nobody sees -------------------------------------------------------------


@pytest.mark.parametrize(
    "query, computed",
    [
        ("SELECT id FROM items ORDER BY {d} LIMIT 5", False),
        ("SELECT id FROM items WHERE code IS NOT NULL ORDER BY {d}", False),
        ("SELECT * FROM (SELECT id FROM items ORDER BY {d} LIMIT 5) s WHERE id >= 0", False),
        ("SELECT ARRAY(SELECT id FROM items ORDER BY {d} LIMIT 5)", False),
        ("SELECT id, {d} FROM items ORDER BY {d} LIMIT 5", True),
        ("SELECT id FROM items ORDER BY {d}, id LIMIT 5", True),
        ("SELECT id, rank() OVER (ORDER BY {d}) FROM items ORDER BY {d} LIMIT 5", True),
        ("SELECT id FROM items ORDER BY {d} LIMIT 5 FOR UPDATE", True),
        (
            "(SELECT id FROM items ORDER BY {d} LIMIT 5)"
            " UNION ALL (SELECT id FROM items ORDER BY {d} LIMIT 2)",
            False,
        ),
    ],
)
def test_distance_is_computed_only_where_it_is_read(
    items: Conn, q: Query, query: str, computed: bool
) -> None:
    if items.info.server_version < 170000 and "{d}, id" in query:
        pytest.skip("only from 17 on is an order by distance alone good for part of another")
    items.execute("SET enable_seqscan = off; SET bq.probes = 40")
    items.execute("SET default_transaction_read_only = off")  # FOR UPDATE locks rows
    items.execute("SELECT bq_simd()")  # the library is loaded by now, also without an index
    text = query.format(d="code <=> %(q)s")
    rows = items.execute("EXPLAIN (VERBOSE, COSTS OFF) " + text, {"q": q})  # type: ignore[arg-type]
    plan = [row[0] for row in rows]
    assert any("Index Scan using items_code" in line for line in plan)
    scan = next(i for i, line in enumerate(plan) if "Index Scan using items_code" in line)
    assert ("<=>" in plan[scan + 1]) == computed, plan[scan + 1]
    found = items.execute(text, {"q": q}).fetchall()
    items.execute("SET enable_indexscan = off; RESET enable_seqscan")
    expected = items.execute(text, {"q": q}).fetchall()
    # ties may come in any order
    assert sorted(np.ravel(found)) == sorted(np.ravel(expected))
