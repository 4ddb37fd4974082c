"""bq_columns as pybq uses it: who can ingest, and statistics from either side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn

import pybq
from pybq._choice.statistics import Statistics
from pybq.errors import LoadError

DIM = 40


@pytest.fixture
def writer(conn: Conn) -> Iterator[str]:
    """A role that may read items and insert into it, and owns nothing."""
    conn.execute("DROP ROLE IF EXISTS bq_test_writer")
    conn.execute("CREATE ROLE bq_test_writer")
    conn.commit()
    yield "bq_test_writer"
    conn.rollback()
    conn.execute("RESET ROLE")
    conn.execute("DROP OWNED BY bq_test_writer")
    conn.execute("DROP ROLE bq_test_writer")
    conn.commit()


def test_insert_privilege_is_enough_to_ingest(
    conn: Conn, writer: str, rng: np.random.Generator
) -> None:
    vectors = rng.standard_normal((500, DIM), dtype=np.float32)
    pybq.Table.create(conn, "items", DIM, store=None)
    conn.execute(f"GRANT SELECT, INSERT ON items TO {writer}")
    conn.execute(f"SET ROLE {writer}")
    conn.commit()
    table = pybq.Table(conn, "items")
    table.ingest(range(300), vectors[:300])
    table.ingest(range(300, 500), vectors[300:])
    status = table.status()
    assert (status.count, status.decided_count) == (500, 300)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("DELETE FROM items")
    conn.rollback()
    # nor what would stop others: writing to what all have in common, or locking it
    for statement in (
        "UPDATE bq_columns SET transform = 9",
        "LOCK TABLE bq_columns IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE bq_column_data IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE bq_loads IN ACCESS EXCLUSIVE MODE",
        "SELECT bq_set_next_column('items', 'code', 'code', 1)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(statement)
        conn.rollback()
    conn.execute("RESET ROLE")
    conn.execute(f"REVOKE INSERT ON items FROM {writer}")
    conn.execute(f"SET ROLE {writer}")
    conn.commit()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="items"):
        table.ingest(range(500, 501), vectors[:1])


@pytest.mark.usefixtures("vector")
def test_insert_privilege_alone_is_enough(
    conn: Conn, writer: str, rng: np.random.Generator
) -> None:
    """What PostgreSQL asks of INSERT ... ON CONFLICT is needed for on_conflict, and no more."""
    vectors = rng.standard_normal((500, DIM), dtype=np.float32)
    columns = {"price": "numeric(9, 2)"}
    pybq.Table.create(conn, "items", DIM, columns=columns, codes=True)
    conn.execute(f"GRANT INSERT ON items TO {writer}")
    conn.execute(f"SET ROLE {writer}")
    conn.commit()
    table = pybq.Table(conn, "items", DIM, "cosine", columns=columns, codes=True)
    assert table.ingest(range(100), vectors[:100], {"price": [1.5] * 100}) == 100
    options: dict[str, Any] = {"name": "mine", "batch_rows": 50, "first_id": 100}
    assert table.load(vectors[100:400], connections=2, **options) == 300
    assert table.load(vectors[100:400], resume=True, **options) == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("SELECT id FROM items")
    conn.rollback()

    def grant(privilege: str) -> None:
        conn.execute("RESET ROLE")
        conn.execute(f"GRANT {privilege} ON items TO {writer}")
        conn.execute(f"SET ROLE {writer}")
        conn.commit()

    grant("SELECT (id)")
    skip = {"price": [2.5] * 200}
    assert table.ingest(range(300, 500), vectors[300:], skip, on_conflict="skip") == 100
    grant("SELECT, UPDATE")
    assert table.ingest([7], vectors[:1], {"price": [3]}, on_conflict="update") == 1
    conn.execute("RESET ROLE")
    prices = "SELECT count(*), sum(price) FROM items WHERE price IS NOT NULL"
    assert conn.execute(prices).fetchone() == (200, 99 * 1.5 + 3 + 100 * 2.5)
    assert pybq.Table(conn, "items").status().count == 501


def test_what_others_say_was_loaded_is_not_believed(
    conn: Conn, writer: str, rng: np.random.Generator
) -> None:
    vectors = rng.standard_normal((300, DIM), dtype=np.float32)
    table = pybq.Table.create(conn, "items", DIM, store=None)
    conn.commit()
    table.ingest([250], vectors[250:251])
    conn.commit()
    with pytest.raises(LoadError):  # two batches are written, the third is to be resumed
        table.load(vectors, name="books", batch_rows=100)
    conn.execute("DELETE FROM items WHERE id = 250")
    (forged,) = conn.execute("SELECT array_agg(fingerprint) FROM bq_loads").fetchone() or ()
    conn.execute(f"GRANT INSERT ON items TO {writer}")
    conn.execute(f"SET ROLE {writer}")
    assert conn.execute("SELECT count(*) FROM bq_loads").fetchone() == (0,)
    for batch in (2, 0, 1):
        conn.execute(
            "SELECT bq_record_load('items', 'books', %s, 100, %s, 100)", [batch, forged[0]]
        )
    conn.execute("RESET ROLE")
    conn.commit()
    assert table.load(vectors, name="books", batch_rows=100, resume=True) == 100
    assert conn.execute("SELECT count(*) FROM items").fetchone() == (300,)


@pytest.mark.usefixtures("vector")
def test_made_up_statistics_stop_nobody(conn: Conn, writer: str, rng: np.random.Generator) -> None:
    """They may be wrong, as those of made up vectors would be; all else goes on."""
    vectors = rng.standard_normal((600, DIM), dtype=np.float32)
    table = pybq.Table.create(conn, "items", DIM, codes=True)
    table.ingest(range(300), vectors[:300])
    conn.execute(f"GRANT INSERT ON items TO {writer}")
    conn.execute(f"SET ROLE {writer}")
    forged = """
        SELECT bq_add_statistics('items', 'code', ROW(%s, array_fill(%s::float8, ARRAY[40]),
            array_fill(%s::float8, ARRAY[40]), array_fill(-%s::float8, ARRAY[40]),
            array_fill(%s::float8, ARRAY[40]), array_fill(-%s::float8, ARRAY[40]),
            array_fill(%s::bigint, ARRAY[40]), 0, '{0,0}', '{0,0}', '{0,0}')::bq_statistics)"""
    for count, mean, square in ((2**62, 0, 0), (5, 1e308, 0), (5, 0, 1e308)):
        with pytest.raises(psycopg.errors.DataException, match="bq_statistics"), conn.transaction():
            conn.execute(forged, [count, mean, square, mean, square, square, count])
    for _ in range(3):
        conn.execute(forged, [2**53, 3e38, 1e92, 3e38, 1e92, 1e92, 2**53])
    conn.execute("RESET ROLE")
    conn.commit()
    table.ingest(range(300, 600), vectors[300:])
    assert table.status().count == 2**53
    assert table.search(vectors[500], k=1)[0].id == 500
    conn.commit()
    assert table.reencode(transform=9) == 600


@pytest.mark.usefixtures("vector")
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("store", ["halfvec", "vector"])
def test_statistics_in_sql_are_those_of_pybq(
    conn: Conn, rng: np.random.Generator, metric: Any, store: Any
) -> None:
    scales = np.geomspace(0.1, 10, DIM) * rng.uniform(0.5, 2, (3000, 1))
    vectors = (rng.standard_normal((3000, DIM)) * scales).astype(np.float32)
    vectors[7] = 0
    table = pybq.Table.create(conn, "items", DIM, metric, store=store, codes=True)
    table.ingest(range(3000), vectors)
    collected = table.statistics()
    row = conn.execute("SELECT (bq_sample_statistics('items')).*").fetchone()
    assert row is not None
    sampled = Statistics.from_row(row, metric == "cosine")
    assert sampled.count == collected.count == 3000
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment"):
        np.testing.assert_allclose(
            getattr(sampled, name), getattr(collected, name), rtol=1e-9, atol=1e-9
        )
    np.testing.assert_array_equal(sampled.positive, collected.positive)

    rows = conn.execute(
        "SELECT coordinate, mean, stddev, positive_share, kappa FROM bq_column_statistics('items')"
    ).fetchall()
    coordinate, mean, stddev, positive, kappa = np.array(rows, np.float64).T
    np.testing.assert_array_equal(coordinate, np.arange(1, DIM + 1))
    np.testing.assert_allclose(mean, collected.mean, rtol=1e-12)
    np.testing.assert_allclose(stddev, np.sqrt(collected.variance), rtol=1e-12)
    np.testing.assert_allclose(positive, collected.positive / 3000)
    np.testing.assert_allclose(kappa, collected.covariance / collected.variance, rtol=1e-9)


def test_nothing_in_its_schema_gets_into_the_extension(conn: Conn) -> None:
    """Operators that others left there would run with the privileges of who calls a function."""
    conn.execute("DROP EXTENSION bq")
    conn.execute("CREATE SCHEMA traps")
    # whatever an operator of the script could mean that pg_catalog has not for just these types
    conn.execute("""
        DO $$
        DECLARE
            types regtype[] := '{bool,int2,int4,int8,oid,regclass,float4,float8,name,text}';
            sign text;
            a regtype;
            b regtype;
        BEGIN
            FOREACH sign IN ARRAY '{=,<>,<,<=,>,>=,+,-,*,/}'::text[] LOOP
                FOREACH a IN ARRAY types LOOP
                    FOREACH b IN ARRAY types LOOP
                        CONTINUE WHEN
                            to_regoperator(format('pg_catalog.%s(%s,%s)', sign, a, b)) IS NOT NULL;
                        EXECUTE format('CREATE OR REPLACE FUNCTION traps.trap(%s, %s)'
                            ' RETURNS bool LANGUAGE sql AS ''SELECT NULL::bool''', a, b);
                        EXECUTE format('CREATE OPERATOR traps.%s'
                            ' (LEFTARG = %s, RIGHTARG = %s, FUNCTION = traps.trap)', sign, a, b);
                    END LOOP;
                END LOOP;
            END LOOP;
        END
        $$""")
    conn.execute("CREATE EXTENSION bq SCHEMA traps")
    (traps, trapped) = conn.execute("""
        SELECT count(DISTINCT o.oid), array_agg(d.objid::regproc) FILTER (WHERE d.objid IS NOT NULL)
        FROM pg_operator AS o JOIN pg_proc AS p ON p.oid = o.oprcode AND p.proname = 'trap'
        LEFT JOIN pg_depend AS d ON d.refclassid = 'pg_operator'::regclass AND d.refobjid = o.oid
        """).fetchone() or (0, None)
    assert traps > 100
    assert trapped is None
