"""Whose rights code runs with, what row security hides, and what hostile neighbours can do.

SECURITY.md says what is promised.  Roles: an owner of tables, who is no superuser, and a reader who
owns nothing; the tests themselves are the superuser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from psycopg import sql
from shared import Conn, needs_pgvector

import pybq

OWNER = "bq_test_security_owner"
READER = "bq_test_security_reader"

Notices = list[str]


@pytest.fixture
def roles(conn: Conn) -> Iterator[None]:
    conn.autocommit = True
    drop_roles(conn)
    for role in (OWNER, READER):
        conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    run(conn, f"GRANT CREATE ON SCHEMA public TO {OWNER}")
    yield
    run(conn, "RESET ALL")
    run(conn, "RESET ROLE")
    drop_roles(conn)


def drop_roles(conn: Conn) -> None:
    for role in (OWNER, READER):
        if conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
            # what the extension's objects are owned by is dropped with it
            run(conn, f"SET client_min_messages = warning; DROP OWNED BY {role} CASCADE")
            run(conn, f"DROP ROLE {role}")


def run(conn: Conn, statements: str) -> None:
    conn.execute(cast(Any, statements))


def listen(conn: Conn) -> Notices:
    """What code says while it runs."""
    notices: Notices = []
    conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    return notices


# Code of a table's owner that says whose rights it has, and tries what would outlive the call.
SPY = f"""
CREATE FUNCTION spy() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'runs as %', current_user;
    PERFORM set_config('bq.max_scan_tuples', '12345', false);
    PERFORM set_config('search_path', 'spied', false);
    BEGIN
        CREATE TEMP TABLE left_behind ();
        RAISE NOTICE 'temporary table';
    EXCEPTION WHEN insufficient_privilege THEN
    END;
    BEGIN
        RESET ROLE;
        RAISE NOTICE 'reset role';
    EXCEPTION WHEN insufficient_privilege THEN
    END;
END
$$;
CREATE FUNCTION spied(x vector) RETURNS vector IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.spy();
    RETURN x;
END
$$;
CREATE FUNCTION spied(x real[]) RETURNS real[] IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.spy();
    RETURN x;
END
$$;
CREATE TABLE items (id int PRIMARY KEY, v vector(3), x real[], code bqvec(3));
INSERT INTO items
SELECT i, ARRAY[i, 1, i % 7]::vector, ARRAY[i, 1, i % 7], bq_encode(ARRAY[i, 1, i % 7]::real[])
FROM generate_series(1, 50) AS i;
ALTER TABLE items OWNER TO {OWNER};
ALTER FUNCTION spy() OWNER TO {OWNER};
CREATE INDEX of_vectors ON items USING bq ((spied(v)::vector(3)) vector_l2_ops);
CREATE INDEX of_codes ON items USING bq ((bq_encode(spied(x))::bqvec(3)));
"""

LEFT_BEHIND = """
SELECT current_setting('bq.max_scan_tuples'), current_setting('search_path'),
    to_regclass('pg_temp.left_behind'), current_user = session_user
