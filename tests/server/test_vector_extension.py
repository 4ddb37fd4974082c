"""Extension bq_pgvector: installing, moving, dumping and dropping it; what it puts in catalogs."""

from __future__ import annotations

from typing import Any, cast

import psycopg
import pytest
from dumplib import dump, restore
from psycopg import sql
from psycopg.conninfo import make_conninfo
from shared import Conn

DATABASES = ("bq_test_vectors", "bq_test_vectors_restored")

FILL = """
CREATE TABLE items (id int PRIMARY KEY, embedding {schema}vector(16), half {schema}halfvec(16));
INSERT INTO items SELECT i, v, v FROM generate_series(1, 500) AS i, LATERAL (
    SELECT array_agg(sin(i * j)::real)::{schema}vector AS v FROM generate_series(1, 16) AS j) AS x;
CREATE INDEX by_cosine ON items USING bq (embedding {schema}vector_cosine_ops)
    WITH (recall = 0.9, lists = 4);
CREATE INDEX by_l2 ON items USING bq (half {schema}halfvec_l2_ops) WHERE id < 300;
"""

MEMBERS = """
SELECT d.classid, d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'bq_pgvector'
"""


@pytest.fixture
def databases(conn: Conn, vector: None) -> Any:
    """Two databases without extensions."""
    conn.autocommit = True

    def drop() -> None:
        for name in DATABASES:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))

    drop()
    for name in DATABASES:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    yield DATABASES
    drop()


def connect_to(conn: Conn, name: str) -> Conn:
    return psycopg.connect(make_conninfo(conn.info.dsn, dbname=name), autocommit=True)


def run(conn: Conn, statements: str) -> None:
    conn.execute(cast(Any, statements))


def answers(conn: Conn, schema: str = "") -> list[Any]:
    """Order by both indexes, and that they are used."""
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET bq.recall = 1")
    found = []
    for index, column, operator in (
        ("by_cosine", "embedding", "<=>"),
        ("by_l2", "half", "<->"),
    ):
        sign = f"OPERATOR({schema}{operator})" if schema else operator
        query = f"""
            SELECT id FROM items WHERE id < 300
            ORDER BY {column} {sign} (SELECT {column} FROM items WHERE id = 7) LIMIT 20"""
        plan = conn.execute(cast(Any, "EXPLAIN " + query)).fetchall()
        assert f"Index Scan using {index}" in str(plan)
        found.append(conn.execute(cast(Any, query)).fetchall())
        conn.execute("SELECT bq_index_check(%s, true)", (index,))
    assert [rows[0] for rows in found] == [(7,), (7,)]
    return found


@pytest.mark.parametrize(
    "commands",
    [
        "CREATE EXTENSION bq_pgvector CASCADE",
        "CREATE EXTENSION bq; CREATE EXTENSION vector; CREATE EXTENSION bq_pgvector",
        "CREATE EXTENSION vector; CREATE EXTENSION bq; CREATE EXTENSION bq_pgvector",
    ],
)
def test_any_order_of_installation(conn: Conn, databases: tuple[str, str], commands: str) -> None:
    with connect_to(conn, databases[0]) as other:
        other.execute("SET client_min_messages = warning")
        run(other, commands)
        run(other, FILL.format(schema=""))
        answers(other)


def test_needs_both_extensions(conn: Conn, databases: tuple[str, str]) -> None:
    with connect_to(conn, databases[0]) as other:
        for command in ("CREATE EXTENSION bq", "CREATE EXTENSION vector"):
            with pytest.raises(psycopg.errors.UndefinedObject) as error:
                other.execute("CREATE EXTENSION bq_pgvector")
            assert error.value.diag.message_hint == (
                "Use CREATE EXTENSION ... CASCADE to install required extensions too."
            )
            run(other, command)
        other.execute("CREATE EXTENSION bq_pgvector")


def test_dump_restores(conn: Conn, databases: tuple[str, str]) -> None:
    """Options, predicates and answers are the same."""
    with connect_to(conn, databases[0]) as other:
        other.execute("SET client_min_messages = warning")
        other.execute("CREATE EXTENSION bq_pgvector CASCADE")
        run(other, FILL.format(schema=""))
        expected = answers(other)
    script = dump(conn, databases[0], conn.info.user)
    assert b"WITH (recall='0.9', lists='4')" in script
    restore(conn, databases[1], conn.info.user, script)
    with connect_to(conn, databases[1]) as other:
        assert answers(other) == expected


