"""Table on columns of vectors, without a column of codes: made by pybq, or by anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from shared import Conn, exact_distances

import pybq
from pybq import RowError, TableError
from pybq._catalog.indexes import MAX_INDEXED_DIM
from pybq._cli.doctor import examine
from pybq._tables.bench import bench_table
from pybq._tables.recall import measure_recall

pytestmark = pytest.mark.usefixtures("vector")

N, DIM = 3000, 32
METRICS = ("cosine", "l2", "inner_product")
SUFFIXES = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


@pytest.fixture
def conn(conn: Conn) -> Conn:
    conn.autocommit = True
    return conn


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    lengths = rng.uniform(0.5, 2, (N, 1))
    return (rng.standard_normal((N, DIM)) * lengths).astype(np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(rng.integers(2**32)).standard_normal((20, DIM), dtype=np.float32)


@pytest.fixture
def bystander(conn: Conn) -> Iterator[str]:
    """A role with no more than INSERT and SELECT on what it is given."""
    name = "regress_bq_bystander"
    conn.execute(f"CREATE ROLE {name}".encode())
    yield name
    conn.execute("RESET ROLE")
    conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def fill(conn: Conn, table: str, column: str, vectors: np.ndarray, key: str = "id") -> None:
    """Write rows as any client of pgvector does."""
    statement = sql.SQL("COPY {} ({}, {}) FROM STDIN").format(
        sql.Identifier(*table.split(".")), sql.Identifier(key), sql.Identifier(column)
    )
    with conn.cursor().copy(statement) as copy:
        for i, vector in enumerate(vectors):
            copy.write_row([i, str(vector.tolist())])


def indexes_used(conn: Conn, table: pybq.Table, query: np.ndarray) -> str:
    """The plan of what a search sends, at the settings of the session."""
    from pybq._searching.search import Writer, make_search

    search = make_search(table._layout, conn, query)
    statement = Writer(table._layout, conn).write(search, None)
    text = statement.text.replace("%(_bq_exact)s", f"'{query.tolist()}'")
    return str(conn.execute(f"EXPLAIN {text}".encode()).fetchall())


# -- tables of pybq's own -----------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_a_table_is_keys_vectors_and_an_index(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray, metric: Any, store: Any
) -> None:
    table = pybq.Table.create(conn, "items", DIM, metric, store=store, columns={"price": "int"})
    assert table.ingest(range(N), vectors, {"price": np.arange(N) % 100}) == N
    names = conn.execute(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = 'items'::regclass AND attnum > 0"
    ).fetchone()
    assert names == (["id", "embedding", "price"],)
    assert (
        conn.execute("SELECT 1 FROM pg_trigger WHERE tgrelid = 'items'::regclass").fetchall() == []
    )
    assert (table.code_column, table.source_column, table.store) == (None, "embedding", store)
    before = table.search(queries, k=10)

    assert pybq.Table(conn, "items").metric == metric  # known before there is an index
    table.create_index()
    (definition,) = conn.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexname = 'items_embedding_idx'"
    ).fetchone()
    opclass = f"{store}_{SUFFIXES[metric]}_ops"
    assert definition.endswith(f"USING bq (embedding {opclass})")
    conn.execute("SET enable_seqscan = off")
    assert "items_embedding_idx" in indexes_used(conn, table, queries[0])
    found = table.search(queries, k=10, recall=1)
    tolerance = 1e-5 if store == "vector" else 1e-2
    for hits, same, query in zip(found, before, queries, strict=True):
        nearest = np.sort(exact_distances(metric, vectors, query))[:10]
        for each in (hits, same):
            np.testing.assert_allclose([hit.distance for hit in each], nearest, tolerance)


def test_many_searches_with_a_recall_leave_no_trace(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray
) -> None:
    table = pybq.Table.create(conn, "items", DIM, columns={"price": "int"})
    table.ingest(range(N), vectors, {"price": np.arange(N) % 100})
    table.create_index()
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET bq.recall = 0.77")
    conn.execute("SET bq.probes = 3")
    settings = [conn.execute(f"SHOW bq.{name}").fetchone() for name in ("recall", "probes")]
    for within in (False, True):
        if within:
            conn.execute("BEGIN")
        hits = table.search(queries, recall=0.99, probes=1, where="price < 50")
        assert all(len(found) == 10 for found in hits)
        assert settings == [
            conn.execute(f"SHOW bq.{name}").fetchone() for name in ("recall", "probes")
        ]
        expected = TransactionStatus.INTRANS if within else TransactionStatus.IDLE
        assert conn.info.transaction_status == expected


def test_recall_reaches_the_index(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is there when the query runs, and the index reads more for more of it."""
    pybq.Table.create(conn, "items", DIM).ingest(range(N), vectors)
    conn.execute(
        "CREATE INDEX ON items USING bq (embedding halfvec_cosine_ops) WITH (lists = 60)"
        if conn.execute("CREATE EXTENSION bq_pgvector")
        else ""
    )
    conn.execute("SET enable_seqscan = off")
    table = pybq.Table(conn, "items")
    shown = []
    fetch_each = type(table._db).fetch_each

    async def watch(db: Any, *arguments: Any) -> Any:
        shown.append(conn.execute("SHOW bq.recall").fetchone()[0])
        return await fetch_each(db, *arguments)

    monkeypatch.setattr(type(table._db), "fetch_each", watch)
    found = {}
    for recall in (0.3, 1):
        near = 0
        for query, hits in zip(queries, table.search(queries, recall=recall), strict=True):
            reach = np.sort(exact_distances("cosine", vectors, query))[9] + 1e-3
            near += sum(hit.distance <= reach for hit in hits)
        found[recall] = near / (10 * len(queries))
    assert shown == ["0.3", "1"]
    assert found[0.3] < 0.95 and found[1] >= 0.999


