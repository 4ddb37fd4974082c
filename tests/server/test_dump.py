"""What pg_dump takes and restore brings back: codes, queries, rows of bq_columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from dumplib import conninfo, dump, restore
from psycopg import sql
from shared import Conn

OWNER = "bq_test_owner"
OTHER = "bq_test_other"

FILL = """
CREATE TABLE items (id int PRIMARY KEY, code bqvec(40), query bqquery);
INSERT INTO items
SELECT i, bq_encode(x, i % 3), bq_query(x, i % 3)
FROM generate_series(1, 100) AS i,
    LATERAL (SELECT array_agg(sin(i * j)::real) AS x FROM generate_series(1, 40) AS j) AS v;
INSERT INTO items VALUES (0, bq_encode(array_fill(0::real, ARRAY[40])), NULL);
CREATE TABLE gone (code bqvec(40));
CREATE TABLE excluded (code bqvec(40, 5));
SELECT bq_register_column('items', 'code', NULL, 40, 'cosine', 1, 'a reason');
SELECT bq_add_statistics('items', 'code', (SELECT bq_statistics(bq_decode(code)) FROM items));
SELECT bq_keep_calibration('items', 'code', 0.95, 10, 4, 20, 101);
SELECT bq_register_column('excluded', 'code', NULL, 40, 'l2', 5);
SELECT bq_register_column('excluded', 'code2', NULL, 40, 'l2', 5);
SELECT bq_register_column('gone', 'code', NULL, 40, 'l2', 0);
DROP TABLE gone;
"""

CONTENTS = """
SELECT (SELECT string_agg(concat_ws(' ', id, code, query, vector_norm(query)), ',' ORDER BY id)
        FROM items),
    (SELECT string_agg(b::text, ',' ORDER BY b.table_name::text, code_column) FROM bq_columns AS b
     WHERE EXISTS (SELECT FROM pg_class WHERE oid = table_name)),
    (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
     WHERE attrelid = to_regclass('excluded') AND attname = 'code')
