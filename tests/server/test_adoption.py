"""An index of bq beside pgvector's, on tables in use: what is made, measured, refused."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from shared import Conn

import pybq
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.indexes import VectorIndex, find_indexes
from pybq._catalog.layout import Layout
from pybq._tables import comparison
from pybq._tables.adoption import find_column
from pybq._tables.comparison import compare_indexes

pytest.importorskip("typer")
from typer.testing import CliRunner

from pybq._cli.app import app
from pybq._cli.doctor import examine

ROWS, DIM = 2000, 32


@pytest.fixture
def conn(conn: Conn, vector: None) -> Conn:
    conn.autocommit = True
    return conn


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    # in clusters, as a graph needs them to miss few
    centers = rng.standard_normal((20, DIM))
    return (centers[np.arange(ROWS) % 20] + rng.standard_normal((ROWS, DIM)) / 2).astype(np.float32)


@pytest.fixture
def items(conn: Conn, rows: np.ndarray) -> str:
    """A table as pgvector's users have it, with a name that must be quoted."""
    fill(conn, '"My items"', "vector", rows)
    return "My items"


def fill(conn: Conn, table: str, kind: str, rows: np.ndarray) -> None:
    conn.execute(f"CREATE TABLE {table} (tenant int, embedding {kind}({DIM}))".encode())
    with conn.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
        for i, vector in enumerate(rows):
            copy.write_row([i % 10, str(vector.tolist())])
    conn.execute(f"ANALYZE {table}".encode())


def definitions(conn: Conn) -> dict[str, str]:
    return dict(
        conn.execute("SELECT indexname, indexdef FROM pg_indexes WHERE indexdef ~ 'tenant|bedding'")
    )


def find(conn: Conn, table: str) -> tuple[Layout, list[VectorIndex]]:
    """Its column of vectors, and the indexes on that."""
    db = BlockingDatabase(conn)
    column = find_column(db, table)
    return column, run(find_indexes(db, column.oid, column.searched.name))


def other(conn: Conn) -> Conn:
    return psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True)


# -- what is made -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
@pytest.mark.parametrize(("kind", "metric"), [("vector", "inner_product"), ("halfvec", "l2")])
def test_the_metric_is_that_of_the_index_there(
    conn: Conn, rows: np.ndarray, kind: str, metric: str, method: str
) -> None:
    fill(conn, "items", kind, rows)
    suffix = {"inner_product": "ip", "l2": "l2"}[metric]
    conn.execute(
        f"CREATE INDEX old ON items USING {method} (embedding {kind}_{suffix}_ops)".encode()
    )
    made = pybq.adopt(conn, "items")
    assert (made.metric, made.others) == (metric, ["old"])
    assert made.drop == ['DROP INDEX CONCURRENTLY "public"."old"']
    assert made.seconds is not None and made.nbytes > 0 and made.comparison is None
    definition = definitions(conn)["items_embedding_bq"]
    assert f"USING bq (embedding {kind}_{suffix}_ops)" in definition
    conn.execute(made.drop[0].encode())
    assert set(definitions(conn)) == {"items_embedding_bq"}


def test_extensions_are_created_and_options_kept(conn: Conn, items: str) -> None:
    assert (
        conn.execute("SELECT 1 FROM pg_extension WHERE extname = 'bq_pgvector'").fetchone() is None
    )
    made = pybq.adopt(conn, items, filters=["tenant"], recall=0.9)
    assert made.metric == "cosine" and made.statement is not None
    assert "CONCURRENTLY" in made.statement
    definition = definitions(conn)[made.index]
    assert "USING bq (embedding vector_cosine_ops, tenant) WITH (recall='0.9')" in definition
    # the same again: nothing is made, but what differs is set
    again = pybq.adopt(conn, items, filters=["tenant"], recall=0.95)
    assert (again.index, again.statement, again.seconds) == (made.index, None, None)
    assert "recall='0.95'" in definitions(conn)[made.index]
    # another one is
    assert pybq.adopt(conn, items).index != made.index
    assert len(definitions(conn)) == 2


def test_pgvector_may_be_in_a_schema_of_its_own(conn: Conn, items: str) -> None:
    conn.execute("CREATE SCHEMA extensions")
    conn.execute("ALTER EXTENSION vector SET SCHEMA extensions")
    conn.execute("CREATE SCHEMA shop")
    conn.execute('ALTER TABLE "My items" SET SCHEMA shop')
    made = pybq.adopt(conn, items, schema="shop", compare=True, sample=3)
    assert made.comparison is not None and made.comparison.indexes[0].recall is not None


def test_autocommit_is_given_back(conn: Conn, items: str) -> None:
    conn.autocommit = False
    pybq.adopt(conn, items)
    assert not conn.autocommit
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# -- what is left of an attempt -----------------------------------------------------------