"""

EXPRESSIONS = [
    "SELECT bq_index_check('of_vectors', true)",
    "SELECT bq_index_check('of_codes', true)",
    "SELECT bq_index_info('of_vectors')",
    "SELECT bq_recall('of_vectors', 3, 5)",
    "SELECT bq_search('of_vectors', ARRAY['[1,2,3]'::vector], 5)",
    "REINDEX INDEX of_vectors",
    "REINDEX INDEX of_codes",
    "CREATE INDEX ON items USING bq ((spied(v)::vector(3)) vector_ip_ops)",
    "CREATE INDEX CONCURRENTLY ON items USING bq ((spied(v)::vector(3)) vector_cosine_ops)",
    "VACUUM (ANALYZE) items",
]


@pytest.mark.parametrize("statement", EXPRESSIONS)
@pytest.mark.usefixtures("roles", "bq_pgvector")
def test_expressions_run_as_the_owner_of_the_table(conn: Conn, statement: str) -> None:
    """Called by the superuser, whom the owner would like to be."""
    run(conn, SPY)
    before = conn.execute(LEFT_BEHIND).fetchone()
    assert before is not None and before[3]
    notices = listen(conn)
    run(conn, statement)
    assert set(notices) == {f"runs as {OWNER}"}
    assert conn.execute(LEFT_BEHIND).fetchone() == before


@pytest.mark.usefixtures("roles", "bq_pgvector")
def test_casts_run_as_the_owner_of_the_table(conn: Conn) -> None:
    run(conn, SPY)
    run(conn, "CREATE TYPE boxed AS (x real[])")
    run(
        conn,
        "CREATE FUNCTION unbox(boxed) RETURNS real[] LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM public.spy(); RETURN ($1).x; END'",
    )
    run(conn, "CREATE CAST (boxed AS real[]) WITH FUNCTION unbox(boxed)")
    run(conn, "CREATE TABLE boxes (v boxed, code bqvec(3))")
    run(conn, "INSERT INTO boxes VALUES (ROW('{1,2,3}'))")
    run(conn, f"ALTER TABLE boxes OWNER TO {OWNER}")
    run(conn, "SELECT bq_register_column('boxes', 'code', 'v', 3, 'l2')")
    before = conn.execute(LEFT_BEHIND).fetchone()
    notices = listen(conn)
    assert conn.execute("SELECT (bq_sample_statistics('boxes')).count").fetchone() == (1,)
    assert set(notices) == {f"runs as {OWNER}"}
    assert conn.execute(LEFT_BEHIND).fetchone() == before


@pytest.mark.parametrize(
    "call",
    [
        "bq_index_info('public.of_vectors')",
        "bq_recall('public.of_vectors', 3, 5)",
        "bq_search('public.of_vectors', ARRAY['[1,2,3]'::public.vector], 5)",
        "bq_sample_statistics('public.items')",
    ],
)
@pytest.mark.usefixtures("roles", "bq_pgvector")
def test_callers_do_not_choose_what_names_mean_to_the_owner(conn: Conn, call: str) -> None:
    """A reader's function, in a schema that the reader searches first, would run as the owner."""
    run(
        conn,
        f"""
        CREATE SCHEMA trap AUTHORIZATION {READER};
        GRANT USAGE ON SCHEMA trap TO PUBLIC;
        CREATE FUNCTION trap.upper(text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            RAISE NOTICE 'trap runs as %', current_user;
            RETURN $1;
        END
        $$;
        CREATE FUNCTION plain(x vector) RETURNS vector IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            RAISE NOTICE '% of %', upper('runs'), current_user;
            RETURN x;
        END
        $$;
        CREATE TYPE boxed AS (x real[]);
        CREATE FUNCTION unbox(boxed) RETURNS real[] LANGUAGE plpgsql AS $$
        BEGIN
            RAISE NOTICE '% of %', upper('runs'), current_user;
            RETURN ($1).x;
        END
        $$;
        CREATE CAST (boxed AS real[]) WITH FUNCTION unbox(boxed);
        CREATE TABLE items (id int, v vector(3), boxed boxed);
        INSERT INTO items
        SELECT i, ARRAY[i, 1, i % 7]::vector, ROW(ARRAY[i, 1, i % 7]::real[])::boxed
        FROM generate_series(1, 200) AS i;
        CREATE INDEX of_vectors ON items USING bq ((plain(v)::vector(3)) vector_l2_ops);
        SELECT bq_register_column('items', 'code', 'boxed', 3, 'l2');
        ALTER TABLE items OWNER TO {OWNER};
        GRANT SELECT ON items TO {READER};
        SET ROLE {READER};
        SET search_path = trap, pg_catalog, public;
        """,
    )
    notices = listen(conn)
    run(conn, f"SELECT public.{call}")
    assert set(notices) == {f"RUNS of {OWNER}"}


