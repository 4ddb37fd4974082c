"""Filter columns of an index: conditions answered before a row of the table is fetched."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from databases import Databases
from indexlib import (
    check,
    clustered_vectors,
    connect,
    explain,
    measure_scan,
    operand,
    random_vectors,
)
from shared import SEED, Conn

from pybq import Code, Quantizer, Query
from pybq.psycopg import register_bq

DIM = 16
ROWS = 1500

COLUMNS = {
    "flag": "boolean",
    "small": "smallint",
    "number": "integer",
    "large": "bigint",
    "reg": "oid",
    "single": "real",
    "double_": "double precision",
    "amount": "numeric",
    "day": "date",
    "moment": "timestamp",
    "instant": "timestamptz",
    "name": "text",
    "word": "varchar(20)",
    "padded": "char(5)",
    "mood": "mood",
    "id_": "uuid",
}


def value_of(column: str, i: int) -> Any:
    """The value of a column in row i: few different ones, some of them traps."""
    kind = COLUMNS[column]
    k = i % 7
    if i % 13 == 0:
        return None
    match kind:
        case "boolean":
            return k < 2
        case "smallint":
            return [-32768, -1, 0, 1, 2, 3, 32767][k]
        case "integer" | "oid":
            return [0, 1, 2, 3, 4, 5, 2**31 - 1][k]
        case "bigint":
            return [-(2**63), -(2**40), -1, 0, 2**26, 2**26 + 1, 2**63 - 1][k]
        case "real" | "double precision":
            return [float("-inf"), -1.5, -0.0, 0.0, 1e-30, 1.5, float("nan")][k]
        case "numeric":
            return ["-1e30", "-1.5", "0", "1.0000000001", "1.0000000002", "7", "NaN"][k]
        case "date":
            return ["-infinity", "1999-12-31", "2000-01-01", "2000-01-02", "2026-01-01"][k % 5]
        case "timestamp" | "timestamptz":
            return ["-infinity", "1999-12-31", "2000-01-01", "2026-01-01 10:00:01"][k % 4]
        case "mood":
            return ["sad", "ok", "happy"][k % 3]
        case "uuid":
            return uuid.UUID(int=k)
        case _:
            return ["", "a", "b", "ab", "A", "ä", "a b"][k]


pytestmark = pytest.mark.autocommit


def create_items(conn: Conn) -> None:
    """A table with a column of each type to filter by."""
    rng = np.random.default_rng((SEED, 1))
    conn.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}), {columns})")
    codes = Quantizer(DIM, 0).encode(clustered_vectors(rng, ROWS, DIM))
    places = ", ".join(["%s"] * (2 + len(COLUMNS)))
    with conn.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO items VALUES ({places})",
            [
                (i, Code(code), *(value_of(name, i) for name in COLUMNS))
                for i, code in enumerate(codes)
            ],
        )


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases) -> Iterator[str]:
    def fill(conn: Conn) -> None:
        register_bq(conn)
        create_items(conn)

    with databases_of_tests.provide_filled(fill) as dsn:
        yield dsn


@pytest.fixture
def items(database: str) -> Iterator[Conn]:
    """The table; what a test makes of it, indexes and all, is rolled back."""
    with contextlib.closing(connect(database)) as conn, conn.transaction(force_rollback=True):
        yield conn


def rows_by(conn: Conn, how: str, where: str, q: Query, limit: str = "") -> list[Any]:
    query = f"SELECT id, code <=> %(q)s FROM items WHERE {where} ORDER BY code <=> %(q)s {limit}"
    with conn.transaction(force_rollback=True):
        if how == "index":
            conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        else:
            conn.execute("SET LOCAL enable_indexscan = off")
        plan = explain(conn, query, {"q": q})
        assert ("Index Cond" in plan) == (how == "index"), plan
        return conn.execute(query, {"q": q}).fetchall()  # type: ignore[arg-type]


def assert_same(conn: Conn, where: str, q: Query) -> int:
    """The index finds exactly the rows of a sort, in order of distance; returns their number."""
    expected = rows_by(conn, "sort", where, q)
    found = rows_by(conn, "index", where, q)
    assert [d for _, d in found] == [d for _, d in expected], where
    assert sorted(found) == sorted(expected), where
    return len(found)


ORDERED = ("<", "<=", "=", ">=", ">")
UNORDERED = ("name", "word", "padded", "mood", "id_")


@pytest.mark.parametrize("column", COLUMNS)
def test_conditions_equal_a_sort(items: Conn, q: Query, column: str) -> None:
    if column == "flag" and items.info.server_version < 160000:
        pytest.skip("before 16 the planner matches booleans to its own operator families only")
    items.execute(f"CREATE INDEX ON items USING bq (code, {column})")
    items.execute("SET bq.probes = 65536")
    values = {value_of(column, i) for i in range(1, 13)}
    total = 0
    for value in values:
        literal = items.execute("SELECT quote_literal(%s::text)", (value,)).fetchone()[0]  # type: ignore[index]
        kind = "text" if COLUMNS[column].startswith("varchar") else COLUMNS[column]
        for sign in ("=",) if column in UNORDERED else ORDERED:
            count = assert_same(items, f"{column} {sign} {literal}::{kind}", q)
            total += count if sign == "=" else 0
    assert total == items.execute(f"SELECT count({column}) FROM items").fetchone()[0]  # type: ignore[index]
    assert assert_same(items, f"{column} IS NULL", q) == (ROWS + 12) // 13
    assert assert_same(items, f"{column} IS NOT NULL", q) == ROWS - (ROWS + 12) // 13


def test_arrays_of_values(items: Conn, q: Query) -> None:
    if items.info.server_version < 170000:
        pytest.skip("before 17 the planner drops arrays, or the order, of columns after the first")
    items.execute("CREATE INDEX ON items USING bq (code, number, name)")
    items.execute("SET bq.probes = 65536")
    assert assert_same(items, "number = ANY ('{1,3,3,NULL,99}')", q) > 0
    assert assert_same(items, "number IN (2, 4) AND name = ANY ('{b,A}')", q) > 0
    assert assert_same(items, "number = ANY ('{}'::int[])", q) == 0
    assert assert_same(items, "number > ANY ('{3,1}')", q) > 0
    many = list(range(100, 5000)) + [5]
    assert assert_same(items, f"number = ANY (ARRAY{many})", q) > 0


@pytest.mark.parametrize(
    "where",
    [
        "small = 3::int",
        "small = 3::bigint",
        "small > -32769",
        "small < 32768",
        "small >= 40000",
        "number = 2::bigint",
        "number < 5000000000",
        "number > 5000000000",
        "number <> 3 AND number >= -5000000000",
        "large = 1::smallint - 1",
        "large > 0",
        "large <= 67108864",
        "large < 67108865",
        "large = 67108865",
        "single < 1.6::double precision",
        "double_ > 1e-31::real",
    ],
)
def test_other_types_on_the_right(items: Conn, q: Query, where: str) -> None:
    items.execute("CREATE INDEX ON items USING bq (code, small, number, large, single, double_)")
    items.execute("SET bq.probes = 65536")
    assert_same(items, where, q)


def test_comparison_with_null(items: Conn, q: Query) -> None:
    items.execute("CREATE INDEX ON items USING bq (code, number)")
    items.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
    items.execute(
        "PREPARE n(int, bqquery) AS SELECT id FROM items WHERE number = $1"
        " ORDER BY code <=> $2 LIMIT 5"
    )
    assert items.execute(f"EXECUTE n(NULL, '{q.to_text()}')").fetchall() == []
    assert len(items.execute(f"EXECUTE n(3, '{q.to_text()}')").fetchall()) == 5


def test_nulls_of_the_first_column(items: Conn, q: Query) -> None:
    """Rows without a code are not in the index: IS NULL is not its question, IS NOT NULL is."""
    items.execute("UPDATE items SET code = NULL WHERE id < 100")
    items.execute("CREATE INDEX ON items USING bq (code, number)")
    items.execute("SET enable_seqscan = off; SET enable_sort = off; SET bq.probes = 65536")
    order = f"ORDER BY code <=> '{q.to_text()}'"
    for where, count in [
        ("code IS NULL", 100),
        ("code IS NOT NULL", ROWS - 100),
        ("code IS NOT NULL AND number IS NULL", (ROWS + 12) // 13 - 8),
    ]:
        assert len(items.execute(f"SELECT id FROM items WHERE {where} {order}").fetchall()) == count


def test_keys_follow_their_rows(conn: Conn, q: Query, rng: np.random.Generator) -> None:
    """Inserted, updated, deleted, vacuumed, moved to other lists."""
    create_items(conn)
    conn.execute("CREATE INDEX items_code ON items USING bq (code, number, name) WITH (lists = 20)")
    conn.execute("SET bq.probes = 65536")

    def same() -> None:
        check(conn, "items_code")
        for where in ("number = 3", "number IS NULL", "name = 'ab' AND number < 5", "number = 77"):
            assert_same(conn, where, q)

    same()
    codes = Quantizer(DIM, 0).encode(random_vectors(rng, 500, DIM))
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO items (id, code, number, name) VALUES (%s, %s, %s, %s)",
            [
                (ROWS + i, Code(c), value_of("number", i), value_of("name", i + 1))
                for i, c in enumerate(codes)
            ],
        )
    same()
    conn.execute("UPDATE items SET number = 77 WHERE id % 17 = 3")
    same()
    conn.execute("DELETE FROM items WHERE id % 5 = 1")
    conn.execute("VACUUM items")
    same()
    conn.execute("INSERT INTO items SELECT * FROM items")
    conn.execute("VACUUM items")
    same()
    conn.execute("REINDEX INDEX items_code")
    same()


def test_narrow_filters_find_their_rows_by_default(
    items: Conn, q: Query, rng: np.random.Generator
) -> None:
    """However far from the query: lists are read until LIMIT is filled."""
    items.execute("UPDATE items SET number = 4711 WHERE id IN (5, 77, 1234)")
    items.execute(
        "CREATE INDEX items_code ON items USING bq (code, number) WITH (lists = 100, probes = 1)"
    )
    for vector in random_vectors(rng, 5, DIM):
        right = operand("<=>", vector)
        assert isinstance(right, Query)
        found = rows_by(items, "index", "number = 4711", right, "LIMIT 10")
        assert found == rows_by(items, "sort", "number = 4711", right, "LIMIT 10")
        assert len(found) == 3


def test_rows_that_do_not_match_are_not_fetched(items: Conn, q: Query) -> None:
    items.execute("CREATE INDEX items_code ON items USING bq (code, number)")
    items.execute("ANALYZE items")
    items.execute("SET enable_seqscan = off")
    query = "SELECT id FROM items WHERE number = 3 AND id > 0 ORDER BY code <=> %s LIMIT 10"
    node = measure_scan(items, query, (q,))
    assert node["Index Cond"] == "(number = 3)"
    assert node.get("Rows Removed by Filter", 0) == 0
    assert node.get("Rows Removed by Index Recheck", 0) == 0


@pytest.mark.parametrize(
    "columns, message",
    [
        ("number", "must have vectors or codes"),
        ("number, code", "must have vectors or codes"),
        ("code, code", "has no type to filter by"),
        (
            "code, "
            + ", ".join(["flag", "small", "number", "large", "reg", "single", "day"])
            + ", name, mood",
            "cannot have more than 8 filter columns",
        ),
    ],
)
def test_columns_that_cannot_be(items: Conn, columns: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message) as error:
        items.execute(f"CREATE INDEX ON items USING bq ({columns})")
    assert error.value.sqlstate in ("0A000", "54000")


def test_json_has_no_keys(items: Conn) -> None:
    items.execute("ALTER TABLE items ADD extra jsonb")
    with pytest.raises(psycopg.errors.UndefinedObject, match="no default operator class"):
        items.execute("CREATE INDEX ON items USING bq (code, extra)")
