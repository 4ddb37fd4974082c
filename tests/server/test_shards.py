"""Partitions on other servers, by postgres_fdw: what is sent to them, and what comes back.

`make test-shards` has a server for each; with --dsn, which CI gives, they are databases of one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from databases import Databases
from indexlib import clustered_vectors, explain
from psycopg.conninfo import conninfo_to_dict
from shared import SEED, Conn, Vectors, exact_distances

import pybq

DIM, ROWS, SHARDS = 32, 6000, 3


class Cluster:
    """A coordinator, and shards that each have a part of the rows in an indexed table."""

    def __init__(self, coordinator: str, shards: list[str], stop: Callable[[int], Any]) -> None:
        self.coordinator, self.shards, self.stop = coordinator, shards, stop


def run(conn: Conn, *statements: str) -> None:
    for statement in statements:
        conn.execute(statement.encode())


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    vectors = clustered_vectors(np.random.default_rng(SEED), ROWS, DIM)
    vectors[~vectors.any(axis=1)] = 1  # those of norm 0 have no distance
    return vectors


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, vectors: Vectors) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        dsns: list[str] = []
        servers: list[pybq.Server] = []
        if request.config.getoption("bin"):
            postgres = request.config.getoption("postgres")
            for _ in range(SHARDS + 1):
                servers.append(pybq.serve(postgres=postgres, settings={"shared_buffers": "64MB"}))
                stack.callback(servers[-1].stop, "immediate")
                dsns.append(servers[-1].dsn)
        else:
            databases: Databases = request.getfixturevalue("databases_of_tests")
            for _ in range(SHARDS + 1):
                dsns.append(stack.enter_context(databases.provide_filled(lambda conn: None)))
        with psycopg.connect(dsns[0], autocommit=True) as conn:
            available = "SELECT count(*) FROM pg_available_extensions WHERE name = ANY(%s)"
            wanted = ["postgres_fdw", "vector"]
            if conn.execute(available, (wanted,)).fetchone() != (2,):
                pytest.skip("the server has no postgres_fdw, or no pgvector")

        def stop(shard: int) -> None:
            if servers:
                servers[shard + 1].stop()
                return
            name = conninfo_to_dict(dsns[shard + 1])["dbname"]
            with psycopg.connect(dsns[0], autocommit=True) as conn:
                run(conn, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
                conn.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = %s",
                    (name,),
                )

        for shard in dsns[1:]:
            with psycopg.connect(shard, autocommit=True) as conn:
                run(
                    conn,
                    "CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE",
                    f"CREATE TABLE items (id bigint PRIMARY KEY, kind int, v vector({DIM}))",
                    "CREATE INDEX items_v ON items USING bq (v vector_cosine_ops, kind)",
                )
        with psycopg.connect(dsns[0], autocommit=True) as conn:
            run(
                conn,
                "CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE",
                "CREATE EXTENSION postgres_fdw",
                f"CREATE TABLE items (id bigint, kind int, v vector({DIM}))"
                " PARTITION BY RANGE (id)",
            )
            for i, shard in enumerate(dsns[1:]):
                with psycopg.connect(shard) as other:
                    known, user = other.info, other.info.user
                    place = f"host '{known.host}', port '{known.port}', dbname '{known.dbname}'"
                low, high = i * ROWS // SHARDS, (i + 1) * ROWS // SHARDS
                run(
                    conn,
                    f"CREATE SERVER shard_{i} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({place},"
                    " extensions 'vector, bq, bq_pgvector', async_capable 'true')",
                    f"CREATE USER MAPPING FOR CURRENT_USER SERVER shard_{i}"
                    f" OPTIONS (user '{user}')",
                    f"CREATE FOREIGN TABLE items_{i} PARTITION OF items FOR VALUES FROM ({low})"
                    f" TO ({high}) SERVER shard_{i} OPTIONS (table_name 'items')",
                )
            table = pybq.Table(conn, "items", key="id")
            kinds = np.arange(ROWS) % 5
            assert table.ingest(range(ROWS), vectors, {"kind": kinds}) == ROWS
        for shard in dsns[1:]:
            with psycopg.connect(shard, autocommit=True) as conn:
                run(conn, "VACUUM ANALYZE items")
        yield Cluster(dsns[0], dsns[1:], stop)


@pytest.fixture
def local(cluster: Cluster) -> Iterator[Conn]:
    with psycopg.connect(cluster.coordinator, autocommit=True) as conn:
        yield conn


def nearest(vectors: Vectors, query: Vectors, k: int = 10) -> list[int]:
    return [int(i) for i in np.argsort(exact_distances("cosine", vectors, query))[:k]]


def ask_remote(dsn: str, statement: str) -> str:
    """The plan of what a shard is sent."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return explain(conn, statement)