@pytest.mark.parametrize(
    "call",
    [
        "bq_index_check('items_code')",
        "bq_index_info('items_code')",
        "bq_index_statistics('items_code')",
        "bq_recall('items_code')",
        "bq_search('items_code', '{}'::bqquery[])",
        "bq_sample_statistics('items')",
        "bq_register_column('items', 'code', NULL, 3, 'l2')",
        "bq_rename_column('items', 'code', 'other')",
        "bq_forget_column('items', 'code')",
        "bq_set_next_column('items', 'code', 'v', 1)",
        "bq_decide_again('items', 'code', 1, NULL, 0, 0, '')",
        "bq_keep_calibration('items', 'code', .9, 10, 4, 1, 100)",
        "bq_decide('items', 'code', 1, s, 0, 0, '') FROM made",
        "bq_add_statistics('items', 'code', s) FROM made",
        "bq_record_load('items', 'a', 0, 1, 'a', 1)",
    ],
)
@pytest.mark.usefixtures("roles")
def test_tables_of_others_are_refused(conn: Conn, call: str) -> None:
    """Before anything is locked or read; what is said is no more than that."""
    run(
        conn,
        f"""
        CREATE TABLE items (v real[], code bqvec(3));
        CREATE INDEX items_code ON items USING bq (code);
        SELECT bq_register_column('items', 'code', 'v', 3, 'l2');
        ALTER TABLE items OWNER TO {OWNER};
        GRANT REFERENCES ON items TO {READER};  -- the row of bq_columns can be seen
        CREATE VIEW made AS SELECT bq_statistics('{{1,2,3}}'::real[]) AS s;
        GRANT SELECT ON made TO {READER};
        SET ROLE {READER};
        """,
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
        run(conn, f"SELECT {call}")
    assert error.value.diag.message_primary in (
        "permission denied for table items",
        "must be owner of table items",
        "must be owner of index items_code",
    )


@needs_pgvector
@pytest.mark.usefixtures("roles", "bq_pgvector")
def test_row_security_is_not_bypassed(conn: Conn) -> None:
    """Neither rows nor figures of rows that a policy hides are shown; searches find the others."""
    run(
        conn,
        f"""
        CREATE TABLE items (id int, tenant int, v vector(3));
        INSERT INTO items SELECT i, i % 10, ARRAY[i, 1, sin(i)]::vector
        FROM generate_series(1, 1000) AS i;
        CREATE INDEX items_v ON items USING bq (v vector_l2_ops, tenant);
        ALTER TABLE items OWNER TO {OWNER};
        GRANT SELECT ON items TO {READER};
        ALTER TABLE items ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own ON items USING (tenant = 7);
        SET enable_seqscan = off;
        SET ROLE {READER};
        """,
    )
    query = "SELECT id FROM items {} ORDER BY v <-> '[500,1,0]' LIMIT 20"
    # hidden by conditions that would show them by an error, too
    shown = "WHERE CASE WHEN tenant = 7 THEN true ELSE 1 / (tenant - tenant) = 0 END"
    for order in ("strict_order", "relaxed_order"):
        run(conn, f"SET bq.iterative_scan = {order}")
        for condition in ("", "WHERE tenant >= 0", shown):
            text = query.format(condition)
            plan = str(conn.execute(cast(Any, "EXPLAIN " + text)).fetchall())
            assert "Index Scan using items_v" in plan
            found = [row[0] for row in conn.execute(cast(Any, text)).fetchall()]
            assert sorted(found) == [507 + 10 * i for i in range(-10, 10)]
    assert conn.execute(query.format("WHERE tenant = 5")).fetchall() == []  # type: ignore[arg-type]
    nearest = "bq_search('items_v', ARRAY['[500,1,0]'::vector], 5)"
    for call in ("bq_recall('items_v')", "bq_index_statistics('items_v')", nearest):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides"):
            run(conn, f"SELECT {call}")
    told = "SELECT lists, choice, hint FROM bq_index_info('items_v')"
    assert conn.execute(told).fetchone() == (1, None, None)
    # the owner is not under it, until it is forced
    for force, seen in ((False, True), (True, False)):
        run(conn, f"RESET ROLE; ALTER TABLE items {'' if force else 'NO '}FORCE ROW LEVEL SECURITY")
        run(conn, f"SET ROLE {OWNER}")
        row = conn.execute(told).fetchone()
        assert row is not None and (row[1] is not None) == seen
        if seen:
            assert conn.execute("SELECT bq_recall('items_v') > 0.5").fetchone() == (True,)
            found = conn.execute(cast(Any, f"SELECT count(*) FROM {nearest}")).fetchone()
            assert found == (5,)
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides"):
                run(conn, "SELECT bq_recall('items_v')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides"):
                run(conn, f"SELECT {nearest}")


@pytest.mark.usefixtures("roles")
def test_triggers_call_no_cast_that_writers_may_not(conn: Conn) -> None:
    run(
        conn,
        f"""
        CREATE TYPE boxed AS (x real[]);
        CREATE FUNCTION unbox(boxed) RETURNS real[] LANGUAGE sql AS 'SELECT ($1).x';
        REVOKE EXECUTE ON FUNCTION unbox(boxed) FROM PUBLIC;
        CREATE CAST (boxed AS real[]) WITH FUNCTION unbox(boxed);
        SET ROLE {OWNER};
        CREATE TABLE boxes (v boxed, code bqvec(3));
        CREATE TRIGGER encode BEFORE INSERT ON boxes FOR EACH ROW
            EXECUTE FUNCTION bq_encode_trigger('code', 'v', '1');
        """,
    )
    insert = "INSERT INTO boxes VALUES (ROW('{1,2,3}')) RETURNING vector_dims(code)"
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="denied for function unbox"):
        conn.execute(insert)
    run(conn, f"RESET ROLE; GRANT EXECUTE ON FUNCTION unbox(boxed) TO {OWNER}; SET ROLE {OWNER}")
    assert conn.execute(insert).fetchone() == (3,)


