"""Rows drawn at random: whose they are, and that they are the same each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared import Conn

import pybq
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.sample import sample_rows

N, DIM = 2000, 16

pytestmark = pytest.mark.usefixtures("vector")


@pytest.fixture
def table(conn: Conn, rng: np.random.Generator) -> pybq.Table:
    vectors = rng.standard_normal((N, DIM), dtype=np.float32)
    vectors[:10] = 0  # near to nothing by cosine distance
    conn.execute(f"CREATE TABLE items (a int, b text, v vector({DIM}), PRIMARY KEY (b, a))")
    conn.execute("INSERT INTO items VALUES (-1, 'null', NULL)")
    table = pybq.Table(conn, "items")
    table.ingest([(f"b{i % 7}", i) for i in range(N)], vectors)
    return table


def test_rows_are_the_same_each_time(conn: Conn, table: pybq.Table) -> None:
    db = BlockingDatabase(conn)
    keys, vectors = run(sample_rows(db, table._layout, 50))
    again, same = run(sample_rows(db, table._layout, 50))
    assert keys == again and len(set(keys)) == 50
    np.testing.assert_array_equal(vectors, same)
    stored = table.get(keys, vectors=True)
    np.testing.assert_array_equal(vectors, [row.vector for row in stored if row is not None])
    # from all of the table, not from its first rows
    assert max(i for _, i in keys) > N / 2


def test_rows_have_a_distance_from_others(conn: Conn, table: pybq.Table) -> None:
    keys, _ = run(sample_rows(BlockingDatabase(conn), table._layout, 2 * N))
    assert sorted(i for _, i in keys) == list(range(10, N))


def test_a_table_that_is_nearly_empty_gives_all_it_has(conn: Conn, table: pybq.Table) -> None:
    """Pages without rows are drawn as well; then all are read."""
    conn.execute("DELETE FROM items WHERE a < 1990")
    keys, _ = run(sample_rows(BlockingDatabase(conn), table._layout, 10))
    assert sorted(i for _, i in keys) == list(range(1990, N))


def test_a_small_table_is_read_once(conn: Conn, table: pybq.Table) -> None:
    read = []

    class Counting(BlockingDatabase):
        async def fetch(self, statement: Any, parameters: Any = None) -> Any:
            read.append(parameters)
            return await super().fetch(statement, parameters)

    keys, _ = run(sample_rows(Counting(conn), table._layout, 2 * N))
    assert len(keys) == N - 10 and read.count([2 * N]) == 1
