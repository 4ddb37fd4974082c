"""Declarative partitions: pruning, Merge Append, options, and what moves between partitions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import check, clustered_vectors, explain, info
from shared import Conn, Vectors, exact_distances

import pybq
from pybq._catalog import size
from pybq._catalog.database import run as run_blocking
from pybq._tables import adoption
from pybq._tables.bench import bench_table
from pybq._tables.comparison import compare_all
from pybq._tables.recall import measure_recall

DIM = 32
TENANTS, PER_TENANT = 6, 700


@pytest.fixture
def conn(conn: Conn, bq_pgvector: None) -> Conn:
    conn.autocommit = True
    return conn


@pytest.fixture
def vectors(rng: np.random.Generator) -> Vectors:
    return clustered_vectors(rng, TENANTS * PER_TENANT, DIM)


PARTITIONS = {
    "LIST (tenant)": [f"FOR VALUES IN ({2 * i}, {2 * i + 1})" for i in range(3)],
    "RANGE (tenant)": [f"FOR VALUES FROM ({2 * i}) TO ({2 * i + 2})" for i in range(3)],
    "HASH (tenant)": [f"FOR VALUES WITH (MODULUS 3, REMAINDER {i})" for i in range(3)],
}


def run(conn: Conn, *statements: str) -> None:
    for statement in statements:
        conn.execute(statement.encode())


def create(conn: Conn, by: str = "LIST (tenant)", parts: Sequence[str] | None = None) -> None:
    """`items`, partitioned, with partitions part_0, part_1, ..."""
    run(
        conn,
        f"CREATE TABLE items (id int, tenant int, v vector({DIM}),"
        f" code bqvec({DIM}) GENERATED ALWAYS AS (bq_encode(v::real[], 1)) STORED)"
        f" PARTITION BY {by}",
    )
    for i, bounds in enumerate(PARTITIONS[by] if parts is None else parts):
        run(conn, f"CREATE TABLE part_{i} PARTITION OF items {bounds}")


def fill(conn: Conn, vectors: Vectors, table: str = "items", first: int = 0) -> None:
    """The tenant of each row is its id % TENANTS."""
    with conn.cursor().copy(f"COPY {table} (id, tenant, v) FROM STDIN".encode()) as copy:
        for i, row in enumerate(vectors, first):
            copy.write_row((i, i % TENANTS, str(row.tolist())))
    run(conn, f"ANALYZE {table}")


def text(vector: np.ndarray[Any, Any]) -> str:
    return str(vector.tolist())


def nearest(vectors: Vectors, query: Vectors, k: int = 10, tenant: int | None = None) -> list[int]:
    distances = exact_distances("l2", vectors, query)
    if tenant is not None:
        distances[np.arange(len(vectors)) % TENANTS != tenant] = np.inf
    return [int(i) for i in np.argsort(distances, kind="stable")[:k]]


def share(
    vectors: Vectors, query: Vectors, found: Sequence[tuple[int, ...]], tenant: int | None = None
) -> float:
    """Of the true nearest rows; rows as near as the last of them count."""
    distances = exact_distances("l2", vectors, query)
    reach = distances[nearest(vectors, query, len(found), tenant)[-1]]
    return float(np.mean([distances[row[0]] <= reach + 1e-6 for row in found]))


def scans(plan: str) -> list[str]:
    """Tables that a plan scans by an index."""
    return re.findall(r"Index Scan using \w+ on (\w+)", plan)


def relfilenode(conn: Conn, name: str) -> int:
    row = conn.execute("SELECT relfilenode FROM pg_class WHERE relname = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


def parent(conn: Conn, name: str) -> str | None:
    row = conn.execute(
        "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = %s::regclass", (name,)
    ).fetchone()
    return row and row[0]


def is_valid(conn: Conn, name: str) -> bool:
    row = conn.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass", (name,)
    ).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.parametrize("by", PARTITIONS)
def test_partitions_are_merged_by_their_indexes_and_pruned(
    conn: Conn, vectors: Vectors, by: str
) -> None:
    """Flat queries, with plans for any parameters; nothing is sorted."""
    create(conn, by)
    fill(conn, vectors)
    run(conn, "CREATE INDEX ON items USING bq (v vector_l2_ops, tenant)")
    run(conn, "SET plan_cache_mode = force_generic_plan")
    order = "ORDER BY v <-> $1 LIMIT 10"
    run(
        conn,
        f"PREPARE near(vector) AS SELECT id FROM items {order}",
        f"PREPARE of_tenant(vector, int) AS SELECT id FROM items WHERE tenant = $2 {order}",
    )
    whole, pruned = [], []
    for query in vectors[3:300:10] + np.float32(0.1):
        found = conn.execute(f"EXECUTE near('{text(query)}')".encode()).fetchall()
        whole.append(share(vectors, query, found))
        found = conn.execute(f"EXECUTE of_tenant('{text(query)}', 4)".encode()).fetchall()
        assert len(found) == 10 and {id % TENANTS for (id,) in found} == {4}
        pruned.append(share(vectors, query, found, tenant=4))
    assert np.mean(whole) > 0.95 and np.mean(pruned) > 0.95
    plan = explain(conn, f"EXECUTE near('{text(vectors[0])}')")
    assert "Merge Append" in plan and "Sort" not in plan.replace("Sort Key", "")
    assert len(scans(plan)) == 3
    plan = explain(conn, f"EXECUTE of_tenant('{text(vectors[0])}', 4)")
    assert "Subplans Removed: 2" in plan and len(scans(plan)) == 1


def test_codes_are_merged_as_vectors_are(conn: Conn, vectors: Vectors) -> None:
    create(conn)
    fill(conn, vectors)
    run(conn, "CREATE INDEX ON items USING bq (code)")
    for sign in ("<=>", "<->", "<#>"):
        order = (
            f"ORDER BY code {sign} (SELECT bq_query('{{{text(vectors[5])[1:-1]}}}', 1)) LIMIT 10"
        )
        plan = explain(conn, f"SELECT id FROM items {order}")
        assert "Merge Append" in plan and len(scans(plan)) == 3
        found = conn.execute(f"SELECT id FROM items {order}".encode()).fetchall()
        run(conn, "SET enable_indexscan = off")
        exact = conn.execute(f"SELECT id FROM items {order}".encode()).fetchall()
        run(conn, "RESET enable_indexscan")
        assert len({*found} & {*exact}) >= 8


def test_recall_is_at_least_that_of_one_table(conn: Conn, vectors: Vectors) -> None:
    """Each partition finds its share of its own nearest rows, of which fewer are wanted."""
    create(conn, "HASH (id)", [f"FOR VALUES WITH (MODULUS 2, REMAINDER {i})" for i in range(2)])
    run(conn, "CREATE TABLE whole (LIKE items INCLUDING GENERATED)")
    recalls = {}
    for table, lists in (("items", 15), ("whole", 30)):
        fill(conn, vectors, table)
        options = f"recall = 0.8, lists = {lists}"
        run(conn, f"CREATE INDEX ON {table} USING bq (v vector_l2_ops) WITH ({options})")
        queries = vectors[7::60] + np.float32(0.05)
        recalls[table] = np.mean([share(vectors, q, search(conn, q, table)) for q in queries])
    print(f"recall {recalls}")
    assert recalls["whole"] < 1  # else there would be nothing to lose
    assert recalls["items"] >= recalls["whole"] - 0.01


def search(conn: Conn, query: Vectors, table: str = "items", k: int = 10) -> list[Any]:
    statement = f"SELECT id FROM {table} ORDER BY v <-> %s::vector LIMIT {k}"
    assert len(scans(explain(conn, statement, (text(query),)))) >= 1
    return conn.execute(cast(Any, statement), (text(query),)).fetchall()


def test_partitions_have_options_of_their_own(conn: Conn, vectors: Vectors) -> None:
    create(conn)
    fill(conn, vectors)
    run(conn, "CREATE INDEX items_v ON ONLY items USING bq (v vector_l2_ops)")
    options = ["recall = 0.9, transform = 7", "lists = 12, transform = 0", "recall = 0.99"]
    for i, each in enumerate(options):
        assert not is_valid(conn, "items_v")
        run(
            conn,
            f"CREATE INDEX CONCURRENTLY part_{i}_v ON part_{i}"
            f" USING bq (v vector_l2_ops) WITH ({each})",
            f"ALTER INDEX items_v ATTACH PARTITION part_{i}_v",
        )
    assert is_valid(conn, "items_v")
    assert [info(conn, f"part_{i}_v")["transform"] for i in range(2)] == [7, 0]
    assert info(conn, "part_1_v")["lists"] == 12
    # distances of vectors are exact, whatever the index has made of them
    found = [share(vectors, q, search(conn, q)) for q in vectors[3:300:10] + np.float32(0.1)]
    assert np.mean(found) > 0.93
    # a later partition has the options of the parent's index; its own are set afterwards
    run(conn, "CREATE TABLE part_3 PARTITION OF items DEFAULT")
    (name,) = conn.execute(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'part_3'::regclass"
    ).fetchone() or ("",)
    run(conn, f"ALTER INDEX {name} SET (recall = 0.9)")
    # PostgreSQL changes no options of an index that has partitions
    with pytest.raises(psycopg.Error, match="partitioned indexes|not supported|wrong type"):
        run(conn, "ALTER INDEX items_v SET (recall = 0.9)")


def test_codes_of_other_transforms_are_an_error_and_not_wrong(conn: Conn, vectors: Vectors) -> None:
    """A query has one transform; so must all partitions."""
    run(
        conn,
        f"CREATE TABLE items (id int, code bqvec({DIM})) PARTITION BY RANGE (id)",
        "CREATE TABLE part_0 PARTITION OF items FOR VALUES FROM (0) TO (500)",
        "CREATE TABLE part_1 PARTITION OF items FOR VALUES FROM (500) TO (1000)",
        "CREATE INDEX ON items USING bq (code)",
    )
    for i, row in enumerate(vectors[:1000]):
        conn.execute(
            "INSERT INTO items VALUES (%s, bq_encode(%s::real[], %s))",
            (i, row.tolist(), 1 + i // 500),
        )
    query = "SELECT id FROM items {} ORDER BY code <=> (SELECT bq_query(%s::real[], 1)) LIMIT 5"
    with pytest.raises(psycopg.errors.DataException, match="different transforms"):
        conn.execute(query.format("").encode(), (vectors[3].tolist(),))
    found = conn.execute(query.format("WHERE id < 500").encode(), (vectors[3].tolist(),))
    assert len(found.fetchall()) == 5


def test_an_index_made_beforehand_is_attached_and_detached(conn: Conn, vectors: Vectors) -> None:
    create(conn)
    fill(conn, vectors)
    run(conn, "CREATE INDEX items_v ON items USING bq (v vector_l2_ops)")
    run(
        conn,
        "CREATE TABLE later (LIKE items INCLUDING GENERATED)",
        f"INSERT INTO later (id, tenant, v) SELECT id + {len(vectors)}, 9, v FROM part_0",
        "CREATE INDEX later_v ON later USING bq (v vector_l2_ops) WITH (recall = 0.9)",
        "ALTER TABLE later ADD CHECK (tenant = 9)",
    )
    file = relfilenode(conn, "later_v")
    run(conn, "ALTER TABLE items ATTACH PARTITION later FOR VALUES IN (9)")
    assert (parent(conn, "later_v"), relfilenode(conn, "later_v")) == ("items_v", file)
    indexes = conn.execute("SELECT count(*) FROM pg_index WHERE indrelid = 'later'::regclass")
    assert indexes.fetchone() == (1,)  # none was made beside it
    ids = [id for (id,) in search(conn, vectors[0])]
    assert {0, len(vectors)} <= {*ids}
    check(conn, "later_v")
    run(conn, "ALTER TABLE items DETACH PARTITION later CONCURRENTLY")
    assert (parent(conn, "later_v"), relfilenode(conn, "later_v")) == (None, file)
    assert all(id < len(vectors) for (id,) in search(conn, vectors[0]))
    assert search(conn, vectors[0], "later", 1) == [(len(vectors),)]
    # and back: its index is found again; part_0 is locked no more than that takes
    run(conn, "ALTER TABLE items ATTACH PARTITION later FOR VALUES IN (9)")
    assert (parent(conn, "later_v"), relfilenode(conn, "later_v")) == ("items_v", file)


def test_an_index_of_other_kind_is_not_taken_for_the_parents(conn: Conn, vectors: Vectors) -> None:
    """Another operator class, or other filter columns: ATTACH makes an index of its own."""
    create(conn)
    run(conn, "CREATE INDEX items_v ON items USING bq (v vector_l2_ops, tenant)")
    run(
        conn,
        "CREATE TABLE later (LIKE items INCLUDING GENERATED)",
        "CREATE INDEX later_1 ON later USING bq (v vector_cosine_ops, tenant)",
        "CREATE INDEX later_2 ON later USING bq (v vector_l2_ops)",
        "ALTER TABLE items ATTACH PARTITION later FOR VALUES IN (9)",
    )
    assert (parent(conn, "later_1"), parent(conn, "later_2")) == (None, None)
    made = conn.execute("SELECT count(*) FROM pg_index WHERE indrelid = 'later'::regclass")
    assert made.fetchone() == (3,)
    with pytest.raises(psycopg.Error, match="cannot attach index"):
        run(conn, "ALTER INDEX items_v ATTACH PARTITION later_1")


def test_rows_move_to_where_they_belong(conn: Conn, vectors: Vectors) -> None:
    """By UPDATE; the default partition and partitions of partitions included."""
    run(
        conn,
        f"CREATE TABLE items (id int, tenant int, v vector({DIM})) PARTITION BY LIST (tenant)",
        "CREATE TABLE part_0 PARTITION OF items FOR VALUES IN (0, 1) PARTITION BY HASH (id)",
        "CREATE TABLE part_0_0 PARTITION OF part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE part_0_1 PARTITION OF part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "CREATE TABLE part_1 PARTITION OF items FOR VALUES IN (2)",
        "CREATE TABLE others PARTITION OF items DEFAULT",
    )
    fill(conn, vectors)
    run(conn, "CREATE INDEX items_v ON items USING bq (v vector_l2_ops, tenant)")
    leaves = {"part_0_0", "part_0_1", "part_1", "others"}
    order = f"SELECT id, tenant FROM items ORDER BY v <-> '{text(vectors[4])}' LIMIT 3"
    assert {*scans(explain(conn, order))} == leaves
    for tenant in (0, 2, 5, 99, 1):
        run(conn, f"UPDATE items SET tenant = {tenant} WHERE id = 4")
        assert conn.execute(order.encode()).fetchall()[0] == (4, tenant)
        found = order.replace("ORDER", f"WHERE tenant = {tenant} ORDER")
        assert conn.execute(found.encode()).fetchall()[0] == (4, tenant)
    moved = len(leaves) * 400
    run(conn, f"UPDATE items SET tenant = (tenant + 1) % {TENANTS} WHERE id < {moved}")
    run(conn, "VACUUM items")
    rows = 0
    for leaf in leaves:
        check(conn, f"{leaf}_v_tenant_idx")
        rows += info(conn, f"{leaf}_v_tenant_idx")["live_rows"]
        (recall,) = conn.execute(
            "SELECT bq_recall(%s, 20, 5)", (f"{leaf}_v_tenant_idx",)
        ).fetchone() or (0,)
        assert recall > 0.9
    assert rows == len(vectors)
    # of the whole, functions of an index say which to name
    for function in ("bq_index_info", "bq_index_check", "bq_recall"):
        with pytest.raises(psycopg.Error, match='"items_v" is partitioned') as raised:
            conn.execute(f"SELECT {function}('items_v')".encode())
        hint = raised.value.diag.message_hint or ""
        (query,) = re.findall(r"; (SELECT .*) lists them", hint)
        assert {row[0] for row in conn.execute(query.encode())} == {
            f"{leaf}_v_tenant_idx" for leaf in leaves
        }


def test_small_partitions_beside_large_ones_are_planned_alike(conn: Conn, vectors: Vectors) -> None:
    """A partition of a few rows, or of none, does not make others be sorted."""
    bounds = [f"FOR VALUES FROM ({a}) TO ({b})" for a, b in ((0, 3), (3, 60), (60, 10**6))]
    create(conn, "RANGE (id)", [*bounds, "DEFAULT"])
    fill(conn, vectors)
    run(conn, "CREATE INDEX ON items USING bq (v vector_l2_ops)")
    for k in (1, 10, 100):
        plan = explain(conn, f"SELECT id FROM items ORDER BY v <-> '{text(vectors[0])}' LIMIT {k}")
        assert "Merge Append" in plan and "part_2" in scans(plan), plan
        assert not re.search(r"Seq Scan on part_2", plan), plan
    found = search(conn, vectors[0] + np.float32(0.01), k=50)
    assert share(vectors, vectors[0] + np.float32(0.01), found) > 0.9


# -- pybq ---------------------------------------------------------------------------------


@pytest.fixture
def table(conn: Conn, vectors: Vectors) -> pybq.Table:
    """Partitions by tenant, one of them partitioned again; filled through the parent."""
    run(
        conn,
        f"CREATE TABLE items (id int, tenant int, v vector({DIM}), title text,"
        " PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant)",
        "CREATE TABLE part_0 PARTITION OF items FOR VALUES IN (0, 1) PARTITION BY HASH (id)",
        "CREATE TABLE part_0_0 PARTITION OF part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE part_0_1 PARTITION OF part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "CREATE TABLE part_1 PARTITION OF items DEFAULT",
    )
    table = pybq.Table(conn, "items", metric="l2")
    keys = [(i % TENANTS, i) for i in range(len(vectors))]
    titles = [f"title {i}" for i in range(len(vectors))]
    assert table.ingest(keys, vectors, {"title": titles}) == len(vectors)
    run(conn, "ANALYZE items")
    return table


LEAVES = {"part_0_0", "part_0_1", "part_1"}


def test_table_of_partitions(table: pybq.Table, vectors: Vectors) -> None:
    conn = table.connection
    table.create_index(filters=["tenant"], recall=0.95)
    query = vectors[9] + np.float32(0.01)
    assert table.search(query, k=1)[0].id == (3, 9)
    of_tenant = table.search(query, k=5, where="tenant = 4", columns=["title"])
    assert [hit.id[0] for hit in of_tenant] == [4] * 5
    (index,) = table.status().indexes
    sizes = conn.execute(
        "SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(%s) WHERE isleaf", (index.oid,)
    ).fetchone()
    assert sizes == (index.nbytes,) and index.nbytes > 100_000
    assert (index.partitioned, index.live_rows, index.lists) == (True, len(vectors), 3)
    assert "4,200 rows in 3 lists" in str(table.status())
    # another recall is that of each partition's index
    table.create_index(filters=["tenant"], recall=0.9)
    rows = conn.execute(
        "SELECT c.reloptions FROM pg_partition_tree(%s) JOIN pg_class c ON c.oid = relid"
        " WHERE isleaf",
        (index.oid,),
    )
    assert [options for (options,) in rows] == [["recall=0.9"]] * 3
    assert table.delete([(3, 9), (0, 0), (7, 7)]) == 2
    assert table.search(query, k=1)[0].id != (3, 9)
    written = table.ingest(
        [(3, 9), (1, 1)], vectors[[8, 9]], {"title": ["a", "b"]}, on_conflict="update"
    )
    assert written == 2 and table.search(vectors[9], k=1)[0].id == (1, 1)
    (found,) = measure_recall(table, k=5, sample=10, recalls=[0.99])
    assert found.recall > 0.9
    measured = bench_table(table, k=5, sample=3)
    assert measured.indexes == ["items_v_tenant_idx"]
    assert table.statistics().count == len(vectors) - 1
    assert table.count() == table.status().row_count == len(vectors) - 1
    with pytest.raises(pybq.TableError, match="no column of codes"):
        table.reencode()


def test_sizes_are_those_of_all_partitions(
    table: pybq.Table, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large table is not counted, and not read whole for a sample of it."""
    db, layout = table._db, table._layout
    pages = run_blocking(size.count_pages(db, layout))
    assert pages * 8192 > vectors.nbytes
    assert run_blocking(size.estimate_rows(db, layout)) == len(vectors)
    monkeypatch.setattr(size, "MAX_COUNTED_NBYTES", vectors.nbytes)
    status = table.status()
    assert (status.row_count, status.row_count_exact) == (len(vectors), False)
    part = pybq.Table(table.connection, "part_1")
    own = run_blocking(size.count_pages(part._db, part._layout))
    assert 0 < own < pages


