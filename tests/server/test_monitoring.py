"""What monitoring sees: counters of scans, state of indexes; docs/monitoring.md and its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psycopg
import pytest
import yaml
from indexlib import (
    COSINE,
    DIM,
    Places,
    clustered_vectors,
    connect,
    create,
    create_index,
    damage,
    insert,
    measure_scan,
    operand,
    prepare,
    random_vectors,
    start_standby,
    wait_for_replay,
)
from psycopg.rows import dict_row
from shared import Conn, needs_pgvector

import pybq

DOCS = Path(__file__).parents[2] / "docs"
WATCHER = "bq_test_watcher"
COUNTERS = ("idx_scan", "lists_read", "codes_compared", "vectors_compared")
STATE = ("total_bytes", "format_version", "dim", "lists", "build_rows", "changed_lists")


def watch(conn: Conn, index: str) -> dict[str, Any]:
    """The row of an index, with all that this session has counted."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT * FROM bq_stat_indexes WHERE indexrelname = %s"
    row = conn.cursor(row_factory=dict_row).execute(query, [index]).fetchone()
    assert row is not None
    return row


def count(conn: Conn, index: str) -> list[int]:
    row = watch(conn, index)
    return [row[name] for name in COUNTERS]


def run(conn: Conn, statements: str) -> None:
    conn.execute(cast(Any, statements))


@pytest.fixture
def items(conn: Conn, rng: np.random.Generator) -> Conn:
    """A table with an index on codes, of twenty lists."""
    conn.autocommit = True
    create(conn, clustered_vectors(rng, 1000, DIM), nulls=0)
    create_index(conn, options="lists = 20")
    run(conn, "SET enable_seqscan = off; SET stats_fetch_consistency = none")
    return conn


def create_small(conn: Conn, rng: np.random.Generator) -> None:
    """A table of one row, and an index that is to have twenty lists when there are more."""
    create(conn, random_vectors(rng, 1, DIM), nulls=0)
    create_index(conn, options="lists = 20")


@pytest.fixture
def watcher(conn: Conn) -> Iterator[None]:
    """A role with the rights of pg_monitor."""
    conn.autocommit = True
    run(conn, f"DROP ROLE IF EXISTS {WATCHER}; CREATE ROLE {WATCHER} IN ROLE pg_monitor")
    yield
    run(conn, f"RESET ROLE; DROP OWNED BY {WATCHER}; DROP ROLE {WATCHER}")


# -- counters -------------------------------------------------------------------------------


NEAREST = "SELECT id FROM items ORDER BY code <=> %s LIMIT 10"


def test_scans_are_counted(items: Conn, rng: np.random.Generator) -> None:
    assert count(items, "items_code") == [0, 0, 0, 0]
    q = operand("<=>", random_vectors(rng, 1, DIM)[0])
    for _ in range(3):
        items.execute(NEAREST, [q]).fetchall()
    scans, lists, codes, vectors = count(items, "items_code")
    assert (scans, lists % 3, codes % 3, vectors) == (3, 0, 0, 0)
    assert lists > 0 and codes > 0
    assert watch(items, "items_code")["idx_tup_read"] == 30
    # all lists: every code of the index, and the slots that are empty in its last blocks
    items.execute("SET bq.probes = 20")
    items.execute(NEAREST, [q]).fetchall()
    _, all_lists, all_codes, _ = count(items, "items_code")
    assert all_lists - lists == 20 and 1000 <= all_codes - codes <= 1000 + 20 * 32


def test_counters_are_what_explain_says(items: Conn, rng: np.random.Generator) -> None:
    if items.info.server_version < 180000:
        pytest.skip("EXPLAIN says it from PostgreSQL 18 on")
    q = operand("<=>", random_vectors(rng, 1, DIM)[0])
    node = measure_scan(items, NEAREST, [q])
    expected = [1, node["Lists Read"], node["Codes Compared"], 0]
    assert count(items, "items_code") == expected