@pytest.fixture
def owned(conn: Conn, roles: None) -> None:
    """bq is created by a role that is no superuser, in a schema of its own; items is not its."""
    run(
        conn,
        f"""
        SET client_min_messages = warning;
        DROP EXTENSION bq CASCADE;
        DO $$ BEGIN
            EXECUTE format('GRANT CREATE ON DATABASE %I TO {OWNER}', current_database());
        END $$;
        SET ROLE {OWNER};
        CREATE SCHEMA ext;
        CREATE EXTENSION bq SCHEMA ext;
        GRANT USAGE ON SCHEMA ext TO PUBLIC;
        RESET ROLE;
        SET search_path = public, ext;
        CREATE TABLE items (v real[], code bqvec(3));
        SELECT bq_register_column('items', 'code', 'v', 3, 'l2', 5);
        CREATE TRIGGER encode BEFORE INSERT ON items FOR EACH ROW
            EXECUTE FUNCTION bq_encode_trigger('code', 'v');
        RESET client_min_messages;
        """,
    )


@pytest.mark.usefixtures("owned")
def test_the_owner_of_the_extension_changes_no_view(conn: Conn) -> None:
    """Everybody, the superuser too, reads bq_columns and calls what it calls."""
    run(conn, f"SET ROLE {OWNER}")
    definition = "SELECT pg_get_viewdef('bq_columns')"
    (view,) = conn.execute(definition).fetchone() or ("",)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner of view"):
        run(conn, f"CREATE OR REPLACE VIEW ext.bq_columns AS {view}")
    # the rows are its, to be dumped
    assert conn.execute("SELECT count(*) FROM bq_column_data").fetchone() == (1,)
    assert conn.execute("SELECT transform FROM bq_columns").fetchall() == []
    run(conn, "RESET ROLE")
    assert conn.execute("SELECT transform FROM bq_columns").fetchall() == [(5,)]


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.usefixtures("owned")
def test_triggers_of_the_owner_of_the_extension_gain_nothing(conn: Conn, deferred: bool) -> None:
    kind, options = ("CONSTRAINT", "DEFERRABLE INITIALLY DEFERRED") if deferred else ("", "")
    run(
        conn,
        f"""
        SET ROLE {OWNER};
        CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE NOTICE 'runs as %', current_user;
            PERFORM set_config('bq.max_scan_tuples', '12345', false);
            RETURN new;
        END
        $$;
        CREATE {kind} TRIGGER spy AFTER UPDATE ON bq_column_data {options}
            FOR EACH ROW EXECUTE FUNCTION spy();
        RESET ROLE;
        """,
    )
    notices = listen(conn)
    call = "SELECT bq_add_statistics('items', 'code', bq_statistics('{1,2,3}'::real[]))"
    if deferred:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="deferred trigger"):
            run(conn, call)
        assert notices == []
    else:
        run(conn, call)
        assert notices == [f"runs as {OWNER}"]
    assert conn.execute("SHOW bq.max_scan_tuples").fetchone() == ("-1",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "ALTER TABLE bq_column_data RENAME COLUMN code_column TO was;"
            "ALTER TABLE bq_column_data RENAME COLUMN dim TO code_column",
            'column "code_column" of table "bq_column_data" is not of type name',
        ),
        (
            "ALTER TABLE bq_column_data RENAME COLUMN table_name TO was;"
            "ALTER TABLE bq_column_data RENAME COLUMN reason TO table_name",
            'column "table_name" of table "bq_column_data" is not of type bq_table',
        ),
        (
            "ALTER TABLE bq_column_data RENAME COLUMN transform TO was;"
            "ALTER TABLE bq_column_data RENAME COLUMN metric TO transform",
            'column "transform" of table "bq_column_data" is not of type integer',
        ),
        (
            "ALTER TABLE bq_column_data RENAME COLUMN decided_at TO was",
            'column "decided_at" of table "bq_column_data" is not of type timestamp with time zone',
        ),
        (
            "ALTER EXTENSION bq DROP TABLE bq_column_data;"
            "ALTER TABLE bq_column_data RENAME TO was;"
            "CREATE VIEW bq_column_data AS SELECT * FROM was",
            '"bq_column_data" is not a table',
        ),
    ],
)
@pytest.mark.usefixtures("owned")
def test_what_the_owner_of_the_extension_changed_is_not_believed(
    conn: Conn, change: str, message: str
) -> None:
    """C code that took numbers for names would read any memory, or crash."""
    run(conn, f"SET ROLE {OWNER}; SET search_path = ext")
    run(conn, change)
    run(conn, "RESET ROLE; SET search_path = public, ext")
    with pytest.raises(psycopg.Error) as error:
        run(conn, "INSERT INTO items VALUES ('{1,2,3}')")
    assert error.value.diag.message_primary == message