UNION = "SELECT * FROM ({} OFFSET 0) AS parts ORDER BY distance LIMIT 10".format(
    " UNION ALL ".join(
        f"(SELECT id, v <=> %(q)s::vector AS distance FROM items_{i}"
        " ORDER BY v <=> %(q)s::vector LIMIT 10)"
        for i in range(SHARDS)
    )
)


def test_each_shard_is_sent_order_and_limit(
    local: Conn, cluster: Cluster, vectors: Vectors
) -> None:
    """All at the same time, and each answers by its index."""
    query = {"q": str((vectors[7] + np.float32(0.1)).tolist())}
    plan = explain(local, UNION, query, "VERBOSE, COSTS OFF")
    assert plan.count("Async Foreign Scan") == SHARDS
    remote = re.findall(r"Remote SQL: (.*)", plan)
    assert len(remote) == SHARDS
    for dsn, statement in zip(cluster.shards, remote, strict=True):
        assert re.search(r" ORDER BY .* LIMIT 10::bigint$", statement)
        assert "Index Scan using items_v on" in ask_remote(dsn, statement)
    # a flat query is sent its order, but no LIMIT
    flat = "SELECT id FROM items ORDER BY v <=> %(q)s::vector LIMIT 10"
    plan = explain(local, flat, query, "VERBOSE, COSTS OFF")
    assert "Merge Append" in plan and plan.count("ORDER BY") == SHARDS
    assert "LIMIT" not in plan
    # which a shard takes its index for if it expects few rows to be fetched
    remote = re.findall(r"Remote SQL: (.*)", plan)
    for dsn, statement in zip(cluster.shards, remote, strict=True):
        with psycopg.connect(dsn) as conn:
            run(conn, "SET cursor_tuple_fraction = 1e-9")
            plan = explain(conn, f"DECLARE c CURSOR FOR {statement}")
        assert "Index Scan using items_v on" in plan


def test_table_finds_what_is_nearest_on_any_shard(
    local: Conn, cluster: Cluster, vectors: Vectors
) -> None:
    table = pybq.Table(local, "items", key="id")
    recalls = []
    for query in vectors[11::200] + np.float32(0.05):
        hits = table.search(query, k=10)
        truth = exact_distances("cosine", vectors, query)
        assert np.allclose(
            [hit.distance for hit in hits], truth[[hit.id for hit in hits]], atol=1e-6
        )
        reach = truth[nearest(vectors, query)[-1]]
        recalls.append(np.mean([truth[hit.id] <= reach + 1e-6 for hit in hits]))
    assert np.mean(recalls) > 0.97
    assert table.search(vectors[[20, 4000]], k=1, output="numpy").ids.shape == (2, 1)
    found = table.search(vectors[20], k=4, where="kind = 3", columns=["kind"])
    assert [hit["kind"] for hit in found] == [3] * 4