def test_rescans_and_cursors_are_counted(items: Conn, rng: np.random.Generator) -> None:
    run(items, "CREATE TABLE queries AS SELECT code FROM items WHERE id BETWEEN 1 AND 5")
    items.execute(
        "SELECT q.code, n.id FROM queries AS q, LATERAL"
        " (SELECT id FROM items ORDER BY code <~> q.code LIMIT 3) AS n"
    ).fetchall()
    scans, lists, codes, _ = count(items, "items_code")
    assert scans == 5 and lists >= 5 and codes > 0
    q = operand("<=>", random_vectors(rng, 1, DIM)[0])
    with items.transaction(), items.cursor("open") as cursor:
        cursor.execute(NEAREST, [q])
        cursor.fetchone()
    assert count(items, "items_code")[0] == 6 and count(items, "items_code")[1] > lists


def test_a_statement_that_fails_leaves_what_was_counted(items: Conn) -> None:
    before = count(items, "items_code")
    with pytest.raises(psycopg.Error, match="dimensions"):
        items.execute(NEAREST, [operand("<=>", np.ones(DIM + 1, np.float32))])
    assert count(items, "items_code")[1:] == before[1:]


@needs_pgvector
def test_vectors_and_many_queries_are_counted(conn: Conn, rng: np.random.Generator) -> None:
    conn.autocommit = True
    prepare(conn, COSINE)
    vectors = clustered_vectors(rng, 1000, DIM)
    create(conn, vectors, column=COSINE)
    create_index(conn, COSINE, "lists = 20")
    run(conn, "SET enable_seqscan = off; SET stats_fetch_consistency = none")
    one = "SELECT id FROM items ORDER BY embedding <=> %s LIMIT 10"
    for vector in vectors[:9]:
        conn.execute(one, [COSINE.operand("<=>", vector)]).fetchall()
    scans, lists, codes, fetched = count(conn, "items_embedding")
    assert scans == 9 and lists >= 9 and codes > 0 and fetched >= 90

    many = "SELECT count(*) FROM bq_search('items_embedding', %s, 10)"
    conn.execute(many, [[COSINE.operand("<=>", vector) for vector in vectors[:9]]])
    together = np.subtract(count(conn, "items_embedding"), [scans, lists, codes, fetched])
    assert together[0] == 9 and together[1] >= 9 and together[2] > 0 and together[3] >= 90


def test_measuring_recall_is_not_counted(items: Conn) -> None:
    (recall,) = items.execute("SELECT bq_recall('items_code', 10)").fetchone() or ()
    assert recall > 0.5
    assert count(items, "items_code") == [0, 0, 0, 0]


def test_counters_are_part_of_no_sum(items: Conn, rng: np.random.Generator) -> None:
    """Of the database, and of tables: they are in fields that no other view shows of an index."""
    query = """
        SELECT sum(tup_inserted), sum(tup_updated), sum(tup_deleted),
            (SELECT sum(n_live_tup) FROM pg_stat_all_tables),
            (SELECT sum(n_mod_since_analyze) FROM pg_stat_all_tables),
            (SELECT sum(n_tup_hot_upd) FROM pg_stat_all_tables)
        FROM pg_stat_database WHERE datname = current_database()
    """
    watch(items, "items_code")
    before = items.execute(query).fetchone()
    for vector in random_vectors(rng, 20, DIM):
        items.execute(NEAREST, [operand("<=>", vector)]).fetchall()
    assert count(items, "items_code")[2] > 100
    assert items.execute(query).fetchone() == before


def test_counters_are_reset_and_follow_reindex(items: Conn, rng: np.random.Generator) -> None:
    items.execute(NEAREST, [operand("<=>", random_vectors(rng, 1, DIM)[0])]).fetchall()
    before = count(items, "items_code")
    assert min(before[:3]) > 0
    items.execute("REINDEX INDEX CONCURRENTLY items_code")
    assert count(items, "items_code") == before
    items.execute("SELECT pg_stat_reset_single_table_counters('items_code'::regclass)")
    assert count(items, "items_code") == [0, 0, 0, 0]