@pytest.mark.parametrize(
    ("trap", "named"),
    [
        # passed by value, with a modifier to be taken for dimensions: an address to read at
        ("CREATE DOMAIN trap.vector AS timestamp(3)", "type trap.vector"),
        (
            "CREATE FUNCTION trap.distance(ext.halfvec, ext.halfvec) RETURNS float8 IMMUTABLE"
            " LANGUAGE sql AS 'SELECT 0::float8';"
            "CREATE OPERATOR trap.<-> (LEFTARG = ext.halfvec, RIGHTARG = ext.halfvec,"
            " FUNCTION = trap.distance)",
            "operator trap.<->(ext.halfvec,ext.halfvec)",
        ),
    ],
)
@pytest.mark.usefixtures("roles", "vector")
def test_nothing_but_pgvector_gets_into_operator_classes(conn: Conn, trap: str, named: str) -> None:
    run(
        conn,
        f"""
        DO $$ BEGIN
            EXECUTE format('GRANT CREATE ON DATABASE %I TO {OWNER}', current_database());
        END $$;
        CREATE SCHEMA ext;
        ALTER EXTENSION vector SET SCHEMA ext;
        GRANT USAGE ON SCHEMA ext TO PUBLIC;
        SET ROLE {OWNER};
        CREATE SCHEMA trap;
        """,
    )
    run(conn, trap)
    with pytest.raises(psycopg.errors.DuplicateObject) as error:
        run(conn, "CREATE EXTENSION bq_pgvector SCHEMA trap")
    assert error.value.diag.message_primary == f'{named} is not of extension "vector"'
    run(conn, "DROP SCHEMA trap CASCADE; CREATE SCHEMA trap")
    run(conn, "CREATE EXTENSION bq_pgvector SCHEMA trap")


@pytest.mark.usefixtures("bq_pgvector")
def test_functions_say_where_they_search(conn: Conn) -> None:
    """Those that run statements have a search path of their own, or were parsed when made."""
    rows = conn.execute("""
        SELECT p.oid::regprocedure::text, l.lanname, p.prosrc, p.proconfig,
            p.prosqlbody IS NOT NULL, p.prosecdef
        FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
        JOIN pg_depend AS d ON d.objid = p.oid AND d.deptype = 'e'
        JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname IN ('bq', 'bq_pgvector')
        WHERE d.classid = 'pg_proc'::regclass AND p.prokind = 'f'
        """).fetchall()
    assert len(rows) > 80
    # these become the owner of what they read or write, with SPI
    statements = {
        "bq_register_column", "bq_rename_column", "bq_forget_column", "bq_set_next_column",
        "bq_decide_again", "bq_decide", "bq_add_statistics", "bq_keep_calibration",
        "bq_sample_statistics", "bq_record_load", "bq_forget_load",
    }  # fmt: skip
    for name, language, _, config, parsed, definer in rows:
        assert not definer, name
        if name.split("(")[0] in statements:
            assert config == ["search_path=pg_catalog, pg_temp"], name
        if language != "c":
            assert language == "sql" and parsed, name


HOSTILE = {
    "reserved": "select",
    "quotes": """it's "quoted" ''twice\"\"""",
    "formats": "100%s %(x)s %% {} {0} {id} $1 :x",
    "lines": "a\nb\r\tc",
    "injection": '"; DROP TABLE victims; --',
    "escapes": "a\\b\\'c.d",
    "unicode": "Größe ☃ 𝔘 \u200f",
    "longest": "ä" + "x" * 61,
    "number": "123",
    "own": "t",
}