def test_comparison_measures_the_indexes_of_all_partitions(table: pybq.Table) -> None:
    run(table.connection, "CREATE INDEX ON items USING hnsw (v vector_l2_ops)")
    table.create_index()
    reports = compare_all(table, k=5, sample=5).indexes
    assert [report.method for report in reports] == ["hnsw", "bq"]
    for report in reports:
        assert report.recall is not None and report.recall > 0.8
        assert report.nbytes > 100_000


def test_adopt_makes_the_index_partition_by_partition(table: pybq.Table, vectors: Vectors) -> None:
    conn = table.connection
    run(
        conn,
        "CREATE INDEX items_old ON items USING hnsw (v vector_l2_ops)",
        "CREATE INDEX mine ON part_1 USING bq (v vector_l2_ops, tenant) WITH (recall = 0.9)",
    )
    file = relfilenode(conn, "mine")
    adopted = pybq.adopt(conn, "items", filters=["tenant"], compare=True, k=5, sample=5)
    assert adopted.index == "items_v_bq" and is_valid(conn, "items_v_bq")
    assert adopted.drop == ['DROP INDEX "public"."items_old"']
    assert adopted.statement is not None
    statements = adopted.statement.split(";\n")
    assert sum("CREATE INDEX CONCURRENTLY" in each for each in statements) == 2
    assert sum(" ON ONLY " in each for each in statements) == 2
    assert sum("ATTACH PARTITION" in each for each in statements) == 4
    # what there was is taken
    assert (parent(conn, "mine"), relfilenode(conn, "mine")) == ("items_v_bq", file)
    assert adopted.comparison is not None
    assert {report.method for report in adopted.comparison.indexes} == {"bq", "hnsw"}
    run(conn, *adopted.drop)
    order = f"SELECT id FROM items ORDER BY v <-> '{text(vectors[0])}' LIMIT 5"
    assert {*scans(explain(conn, order))} == LEAVES
    again = pybq.adopt(conn, "items", filters=["tenant"], recall=0.97)
    assert (again.index, again.statement) == ("items_v_bq", None)


def test_adopt_goes_on_where_it_was_interrupted(table: pybq.Table) -> None:
    conn = table.connection
    real, calls = adoption._build, []

    def build(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adoption, "_build", build)
        with pytest.raises(KeyboardInterrupt):
            pybq.adopt(conn, "items")
        assert not is_valid(conn, "items_v_bq")
        adopted = pybq.adopt(conn, "items")
    assert is_valid(conn, "items_v_bq") and len(calls) == 4
    assert adopted.index == "items_v_bq" and adopted.statement is not None
    assert adopted.statement.count("CREATE INDEX") == 1
