"""Logical replication of codes and queries, as text and in binary."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from indexlib import assert_index_equals_sort, check, info
from psycopg.conninfo import make_conninfo
from shared import SEED, Conn

import pybq
from pybq.psycopg import register_bq

TABLE = "CREATE TABLE items (id int PRIMARY KEY, code bqvec(70), query bqquery)"
INSERT = """
INSERT INTO items
SELECT i, bq_encode(x, 3), bq_query(x, 3)
FROM generate_series(%s::int, %s::int) AS i,
    LATERAL (SELECT array_agg(sin(i * j)::real) AS x FROM generate_series(1, 70) AS j) AS v
"""
CONTENTS = "SELECT string_agg(concat_ws(' ', id, code, query), ',' ORDER BY id) FROM items"
TIMEOUT = 60  # seconds


@pytest.fixture(scope="module")
def publisher(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server of its own: wal_level can be set at the start only."""
    if request.config.getoption("dsn"):
        pytest.skip("needs a server with wal_level = logical")
    settings = {"wal_level": "logical"}
    with pybq.serve(postgres=request.config.getoption("postgres"), settings=settings) as server:
        yield server.dsn


def connect(dsn: str, dbname: str) -> Conn:
    return psycopg.connect(make_conninfo(dsn, dbname=dbname), autocommit=True)


@pytest.mark.parametrize("binary", [False, True])
def test_subscriber_gets_the_same_values(publisher: str, binary: bool) -> None:
    suffix = "binary" if binary else "text"
    source_name, target_name, slot = f"source_{suffix}", f"target_{suffix}", f"slot_{suffix}"
    with connect(publisher, "postgres") as conn:
        for name in (source_name, target_name):
            conn.execute(f"CREATE DATABASE {name}")
    with connect(publisher, source_name) as source, connect(publisher, target_name) as target:
        for conn in (source, target):
            conn.execute("CREATE EXTENSION bq")
            conn.execute(TABLE)
        # of its own, but for the row that gets a code of another transform
        target.execute("CREATE INDEX items_code ON items USING bq (code) WHERE id <> 7")
        source.execute(INSERT, (1, 100))
        source.execute("CREATE PUBLICATION p FOR TABLE items")
        # made by hand: within one server, CREATE SUBSCRIPTION would wait for itself
        source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        target.execute(
            f"CREATE SUBSCRIPTION s CONNECTION '{make_conninfo(publisher, dbname=source_name)}'"
            f" PUBLICATION p WITH (create_slot = false, slot_name = '{slot}', binary = {binary})"
        )
        try:
            source.execute(INSERT, (101, 200))
            source.execute(
                "UPDATE items SET code = bq_encode(array_fill(0::real, ARRAY[70])) WHERE id = 7"
            )
            source.execute("UPDATE items SET query = NULL WHERE id = 107")
            source.execute("DELETE FROM items WHERE id IN (8, 108)")
            expected = source.execute(CONTENTS).fetchone()
            deadline = time.monotonic() + TIMEOUT
            while (found := target.execute(CONTENTS).fetchone()) != expected:
                assert time.monotonic() < deadline, f"expected {expected}, got {found}"
                time.sleep(0.05)
            register_bq(target)
            check(target, "items_code")
            assert info(target, "items_code")["live_rows"] >= 197
            vectors = np.random.default_rng(SEED).standard_normal((3, 70), np.float32)
            assert_index_equals_sort(target, vectors, transform=3, where="id <> 7")
        finally:
            target.execute("DROP SUBSCRIPTION s")