"""


@pytest.fixture
def databases(conn: Conn) -> Iterator[tuple[str, str]]:
    """Two empty databases of a role that is no superuser; the role is a login."""
    conn.autocommit = True
    names = "bq_test_dumped", "bq_test_restored"
    drop_all(conn, names)
    for role in (OWNER, OTHER):
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    for name in names:
        conn.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
                sql.Identifier(name), sql.Identifier(OWNER)
            )
        )
    yield names
    drop_all(conn, names)


def drop_all(conn: Conn, names: tuple[str, str]) -> None:
    for name in names:
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
    for role in (OWNER, OTHER):
        conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def contents(conn: Conn, dbname: str, user: str) -> Any:
    with psycopg.connect(conninfo(conn, dbname, user)) as other:
        return other.execute(CONTENTS).fetchone()


def registered(conn: Conn, dbname: str, user: str, relation: str = "bq_columns") -> list[str]:
    """Return the tables that have a row."""
    query = "SELECT table_name::text FROM {} ORDER BY 1"
    with psycopg.connect(conninfo(conn, dbname, user)) as other:
        return [name for (name,) in other.execute(query.format(relation)).fetchall()]


@pytest.mark.parametrize("superuser", [True, False])
def test_dump_of_extension_owner_restores(
    conn: Conn, databases: tuple[str, str], superuser: bool
) -> None:
    dumped, restored = databases
    user = conn.info.user if superuser else OWNER
    with psycopg.connect(conninfo(conn, dumped, user)) as source:
        source.execute("CREATE EXTENSION bq")
        source.execute(FILL)
    script = dump(conn, dumped, user)
    # made by CREATE EXTENSION, not by the dump
    assert b"POLICY" not in script
    assert b"GRANT" not in script
    restore(conn, restored, user, script)
    before = contents(conn, dumped, user)
    assert before[0].count(",") > 100 and "cosine" in before[1] and "l2" in before[1]
    assert before[2] == "bqvec(40,5)"
    assert contents(conn, restored, user) == before
    assert registered(conn, restored, user) == ["excluded", "excluded", "items"]


def test_rows_of_tables_that_are_not_restored_are_left_out(
    conn: Conn, databases: tuple[str, str]
) -> None:
    dumped, restored = databases
    with psycopg.connect(conninfo(conn, dumped, OWNER)) as source:
        source.execute("CREATE EXTENSION bq")
        source.execute(FILL)
        source.execute("CREATE TEMP TABLE passing (code bqvec(3))")
        source.execute("SELECT bq_register_column('passing', 'code', NULL, 3, 'l2')")
        source.commit()
        assert registered(conn, dumped, OWNER, "bq_column_data").count("0") == 0
        script = dump(conn, dumped, OWNER, "--exclude-table=excluded")
        assert b"public.excluded" in script and b"passing" not in script
    restore(conn, restored, OWNER, script)
    assert registered(conn, restored, OWNER, "bq_column_data") == ["items"]


def test_whoever_may_read_all_data_may_dump_all(conn: Conn, databases: tuple[str, str]) -> None:
    dumped, restored = databases
    with psycopg.connect(conninfo(conn, dumped, OWNER)) as source:
        source.execute("CREATE EXTENSION bq")
        source.execute(FILL)
        source.execute("SELECT bq_record_load('items', 'books.npy', 0, 100, 'print', 100)")
    conn.execute(sql.SQL("GRANT pg_read_all_data TO {}").format(sql.Identifier(OTHER)))
    restore(conn, restored, OWNER, dump(conn, dumped, OTHER))
    before = contents(conn, dumped, OWNER)
    assert "a reason" in before[1] and before[1].count("{") > 5  # statistics, too
    assert contents(conn, restored, OWNER) == before


def test_dump_by_others_needs_select(conn: Conn, databases: tuple[str, str]) -> None:
    """The owner of tables, in a database where someone else created the extension."""
    dumped, restored = databases
    with psycopg.connect(conninfo(conn, dumped, conn.info.user)) as other:
        other.execute("CREATE EXTENSION bq")
        other.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(OTHER)))
    with psycopg.connect(conninfo(conn, dumped, OTHER)) as source:
        source.execute(FILL)
    with pytest.raises(RuntimeError, match="permission denied for table bq_column_data"):
        dump(conn, dumped, OTHER)
    assert b"items" in dump(conn, dumped, OTHER, "--table=items")
    with psycopg.connect(conninfo(conn, dumped, conn.info.user)) as other:
        other.execute(sql.SQL("GRANT SELECT ON bq_column_data TO {}").format(sql.Identifier(OTHER)))
    restore(conn, restored, conn.info.user, dump(conn, dumped, OTHER))
    assert contents(conn, restored, OTHER) == contents(conn, dumped, OTHER)


NAMED = """
CREATE SCHEMA "Old one";
CREATE SCHEMA ext;
CREATE EXTENSION bq SCHEMA ext;
CREATE TABLE "Old one"."123" (id int PRIMARY KEY, code ext.bqvec(3, 5), q ext.bqquery);
CREATE TABLE "Old one"."it's ""100%s""
" (LIKE "Old one"."123");
CREATE TABLE "Old one"."items" (LIKE "Old one"."123");
INSERT INTO "Old one"."123"
SELECT i, ext.bq_encode(ARRAY[i, 1, 1 - i], 5), ext.bq_query(ARRAY[i, 1, 2], 5)
FROM generate_series(1, 200) AS i;
CREATE INDEX ON "Old one"."123" USING bq (code) WITH (lists = 3);
SELECT ext.bq_register_column(c.oid::regclass, 'code', NULL, 3, 'l2', 5, relname)
FROM pg_class AS c WHERE relnamespace = '"Old one"'::regnamespace AND relkind = 'r';
ALTER SCHEMA "Old one" RENAME TO "new one";
ALTER SCHEMA ext RENAME TO "Ext's";
CREATE TABLE public."123" (id int, code "Ext's".bqvec(3, 5));  -- another one, without a row
"""

NAMES = """
SELECT relname, relnamespace::regnamespace::text, reason, b.table_name::text
FROM "Ext's".bq_columns AS b JOIN pg_class AS c ON c.oid = b.table_name::oid ORDER BY 1
"""

NEAREST = """
SELECT id FROM "new one"."123"
ORDER BY code OPERATOR("Ext's".<=>) (SELECT q FROM "new one"."123" WHERE id = 9) LIMIT 20
"""


def test_renamed_schemas_and_names_of_all_kinds(conn: Conn, databases: tuple[str, str]) -> None:
    """Tables of two owners, a name that could be an oid, one of each kind of quote."""
    dumped, restored = databases
    found = []
    with psycopg.connect(conninfo(conn, dumped, conn.info.user), autocommit=True) as source:
        for statement in NAMED.split(";\n"):
            source.execute(sql.SQL(statement))  # type: ignore[arg-type]
        for table, owner in (("123", OWNER), ("items", OTHER)):
            source.execute(
                sql.SQL("ALTER TABLE {} OWNER TO {}").format(
                    sql.Identifier("new one", table), sql.Identifier(owner)
                )
            )
    restore(conn, restored, conn.info.user, dump(conn, dumped, conn.info.user))
    for name in databases:
        with psycopg.connect(conninfo(conn, name, conn.info.user)) as other:
            rows = other.execute(NAMES).fetchall()
            assert [row[2] for row in rows] == [row[0] for row in rows]
            assert [row[0] for row in rows] == ["123", 'it\'s "100%s"\n', "items"]
            assert {row[1] for row in rows} == {'"new one"'}
            other.execute("SET enable_seqscan = off")
            assert "Index Scan" in str(other.execute("EXPLAIN " + NEAREST).fetchall())
            other.execute("""SELECT "Ext's".bq_index_check('"new one"."123_code_idx"', true)""")
            found.append((rows, other.execute(NEAREST).fetchall()))
            # whoever owns a table looks after its row, in the restored database as well
            other.execute(sql.SQL("GRANT USAGE ON SCHEMA {}, {} TO {}").format(
                sql.Identifier("new one"), sql.Identifier("Ext's"), sql.Identifier(OTHER)
            ))  # fmt: skip
            other.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(OTHER)))
            other.execute("""SELECT "Ext's".bq_forget_column('"new one".items', 'code')""")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner"):
                other.execute("""SELECT "Ext's".bq_forget_column('"new one"."123"', 'code')""")
    assert found[0] == found[1]
    assert len(found[0][1]) == 20