def test_filters_go_into_the_index(conn: Conn, vectors: np.ndarray, queries: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, columns={"price": "int"})
    table.ingest(range(N), vectors, {"price": np.arange(N) % 100})
    table.create_index(["price"], recall=0.99)
    table.create_index()  # what there is answers these searches, too
    ((definition,),) = conn.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%USING bq%'"
    ).fetchall()
    assert "halfvec_cosine_ops, price) WITH (recall='0.99')" in definition
    conn.execute("SET enable_seqscan = off")
    cheap = np.flatnonzero(np.arange(N) % 100 == 7)
    for query in queries[:5]:
        hits = table.search(query, k=30, where="price = 7")
        nearest = np.sort(exact_distances("cosine", vectors[cheap], query))
        np.testing.assert_allclose([hit.distance for hit in hits], nearest, atol=2e-3)
    for bad in (["nope"], ["embedding"]):
        with pytest.raises(ValueError, match="no column .* in table 'items' to filter by"):
            table.create_index(bad)
    with pytest.raises(TypeError, match="filters as a sequence of names"):
        table.create_index("price")
    with pytest.raises(ValueError, match="recall above 0 and at most 1, got 2"):
        table.create_index(recall=2)


def test_another_recall_is_set_of_an_index_that_is_there(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM)
    table.ingest(range(len(vectors)), vectors)
    oids = set()
    for recall, there in ((None, None), (0.99, "0.99"), (None, "0.99"), (0.9, "0.9")):
        table.create_index(recall=recall)
        (index,) = table.status().indexes
        assert index.options.get("recall") == there
        oids.add(index.oid)
    assert len(oids) == 1


def test_transform_and_metric_wait_for_the_index(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, "l2", transform=5)
    table.ingest(range(N), vectors)
    assert table.status().transform is None
    pybq.Table(conn, "items", transform=5).create_index()
    status = table.status()
    assert (status.transform, status.indexes[0].metric, status.metric) == (5, "l2", "l2")
    with pytest.raises(TableError, match="has metric l2, expected cosine"):
        pybq.Table(conn, "items", metric="cosine")


