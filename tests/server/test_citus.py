"""Tables that Citus distributes: a coordinator and two workers, each a server of its own.

`make test-citus PG_CONFIG=...` runs this on a server that has Citus.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from databases import need_library
from indexlib import clustered_vectors, run_threads
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shared import SEED, Conn, Vectors, exact_distances

import pybq
from pybq import Quantizer
from pybq._catalog.database import BlockingDatabase
from pybq._catalog.size import count_pages, estimate_rows
from pybq._tables.exact import find_nearest
from pybq._tables.recall import measure_recall

DIM, ROWS, SHARDS, TENANTS = 32, 8000, 4, 3
LISTS = 30  # of an index
DATABASE = "cluster"
RECALL = 0.9  # that indexes are made with


class Cluster:
    """The servers, and how to connect to their databases; the first is the coordinator."""

    def __init__(self, servers: list[pybq.Server]) -> None:
        self.servers = servers
        self.dsns = [make_conninfo(server.dsn, dbname=DATABASE) for server in servers]
        places = [conninfo_to_dict(server.dsn) for server in servers]
        self.nodes = [(str(place["host"]), int(str(place["port"]))) for place in places]

    def connect(self, node: int = 0) -> Conn:
        return psycopg.connect(self.dsns[node], autocommit=True)


def rows(conn: Conn, statement: str, parameters: Any = None) -> list[Any]:
    """The rows of a statement; if they have one column, its values."""
    cursor = conn.execute(statement.encode(), parameters)
    if cursor.description is None:
        return []
    found = cursor.fetchall()
    return [row[0] for row in found] if len(cursor.description) == 1 else found


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[list[pybq.Server]]:
    need_library(request.config, "citus", "test-citus")
    settings: dict[str, Any] = {
        "shared_preload_libraries": "citus",
        "wal_level": "logical",  # shards are moved beside writers
        "shared_buffers": "64MB",
        "citus.shard_count": SHARDS,
    }
    postgres = request.config.getoption("postgres")
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(3):
            started.append(pybq.serve(postgres=postgres, settings=settings))
            stack.callback(started[-1].stop, "immediate")
        yield started


@pytest.fixture(scope="module")
def cluster(servers: list[pybq.Server]) -> Cluster:
    cluster = Cluster(servers)
    for server, (host, _) in zip(servers, cluster.nodes, strict=True):
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            # by which a node reaches itself, when it copies shards
            rows(conn, f"ALTER SYSTEM SET citus.local_hostname = '{host}'")
            # which minor releases since 2026 ask for
            plugins = "SELECT 1 FROM pg_settings WHERE name = 'output_plugin_libraries'"
            if rows(conn, plugins):
                rows(conn, "ALTER SYSTEM SET output_plugin_libraries = 'citus', 'pgoutput'")
            rows(conn, "SELECT pg_reload_conf()")
            rows(conn, f"CREATE DATABASE {DATABASE}")
    for node in range(3):
        with cluster.connect(node) as conn:
            rows(conn, "CREATE EXTENSION citus")
    with cluster.connect() as conn:
        rows(conn, "SELECT citus_set_coordinator_host(%s, %s)", cluster.nodes[0])
        for node in cluster.nodes[1:]:
            rows(conn, "SELECT citus_add_node(%s, %s)", node)
        rows(conn, "CREATE EXTENSION bq_pgvector CASCADE")
    return cluster


@pytest.fixture
def conn(cluster: Cluster) -> Iterator[Conn]:
    """To the coordinator."""
    with cluster.connect() as conn:
        yield conn


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    vectors = clustered_vectors(np.random.default_rng(SEED), ROWS, DIM)
    vectors[~vectors.any(axis=1)] = 1  # those of norm 0 have no distance
    return vectors


@pytest.fixture(scope="module")
def filled(cluster: Cluster, vectors: Vectors) -> Cluster:
    """With `items`, distributed by id, and `documents`, by tenant; both not to be written to."""
    with cluster.connect() as conn:
        create_items(conn, vectors)
        rows(
            conn,
            f"CREATE TABLE documents (tenant int, id bigint, v halfvec({DIM}),"
            " PRIMARY KEY (tenant, id))",
        )
        rows(conn, "SELECT create_distributed_table('documents', 'tenant')")
        table = pybq.Table(conn, "documents", metric="l2")
        keys = [(i % TENANTS, i) for i in range(ROWS)]
        assert table.ingest(keys, vectors) == ROWS
        table.create_index(recall=RECALL)
        rows(conn, "VACUUM ANALYZE documents")
    return cluster


def create_items(conn: Conn, vectors: Vectors, name: str = "items") -> None:
    rows(conn, f"CREATE TABLE {name} (id bigint PRIMARY KEY, kind int, v vector({DIM}))")
    # shards of tables that belong together move together
    rows(conn, f"SELECT create_distributed_table('{name}', 'id', colocate_with := 'none')")
    index_items(conn, name)
    kinds = np.arange(len(vectors)) % 5
    written = pybq.Table(conn, name).ingest(range(len(vectors)), vectors, {"kind": kinds})
    assert written == len(vectors)
    rows(conn, f"VACUUM ANALYZE {name}")


def index_items(conn: Conn, name: str) -> None:
    rows(
        conn,
        f"CREATE INDEX {name}_v ON {name} USING bq (v vector_cosine_ops, kind)"
        f" WITH (recall = {RECALL}, lists = {LISTS})",
    )


def ask_shards(conn: Conn, table: str, command: str) -> list[str]:
    """What each shard answers, in which %s stands for its table."""
    found = rows(
        conn, "SELECT success, result FROM run_command_on_shards(%s, %s)", (table, command)
    )
    assert all(success for success, _ in found), found
    return [result for _, result in found]


# of a shard's table: each of its indexes of bq
INDEXES = "pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = '%s'::regclass"
OF_BQ = f"{INDEXES} AND relam = (SELECT oid FROM pg_am WHERE amname = 'bq')"


def ask_indexes(conn: Conn, table: str, wanted: str) -> list[Any]:
    """What is asked of the one index of bq that each shard has."""
    found = ask_shards(conn, table, f"SELECT json_agg({wanted}) FROM {OF_BQ}")
    answers = [json.loads(each) for each in found]
    assert all(len(answer) == 1 for answer in answers), answers
    return [answer[0] for answer in answers]


def explain(conn: Conn, statement: str, parameters: Any = None) -> list[dict[str, Any]]:
    """The plan of each shard's task.

    With parameters written into the statement: those of others Citus cannot explain.
    """
    with conn.transaction(force_rollback=True), psycopg.ClientCursor(conn) as cursor:
        rows(conn, "SET LOCAL citus.explain_all_tasks = on")
        cursor.execute(f"EXPLAIN (FORMAT JSON, COSTS OFF) {statement}".encode(), parameters)
        ((found,),) = cursor.fetchall()
    return list(_find_tasks(found[0]["Plan"]))


def _find_tasks(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for subplan in plan.get("Distributed Query", {}).get("Subplans", ()):
        for one in subplan["PlannedStmt"]:
            yield from _find_tasks(one["Plan"])
    for task in plan.get("Distributed Query", {}).get("Job", {}).get("Tasks", ()):
        for (one,) in task.get("Remote Plan", ()):
            yield one["Plan"]
    for part in plan.get("Plans", ()):
        yield from _find_tasks(part)


def assert_by_index(task: dict[str, Any], index: str, condition: str | None = None) -> None:
    """A LIMIT over a scan of the shard's index, and nothing that sorts."""
    assert task["Node Type"] == "Limit", task
    (scan,) = task["Plans"]
    assert scan["Node Type"] == "Index Scan", scan
    assert re.fullmatch(rf"{index}_\d+", scan["Index Name"])
    assert "Order By" in scan
    assert condition is None or condition in scan["Index Cond"]


