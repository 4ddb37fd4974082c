"""Logical replication of tables with indexes of bq between versions of PostgreSQL.

Of codes within one server: tests/server/test_replication.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    COSINE,
    Column,
    assert_index_equals_sort,
    check,
    clustered_vectors,
    connect,
    info,
    random_vectors,
    wait_for,
)
from psycopg import sql
from shared import SEED, Conn

import pybq

DIM, ROWS, TRANSFORM = 32, 3000, 7
SECONDS = 120  # at most, for what is waited for

TABLE = f"""
CREATE TABLE items (id int PRIMARY KEY, other int, embedding vector({DIM}),
    half halfvec({DIM}), code bqvec({DIM}, {TRANSFORM}), query bqquery)
"""
VECTOR = f"(SELECT array_agg((sin(i * j) + i %% 7)::real) FROM generate_series(1, {DIM}) AS j)"
INSERT = f"""
INSERT INTO items
SELECT i, i %% 10, x, x, bq_encode(x, {TRANSFORM}), bq_query(x, {TRANSFORM})
FROM generate_series(%s::int, %s::int) AS i, LATERAL (SELECT {VECTOR} AS x) AS made
"""
CONTENTS = "SELECT md5(string_agg(items::text, ',' ORDER BY id)), count(*) FROM items"


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[dict[int, pybq.Server]]:
    if request.config.getoption("dsn") or request.config.getoption("bin"):
        pytest.skip("needs the embedded servers of both versions")
    with contextlib.ExitStack() as stack:
        yield {
            version: stack.enter_context(
                pybq.serve(postgres=version, settings={"wal_level": "logical"})
            )
            for version in (16, 18)
        }


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("old", "new"), [(16, 18), (18, 16)])
def test_subscriber_of_another_version(
    servers: dict[int, pybq.Server], old: int, new: int, binary: bool
) -> None:
    """What was there, what comes, changes and goes; and the subscriber's indexes have it all."""
    rng = np.random.default_rng(SEED)
    with connect(servers[old].dsn) as source, connect(servers[new].dsn) as target:
        for conn in (source, target):
            conn.execute("DROP TABLE IF EXISTS items")
            conn.execute(TABLE)
            conn.execute("CREATE INDEX items_code ON items USING bq (code, other)")
        # an index is not replicated: each server has those that it wants
        target.execute(
            "CREATE INDEX items_embedding ON items USING bq (embedding vector_cosine_ops)"
            " WITH (recall = 0.9)"
        )
        source.execute(INSERT, (1, ROWS))
        source.execute("DROP PUBLICATION IF EXISTS p")
        source.execute("CREATE PUBLICATION p FOR TABLE items")
        target.execute(
            sql.SQL("CREATE SUBSCRIPTION s CONNECTION {} PUBLICATION p WITH (binary = {})").format(
                servers[old].dsn, sql.Literal(binary)
            )
        )
        try:
            wait_for_same(source, target)
            source.execute(INSERT, (ROWS + 1, 2 * ROWS))
            vector = str(random_vectors(rng, 1, DIM)[0].tolist())
            source.execute(
                "UPDATE items SET embedding = %(v)s::vector, half = %(v)s::vector,"
                f" code = bq_encode(%(v)s::vector::real[], {TRANSFORM}) WHERE id %% 50 = 0",
                {"v": vector},
            )
            source.execute("UPDATE items SET query = NULL WHERE id % 60 = 1")
            source.execute("DELETE FROM items WHERE id % 3 = 0")
            wait_for_same(source, target)
        finally:
            target.execute("DROP SUBSCRIPTION s")
        target.execute("VACUUM ANALYZE items")
        (rows,) = target.execute("SELECT count(*) FROM items").fetchone() or (0,)
        assert rows == 2 * ROWS - 2 * ROWS // 3
        queries = clustered_vectors(rng, 3, DIM) + np.float32(0.01)
        columns: list[tuple[Column, int]] = [(CODES, TRANSFORM), (COSINE, 0)]
        for column, transform in columns:
            check(target, column.index)
            assert info(target, column.index)["live_rows"] == rows
            assert_index_equals_sort(target, queries, column=column, transform=transform)
        # codes are those that the other version would make
        different = f"bq_encode(embedding::real[], {TRANSFORM}) <> code"
        assert target.execute(f"SELECT count(*) FROM items WHERE {different}").fetchone() == (0,)


def wait_for_same(source: Conn, target: Conn) -> None:
    """Rows are compared as text, which loses nothing."""
    expected = source.execute(CONTENTS).fetchone()
    assert expected is not None
    wait_for(target, CONTENTS, expected, SECONDS)


def test_changes_need_a_key_of_another_index(servers: dict[int, pybq.Server]) -> None:
    """An index of bq cannot be what tells rows apart."""
    with connect(servers[18].dsn) as conn:
        conn.execute(f"CREATE TABLE keyless (id int, code bqvec({DIM}))")
        conn.execute("CREATE INDEX keyless_code ON keyless USING bq (code)")
        conn.execute("CREATE PUBLICATION of_keyless FOR TABLE keyless")
        with pytest.raises(psycopg.Error, match="does not have a replica identity"):
            conn.execute("DELETE FROM keyless")
        with pytest.raises(psycopg.Error, match="cannot use non-unique index"):
            conn.execute("ALTER TABLE keyless REPLICA IDENTITY USING INDEX keyless_code")
        conn.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
        conn.execute("DELETE FROM keyless")