def test_status_tells_what_the_index_says(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM)
    table.create_index()  # on no rows: one list, and a hint once there are many
    table.ingest(range(3 * N), np.tile(vectors, (4, 1))[: 3 * N])
    table.ingest(range(3 * N, 6 * N), np.tile(vectors, (4, 1))[: 3 * N])
    status = table.status()
    (index,) = status.indexes
    assert status.row_count == index.live_rows == 6 * N
    assert index.hint is not None and index.hint in str(status)
    assert (status.count, status.drift, status.calibrations) == (None, None, [])
    assert status.transform == index.transform
    conn.execute("VACUUM items")
    conn.execute("REINDEX TABLE items")
    status = table.status()
    assert status.indexes[0].hint is None
    assert status.reason == status.indexes[0].choice is not None
    assert f"why: {status.reason}" in str(status)


def test_without_an_index_it_is_said_how_to_make_one(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, "inner_product", store="vector")
    table.ingest(range(N), vectors)
    advice = table.status().advice
    assert advice is not None and advice in str(table.status())
    (hint,) = [one.hint for one in examine(conn) if one.name == "table items"]
    assert hint == "CREATE INDEX ON items USING bq (embedding vector_ip_ops)"
    conn.execute("CREATE EXTENSION bq_pgvector")
    conn.execute(advice.encode())
    assert table.status().advice is None
    found = {one.name: one.state for one in examine(conn, check_indexes=True)}
    assert found["index items_embedding_idx"] == "ok" and "table items" not in found


def test_what_needs_codes_says_so(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM)
    table.ingest(range(10), vectors[:10])
    for call in (table.reencode, table.create_trigger, table.calibrate):
        with pytest.raises(TableError, match="'items' has no column of codes"):
            call()
    for rerank in (None, 8):
        with pytest.raises(TableError, match="ask for a recall in place of rerank"):
            table.search(vectors[0], rerank=rerank)
    with pytest.raises(ValueError, match="recall above 0 and below 1, got 1.5"):
        table.search(vectors[0], recall=1.5)
    with pytest.raises(ValueError, match="store of halfvec or vector in a table without codes"):
        pybq.Table.create(conn, "other", DIM, store=None, codes=False)


def test_measurements_know_the_table(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM)
    with pytest.raises(TableError, match="has no rows"):
        measure_recall(table)
    table.ingest(range(N), vectors)
    table.create_index()
    conn.execute("SET enable_seqscan = off")
    measured = measure_recall(table, k=5, sample=20, recalls=[None, 1])
    assert [(one.rerank, one.wanted) for one in measured] == [(None, None), (None, 1)]
    assert 0.8 < measured[0].recall <= measured[1].recall == 1
    found = bench_table(table, k=5, sample=20)
    assert [one.method for one in found.measured] == ["as asked", "exact"]
    assert found.indexes == ["items_embedding_idx"] and found.measured[1].recall == 1
    statistics = table.statistics()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert statistics.count == N
    np.testing.assert_allclose(statistics.mean, unit.mean(axis=0), atol=1e-3)