def test_search_asks_only_shards_that_may_have_rows(
    local: Conn, cluster: Cluster, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pybq.Table(local, "items", key="id")
    asked: list[Any] = []
    fetch = table._db.fetch

    def note(query: Any, parameters: Any = ()) -> Any:
        asked.append(query)
        return fetch(query, parameters)

    monkeypatch.setattr(table._db, "fetch", note)
    search = {"where": "items.id < %(most)s", "parameters": {"most": 1500}}
    for _ in range(8):  # psycopg prepares statements after some
        found = table.search(vectors[9], k=5, **cast(Any, search))
        assert all(hit.id < 1500 for hit in found) and len(found) == 5
        assert re.findall(r'"items_\d"', asked[-1]) == ['"items_0"']
    later = {"where": "items.id < %(most)s AND id >= 1900", "parameters": {"most": 4500}}
    found = table.search(vectors[9], k=1000, **cast(Any, later))
    assert all(1900 <= hit.id < 4500 for hit in found) and len(found) == 1000
    assert set(re.findall(r'"items_\d"', asked[-1])) == {'"items_0"', '"items_1"', '"items_2"'}
    found = table.search(vectors[9], k=5, where="kind % 5 = 3", columns=["kind"])
    assert [hit["kind"] for hit in found] == [3] * 5
    assert table.search(vectors[9], where="id < 0") == []


def test_table_writes_reads_and_measures(local: Conn, vectors: Vectors) -> None:
    from pybq._tables.recall import measure_recall

    table = pybq.Table(local, "items", key="id")
    (there, missing) = table.get([4321, 10**6], vectors=True)
    assert there is not None and missing is None
    assert np.array_equal(cast(Any, there.vector), vectors[4321])  # text loses nothing
    assert table.delete([4321, 4322]) == 2
    assert table.get([4321]) == [None]
    assert table.ingest([4321, 4322], vectors[4321:4323], {"kind": [1, 2]}) == 2
    assert table.count() == ROWS
    (found,) = measure_recall(table, sample=5)
    assert found.recall > 0.9
    assert table.status().advice is None


def test_what_a_sharded_table_cannot_do_says_what_to_do(local: Conn, vectors: Vectors) -> None:
    with pytest.raises(pybq.TableError, match="say with key which columns tell them apart"):
        pybq.Table(local, "items")
    table = pybq.Table(local, "items", key="id")
    with pytest.raises(pybq.TableError, match="are: make them there"):
        table.create_index()
    for option in ({"recall": 0.9}, {"probes": 3}):
        with pytest.raises(pybq.TableError, match=r"OPTIONS \(options '-c bq.recall=0.99'\)"):
            table.search(vectors[0], **cast(Any, option))
    with pytest.raises(pybq.TableError, match="is on another server; adopt it there"):
        pybq.adopt(local, "items")
    with pytest.raises(pybq.TableError, match="no column 'ids', which key names"):
        pybq.Table(local, "items", key="ids")


def test_a_partition_that_is_attached_is_searched(local: Conn, vectors: Vectors) -> None:
    """By tables that were opened before."""
    table = pybq.Table(local, "items", key="id")
    assert table.search(vectors[0], k=1)
    run(
        local,
        f"CREATE TABLE later (id bigint, kind int, v vector({DIM}))",
        "INSERT INTO later SELECT 10000000, 1, v FROM items WHERE id = 3",
        "ALTER TABLE items ATTACH PARTITION later FOR VALUES FROM (10000000) TO (20000000)",
    )
    assert {hit.id for hit in table.search(vectors[3], k=2)} >= {10000000}
    run(local, "ALTER TABLE items DETACH PARTITION later", "DROP TABLE later")
    assert 10000000 not in {hit.id for hit in table.search(vectors[3], k=2)}


def test_a_shard_that_is_down_is_named(local: Conn, cluster: Cluster, vectors: Vectors) -> None:
    """The last test of this file: the shard stays down."""
    table = pybq.Table(local, "items", key="id")
    cluster.stop(1)
    with pytest.raises(psycopg.Error, match='could not connect to server "shard_1"') as raised:
        table.search(vectors[0])
    assert raised.value.sqlstate == "08001"
    # what needs no row of it is answered
    assert len(table.search(vectors[0], where="id < 1000")) == 10