@pytest.mark.parametrize("together", [True, False])
def test_other_schemas(conn: Conn, databases: tuple[str, str], together: bool) -> None:
    """All in one schema that no search path names, or pgvector in one of its own."""
    with connect_to(conn, databases[0]) as other:
        run(other, "CREATE SCHEMA ext")
        other.execute("CREATE EXTENSION vector SCHEMA ext")
        run(other, "CREATE EXTENSION bq" + " SCHEMA ext" * together)
        run(other, "CREATE EXTENSION bq_pgvector SCHEMA ext")
        run(other, FILL.format(schema="ext."))
        if together:
            other.execute("ALTER EXTENSION bq SET SCHEMA public")
        answers(other, "ext.")
        other.execute("ALTER EXTENSION bq_pgvector SET SCHEMA public")
        other.execute("ALTER EXTENSION vector SET SCHEMA public")
        other.execute("REINDEX TABLE items")
        expected = answers(other)
    restore(conn, databases[1], conn.info.user, dump(conn, databases[0], conn.info.user))
    with connect_to(conn, databases[1]) as other:
        assert answers(other) == expected


@pytest.mark.parametrize("extension", ["vector", "bq", "bq_pgvector"])
def test_dropped_without_a_trace(conn: Conn, databases: tuple[str, str], extension: str) -> None:
    """Indexes go with the operator classes; columns only with their type."""
    with connect_to(conn, databases[0]) as other:
        other.execute("SET client_min_messages = warning")
        other.execute("CREATE EXTENSION bq_pgvector CASCADE")
        run(other, FILL.format(schema=""))
        other.execute(cast(Any, f"CREATE TEMP TABLE were_members AS {MEMBERS}"))
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            run(other, f"DROP EXTENSION {extension}")
        run(other, f"DROP EXTENSION {extension} CASCADE")
        row = other.execute(
            "SELECT count(*) >= 14, count(d.objid) FROM were_members"
            " LEFT JOIN pg_depend AS d USING (classid, objid)"
        ).fetchone()
        assert row == (True, 0)
        row = other.execute("SELECT count(*) FROM pg_class WHERE relname IN ('by_cosine', 'by_l2')")
        assert row.fetchone() == (0,)
        columns = other.execute("SELECT * FROM items LIMIT 0").description
        assert columns is not None
        assert len(columns) == (1 if extension == "vector" else 3)
        other.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")


def test_catalog(conn: Conn, bq_pgvector: None) -> None:
    """Each class is valid, has pgvector's name and a comment; functions are declared safe."""
    classes = conn.execute(
        "SELECT c.opcname, amvalidate(c.oid), c.opcdefault, obj_description(c.oid, 'pg_opclass')"
        " FROM pg_opclass AS c JOIN pg_am AS a ON a.oid = c.opcmethod"
        f" JOIN ({MEMBERS}) AS m ON m.objid = c.oid WHERE a.amname = 'bq' ORDER BY 1"
    ).fetchall()
    hnsw = conn.execute(
        "SELECT opcname FROM pg_opclass AS c JOIN pg_am AS a ON a.oid = c.opcmethod"
        r" WHERE amname = 'hnsw' AND opcname ~ '^(half)?vec(tor)?_(cosine|ip|l2)_ops$' ORDER BY 1"
    ).fetchall()
    assert [(name,) for name, *_ in classes] == hnsw
    assert len(classes) == 6
    for name, valid, default, comment in classes:
        assert valid and comment and not default, name
    functions = conn.execute(
        "SELECT p.proname, p.proparallel, p.provolatile, p.proisstrict,"
        " obj_description(p.oid, 'pg_proc') IS NOT NULL FROM pg_proc AS p"
        f" JOIN ({MEMBERS}) AS m ON m.objid = p.oid ORDER BY 1"
    ).fetchall()
    assert functions == [
        ("bq_halfvec_source", "s", "i", True, True),
        ("bq_vector_source", "s", "i", True, True),
    ]
    versions = conn.execute(
        "SELECT DISTINCT default_version FROM pg_available_extensions"
        " WHERE name IN ('bq', 'bq_pgvector')"
    ).fetchall()
    assert len(versions) == 1


def test_support_functions_cannot_be_called(conn: Conn, bq_pgvector: None) -> None:
    conn.autocommit = True
    for name in ("bq_vector_source", "bq_halfvec_source"):
        for argument in ("NULL", "'1'"):
            # or, since minor versions of 2026, not even found
            with pytest.raises(
                (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFunction),
                match=rf"type internal|{name}\(unknown\)",
            ):
                run(conn, f"SELECT {name}({argument})")