# -- tables of others ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bq", "hnsw", "ivfflat"])
def test_any_table_opens_by_what_the_catalog_says(
    conn: Conn, bq_pgvector: None, vectors: np.ndarray, queries: np.ndarray, method: str
) -> None:
    conn.execute('CREATE SCHEMA "My schema"')
    conn.execute(
        f'CREATE TABLE "My schema"."Odd %s" (note text, "Key %s" int PRIMARY KEY,'
        f' "My vector" vector({DIM}), "other one" halfvec(3))'
    )
    fill(conn, "My schema.Odd %s", "My vector", vectors, "Key %s")
    with pytest.raises(TableError, match="has My vector, other one; say which one with column"):
        pybq.Table.open(conn, "Odd %s", schema="My schema")
    table = pybq.Table.open(conn, "Odd %s", column="My vector", schema="My schema")
    assert (table.metric, table.dim, table.store) == ("cosine", DIM, "vector")
    assert (table.key, dict(table.columns)) == (
        ("Key %s",),
        {"note": "text", "other one": "halfvec"},
    )
    conn.execute(
        f'CREATE INDEX old ON "My schema"."Odd %s" USING {method} ("My vector" vector_l2_ops)'
    )
    table = pybq.Table.open(conn, "Odd %s", column="My vector", schema="My schema")
    assert table.metric == "l2"
    conn.execute("SET ivfflat.probes = 100")
    hits = table.search(queries[0], k=3, columns=["note"])
    nearest = np.argsort(exact_distances("l2", vectors, queries[0]))
    assert hits[0].id == nearest[0] and hits[0]["note"] is None
    assert table.ingest([N], queries[:1], {"note": ["new"]}) == 1
    assert (table.search(queries[0])[0].id, table.delete([N, N + 1])) == (N, 1)
    assert table.search(queries[0])[0].id == nearest[0]
    table.create_index()
    (index,) = [one for one in table.status().indexes if one.method == "bq"]
    assert (index.metric, index.live_rows) == ("l2", N + (method == "bq"))
    assert conn.execute("SELECT count(*) FROM bq_columns").fetchone() == (0,)


def test_indexes_for_several_metrics_call_for_a_name(
    conn: Conn, bq_pgvector: None, vectors: np.ndarray
) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v vector({DIM}))".encode())
    fill(conn, "items", "v", vectors[:50])
    conn.execute("CREATE INDEX ON items USING hnsw (v vector_l2_ops)")
    conn.execute("CREATE INDEX ON items USING hnsw (v vector_cosine_ops)")
    with pytest.raises(TableError, match="has indexes for l2 and cosine; say which with metric"):
        pybq.Table(conn, "items")
    assert pybq.Table(conn, "items", metric="cosine").metric == "cosine"
    with pytest.raises(ValueError, match="expected metric of cosine, l2, inner_product, got 'x'"):
        pybq.Table(conn, "items", metric="x")
    # one of bq says what is searched, but that of another can be asked for
    conn.execute("CREATE INDEX ON items USING bq (v vector_l2_ops)")
    assert pybq.Table(conn, "items").metric == "l2"
    assert pybq.Table(conn, "items", metric="cosine").metric == "cosine"
    with pytest.raises(TableError, match="has metric l2, expected inner_product"):
        pybq.Table(conn, "items", metric="inner_product")


def test_a_key_of_several_columns_is_a_tuple(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray
) -> None:
    conn.execute(f"CREATE TABLE items (n int, v vector({DIM}), lang text, PRIMARY KEY (lang, n))")
    table = pybq.Table(conn, "items")
    assert table.key == ("lang", "n")
    ids = [("en" if i % 2 else "de", i) for i in range(100)]
    assert table.ingest(ids, vectors[:100]) == 100
    assert table.search(vectors[7], k=1)[0].id == ("en", 7)
    assert table.search(vectors[:3], k=1)[2][0].id == ("de", 2)
    assert table.ingest([("en", 7), ("fr", 1)], vectors[:2], on_conflict="skip") == 1
    assert table.ingest([("en", 7)], -vectors[:1], on_conflict="update") == 1
    assert table.search(-vectors[0], k=1)[0].id == ("en", 7)
    assert table.delete([("en", 7), ("en", 8)]) == 1
    assert conn.execute("SELECT count(*) FROM items").fetchone() == (100,)
    (found,) = measure_recall(table, k=3, sample=5, recalls=[None])
    assert found.recall == 1
    for wrong in ([("en",)], [7], ["en"]):
        with pytest.raises(ValueError, match="expected ids as tuples of lang, n, the primary key"):
            table.ingest(wrong, vectors[:1])
    with pytest.raises(ValueError, match="key of several columns; choose hits"):
        table.search(vectors[0], output="numpy")
    with pytest.raises(RowError) as caught:
        table.ingest([("a", 1), ("b", 2)], [np.ones(DIM), np.full(DIM, np.inf)])
    assert (caught.value.row, caught.value.id) == (1, ("b", 2))