def share(hits: Any, vectors: Vectors, query: Vectors) -> float:
    """Of the nearest rows by cosine distance, those among ten hits; of equally near ones any."""
    assert len(hits) == 10
    truth = exact_distances("cosine", vectors, query)
    reach = np.sort(truth)[len(hits) - 1]
    ids = [hit.id[0] if isinstance(hit.id, tuple) else hit.id for hit in hits]
    assert len(set(ids)) == len(ids)
    return float(np.mean(truth[ids] <= reach + 1e-6))


QUERY = "%(q)s::vector"
FLAT = f"SELECT id FROM items {{}} ORDER BY v <=> {QUERY} LIMIT 10"


def test_extensions_come_to_the_workers(cluster: Cluster) -> None:
    """CREATE EXTENSION on the coordinator is enough, if it has its workers by then."""
    for node in range(3):
        with cluster.connect(node) as conn:
            found = rows(conn, "SELECT extname FROM pg_extension WHERE extname LIKE 'bq%%'", ())
            assert set(found) == {"bq", "bq_pgvector"}


def test_each_shard_is_sent_order_and_limit(filled: Cluster, conn: Conn, vectors: Vectors) -> None:
    query = {"q": str((vectors[7] + np.float32(0.1)).tolist())}
    tasks = explain(conn, FLAT.format(""), query)
    assert len(tasks) == SHARDS
    for task in tasks:
        assert_by_index(task, "items_v")
    # a condition on a column of the index is answered inside it
    tasks = explain(conn, FLAT.format("WHERE kind = 3"), query)
    assert len(tasks) == SHARDS
    for task in tasks:
        assert_by_index(task, "items_v", "kind = 3")