def test_a_failed_attempt_leaves_nothing(conn: Conn, items: str) -> None:
    """Cancelled while it waits for a transaction that is older than the index."""
    with other(conn) as blocker:
        blocker.autocommit = False
        blocker.execute('INSERT INTO "My items" VALUES (1, NULL)')
        conn.execute("SET statement_timeout = '1s'")
        seen: list[Any] = []

        def end_it() -> None:
            # once the index is in the catalog, not valid; the cleanup has to wait for us, too
            with other(conn) as watcher:
                while not seen:
                    seen.extend(watcher.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid"))
                    time.sleep(0.01)
            time.sleep(1.5)
            blocker.rollback()

        thread = threading.Thread(target=end_it)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            pybq.adopt(conn, items)
        thread.join()
    assert seen and definitions(conn) == {}
    conn.execute("RESET statement_timeout")
    assert pybq.adopt(conn, items).statement is not None


def test_what_cannot_be_cleaned_up_is_named_and_dropped_next_time(conn: Conn, items: str) -> None:
    with other(conn) as blocker:
        blocker.autocommit = False
        blocker.execute('INSERT INTO "My items" VALUES (1, NULL)')
        conn.execute("SET statement_timeout = '500ms'")
        with pytest.raises(pybq.TableError, match="run DROP INDEX CONCURRENTLY") as raised:
            pybq.adopt(conn, items)
        assert isinstance(raised.value.__cause__, psycopg.errors.QueryCanceled)
        blocker.rollback()
    conn.execute("RESET statement_timeout")
    (name,) = definitions(conn)
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = quote_ident(%s)::regclass"
    assert conn.execute(valid, [name]).fetchone() == (False,)
    assert pybq.adopt(conn, items).index == name
    assert set(definitions(conn)) == {name}
    assert conn.execute(valid, [name]).fetchone() == (True,)


def test_an_index_that_another_session_is_building_is_left_alone(conn: Conn, items: str) -> None:
    conn.execute("CREATE EXTENSION bq_pgvector")
    name = "My items_embedding_bq"
    with other(conn) as blocker, other(conn) as builder:
        blocker.autocommit = False
        blocker.execute('INSERT INTO "My items" VALUES (1, NULL)')
        statement = sql.SQL(
            'CREATE INDEX CONCURRENTLY {} ON "My items" USING bq (embedding vector_cosine_ops)'
        ).format(sql.Identifier(name))
        thread = threading.Thread(target=builder.execute, args=[statement])
        thread.start()
        try:
            while not conn.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid").fetchone():
                time.sleep(0.01)
            with pytest.raises(pybq.TableError, match="by another session; try again"):
                pybq.adopt(conn, items)
            (finding,) = [one for one in examine(conn) if one.name == f'index "{name}"']
            assert (finding.state, finding.text) == ("ok", "being built")
        finally:
            blocker.rollback()
            thread.join()
    assert pybq.adopt(conn, items).statement is None


# -- what is measured ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_each_index_is_measured_by_itself(conn: Conn, items: str, metric: str, method: str) -> None:
    suffix = {"cosine": "cosine", "inner_product": "ip"}[metric]
    conn.execute(
        f'CREATE INDEX old ON "My items" USING {method} (embedding vector_{suffix}_ops)'.encode()
    )
    # What each search was by, as the server itself counts it.
    count = "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE relname = 'My items'"
    settings = "SELECT name, setting FROM pg_settings WHERE name ~ 'cost$|probes|ef_search|enable'"
    conn.execute("SELECT bq_simd()")  # the module brings settings of its own
    before = conn.execute(settings).fetchall()
    made = pybq.adopt(conn, items, compare=True, k=5, sample=100)
    assert made.comparison is not None
    new, old = made.comparison.indexes
    assert (new.method, old.method, old.name) == ("bq", method, "old")
    assert made.comparison.queries == 100 and made.comparison.exact_milliseconds > 0
    assert new.recall is not None and new.recall >= 0.95
    assert old.recall is not None and 0 < old.recall <= 1
    assert new.milliseconds is not None and old.milliseconds is not None
    assert new.nbytes == made.nbytes < old.nbytes
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        conn.execute("SELECT pg_stat_clear_snapshot()")
        scans = dict(conn.execute(count))
        if min(scans.values()) >= 101:
            break
        time.sleep(0.1)
    assert scans == {made.index: 101, "old": 101}  # and one to warm up
    assert conn.execute(settings).fetchall() == before


def test_recall_is_of_the_true_neighbours(conn: Conn, items: str) -> None:
    """Less effort finds less, as its own setting says it."""
    conn.execute('CREATE INDEX old ON "My items" USING ivfflat (embedding vector_cosine_ops)')
    pybq.adopt(conn, items)
    found = []
    for probes in (1, 100):
        conn.execute(f"SET ivfflat.probes = {probes}".encode())
        column, indexes = find(conn, items)
        (old,) = [one for one in indexes if one.name == "old"]
        (report,) = compare_indexes(conn, column, [old], sample=30).indexes
        assert report.effort == f"ivfflat.probes = {probes}"
        found.append(report.recall)
    assert found[0] < 0.9 and found[1] == 1


def test_what_was_adopted_is_found_when_the_old_index_is_gone(conn: Conn, items: str) -> None:
    """And no other one is made, for cosine."""
    conn.execute('CREATE INDEX old ON "My items" USING hnsw (embedding vector_l2_ops)')
    made = pybq.adopt(conn, items)
    for statement in made.drop:
        conn.execute(statement.encode())
    again = pybq.adopt(conn, items)
    assert (again.index, again.metric, again.statement) == (made.index, "l2", None)


def test_what_the_planner_does_not_take_is_not_made_up(
    conn: Conn, items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pybq.adopt(conn, items)
    column, (index,) = find(conn, items)
    assert index.name == made.index
    monkeypatch.setattr(comparison, "_scanned_indexes", lambda plan: set())
    (report,) = compare_indexes(conn, column, [index], sample=2).indexes
    assert (report.recall, report.milliseconds) == (None, None)


# -- what is refused ----------------------------------------------------------------------


def test_errors_say_what_to_do(conn: Conn, items: str) -> None:
    conn.execute("CREATE TABLE two (a vector(3), b halfvec(3), c vector)")
    conn.execute("CREATE TABLE none (a int)")
    conn.execute("CREATE VIEW view AS SELECT a FROM two")
    for arguments, message in (
        (["missing"], "no table 'missing'"),
        (["none"], "no column of pgvector's types"),
        (["two"], "vectors in a, b, c; say which with column"),
        (["two", "--column", "d"], "no column 'd' of type vector or halfvec; it has a, b, c"),
        (["two", "--column", "c"], 'ALTER TABLE "public"."two" ALTER "c" TYPE vector(384)'),
        (["two", "--column", "a", "--filter", "x"], "has no column 'x' to filter by"),
        (["view"], "'view' is not a table"),
        (["two", "--column", "a", "--recall", "2"], "expected recall above 0 and at most 1"),
    ):
        result = CliRunner().invoke(
            app, ["adopt", *arguments, "--json"], env={"PYBQ_DSN": conn.info.dsn}
        )
        assert result.exit_code == 1
        assert message in json.loads(result.output)["error"]
    assert definitions(conn) == {}
    for suffix in ("l2", "ip"):
        conn.execute(
            f'CREATE INDEX ON "My items" USING hnsw (embedding vector_{suffix}_ops)'.encode()
        )
    with pytest.raises(pybq.TableError, match="indexes for inner_product and l2; say which"):
        pybq.adopt(conn, items)
    conn.autocommit = False
    conn.execute("SELECT 1")
    with pytest.raises(pybq.TableError, match="commit this one"):
        pybq.adopt(conn, items)


def test_comparing_leaves_no_transaction_open(conn: Conn, items: str) -> None:
    pybq.adopt(conn, items)
    conn.autocommit = False
    compared = comparison.compare_all(pybq.Table(conn, items), sample=2)
    assert [index.method for index in compared.indexes] == ["bq"]
    assert conn.info.transaction_status == TransactionStatus.IDLE


def test_who_may_not_create_the_extension_hears_what_to_ask_for(conn: Conn, items: str) -> None:
    conn.execute("CREATE ROLE bq_visitor")
    try:
        conn.execute('ALTER TABLE "My items" OWNER TO bq_visitor')
        conn.execute("GRANT CREATE ON SCHEMA public TO bq_visitor")
        conn.execute("SET ROLE bq_visitor")
        with pytest.raises(pybq.ExtensionMissingError, match="run CREATE EXTENSION bq_pgvector"):
            pybq.adopt(conn, items)
        conn.execute("RESET ROLE")
        conn.execute("CREATE EXTENSION bq_pgvector")
        conn.execute("SET ROLE bq_visitor")
        assert pybq.adopt(conn, items).statement is not None
    finally:
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY bq_visitor")
        conn.execute("DROP ROLE bq_visitor")


# -- the command --------------------------------------------------------------------------


def test_command_shows_the_comparison_and_what_to_drop(
    conn: Conn, items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYBQ_DSN", conn.info.dsn)
    # the console was made when the module was imported, perhaps by another test
    monkeypatch.setattr("pybq._cli.output.out.width", 200)
    conn.execute('CREATE INDEX old ON "My items" USING hnsw (embedding vector_l2_ops)')
    arguments = ["adopt", items, "--filter", "tenant", "--compare", "--sample", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("made in", "CREATE INDEX CONCURRENTLY", "recall@10", "hnsw.ef_search = 40"):
        assert text in result.output
    assert 'DROP INDEX CONCURRENTLY "public"."old";' in result.output
    result = CliRunner().invoke(app, [*arguments, "--json"])
    answer = json.loads(result.output)
    assert answer["statement"] is None and answer["drop"] == [
        'DROP INDEX CONCURRENTLY "public"."old"'
    ]
    assert [one["method"] for one in answer["comparison"]["indexes"]] == ["bq", "hnsw"]