def test_without_a_key_rows_are_known_by_their_place(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray
) -> None:
    conn.execute(f"CREATE TABLE items (v halfvec({DIM}), note text)".encode())
    table = pybq.Table(conn, "items")
    assert table.key == ("ctid",)
    assert table.ingest(None, vectors[:100], {"note": ["a"] * 100}) == 100
    assert table.load([(None, vectors[100:200])]) == 100
    (hit,) = table.search(vectors[150], k=1)
    found = conn.execute("SELECT v::text FROM items WHERE ctid = %s::tid", [hit.id]).fetchone()
    assert found is not None
    np.testing.assert_allclose(eval(found[0]), vectors[150], atol=2e-3)
    (measured,) = measure_recall(table, k=3, sample=5, recalls=[None])
    assert measured.recall == 1
    conn.execute("CREATE VIEW seen AS SELECT * FROM items")
    with pytest.raises(TableError, match="'seen' is a view: .*; open its table"):
        pybq.Table(conn, "seen")
    with pytest.raises(TableError, match="no primary key to tell rows by"):
        table.delete(["(0,1)"])
    with pytest.raises(TableError, match="no primary key; write vectors with ids=None"):
        table.ingest([1], vectors[:1])
    with pytest.raises(ValueError, match="expected ids with on_conflict='skip', got None"):
        table.ingest(None, vectors[:1], on_conflict="skip")


