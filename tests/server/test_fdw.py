"""postgres_fdw: a search of a foreign table is done where its rows are, by their index."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql
from shared import Conn

DIM, ROWS = 64, 20000


@pytest.fixture
def foreign(conn: Conn) -> Conn:
    """`far` is `items` of the same database, seen through postgres_fdw."""
    available = "SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"
    if conn.execute(available).fetchone() is None:
        pytest.skip("the server has no postgres_fdw")
    conn.execute(f"""
        CREATE TABLE items (id int, kind int, code bqvec({DIM}));
        INSERT INTO items
        SELECT i, i % 3, bq_encode(x) FROM generate_series(1, {ROWS}) AS i, LATERAL (
            SELECT array_agg(sin(i * 7 + j * 3 + i * j * 0.1)::real) AS x
            FROM generate_series(1, {DIM}) AS j) AS v;
        CREATE INDEX items_code ON items USING bq (code);
        ANALYZE items;
        CREATE EXTENSION postgres_fdw;
        """)
    conn.execute(
        sql.SQL(
            "CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
            " (host {}, port {}, dbname {}, extensions 'bq', use_remote_estimate 'true')"
        ).format(str(conn.info.host), str(conn.info.port), conn.info.dbname)
    )
    conn.execute(
        sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER itself OPTIONS (user {})").format(
            conn.info.user
        )
    )
    conn.execute(
        f"CREATE FOREIGN TABLE far (id int, kind int, code bqvec({DIM})) SERVER itself"
        " OPTIONS (table_name 'items')"
    )
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.commit()
    return conn


def scans(conn: Conn) -> int:
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.commit()
    row = conn.execute(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'items_code'"
    ).fetchone()
    assert row is not None
    return int(row[0])


ORDERS = [
    "code <=> bq_query($1)",
    "code <=> (SELECT bq_query($1))",
    "code <#> (SELECT bq_query($1))",
    "code <-> (SELECT bq_query($1))",
    "code <~> (SELECT bq_encode($1))",
]


@pytest.mark.parametrize("where", ["", "WHERE kind = 1"])
def test_the_remote_side_searches_by_its_index(foreign: Conn, where: str) -> None:
    query = "{" + ",".join(str((j * 5) % 7 - 3) for j in range(DIM)) + "}"
    for number, order in enumerate(ORDERS):
        before = scans(foreign)
        found = search(foreign, f"far_{number}", "far", where, order, query)
        explain = sql.SQL("EXPLAIN (VERBOSE) EXECUTE {}({})")
        plan = foreign.execute(explain.format(sql.Identifier(f"far_{number}"), query)).fetchall()
        (remote,) = [line for (line,) in plan if "Remote SQL" in line]
        assert "ORDER BY" in remote and "LIMIT" in remote
        foreign.commit()
        # ends the session of the remote side, which then tells what it scanned
        foreign.execute("SELECT postgres_fdw_disconnect_all()")
        for _ in range(100):
            if scans(foreign) > before:
                break
            foreign.execute("SELECT pg_sleep(0.05)")
        else:
            pytest.fail(f"the index was not used: {plan}")
        assert len(found) == 10
        assert found == search(foreign, f"near_{number}", "items", where, order, query)


def search(conn: Conn, name: str, table: str, where: str, order: str, query: str) -> list[Any]:
    conn.execute(
        f"PREPARE {name}(real[]) AS SELECT id FROM {table} {where} ORDER BY {order} LIMIT 10"
    )
    return conn.execute(sql.SQL("EXECUTE {}({})").format(sql.Identifier(name), query)).fetchall()
