"""Many lists: groups of them are ranked first, and lists of the nearest groups only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from databases import Databases
from indexlib import (
    CODES,
    HALF_COSINE,
    Column,
    Places,
    assert_index_equals_sort,
    by_index,
    by_sort,
    check,
    connect,
    create,
    create_index,
    damage,
    info,
    insert,
    measure_scan,
    of_columns,
    prepare,
    provide_items,
    some_queries,
    statement,
)
from shared import Conn, Vectors

import pybq

DIM = 8
ROWS = 9000
LISTS = 6000
LARGE_RUN = 4096  # lists of a run of the directory from which on it has groups

each_column = of_columns(CODES, HALF_COSINE)


def draw(rng: np.random.Generator, n: int) -> Vectors:
    return rng.standard_normal((n, DIM)).astype(np.float32)


def find_share(conn: Conn, column: Column, queries: Vectors) -> float:
    """Recall@10 by 100 of 6,000 lists, as if there was nothing to re-rank."""
    operators = column.operators[1:] or column.operators  # not Hamming's, which has ties
    found = 0
    for vector in queries:
        for operator in operators:
            q = column.operand(operator, vector)
            expected = by_sort(conn, operator, q, limit=10, column=column)
            rows = by_index(conn, operator, q, limit=10, probes=100, column=column)
            found += len({i for i, _ in expected} & {i for i, _ in rows})
    return found / (10 * len(queries) * len(operators))


@pytest.fixture(scope="module", params=[CODES, HALF_COSINE], ids=lambda column: column.type)
def column(request: pytest.FixtureRequest) -> Column:
    column: Column = request.param
    return column


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases, column: Column) -> Iterator[str]:
    vectors = draw(np.random.default_rng(1), ROWS)
    options = f"lists = {LISTS}"
    with provide_items(databases_of_tests, vectors, options, column) as dsn:
        yield dsn


def test_all_lists_are_found(items: Conn, column: Column, rng: np.random.Generator) -> None:
    check(items, column.index)
    assert info(items, column.index)["lists"] == LISTS
    assert_index_equals_sort(items, some_queries(rng, draw(rng, 1)), column=column)


def test_the_nearest_lists_are_in_the_nearest_groups(
    items: Conn, column: Column, rng: np.random.Generator
) -> None:
    assert find_share(items, column, draw(rng, 20)) >= 0.85


def test_a_scan_has_no_memory_for_all_lists(items: Conn, column: Column) -> None:
    operator = column.operators[-1]
    q = column.operand(operator, np.ones(DIM, np.float32))
    memory = "SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name = 'bq scan'"
    with items.transaction():
        items.execute("SET LOCAL enable_seqscan = off; SET LOCAL bq.probes = 10")
        query = statement(operator, "items", "true", None, column).replace("%(q)s", "%s")
        with items.cursor(name="scan") as cursor:
            cursor.execute(query, [q, q])
            cursor.fetchmany(10)
            (nbytes,) = items.execute(memory).fetchone() or (0,)
    assert 0 < nbytes < 12 * LISTS


def test_more_lists_are_ranked_as_more_rows_are_wanted(
    items: Conn, column: Column, rng: np.random.Generator
) -> None:
    operator = column.operators[-1]
    q = column.operand(operator, draw(rng, 1)[0])
    with items.transaction():
        items.execute("SET LOCAL enable_seqscan = off; SET LOCAL bq.probes = 10")
        few, many = (
            measure_scan(items, statement(operator, "items", "true", limit, column), {"q": q})
            for limit in (10, 5000)
        )
    assert many["Actual Rows"] == 5000
    if items.info.server_version >= 180000:
        assert few["Lists Read"] < 200 and many["Lists Read"] > 3000


@each_column
def test_lists_that_vacuum_makes_are_found(
    own_server: pybq.Server, column: Column, rng: np.random.Generator
) -> None:
    """Those of a run that has groups, together and by ones and twos, and those of smaller runs."""
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, draw(rng, 1), nulls=0, column=column)
        create_index(conn, column, f"lists = {LISTS}")
        conn.execute("VACUUM items")
        rows = draw(rng, ROWS)
        insert(conn, rows, first=1, column=column)
        conn.execute("VACUUM items")
        lists = info(conn, column.index)["lists"]
        assert LARGE_RUN + 64 < lists <= LISTS
        check(conn, column.index)
        # lists that grow are split in two or three
        insert(conn, np.repeat(rows[:50], 40, axis=0), first=ROWS + 1, column=column)
        conn.execute("VACUUM items")
        check(conn, column.index)
        assert_index_equals_sort(conn, rows[:1], column=column, limit=200)
        assert find_share(conn, column, draw(rng, 20)) >= 0.85


def test_check_finds_a_damaged_group(own_server: pybq.Server, rng: np.random.Generator) -> None:
    with connect(own_server.dsn) as conn:
        create(conn, draw(rng, ROWS), nulls=0)
        create_index(conn, options=f"lists = {LISTS}")
        check(conn, "items_code")
    damage(own_server, ("items_code", *Places(DIM, LISTS).group_factor(), b"\0\0\xc0\x7f"))
    with connect(own_server.dsn) as conn:
        with pytest.raises(psycopg.errors.IndexCorrupted, match="group 0 of lists has factor NaN"):
            check(conn, "items_code")
        assert_index_equals_sort(conn, draw(rng, 1), limit=100)