def test_keys_may_be_left_to_the_table(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute(
        f"CREATE TABLE items (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v vector({DIM}))"
    )
    table = pybq.Table(conn, "items")
    assert table.ingest(None, vectors[:10]) == 10
    assert table.search(vectors[3], k=1)[0].id == 4
    assert table.search(vectors[:3], k=1, output="numpy").ids.tolist() == [[1], [2], [3]]
    assert table.load(vectors[10:20], first_id=None) == 10
    assert table.search(vectors[13], k=1)[0].id == 14
    # or be given, as COPY does whatever the identity says
    assert table.ingest([14, 99], vectors[20:22], on_conflict="update") == 2
    assert [hits[0].id for hits in table.search(vectors[20:22], k=1)] == [14, 99]


def test_partitioned_tables_open_and_are_indexed(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute(
        f"CREATE TABLE items (lang text, id int, v vector({DIM}), PRIMARY KEY (lang, id))"
        " PARTITION BY LIST (lang)"
    )
    for lang in ("de", "en"):
        conn.execute(f"CREATE TABLE {lang} PARTITION OF items FOR VALUES IN ('{lang}')".encode())
    table = pybq.Table(conn, "items")
    table.ingest([("en" if i % 2 else "de", i) for i in range(100)], vectors[:100])
    advice = table.status().advice
    assert advice == 'CREATE INDEX ON "public"."items" USING bq ("v" vector_cosine_ops)'
    (hint,) = [one.hint for one in examine(conn) if one.name == "table items"]
    assert hint == "CREATE INDEX ON items USING bq (v vector_cosine_ops)"
    table.create_index()
    assert table.status().advice is None
    assert [hit[0].id for hit in table.search(vectors[:2], k=1)] == [("de", 0), ("en", 1)]
    assert {one.name for one in examine(conn)} >= {"index de_v_idx", "index en_v_idx"}


def test_rows_of_partitions_are_not_known_by_their_place(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute(f"CREATE TABLE items (part int, v vector({DIM})) PARTITION BY LIST (part)")
    for part in (1, 2):
        conn.execute(f"CREATE TABLE items_{part} PARTITION OF items FOR VALUES IN ({part})")
    with pytest.raises(TableError, match="no primary key: .*; add a primary key"):
        pybq.Table(conn, "items")
    assert pybq.Table(conn, "items_1").key == ("ctid",)  # one by itself
    conn.execute(f"CREATE TABLE old (v vector({DIM})); CREATE TABLE new () INHERITS (old)")
    with pytest.raises(TableError, match="other tables inherit .* no primary key: .*; add a prim"):
        pybq.Table(conn, "old")
    assert pybq.Table(conn, "new").key == ("ctid",)


def test_more_dimensions_than_an_index_takes(conn: Conn) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v halfvec({MAX_INDEXED_DIM + 1}))")
    table = pybq.Table(conn, "items")
    assert table.status().advice is None
    (hint,) = [one.hint for one in examine(conn) if one.name == "table items"]
    assert hint == "none can be made: an index has up to 8,000 dimensions"
    with pytest.raises(psycopg.DatabaseError, match="8000 dimensions"):
        table.create_index()
    conn.execute(f"ALTER TABLE items ALTER v TYPE halfvec({MAX_INDEXED_DIM})")
    pybq.Table(conn, "items").create_index()


def test_dimensions_that_are_not_declared(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute("CREATE TABLE items (id int PRIMARY KEY, v vector)")
    with pytest.raises(TableError, match="column 'v' of table 'items' has no dimensions and no ro"):
        pybq.Table(conn, "items")
    assert pybq.Table(conn, "items", DIM).ingest(range(10), vectors[:10]) == 10
    table = pybq.Table(conn, "items")
    assert (table.dim, table.search(vectors[3], k=1)[0].id) == (DIM, 3)
    advice = table.status().advice
    assert advice == f'ALTER TABLE "public"."items" ALTER COLUMN "v" TYPE vector({DIM})'
    (hint,) = [one.hint for one in examine(conn) if one.name == "table items"]
    assert "declare the dimensions of v" in hint
    conn.execute(advice.encode())
    pybq.Table(conn, "items").create_index()
    # those of a domain count as well
    conn.execute(f"CREATE DOMAIN embedding AS halfvec({DIM})")
    conn.execute("CREATE TABLE others (id int PRIMARY KEY, v embedding)")
    other = pybq.Table(conn, "others")
    assert (other.dim, other.store, other.ingest(range(10), vectors[:10])) == (DIM, "halfvec", 10)
    assert measure_recall(other, k=3, sample=5, recalls=[None])[0].recall == 1
    (hint,) = [one.hint for one in examine(conn) if one.name == "table others"]
    assert hint == "CREATE INDEX ON others USING bq (v halfvec_cosine_ops)"
    assert pybq.adopt(conn, "others", compare=True, sample=5).comparison is not None
    assert pybq.Table(conn, "others").status().advice is None


def test_rows_without_a_distance_are_passed_over(
    conn: Conn, bq_pgvector: None, vectors: np.ndarray
) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v vector({DIM}))")
    fill(conn, "items", "v", np.vstack([np.zeros((5, DIM)), vectors[:20]]))
    conn.execute("INSERT INTO items VALUES (100, NULL)")
    table = pybq.Table(conn, "items")
    without = table.search(vectors[0], k=50)
    assert [hit.distance for hit in without] == sorted(hit.distance for hit in without)
    assert {hit.id for hit in without} == set(range(5, 25))
    table.create_index()
    conn.execute("SET enable_seqscan = off")
    assert table.search(vectors[0], k=50) == without
    with pytest.raises(ValueError, match="finite values, got NaN or infinity"):
        table.search(np.full(DIM, np.nan))


def test_pgvector_may_be_anywhere(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute("CREATE SCHEMA elsewhere")
    conn.execute("ALTER EXTENSION vector SET SCHEMA elsewhere")
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v elsewhere.vector({DIM}))")
    table = pybq.Table(conn, "items")
    table.ingest(range(100), vectors[:100])
    table.create_index()
    assert table.search(vectors[7], k=1, recall=0.9)[0].id == 7
    assert measure_recall(table, k=3, sample=5, recalls=[None])[0].recall == 1
    assert table.statistics().count == 100
    assert table.delete([7]) == 1


def test_opening_needs_no_more_than_it_uses(
    conn: Conn, bq_pgvector: None, vectors: np.ndarray, bystander: str
) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v vector({DIM}))")
    fill(conn, "items", "v", vectors[:100])
    conn.execute("CREATE INDEX ON items USING bq (v vector_l2_ops)")
    conn.execute(f"GRANT INSERT ON items TO {bystander}".encode())
    conn.execute(f"SET ROLE {bystander}".encode())
    table = pybq.Table(conn, "items")
    assert table.ingest([100], vectors[:1]) == 1
    conn.execute("BEGIN")  # which what may not be seen must not end
    status = table.status()
    assert conn.info.transaction_status == TransactionStatus.INTRANS
    (index,) = status.indexes
    assert (index.method, index.live_rows, status.row_count) == ("bq", None, None)
    conn.execute("ROLLBACK")


# -- from codes to an index ---------------------------------------------------------------


def test_adopting_moves_a_table_from_codes_to_an_index(conn: Conn, vectors: np.ndarray) -> None:
    codes = pybq.Table.create(conn, "items", DIM, "l2", codes=True)
    codes.ingest(range(N), vectors)
    codes.create_trigger()
    assert codes.code_column == "code"
    by_vector = pybq.Table(conn, "items", column="embedding")
    assert (by_vector.code_column, by_vector.columns) == (None, {"code": "bqvec"})
    adopted = pybq.adopt(conn, "items")
    assert adopted.metric == "l2" and adopted.drop == []
    assert pybq.Table(conn, "items").code_column == "code"  # as before, until they are dropped
    assert len(adopted.drop_codes) == 3
    for statement in adopted.drop_codes:
        conn.execute(statement.encode())
    table = pybq.Table(conn, "items")
    assert (table.code_column, table.metric, dict(table.columns)) == (None, "l2", {})
    assert table.ingest([N], vectors[:1] + 9) == 1
    assert table.search(vectors[0] + 9, k=1)[0].id == N
    assert pybq.adopt(conn, "items").drop_codes == []
    pybq.Table.create(conn, "new", DIM, "l2").ingest(range(10), vectors[:10])
    adopted = pybq.adopt(conn, "new")  # the metric that it was created with
    assert (adopted.metric, adopted.drop_codes) == ("l2", [])


# -- asyncio ------------------------------------------------------------------------------


def test_async_tables_do_the_same(conn: Conn, vectors: np.ndarray, queries: np.ndarray) -> None:
    conn.execute(f"CREATE TABLE notes (id int PRIMARY KEY, v vector({DIM}), price int)")

    async def work() -> list[Any]:
        dsn, password = conn.info.dsn, conn.info.password
        async with await psycopg.AsyncConnection.connect(dsn, password=password) as mine:
            table = await pybq.AsyncTable.open(mine, "notes", column="v")
            assert await table.ingest(range(N), vectors, {"price": np.arange(N) % 10}) == N
            await table.create_index(["price"], recall=0.95)
            assert (await table.status()).advice is None
            assert await table.delete([0, N]) == 1
            assert (await table.statistics()).count == N - 1
            assert mine.info.transaction_status == TransactionStatus.IDLE
            return [
                await table.search(queries, k=5, recall=1),
                await table.search(queries[0], k=5, where="price = 3", recall=1),
            ]

    found = asyncio.run(work())
    table = pybq.Table.open(conn, "notes")
    assert found[0] == table.search(queries, k=5, recall=1)
    assert found[1] == table.search(queries[0], k=5, where="price = 3", recall=1)