def test_a_query_of_one_tenant_goes_to_one_shard(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    query = {"q": str(vectors[7].tolist())}
    flat = f"SELECT id FROM documents WHERE tenant = 1 ORDER BY v <-> {QUERY}::halfvec LIMIT 10"
    (task,) = explain(conn, flat, query)
    assert_by_index(task, "documents_v_idx")
    found = pybq.Table(conn, "documents").search(vectors[7], where="tenant = 1")
    assert len(found) == 10 and all(hit.id[0] == 1 for hit in found)


def test_all_together_find_as_much_as_one_table(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    """At the same recall asked for, in the same order of distance."""
    rows(conn, "CREATE TABLE one (id bigint PRIMARY KEY, kind int, v vector(32))")
    one = pybq.Table(conn, "one")
    one.ingest(range(ROWS), vectors, {"kind": np.arange(ROWS) % 5})
    index_items(conn, "one")
    items = pybq.Table(conn, "items")
    found: dict[str, list[float]] = {"one": [], "items": []}
    for query in vectors[11::100] + np.float32(0.05):
        for table in (one, items):
            hits = table.search(query)
            distances = [hit.distance for hit in hits]
            assert distances == sorted(distances)
            found[table.name].append(share(hits, vectors, query))
    print({name: np.mean(shares) for name, shares in found.items()})
    assert np.mean(found["items"]) >= np.mean(found["one"])
    rows(conn, "DROP TABLE one")


def test_values_come_back_as_they_were_copied(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    """Vectors in binary, by COPY through the coordinator."""
    table = pybq.Table(conn, "items")
    for id, row in zip((0, 17, ROWS - 1), table.get([0, 17, ROWS - 1], vectors=True), strict=True):
        assert row is not None and np.array_equal(row.vector, vectors[id])
        assert row["kind"] == id % 5
    with conn.cursor().copy("COPY items (id, v) TO STDOUT") as copy:
        copied = {int(id): v for id, v in (line.split("\t") for line in _lines(copy))}
    assert len(copied) == ROWS
    assert np.array_equal(np.float32(json.loads(copied[17])), vectors[17])


def _lines(copy: psycopg.Copy) -> list[str]:
    return b"".join(bytes(data) for data in copy).decode().splitlines()


def test_rows_are_measured_and_counted_on_the_shards(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    table = pybq.Table(conn, "items")
    status = table.status()
    (index,) = status.indexes
    told = ask_indexes(conn, "items", "(SELECT to_json(i) FROM bq_index_info(indexrelid) AS i)")
    assert index.live_rows == sum(one["live_rows"] for one in told) == ROWS == status.row_count
    assert index.lists == sum(one["lists"] for one in told) == SHARDS * LISTS
    assert index.options == {"recall": str(RECALL), "lists": str(LISTS)}
    sizes = ask_shards(conn, "items", f"SELECT pg_relation_size(indexrelid) FROM {OF_BQ}")
    assert index.nbytes == sum(map(int, sizes))
    db = BlockingDatabase(conn)
    assert run_now(estimate_rows(db, table._layout)) == ROWS
    pages = ask_shards(
        conn, "items", "SELECT pg_relation_size('%s') / current_setting('block_size')::int"
    )
    assert run_now(count_pages(db, table._layout)) == sum(map(int, pages)) > SHARDS
    # what judges a search is not what the index finds
    for query in vectors[3:9] + np.float32(0.05):
        with conn.transaction():
            rows(conn, "SET LOCAL citus.propagate_set_commands = 'local'")
            rows(conn, "SET LOCAL bq.recall = 0.01")
            exact = find_nearest(db, table._layout, query, 100)
        reach = np.sort(exact_distances("cosine", vectors, query))[:100]
        assert np.allclose(exact.distances, reach, atol=1e-6)
    least, *_, most = measure_recall(
        table, vectors[5::200] + np.float32(0.05), 10, 40, [], [0.1, 1 - 1e-6]
    )
    assert least.recall < most.recall and most.recall > 0.99


def run_now(coroutine: Any) -> Any:
    from pybq._catalog.database import run

    return run(coroutine)


# -- how much is found ----------------------------------------------------------------------

# each task says it of the server that it runs on
SETTING = "SELECT DISTINCT current_setting('bq.recall', true) FROM items"


def test_recall_of_a_search_reaches_the_workers(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    table = pybq.Table(conn, "items")

    def find(setting: str, **options: Any) -> int:
        where = f"current_setting('bq.recall', true) = '{setting}'"
        return len(table.search(vectors[3], k=20, where=where, **options))

    assert find("0.77", recall=0.77) == 20
    assert find("0.78", recall=0.77) == 0
    assert find("0.77") == 0
    # nor does it stay in a transaction that goes on
    with conn.transaction():
        assert find("0.77", recall=0.77) == 20
        assert find("0.77") == 0
        assert find("0.55", recall=0.55) == 20
    # a condition that the index does not answer lets it go on until there are enough
    found = table.search(
        vectors[3],
        k=20,
        where="current_setting('bq.iterative_scan', true) = 'relaxed_order'",
    )
    assert len(found) == 20


def test_what_makes_a_setting_known_to_workers(filled: Cluster, conn: Conn) -> None:
    """As docs/growing.md says; SET alone does not."""
    before = rows(conn, SETTING)
    rows(conn, "SET bq.recall = 0.5")
    assert rows(conn, SETTING) == before
    with conn.transaction():
        rows(conn, "SET LOCAL citus.propagate_set_commands = 'local'")
        rows(conn, "SET LOCAL bq.recall = 0.61")
        assert rows(conn, SETTING) == ["0.61"]
    assert rows(conn, SETTING) == before
    for whose in ("ROLE postgres", f"DATABASE {DATABASE}"):
        rows(conn, f"ALTER {whose} SET bq.recall = 0.62")
        assert wait_for_setting(filled, "0.62")
        rows(conn, f"ALTER {whose} RESET bq.recall")
    # the option of the index is that of each shard's
    rows(conn, "ALTER INDEX items_v SET (recall = 0.93)")
    assert all("recall=0.93" in each for each in ask_indexes(conn, "items", "reloptions"))
    table = pybq.Table(conn, "items")
    table.create_index(recall=RECALL)
    assert all(f"recall={RECALL}" in each for each in ask_indexes(conn, "items", "reloptions"))


def wait_for_setting(cluster: Cluster, value: str) -> bool:
    """Of sessions that begin now, to a worker; those that there are keep what they have."""
    settings = []
    for node in (1, 2):
        with cluster.connect(node) as conn:
            settings += rows(conn, "SELECT current_setting('bq.recall', true)")
    return settings == [value] * 2


def test_each_shard_says_what_it_finds(filled: Cluster, conn: Conn) -> None:
    recalls = ask_indexes(conn, "items", "bq_recall(indexrelid, 30, 10)")
    assert len(recalls) == SHARDS and all(0.7 < recall <= 1 for recall in recalls)
    assert ask_indexes(conn, "items", "bq_index_check(indexrelid, true)::text") == [""] * SHARDS


# -- codes ----------------------------------------------------------------------------------


def test_columns_of_codes(filled: Cluster, conn: Conn, vectors: Vectors) -> None:
    """What bq_columns knows is on the coordinator; shards are searched by their indexes."""
    pybq.Table(conn, "coded", dim=DIM, codes=True)
    rows(conn, "SELECT create_distributed_table('coded', 'id')")
    table = pybq.Table(conn, "coded")
    assert table.ingest(range(ROWS), vectors) == ROWS
    table.create_index()
    rows(conn, "VACUUM ANALYZE coded")
    status = table.status()
    assert status.count == ROWS and status.indexes[0].live_rows == ROWS
    transform = status.transform
    assert transform is not None
    different = "SELECT count(*) FROM coded WHERE bq_encode(embedding::real[], %s) <> code"
    assert rows(conn, different, (transform,)) == [0]
    assert rows(conn, "SELECT (bq_statistics(embedding::real[], true)).count FROM coded") == [ROWS]
    # flat, by a prepared query and by a code
    quantizer = Quantizer(DIM, transform)
    query = pybq.Query(quantizer.rotate(vectors[7]), transform)
    code = pybq.Code(quantizer.encode(vectors[7]))
    for operand in ("%(q)s::bqquery", "%(c)s::bqvec"):
        sign = "<=>" if "bqquery" in operand else "<~>"
        flat = f"SELECT id FROM coded ORDER BY code {sign} {operand} LIMIT 10"
        values = {"q": query.to_text(), "c": code.to_text()}
        tasks = explain(conn, flat, values)
        assert len(tasks) == SHARDS
        for task in tasks:
            assert_by_index(task, "coded_code_idx")
        assert rows(conn, flat, values)[0] == 7
    # candidates are found by the shards, and ranked again by their vectors
    asked = []
    write = table._writer.write

    def note(search: Any, quantizer: Any) -> Any:
        statement = write(search, quantizer)
        asked.append(statement.text)
        return statement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table._writer, "write", note)
        table.search(vectors[7])
        effort = table.calibrate(0.9, sample=20)
    assert len(asked) > 2 and any("row_number" in text for text in asked)
    for search in asked:
        search = search.replace("%(_bq_query)s", "%(code)s::bqquery")
        search = search.replace("%(_bq_exact)s", "%(exact)s::halfvec")
        exact = str(vectors[7].tolist())
        tasks = explain(conn, search, {"code": query.to_text(), "exact": exact})
        (ranked,) = (task for task in tasks if "read_intermediate_result" in str(task))
        tasks.remove(ranked)
        assert len(tasks) == SHARDS
        for task in tasks:
            assert_by_index(task, "coded_code_idx")
    queries = vectors[5::200] + np.float32(0.05)
    found = [share(table.search(query, rerank=effort.rerank), vectors, query) for query in queries]
    assert np.mean(found) > 0.85
    with pytest.raises(pybq.TableError, match="distributed, which is not handled"):
        table.reencode()
    with pytest.raises(psycopg.Error, match="triggers are not supported on distributed tables"):
        table.create_trigger()
    # another table, of the same name
    rows(conn, "SELECT undistribute_table('coded')")
    assert pybq.Table(conn, "coded").code_column is None
    rows(conn, "SELECT bq_forget_column(table_name::oid, code_column) FROM bq_columns")
    rows(
        conn,
        "SELECT bq_register_column('coded', 'code', 'embedding', %s, 'cosine', %s)",
        (DIM, transform),
    )
    table = pybq.Table(conn, "coded")
    assert table.code_column == "code" and table.search(vectors[7], k=1)[0].distance < 1e-3
    table.drop()
    assert rows(conn, "SELECT count(*) FROM bq_columns") == [0]


# -- pybq.Table -----------------------------------------------------------------------------


def test_table_writes_reads_and_loads(cluster: Cluster, conn: Conn, vectors: Vectors) -> None:
    create_items(conn, vectors[:2000], "written")
    table = pybq.Table(conn, "written")
    assert table.delete([4, 5, 6]) == 3 and table.get([5]) == [None]
    again = {"kind": [9] * 3}
    assert table.ingest([3, 4, 5], vectors[3:6], again, on_conflict="skip") == 2
    assert table.ingest([3, 4, 5], vectors[3:6], again, on_conflict="update") == 3
    assert [row["kind"] for row in table.get([3, 4, 5]) if row] == [9] * 3
    batches = ((range(i, i + 500), vectors[i : i + 500]) for i in range(2000, 4000, 500))
    assert table.load(((list(ids), part) for ids, part in batches), connections=2) == 2000
    assert table.count() == 3999
    assert table.search(vectors[3500], k=1)[0].id == 3500
    found = table.search(vectors[[20, 1500]], k=3, output="numpy")
    assert found.ids.shape == (2, 3) and found.ids[:, 0].tolist() == [20, 1500]
    # from a worker, which knows all shards, too
    with cluster.connect(1) as worker:
        assert pybq.Table(worker, "written").search(vectors[3500], k=1)[0].id == 3500
    rows(conn, "REINDEX INDEX CONCURRENTLY written_v")
    assert table.status().indexes[0].live_rows == 3999
    adopted = pybq.adopt(conn, "written", metric="l2", recall=0.9)
    assert adopted.nbytes == sum(
        map(
            int,
            ask_shards(
                conn,
                "written",
                f"SELECT pg_relation_size(indexrelid) FROM {OF_BQ} AND relname ~ '^written_v_bq'",
            ),
        )
    )
    table.drop()


def test_command_and_coroutines(filled: Cluster, vectors: Vectors) -> None:
    testing = pytest.importorskip("typer.testing")
    from pybq._cli.app import app

    for command in ("recall", "bench"):
        arguments = [command, "items", "--dsn", filled.dsns[0], "--sample", "5"]
        said = testing.CliRunner().invoke(app, [*arguments, "--json"])
        assert said.exit_code == 0, said.output
        measured = json.loads(said.output)["measured"]
        assert all(0.5 < one["recall"] <= 1 for one in measured) and len(measured) >= 2
        said = testing.CliRunner().invoke(app, arguments)
        assert said.exit_code == 0 and "recall@10" in said.output

    async def search() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(filled.dsns[0]) as conn:
            table = await pybq.AsyncTable.open(conn, "items")
            where = "current_setting('bq.recall', true) = '0.77'"
            return await table.search(vectors[3], recall=0.77, where=where)

    assert len(asyncio.run(search())) == 10


@pytest.mark.parametrize("kind", ["partitioned", "reference", "local", "schema"])
def test_other_kinds_of_tables(cluster: Cluster, conn: Conn, vectors: Vectors, kind: str) -> None:
    name = f"kind_{kind}"
    columns = f"(id bigint, part int, v vector({DIM}), PRIMARY KEY (id, part))"
    if kind == "schema":
        rows(conn, "CREATE SCHEMA tenant_1")
        rows(conn, "SELECT citus_schema_distribute('tenant_1')")
        rows(conn, f"CREATE TABLE tenant_1.{name} {columns}")
        rows(conn, "SET search_path = public, tenant_1")
    elif kind == "partitioned":
        rows(conn, f"CREATE TABLE {name} {columns} PARTITION BY LIST (part)")
        for part in (0, 1):
            rows(conn, f"CREATE TABLE {name}_{part} PARTITION OF {name} FOR VALUES IN ({part})")
        rows(conn, f"SELECT create_distributed_table('{name}', 'id')")
    else:
        rows(conn, f"CREATE TABLE {name} {columns}")
        make = "citus_add_local_table_to_metadata" if kind == "local" else "create_reference_table"
        rows(conn, f"SELECT {make}('{name}')")
    table = pybq.Table(conn, name)
    table.ingest([(i, i % 2) for i in range(ROWS)], vectors)
    table.create_index()
    for query in vectors[3:9] + np.float32(0.05):
        assert share(table.search(query, recall=0.999999), vectors, query) == 1
    (index,) = table.status().indexes
    assert index.live_rows == ROWS == table.status().row_count
    if kind == "partitioned":
        flat = f"SELECT id FROM {name} ORDER BY v <=> {QUERY} LIMIT 10"
        tasks = explain(conn, flat, {"q": str(vectors[7].tolist())})
        assert len(tasks) == SHARDS
        for task in tasks:
            assert task["Node Type"] == "Limit"
            assert task["Plans"][0]["Node Type"] == "Merge Append"
            for scan in task["Plans"][0]["Plans"]:
                assert scan["Node Type"] == "Index Scan" and "_v_idx_" in scan["Index Name"]
    table.drop()


def test_what_is_not_possible_says_what_to_do(
    filled: Cluster, conn: Conn, vectors: Vectors
) -> None:
    rows(conn, f"CREATE TABLE nokey (id bigint, v vector({DIM}))")
    rows(conn, "SELECT create_distributed_table('nokey', 'id')")
    with pytest.raises(pybq.TableError, match="shards are at the same place; say with key"):
        pybq.Table(conn, "nokey")
    table = pybq.Table(conn, "nokey", key="id")
    table.ingest(range(100), vectors[:100])
    assert table.search(vectors[4], k=1)[0].id == 4
    assert table.delete([4]) == 1 and table.count() == 99
    rows(conn, "DROP TABLE nokey")
    with pytest.raises(pybq.TableError, match="cannot be compared from here; pybq recall"):
        pybq.adopt(conn, "items", compare=True)
    # a query of PostgreSQL alone: Citus wants the vector itself
    with pytest.raises(psycopg.Error, match="complex joins are only supported"):
        rows(conn, "SELECT id FROM items ORDER BY v <=> (SELECT v FROM items WHERE id = 1) LIMIT 2")
    rows(conn, "SET plan_cache_mode = force_generic_plan")
    with pytest.raises(psycopg.Error, match="could not create distributed plan"):
        conn.execute(FLAT.format("").encode(), {"q": str(vectors[4].tolist())}, prepare=True)


def test_the_page_runs(cluster: Cluster, conn: Conn) -> None:
    """The statements of docs/growing.md, but for those that name servers."""
    page = (Path(__file__).parents[2] / "docs" / "growing.md").read_text()
    section = page.partition("\n## Citus\n")[2].partition("\n## ")[0]
    examples = [each for each in re.findall(r"^```\n(.*?)^```$", section, re.S | re.M)]
    assert len(examples) == 3 and "citus_add_node" in examples.pop(0)
    answers = []
    for example in examples:
        text = re.sub(r"--.*", "", example)
        for statement in re.findall(r"(?:\$\$.*?\$\$|[^;])+", text, re.S):
            if statement.strip():
                answers.append(rows(conn, statement))
    answers = [answer for answer in answers if answer and answer != [""]]
    german, recalls, near = answers
    assert len(german) == 2 and all(id % 3 == 0 for id in german)
    assert len(recalls) == 4 and all(float(recall) > 0.8 for _, recall in recalls)
    assert len(near) == 2
    rows(conn, "DROP TABLE articles")


# -- shards that move -----------------------------------------------------------------------


def place_of(cluster: Cluster, conn: Conn, table: str) -> tuple[int, int, int]:
    """The first shard of a table, the worker that has it, and the other one."""
    shard, host = rows(
        conn,
        "SELECT shardid, nodename FROM citus_shards WHERE table_name = %s::regclass"
        " ORDER BY shardid",
        (table,),
    )[0]
    here = [host for host, _ in cluster.nodes].index(host)
    return shard, here, 3 - here


def assert_whole(conn: Conn, table: pybq.Table, vectors: Vectors) -> None:
    """Each shard has its index with its options, and all rows are found."""
    told = ask_indexes(
        conn,
        table.name,
        "json_build_array(indisvalid, reloptions, bq_index_check(indexrelid, true)::text,"
        " (SELECT live_rows FROM bq_index_info(indexrelid)))",
    )
    for valid, options, problems, _ in told:
        assert valid and f"recall={RECALL}" in options and not problems
    assert sum(live for *_, live in told) == len(vectors) == table.count()
    for query in vectors[3:9] + np.float32(0.05):
        assert share(table.search(query, recall=0.999999), vectors, query) == 1


MOVE = "SELECT citus_move_shard_placement(%s, %s, %s, %s, %s, %s)"


def move(cluster: Cluster, conn: Conn, table: str, mode: str) -> None:
    shard, here, there = place_of(cluster, conn, table)
    rows(conn, MOVE, (shard, *cluster.nodes[here], *cluster.nodes[there], mode))
    assert place_of(cluster, conn, table) == (shard, there, here)


def test_a_shard_moves_with_its_index(cluster: Cluster, conn: Conn, vectors: Vectors) -> None:
    """Beside a writer, whose rows come along by logical replication; and without one."""
    n = 4000
    create_items(conn, vectors[:n], "moved")
    table = pybq.Table(conn, "moved")
    assert_whole(conn, table, vectors[:n])
    moved = threading.Event()
    written: list[int] = []

    def write() -> None:
        with cluster.connect() as other:
            writer = pybq.Table(other, "moved")
            while not moved.is_set() and n + len(written) < ROWS:
                id = n + len(written)
                writer.ingest([id], vectors[id : id + 1], {"kind": [1]})
                written.append(id)

    def do_move() -> None:
        try:
            wait_for_rows(written)
            move(cluster, conn, "moved", "auto")
        finally:
            moved.set()

    run_threads(write, do_move)
    assert_whole(conn, table, vectors[: n + len(written)])
    move(cluster, conn, "moved", "block_writes")
    assert_whole(conn, table, vectors[: n + len(written)])
    table.drop()


def wait_for_rows(written: list[int]) -> None:
    import time

    end = time.monotonic() + 60
    while not written:
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.01)


def test_a_shard_without_key_moves_if_told_how(
    cluster: Cluster, conn: Conn, vectors: Vectors
) -> None:
    rows(conn, f"CREATE TABLE keyless (id bigint, v vector({DIM}))")
    rows(
        conn,
        "CREATE INDEX keyless_v ON keyless USING bq (v vector_cosine_ops)"
        f" WITH (recall = {RECALL})",
    )
    rows(conn, "SELECT create_distributed_table('keyless', 'id')")
    table = pybq.Table(conn, "keyless", key="id")
    table.ingest(range(1000), vectors[:1000])
    with pytest.raises(psycopg.Error, match="doesn't have a REPLICA IDENTITY or PRIMARY KEY"):
        move(cluster, conn, "keyless", "auto")
    move(cluster, conn, "keyless", "force_logical")
    assert_whole(conn, table, vectors[:1000])
    table.drop()


def test_rebalance_split_and_another_number_of_shards(
    cluster: Cluster, conn: Conn, vectors: Vectors
) -> None:
    create_items(conn, vectors, "balanced")
    table = pybq.Table(conn, "balanced")
    # all to one worker, and back
    shards = "SELECT nodename FROM citus_shards WHERE table_name = 'balanced'::regclass"
    _, _, there = place_of(cluster, conn, "balanced")
    move(cluster, conn, "balanced", "auto")
    assert sorted(rows(conn, shards).count(host) for host, _ in cluster.nodes) == [0, 1, 3]
    rows(conn, "SELECT rebalance_table_shards('balanced')")
    assert sorted(rows(conn, shards).count(host) for host, _ in cluster.nodes) == [0, 2, 2]
    assert_whole(conn, table, vectors)

    shard, _, _ = place_of(cluster, conn, "balanced")
    ((low, high),) = rows(
        conn,
        "SELECT shardminvalue::int, shardmaxvalue::int FROM pg_dist_shard WHERE shardid = %s",
        (shard,),
    )
    nodes = rows(conn, "SELECT nodeid FROM pg_dist_node WHERE groupid > 0 ORDER BY 1")
    rows(
        conn,
        "SELECT citus_split_shard_by_split_points(%s, %s::text[], %s::int[])",
        (shard, [str((low + high) // 2)], nodes),
    )
    assert len(rows(conn, shards)) == SHARDS + 1
    assert_whole(conn, table, vectors)

    rows(conn, "SELECT alter_distributed_table('balanced', shard_count := 3)")
    with pytest.raises(pybq.TableError, match="is not the one that was opened"):
        table.drop()
    table = pybq.Table(conn, "balanced")
    assert len(rows(conn, shards)) == 3
    assert_whole(conn, table, vectors)
    table.drop()


def test_a_tenant_gets_a_shard_of_its_own(cluster: Cluster, conn: Conn, vectors: Vectors) -> None:
    rows(
        conn,
        f"CREATE TABLE tenants (tenant int, id bigint, v vector({DIM}), PRIMARY KEY (tenant, id))",
    )
    rows(conn, "SELECT create_distributed_table('tenants', 'tenant')")
    table = pybq.Table(conn, "tenants")
    table.create_index(recall=RECALL)
    table.ingest([(i % TENANTS, i) for i in range(3000)], vectors[:3000])
    shard = rows(conn, "SELECT isolate_tenant_to_new_shard('tenants', 1, 'CASCADE')")[0]
    rows(conn, "VACUUM ANALYZE tenants")
    told = ask_indexes(
        conn,
        "tenants",
        "json_build_array(relname, (SELECT live_rows FROM bq_index_info(indexrelid)))",
    )
    assert [f"tenants_v_idx_{shard}", 1000] in told
    hits = table.search(vectors[4], where="tenant = 1", recall=0.999999)
    own = exact_distances("cosine", vectors[1:3000:TENANTS], vectors[4])
    assert np.allclose([hit.distance for hit in hits], np.sort(own)[:10], atol=1e-6)
    table.drop()


def test_a_worker_that_is_down_is_named(filled: Cluster, conn: Conn, vectors: Vectors) -> None:
    """The last test of this file: the worker stays down."""
    table = pybq.Table(conn, "documents")
    hosts = rows(
        conn,
        "SELECT nodename FROM citus_shards WHERE shardid = ANY (SELECT"
        " get_shard_id_for_distribution_column('documents', t) FROM generate_series(0, %s) AS t)",
        (TENANTS - 1,),
    )
    known = [host for host, _ in filled.nodes]
    tenant_of = {
        known.index(host): t
        for t in range(TENANTS)
        for (host,) in [
            rows(
                conn,
                "SELECT nodename FROM citus_shards WHERE shardid ="
                " get_shard_id_for_distribution_column('documents', %s)",
                (t,),
            )
        ]
    }
    assert len(set(hosts)) == len(tenant_of) == 2
    filled.servers[1].stop("immediate")
    with pytest.raises(psycopg.Error, match=re.escape(known[1])):
        table.search(vectors[0])
    # what needs no row of it is answered
    assert len(table.search(vectors[0], where=f"tenant = {tenant_of[2]}")) == 10