def test_nothing_is_counted_without_track_counts(items: Conn, rng: np.random.Generator) -> None:
    items.execute("SET track_counts = off")
    items.execute(NEAREST, [operand("<=>", random_vectors(rng, 1, DIM)[0])]).fetchall()
    items.execute("SET track_counts = on")
    assert count(items, "items_code") == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_standby_counts_its_own_and_sees_splits(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    with connect(own_server.dsn) as conn:
        create_small(conn, rng)
        insert(conn, clustered_vectors(rng, 3000, DIM), first=100)
        conn.execute("CREATE UNLOGGED TABLE unlogged AS SELECT * FROM items")
        create_index(conn, table="unlogged")
        with start_standby(own_server) as standby, connect(standby.dsn) as other:
            conn.execute("VACUUM items")
            wait_for_replay(conn, other)
            split = watch(conn, "items_code")
            assert split["last_split"] is not None
            seen = watch(other, "items_code")
            assert [seen[name] for name in (*STATE, "last_split")] == [
                split[name] for name in (*STATE, "last_split")
            ]
            other.execute("SET enable_seqscan = off")
            other.execute(NEAREST, [operand("<=>", random_vectors(rng, 1, DIM)[0])]).fetchall()
            assert min(count(other, "items_code")[:3]) > 0
            assert count(conn, "items_code") == [0, 0, 0, 0]
            # whose pages are not there
            assert watch(other, "unlogged_code")["total_bytes"] is None


# -- state ----------------------------------------------------------------------------------


def test_the_state_is_that_of_the_index(items: Conn) -> None:
    items.execute("VACUUM items")
    row = watch(items, "items_code")
    info = items.cursor(row_factory=dict_row).execute("SELECT * FROM bq_index_info('items_code')")
    expected = info.fetchone()
    assert expected is not None
    assert row["rows"] == expected["live_rows"] == 1000
    for name in ("total_bytes", "format_version", "dim", "transform", "lists", "build_rows"):
        assert row[name] == expected[name], name
    assert (row["relname"], row["schemaname"], row["valid"]) == ("items", "public", True)
    assert (row["changed_lists"], row["last_split"]) == (0, None)


def test_a_split_is_dated(conn: Conn, rng: np.random.Generator) -> None:
    conn.autocommit = True
    create_small(conn, rng)
    assert watch(conn, "items_code")["last_split"] is None
    insert(conn, clustered_vectors(rng, 3000, DIM), first=100)
    (before,) = conn.execute("SELECT clock_timestamp()").fetchone() or ()
    conn.execute("VACUUM items")
    (after,) = conn.execute("SELECT clock_timestamp()").fetchone() or ()
    row = watch(conn, "items_code")
    assert before <= row["last_split"] <= after
    assert row["lists"] == 20 and row["rows"] == 3001
    conn.execute("REINDEX INDEX items_code")
    assert watch(conn, "items_code")["last_split"] is None


def test_a_locked_index_is_not_waited_for(items: Conn) -> None:
    with psycopg.connect(items.info.dsn) as other:
        other.execute("REINDEX INDEX items_code")
        items.execute("SET lock_timeout = '1ms'")
        row = watch(items, "items_code")
    assert [row[name] for name in STATE] == [None] * len(STATE)
    assert row["rows"] == 1000 and row["idx_scan"] == 0
    assert watch(items, "items_code")["dim"] == DIM


def test_indexes_that_cannot_be_read_are_null(items: Conn) -> None:
    """Temporary ones of other sessions, one half built, and what is none at all."""
    with psycopg.connect(items.info.dsn, autocommit=True) as other:
        other.execute("CREATE TEMP TABLE passing AS SELECT * FROM items")
        other.execute("CREATE INDEX passing_code ON passing USING bq ((code::bqvec(16)))")
        row = watch(items, "passing_code")
    assert row["valid"] and [row[name] for name in STATE] == [None] * len(STATE)
    run(items, "INSERT INTO items VALUES (-9, NULL, 0)")
    with pytest.raises(psycopg.Error, match="division"):
        run(items, "CREATE INDEX CONCURRENTLY half ON items USING bq (code) WHERE 1 / (id + 9) > 0")
    row = watch(items, "half")
    assert not row["valid"] and row["format_version"] is None
    for name in ("items", "pg_class", "pg_class_oid_index", "bq_stat_indexes"):
        query = "SELECT * FROM bq_index_summary(%s::regclass)"
        assert set(items.execute(query, [name]).fetchone() or ()) == {None}
    assert set(items.execute("SELECT * FROM bq_index_summary(1)").fetchone() or ()) == {None}


def test_an_old_or_damaged_index_hides_no_other(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    with connect(own_server.dsn) as conn:
        for table in ("old", "damaged", "whole"):
            create(conn, random_vectors(rng, 50, DIM), table=table)
            create_index(conn, table=table)
    damage(
        own_server,
        ("old_code", 0, Places.META + 4, (4).to_bytes(4, "little")),
        ("damaged_code", 0, Places.META, b"\0\0\0\0"),
    )
    with connect(own_server.dsn) as conn:
        old, damaged, whole = (watch(conn, f"{t}_code") for t in ("old", "damaged", "whole"))
    assert (old["format_version"], old["lists"]) == (4, None)
    assert (damaged["format_version"], damaged["lists"]) == (None, None)
    assert whole["lists"] == 1
    assert old["total_bytes"] == damaged["total_bytes"] == whole["total_bytes"]


def test_who_sees_what(items: Conn, watcher: None) -> None:
    run(items, f"SET ROLE {WATCHER}")
    assert watch(items, "items_code")["dim"] == DIM
    run(items, f"RESET ROLE; REVOKE pg_monitor FROM {WATCHER}; SET ROLE {WATCHER}")
    row = watch(items, "items_code")
    assert [row[name] for name in STATE] == [None] * len(STATE)
    assert row["idx_scan"] == 0 and row["rows"] == 1000
    run(items, f"RESET ROLE; GRANT SELECT ON items TO {WATCHER}; SET ROLE {WATCHER}")
    assert watch(items, "items_code")["dim"] == DIM


# -- the page, and its files ------------------------------------------------------------------


@pytest.fixture
def documents(conn: Conn, bq_pgvector: None, rng: np.random.Generator) -> Conn:
    """A table as the page has it, and one of others with row security."""
    conn.autocommit = True
    run(
        conn,
        "CREATE TABLE documents (id int PRIMARY KEY, embedding vector(16));"
        "CREATE TABLE hidden (id int, embedding vector(16));"
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
    )
    for table in ("documents", "hidden"):
        with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            for i, vector in enumerate(random_vectors(rng, 300, 16)):
                copy.write_row((i, str(vector.tolist())))
        run(conn, f"CREATE INDEX ON {table} USING bq (embedding vector_cosine_ops)")
    conn.execute("VACUUM ANALYZE documents")
    return conn


def test_statements_of_the_page_run(documents: Conn) -> None:
    run(documents, f"DROP ROLE IF EXISTS {WATCHER}")
    page = (DOCS / "monitoring.md").read_text().replace("watcher", WATCHER)
    results = []
    other = psycopg.connect(documents.info.dsn, autocommit=True)
    try:
        # whose pages no other session can read
        run(
            other,
            "CREATE TEMP TABLE mine AS SELECT * FROM documents;"
            "CREATE INDEX ON mine USING bq (embedding vector_cosine_ops)",
        )
        for block in re.findall(r"^```sql\n(.*?)^```$", page, re.S | re.M):
            for statement in filter(str.strip, re.sub(r"--.*", "", block).split(";")):
                cursor = documents.execute(statement.encode())
                results += [cursor.fetchall()] if cursor.description else []
        view, costs, recalls, hints, grown, unused, builds = results
        assert len(view) == len(costs) == len(unused) == 3 and len(recalls) == 2
        assert all(0.9 < recall <= 1 for _, recall in recalls)
        assert (hints, grown, builds) == ([], [], [])
        history = documents.execute("SELECT count(*), min(recall) > 0.9 FROM recall_history")
        assert history.fetchone() == (2, True)
        granted = "SELECT has_table_privilege(%s, 'documents', 'SELECT')"
        assert documents.execute(granted, [WATCHER]).fetchone() == (True,)
    finally:
        other.close()
        run(documents, f"DROP OWNED BY {WATCHER}; DROP ROLE {WATCHER}")


def read_queries() -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load((DOCS / "exporter-queries.yaml").read_text()))


def test_columns_of_the_page_are_those_of_the_view(conn: Conn) -> None:
    table = (DOCS / "monitoring.md").read_text().partition("| column |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'bq_stat_indexes'::regclass"
    there = {name for (name,) in conn.execute(query)}
    assert named == there - {"relid", "indexrelid", "schemaname", "relname", "indexrelname"}


@pytest.mark.parametrize("role", ["superuser", "pg_monitor", "reader"])
def test_queries_of_the_exporter_run(documents: Conn, watcher: None, role: str) -> None:
    """Columns are the metrics that are declared; what a role may not see is left out."""
    if role != "superuser":
        run(documents, f"SET ROLE {WATCHER}")
    if role == "reader":
        run(documents, "RESET ROLE")
        run(documents, f"GRANT SELECT ON documents, hidden TO {WATCHER}; SET ROLE {WATCHER}")
    found = {}
    for name, query in read_queries().items():
        cursor = documents.cursor(row_factory=dict_row).execute(query["query"])
        assert cursor.description is not None
        columns = [column.name for column in cursor.description]
        assert columns == [column for metric in query["metrics"] for column in metric]
        found[name] = {row["relname"]: row for row in cursor}
        for metric in query["metrics"]:
            ((column, declared),) = metric.items()
            assert declared["usage"] in ("LABEL", "COUNTER", "GAUGE") and declared["description"]
            # the exporter takes numbers, and text for labels
            kind = str if declared["usage"] == "LABEL" else (int, float)
            for row in found[name].values():
                assert row[column] is None or isinstance(row[column], kind), column
    recalled = set(found["bq_index_recall"])
    told = set(found["bq_index_state"])
    assert set(found["bq_index"]) == {"documents", "hidden"}
    assert found["bq_index"]["documents"]["lists"] == 1
    if role == "superuser":
        assert recalled == told == {"documents", "hidden"}
    else:
        assert recalled == ({"documents"} if role == "reader" else set())
        assert told == ({"documents", "hidden"} if role == "reader" else set())


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    metrics = {
        f"{name}_{column}"
        for name, query in read_queries().items()
        for metric in query["metrics"]
        for column in metric
    }
    asked = set()
    for panel in dashboard["panels"]:
        assert panel["targets"] and panel["title"]
        for target in panel["targets"]:
            names = set(re.findall(r"\bbq_index_\w+", target["expr"]))
            assert names and names <= metrics, target["expr"]
            asked |= names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    labels = {"datname", "schemaname", "relname", "indexrelname"}
    unasked = {name for name in metrics - asked if not name.endswith(tuple(labels))}
    assert unasked == {"bq_index_state_live_rows"}  # bq_index_rows, to the row
    for variable in dashboard["templating"]["list"]:
        assert set(re.findall(r"\bbq_index_\w+", str(variable["query"]))) <= metrics
    page = (DOCS / "monitoring.md").read_text().partition("## Prometheus")[2]
    assert set(re.findall(r"\bbq_index_(?!info)\w+", page)) <= metrics