@pytest.mark.parametrize("name", list(HOSTILE.values()), ids=list(HOSTILE))
@pytest.mark.usefixtures("roles", "bq_pgvector")
def test_any_name_of_tables_and_columns(conn: Conn, rng: np.random.Generator, name: str) -> None:
    """Through pybq, and as values that functions of SQL make statements of."""
    vectors = rng.standard_normal((300, 8), dtype=np.float32)
    run(conn, "CREATE TABLE victims ()")
    schema, table, column = (sql.Identifier(name) for _ in range(3))
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    path = sql.Identifier(name, name)

    # codes beside vectors; a column of that name is returned, filtered by and written to
    made = pybq.Table.create(conn, name, 8, "l2", schema=name, columns={name: "text"}, codes=True)
    made.ingest(range(200), vectors[:200], {name: [f"{name}{i % 2}" for i in range(200)]})
    made.load(vectors[200:], name=name, first_id=200)
    made.create_index(filters=[name])
    made.create_trigger()
    opened = pybq.Table(conn, name, schema=name)
    where = sql.SQL("{} = {}").format(column, sql.Literal(f"{name}1"))
    hits = opened.search(vectors[7], k=3, columns=[name], where=where, rerank=20)
    assert hits[0].id == 7 and hits[0][name] == f"{name}1"
    assert [row is not None and row[name] for row in opened.get([7, 1000], columns=[name])] == [
        f"{name}1",
        False,
    ]
    assert opened.ingest([7], vectors[8:9], {name: [name]}, on_conflict="update") == 1
    assert opened.delete([7]) == 1
    insert = "INSERT INTO {} (id, embedding) VALUES (900, '[1,2,3,4,5,6,7,8]')"
    conn.execute(sql.SQL(insert).format(path))
    assert (opened.count(), opened.status().row_count) == (300, 300)
    text = path.as_string(conn)
    sampled = "SELECT (bq_sample_statistics(%s)).count"
    assert conn.execute(sampled, [text]).fetchone() == (300,)
    shown = "SELECT bool_and(table_name = %s::regclass) FROM bq_columns"
    assert conn.execute(shown, [text]).fetchone() == (True,)

    # a table of vectors whose columns all have such names
    run(conn, "RESET ALL")
    conn.execute(sql.SQL("DROP TABLE {}").format(path))
    conn.execute(
        sql.SQL("CREATE TABLE {} (id int, {} vector(8), PRIMARY KEY (id))").format(path, column)
    )
    plain = pybq.Table.open(conn, name, schema=name, column=name, metric="cosine")
    plain.ingest(range(300), vectors)
    plain.create_index(recall=1)
    assert plain.search(vectors[5], k=1)[0].id == 5
    named = sql.SQL("CREATE INDEX {} ON {} USING bq ({} vector_l2_ops)")
    other = sql.Identifier(name[:-1] + "_")  # tables and indexes share names
    conn.execute(named.format(other, path, column))
    index = sql.Identifier(name, name[:-1] + "_").as_string(conn)
    conn.execute("SELECT bq_index_check(%s, true)", [index])
    assert conn.execute("SELECT bq_recall(%s, 5) > 0.9", [index]).fetchone() == (True,)
    assert plain.status().indexes
    plain.drop()

    # and the SQL functions, by an owner's own table
    conn.execute(sql.SQL("CREATE TABLE {} ({} real[], code bqvec(2))").format(path, column))
    conn.execute("SELECT bq_register_column(%s, 'code', %s, 2, 'l2', 0)", [text, name])
    conn.execute(
        sql.SQL(
            "CREATE TRIGGER {} BEFORE INSERT ON {} FOR EACH ROW"
            " EXECUTE FUNCTION bq_encode_trigger('code', {})"
        ).format(table, path, sql.Literal(name))
    )
    conn.execute(sql.SQL("INSERT INTO {} VALUES ('{{1,2}}')").format(path))
    assert conn.execute(sampled, [text]).fetchone() == (1,)
    conn.execute("SELECT bq_rename_column(%s, %s, 'v')", [text, name])
    shown = "SELECT source_column FROM bq_columns WHERE table_name = %s::regclass"
    assert conn.execute(shown, [text]).fetchone() == ("v",)
    assert conn.execute("SELECT to_regclass('victims') IS NOT NULL").fetchone() == (True,)
