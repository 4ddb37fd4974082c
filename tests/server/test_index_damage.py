"""Damage on pages is found by what reads them; nothing crashes on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    CODES,
    COSINE,
    HALF_COSINE,
    Column,
    Places,
    by_index,
    check,
    connect,
    create,
    damage,
    insert,
    of_columns,
    operand,
    prepare,
    random_vectors,
    run_threads,
)
from psycopg import sql
from shared import Conn

import pybq

DIM = 32

each_column = of_columns(CODES, HALF_COSINE)


def assert_found_by_table(
    server: pybq.Server, index: str, place: tuple[int, int], data: bytes, message: str
) -> None:
    """The index alone does not show this damage, the table does; REINDEX mends it."""
    damage(server, (index, *place, data))
    with connect(server.dsn) as conn:
        conn.execute("SELECT bq_index_check(%s)", (index,))
        with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
            check(conn, index)
        conn.execute(sql.SQL(f"REINDEX INDEX {index}"))
        check(conn, index)


def test_check_finds_damage(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """A changed byte in each part of the index is found, and scans do not crash on it."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
    at = Places(DIM, 5)
    cases = [
        ((0, 24), b"\1\2\3\4", "no bq signature"),
        ((0, 28), b"\x63\0\0\0", "format version 99"),
        # a query of no lists would go on for ever, in the planner already
        (at.meta("nprobes"), b"\0\0\0\0", "impossible values"),
        (at.meta("product_nprobes"), b"\0\0\0\0", "impossible values"),
        (at.meta("nkeys"), b"\1\0\0\0", "impossible values"),
        (at.meta("data_start"), b"\2\0\0\0", "fewer pages than its blocks"),
        (at.meta("data_start"), b"\0\0\0\0", "impossible values"),
        (at.meta("capacity"), b"\x40\0\0\0", "directory|factor|leads|chain"),
        (at.meta("segment"), b"\xf0\xff\xff\x7f", "directory is where it cannot be"),
        (at.meta("free_head"), b"\x50\0\0\0", "free chain of the index"),
        (at.meta("nfree"), b"\1\0\0\0", "free chain of the index"),
        (at.meta("nblocks"), b"\0\0\0\0", "fewer pages than its blocks"),
        (at.meta("npages"), b"\x04\0\0\0", "fewer pages than its blocks"),
        ((0, 8190), b"\0\0", "not of a bq index"),
        (at.factor(), b"\0\0\xc0\x7f", "has factor NaN"),
        (at.entry("head"), b"\xfe\xff\xff\x7f", "leads to block"),
        (at.entry("nblocks"), b"\1\0\0\0", "has . blocks, expected 1|belongs to|leads to"),
        (at.entry("epoch"), b"\2\0\0\0", "leads to block"),
        (at.header("list"), b"\4\0\0\0", "belongs to list|of list|not in the chain"),
        (at.header("epoch"), b"\2\0\0\0", "leads to block"),
        (at.header("next"), b"\0\0\0\0", "twice|of list|another use"),
        (at.header("packed"), b"\7\0", "has 7 packed rows of 16"),
        (at.header("tid"), b"\xff\xff\xff\x7f", "has position"),
        (at.code(), b"\x5a", "inverse length|another code"),
    ]
    tables = [f"case_{n}" for n in range(len(cases))]
    with connect(own_server.dsn) as conn:
        for table in tables:
            conn.execute(f"CREATE TABLE {table} AS TABLE items")
            conn.execute(f"CREATE INDEX {table}_code ON {table} USING bq (code) WITH (lists = 5)")
            check(conn, f"{table}_code")
    damage(
        own_server,
        *(
            (f"{table}_code", *place, data)
            for table, (place, data, _) in zip(tables, cases, strict=True)
        ),
    )
    for table, (_, _, message) in zip(tables, cases, strict=True):
        with connect(own_server.dsn) as conn:
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message) as error:
                check(conn, f"{table}_code")
            assert error.value.diag.message_hint == "Rebuild the index with REINDEX."
            with contextlib.suppress(psycopg.errors.IndexCorrupted):
                by_index(conn, "<=>", operand("<=>", np.ones(DIM, np.float32)), table=table)
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_fewer_keys_than_filter_columns_are_damage(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """A condition on a column that headers have no keys of would read beyond them."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code, id, other)")
    for nkeys in (0, 1, 3):
        damage(own_server, ("items_code", *Places(DIM, 1).meta("nkeys"), bytes([nkeys, 0, 0, 0])))
        with connect(own_server.dsn) as conn:
            conn.execute("SET enable_seqscan = off; SET enable_sort = off")
            q = operand("<=>", np.ones(DIM, np.float32))
            nearest = "SELECT id FROM items WHERE other = 3 ORDER BY code <=> %s LIMIT 5"
            for query, parameters in (
                (nearest, (q,)),
                ("SELECT bq_index_check('items_code')", ()),
                ("INSERT INTO items SELECT * FROM items LIMIT 1", ()),
            ):
                with pytest.raises(psycopg.errors.IndexCorrupted, match="impossible values"):
                    conn.execute(query, parameters)


def test_pages_that_do_not_exist_are_damage(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Block numbers out of range, in lists and blocks: scans, inserts and vacuum name REINDEX."""
    vectors = random_vectors(rng, 1000, DIM)
    q = operand("<=>", vectors[0])
    actions: dict[str, Callable[[Conn, str], object]] = {
        "scan": lambda conn, table: by_index(conn, "<=>", q, table=table),
        "insert": lambda conn, table: insert(conn, vectors[:40], table=table),
        "vacuum": lambda conn, table: conn.execute(f"VACUUM (INDEX_CLEANUP ON) {table}"),
    }
    at = Places(DIM, 1)
    places = [
        (at.entry("head"), "scan"),
        (at.entry("nblocks"), "scan"),
        (at.entry("free"), "insert"),
        (at.header("next"), "scan"),
        (at.meta("nblocks"), "vacuum"),
        (at.meta("free_head"), "insert"),
    ]
    numbers = (b"\xfe\xff\xff\x7f", b"\xf0\xff\xff\xff", b"\x00\x10\x00\x00")
    cases = [(*place, number) for place in places for number in numbers]
    tables = [f"case_{n}" for n in range(len(cases))]
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
        for table in tables:
            conn.execute(f"CREATE TABLE {table} AS TABLE items")
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            conn.execute(f"CREATE INDEX {table}_code ON {table} USING bq (code) WITH (lists = 1)")
    damage(
        own_server,
        *(
            (f"{table}_code", *place, number)
            for table, (place, _, number) in zip(tables, cases, strict=True)
        ),
    )
    for table, (place, action, _) in zip(tables, cases, strict=True):
        with connect(own_server.dsn) as conn:
            for act in (actions[action], lambda conn, table: check(conn, f"{table}_code")):
                with pytest.raises(psycopg.errors.IndexCorrupted) as error:
                    act(conn, table)
                hint = error.value.diag.message_hint
                assert hint == "Rebuild the index with REINDEX.", (place, action)


def test_nothing_is_asked_for_beyond_the_end(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Where a list goes on is a guess; it may lead to a file (of 1 GB) that there is not yet."""
    file_pages = 131_072
    at = Places(DIM, 1)
    block = next(b for b in range(1_000_000, 9_000_000) if at.row(b * at.nrows)[0] > 131_000)
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 1000, DIM), nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code) WITH (lists = 1)")
    damage(
        own_server,
        ("items_code", file_pages - 2, 0, bytes(8192)),
        ("items_code", *at.meta("nblocks"), (block + 2000).to_bytes(4, "little")),
        ("items_code", *at.meta("npages"), b"\xff\xff\xff\x7f"),
        ("items_code", *at.entry("nblocks"), (2000).to_bytes(4, "little")),
        ("items_code", *at.entry("head"), block.to_bytes(4, "little")),
    )
    with (
        connect(own_server.dsn) as conn,
        pytest.raises(psycopg.errors.IndexCorrupted, match="page is empty"),
    ):
        by_index(conn, "<=>", operand("<=>", np.ones(DIM, np.float32)))


def search_at_once(conn: Conn, column: Column, q: Any) -> None:
    """By bq_search(), if that is for such a column, else one by one."""
    if column.type == "bqvec":
        by_index(conn, "<=>", q, column=column)
    else:
        call = f"SELECT * FROM bq_search(%s, ARRAY[%s, %s]::{column.type}[], 3)"
        conn.execute(cast(Any, call), (column.index, q, q))


@each_column
def test_positions_outside_the_table_are_damage(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """To read a page behind its end would be an internal error, or make that page."""
    vectors = random_vectors(rng, 64, DIM)
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, vectors, nulls=0, column=column)
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        size = conn.execute("SELECT pg_relation_size('items')").fetchone()
    tid = Places(DIM, 1, statistics=column != CODES).header("tid")
    # the last page number there is, which stands for none; one of another file; no row of a page
    for position in (b"\xff\xff\xff\xff\1\0", b"\x20\0\0\0\1\0", b"\0\0\0\0\0\0"):
        damage(own_server, (column.index, *tid, position))
        with connect(own_server.dsn) as conn:
            q = column.operand("<=>", vectors[0])
            for act in (
                lambda conn, q=q: by_index(conn, "<=>", q, column=column),
                lambda conn: conn.execute("SELECT bq_recall(%s, 200, 3)", (column.index,)),
                lambda conn, q=q: search_at_once(conn, column, q),
            ):
                with pytest.raises(psycopg.errors.IndexCorrupted, match="has position") as error:
                    act(conn)
                assert error.value.diag.message_hint == "Rebuild the index with REINDEX."
            assert conn.execute("SELECT pg_relation_size('items')").fetchone() == size


def test_insert_does_not_wait_for_a_split_that_never_was(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """A list that was changed after the newest change of the index: it would wait for ever."""
    vectors = random_vectors(rng, 64, DIM)
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    damage(own_server, ("items_code", *Places(DIM, 1).entry("changed"), b"\7"))
    with connect(own_server.dsn) as conn:
        conn.execute("SET statement_timeout = '20s'")
        with pytest.raises(psycopg.errors.IndexCorrupted, match="changed in the future"):
            insert(conn, vectors[:1])


def test_rows_are_not_inserted_into_the_directory(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """Where a page of entries is zero, the free chain leads there: to wait for its own lock."""
    vectors = random_vectors(rng, 64, DIM)
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
        conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    page, start = Places(DIM, 1).entry("head")
    damage(own_server, ("items_code", page, start, bytes(8192 - start)))

    def act(message: str, action: Callable[[Conn], object]) -> None:
        with (
            connect(own_server.dsn) as conn,
            pytest.raises(psycopg.errors.IndexCorrupted, match=message),
        ):
            action(conn)

    q = operand("<=>", vectors[0])
    run_threads(
        lambda: act("part of the directory", lambda conn: insert(conn, vectors[:1])),
        lambda: act("was never written", lambda conn: by_index(conn, "<=>", q)),
    )


def test_no_pages_are_made_for_blocks_that_never_were(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """A number of blocks beyond the pages: an insertion would fill the disk with the difference.

    Nor are pages made behind an end that the metapage has wrong.
    """
    vectors = random_vectors(rng, 64, DIM)
    at = Places(DIM, 1)
    number = (20_000).to_bytes(4, "little")
    with connect(own_server.dsn) as conn:
        create(conn, vectors, nulls=0)
    for changes, message in (
        ([(at.meta("nblocks"), number)], "fewer pages than its blocks"),
        ([(at.meta("nblocks"), number), (at.meta("npages"), number)], "does not exist"),
    ):
        with connect(own_server.dsn) as conn:
            conn.execute("CREATE INDEX items_code ON items USING bq (code)")
            size = conn.execute("SELECT pg_relation_size('items_code')").fetchone()
        damage(own_server, *(("items_code", *place, data) for place, data in changes))
        with connect(own_server.dsn) as conn:
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
                insert(conn, vectors)
            assert conn.execute("SELECT pg_relation_size('items_code')").fetchone() == size
            conn.execute("DROP INDEX items_code")


def test_vacuum_believes_no_chain_longer_than_the_index(
    own_server: pybq.Server, rng: np.random.Generator
) -> None:
    """It would take memory for each block to split a list, and follow a circle for hours."""
    at = Places(DIM, 1)
    no_block = b"\xff\xff\xff\xff"
    first_block = at.first_block.to_bytes(4, "little")
    circle = [
        (at.header("epoch"), bytes(4)),  # it belongs to no list
        (at.header("next"), first_block),
        (at.entry("head"), no_block),
        (at.entry("free"), no_block),
        (at.entry("nblocks"), bytes(4)),
        (at.entry("old_head"), first_block),
        (at.entry("old_nblocks"), no_block),
    ]
    for changes, message in (
        ([(at.entry("nblocks"), (1 << 24).to_bytes(4, "little"))], "has 16777216 blocks of"),
        (circle, "old chain of list 0 leads astray"),
    ):
        with connect(own_server.dsn) as conn:
            conn.execute("DROP TABLE IF EXISTS items")
            conn.execute("CREATE TABLE items (id int, code bqvec(32), other int)")
            conn.execute("ALTER TABLE items SET (autovacuum_enabled = off)")
            conn.execute("CREATE INDEX items_code ON items USING bq (code)")
            conn.execute("ALTER INDEX items_code SET (lists = 8)")
            insert(conn, random_vectors(rng, 1000, DIM))
        damage(own_server, *(("items_code", *place, data) for place, data in changes))
        with connect(own_server.dsn) as conn:
            conn.execute("SET statement_timeout = '20s'")
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
                conn.execute("VACUUM (INDEX_CLEANUP ON) items")


@each_column
def test_check_finds_what_is_missing(
    own_server: pybq.Server, rng: np.random.Generator, column: Column
) -> None:
    """A row that vanished from the index, or differs, is found by comparison with the table."""
    place = Places(DIM, 1, statistics=column != CODES)
    page, tids = place.header("tid")
    inverses = tids + 32 * 6
    norms = inverses + 32 * 2
    cases = [
        (place.header("live"), b"\xfe\xff\xff\xff", r"row \(0,1\) .* is missing"),  # no slot 0
        ((page, norms), np.float32(7).tobytes(), r"row \(0,1\) .* another code than slot 0"),
    ]
    if column != CODES:
        # of codes it follows from them, so that needs no table
        cases.append(((page, inverses), b"\1\0", r"row \(0,1\) .* another code than slot 0"))
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, random_vectors(rng, 64, DIM), nulls=0, column=column)
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
    for where, data, message in cases:
        assert_found_by_table(own_server, column.index, where, data, message)


def test_check_compares_filter_keys(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """A row with the key of another value would not be found by its own."""
    with connect(own_server.dsn) as conn:
        create(conn, random_vectors(rng, 64, DIM), nulls=0)
        conn.execute("ALTER TABLE items ADD label text")
        conn.execute("UPDATE items SET other = NULL, label = 'even' WHERE id % 2 = 0")
        conn.execute("CREATE INDEX items_code ON items USING bq (code, other, label, id)")
        check(conn, "items_code")
        conn.execute("DELETE FROM items WHERE id % 5 = 0")
        conn.execute("VACUUM items")
        insert_rows = "INSERT INTO items SELECT id, code, {}, {} FROM items"
        conn.execute(insert_rows.format("NULL", "'new'"))
        conn.execute(insert_rows.format("id", "NULL"))
        check(conn, "items_code")
        conn.execute("REINDEX INDEX items_code")
    place = Places(DIM, 1, nkeys=3)
    for where, data in (
        (place.header("keys"), b"\1\2\3\4"),
        (place.header("nulls"), b"\xff\xff\xff\xff"),
    ):
        message = "has other filter keys than slot"
        assert_found_by_table(own_server, "items_code", where, data, message)


def test_check_finds_zero_vectors(own_server: pybq.Server, rng: np.random.Generator) -> None:
    """They have no cosine: an index for it that has one has kept a vector that is no more."""
    column = COSINE
    with connect(own_server.dsn) as conn:
        prepare(conn, column)
        create(conn, random_vectors(rng, 10, DIM), nulls=0, column=column)
        conn.execute(f"CREATE INDEX {column.index} ON items USING bq ({column.key})")
        conn.execute("UPDATE items SET embedding = %s WHERE id = 3", (str([0] * DIM),))
        check(conn, column.index)
    page, tids = Places(DIM, 1, statistics=True).header("tid")
    # the row was at (0,4), and is now at (0,11)
    message = "zero vector, is in slot 3"
    place = (page, tids + 3 * 6)
    assert_found_by_table(own_server, column.index, place, b"\0\0\0\0\x0b\0", message)
