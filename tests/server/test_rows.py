"""Rows by their keys, their number, and the end of a table."""

from __future__ import annotations

import asyncio
import uuid
from decimal import Decimal
from typing import Any, get_type_hints

import numpy as np
import psycopg
import pytest
from shared import Conn, needs_pgvector

import pybq
from pybq import Row, TableError

N, DIM = 20, 8


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    # whose further column has the name of the one that numbers the keys, had it not ours
    columns = {"place": "text", "Odd %s": "int"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=columns)
    table.ingest(range(N), vectors, {"place": [f"p{i}" for i in range(N)], "Odd %s": [None] * N})
    return table


def test_rows_come_in_the_order_that_is_asked(table: pybq.Table) -> None:
    found = table.get(np.array([7, 99, 0, 7]))
    assert found == [
        Row(7, {"place": "p7", "Odd %s": None}),
        None,
        Row(0, {"place": "p0", "Odd %s": None}),
        Row(7, {"place": "p7", "Odd %s": None}),
    ]
    assert table.get([3], ["place"]) == [Row(3, {"place": "p3"})]
    assert table.get([3], []) == [Row(3)]
    assert table.get([]) == []
    row = found[0]
    assert row is not None and row["place"] == "p7"


@needs_pgvector
@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_vectors_come_as_they_are_stored(conn: Conn, vectors: np.ndarray, store: Any) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=store)
    table.ingest(range(N), vectors)
    (row, missing) = table.get([4, N], vectors=True)
    stored = vectors if store == "vector" else vectors.astype(np.float16).astype(np.float32)
    assert missing is None and row is not None and row.vector is not None
    assert row.vector.dtype == np.float32
    np.testing.assert_array_equal(row.vector, stored[4])
    (row,) = table.get([4])
    assert row is not None and row.vector is None


@needs_pgvector
def test_a_row_may_have_no_vector(conn: Conn) -> None:
    conn.execute("CREATE TABLE odd (a int, b text, v vector(2), PRIMARY KEY (b, a))")
    conn.execute("INSERT INTO odd VALUES (1, 'x', NULL), (2, 'x', '[1, 2]')")
    table = pybq.Table(conn, "odd")
    first, missing, second = table.get([("x", 2), ("y", 1), ("x", 1)], vectors=True)
    assert missing is None and first is not None and second is not None
    assert (first.id, second.id, second.vector) == (("x", 2), ("x", 1), None)
    assert first.vector is not None and first.vector.tolist() == [1, 2]


def test_keys_are_those_of_the_server(conn: Conn, vectors: np.ndarray) -> None:
    """A uuid may be given as text, and comes back as what it is."""
    table = pybq.Table.create(conn, "items", DIM, store=None, id_type="uuid")
    keys = [uuid.UUID(int=i) for i in range(N)]
    table.ingest(keys, vectors)
    (row,) = table.get([str(keys[3])])
    assert row == Row(keys[3])


def test_what_cannot_be_read_is_said(conn: Conn, table: pybq.Table) -> None:
    with pytest.raises(TypeError, match="columns as a sequence of names, got str"):
        table.get([1], "place")
    with pytest.raises(ValueError, match="no column 'nope' in table 'items'"):
        table.get([1], ["nope"])
    with pytest.raises(TableError, match="keeps codes only: there are no vectors to read"):
        table.get([1], vectors=True)


@needs_pgvector
@pytest.mark.parametrize("kind", [pybq.Table, pybq.AsyncTable])
@pytest.mark.parametrize("method", ["open", "create", "search", "load", "get", "ingest", "delete"])
def test_annotations_can_be_resolved(kind: Any, method: str) -> None:
    assert "return" in get_type_hints(getattr(kind, method))


@needs_pgvector
def test_rows_without_a_key_are_not_told_apart(conn: Conn) -> None:
    conn.execute("CREATE TABLE loose (v vector(2))")
    table = pybq.Table(conn, "loose")
    for ask in (table.get, table.delete):
        with pytest.raises(TableError, match="has no primary key to tell rows by"):
            ask([1])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("12", "got str"),
        (b"12", "got bytes"),
        (5, "got int"),
        (None, "got NoneType"),
        ([1.5], "of type int8, that of column 'id', got float"),
        ([1, Decimal(2)], "got Decimal"),
        (np.array([2.0]), "got float64"),
        ([np.float32(2)], "got float32"),
        (np.array([[1, 2], [3, 4]]), r"of shape \(n,\), got \(2, 2\)"),
        (np.array(1), r"got \(\)"),
        ([[1, 2]], "got list"),
        ([np.array([1, 2])], "got ndarray"),
    ],
    ids=str,
)
def test_what_is_no_key_is_refused(table: pybq.Table, ids: Any, message: str) -> None:
    for ask in (table.get, table.delete):
        with pytest.raises(TypeError, match=f"expected ids .*{message}"):
            ask(ids)
    assert table.count() == N


def test_a_column_may_have_the_name_of_the_places(conn: Conn, vectors: np.ndarray) -> None:
    pybq.Table.create(conn, "items", DIM, store=None).ingest(range(2), vectors[:2])
    conn.execute("ALTER TABLE items ADD bq_place int DEFAULT 7")
    assert pybq.Table(conn, "items").get([1]) == [Row(1, {"bq_place": 7})]
    conn.execute("ALTER TABLE items DROP bq_place")
    conn.execute("ALTER TABLE items RENAME id TO bq_place")
    assert pybq.Table(conn, "items").get([1]) == [Row(1)]


def test_a_text_is_not_the_keys_of_its_letters(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "words", DIM, store=None, id_type="text")
    table.ingest(["a", "b", "abc"], vectors[:3])
    with pytest.raises(TypeError, match="got str"):
        table.delete("abc")
    assert table.delete(["abc"]) == 1 and table.count() == 2


def test_keys_may_come_from_a_generator(table: pybq.Table) -> None:
    rows = table.get(i for i in (3, 99))  # type: ignore[arg-type]
    assert [row and row.id for row in rows] == [3, None]
    assert table.delete(i for i in (3, 99)) == 1  # type: ignore[arg-type]


def test_rows_are_counted(conn: Conn, table: pybq.Table) -> None:
    assert table.count() == N
    assert table.delete([1, 2, 2, 99]) == 2
    assert table.count() == N - 2


def test_nothing_is_left_of_a_dropped_table(conn: Conn, vectors: np.ndarray) -> None:
    known = "SELECT (SELECT count(*) FROM bq_columns), (SELECT count(*) FROM bq_loads)"
    for metric in ("cosine", "l2"):
        table = pybq.Table.create(conn, "items", DIM, metric, store=None)
        for name in ("one", "two"):
            table.load({"vectors": vectors}, name=name, on_conflict="update", batch_rows=N // 2)
        assert conn.execute(known).fetchone() == (1, 4)
        table.drop()
        assert conn.execute(known).fetchone() == (0, 0)
        assert conn.execute("SELECT to_regclass('items')").fetchone() == (None,)
        for ask in (table.status, table.statistics):
            with pytest.raises(TableError, match="'items' is gone from bq_columns"):
                ask()


def test_a_drop_that_fails_changes_nothing(conn: Conn, table: pybq.Table) -> None:
    conn.execute("CREATE VIEW seen AS SELECT id FROM items")
    conn.commit()
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        table.drop()
    assert table.count() == N and table.status().count == N


def test_what_has_the_same_name_is_left_alone(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    conn.execute("CREATE TEMP TABLE items (LIKE public.items)")
    conn.execute("CREATE SCHEMA shop")
    conn.execute("CREATE TABLE shop.items (LIKE public.items)")
    for path in ("public", "shop, public"):  # the temporary table comes before either
        conn.execute(f"SET search_path = {path}")
        assert table.ingest([len(path)], vectors[:1]) == 1
    assert table.count() == 2 and table.delete([len("public")]) == 1
    table.drop()
    names = ("public.items", "pg_temp.items", "shop.items")
    there = [conn.execute("SELECT to_regclass(%s)", [name]).fetchone() for name in names]
    assert there[0] == (None,) and (None,) not in there[1:]
    assert conn.execute("SELECT count(*) FROM bq_columns").fetchone() == (0,)


def test_a_table_in_the_place_of_the_opened_one_is_not_dropped(
    conn: Conn, table: pybq.Table
) -> None:
    conn.execute("ALTER TABLE items RENAME TO sold")
    conn.execute("CREATE TABLE items (id int)")
    conn.commit()
    with pytest.raises(TableError, match="'items' is not the one that was opened"):
        table.drop()
    assert conn.execute("SELECT to_regclass('items') IS NULL").fetchone() == (False,)
    assert pybq.Table(conn, "sold").count() == N


def test_a_temporary_table_does_not_pass_for_the_one_that_is_made(
    conn: Conn, vectors: np.ndarray
) -> None:
    conn.execute("CREATE TEMP TABLE items (id int, embedding real[])")
    table = pybq.Table.create(conn, "items", DIM, store=None)
    assert table.ingest(range(N), vectors) == N
    assert repr(table).startswith("<pybq.Table public.items: ")
    assert conn.execute(
        "SELECT table_name = 'public.items'::regclass FROM bq_columns"
    ).fetchall() == [(True,)]


def test_the_asynchronous_table_does_the_same(conn: Conn, table: pybq.Table) -> None:
    conn.commit()

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(
            conn.info.dsn, password=conn.info.password, autocommit=True
        ) as mine:
            with pytest.raises(TypeError, match="await AsyncTable.open"):
                pybq.AsyncTable(mine, "items")
            same = await pybq.AsyncTable.open(mine, "items")
            assert await same.get([7, 99]) == table.get([7, 99])
            assert await same.count() == N
            assert repr(same) == repr(table).replace("Table", "AsyncTable")
            conn.commit()
            await same.drop()

    asyncio.run(work())
    assert conn.execute("SELECT to_regclass('items')").fetchone() == (None,)


def test_a_table_tells_what_it_is(conn: Conn, table: pybq.Table) -> None:
    assert repr(table) == "<pybq.Table items: 8 dimensions, cosine, codes in code>"
    conn.execute("CREATE SCHEMA shop")
    other = pybq.Table(conn, "items", 16, "l2", store=None, schema="shop")
    assert repr(other).startswith("<pybq.Table shop.items: 16 dimensions, l2")


def test_a_column_that_a_new_table_would_not_have_is_refused_before(conn: Conn) -> None:
    for options in ({"column": "v"}, {"column": "embedding", "store": None}):
        with pytest.raises(TableError, match="one that pybq makes has no column"):
            pybq.Table(conn, "items", DIM, **options)  # type: ignore[arg-type]
        assert conn.execute("SELECT to_regclass('items')").fetchone() == (None,)
    assert pybq.Table(conn, "items", DIM, store=None, column="code").code_column == "code"


def test_vectors_beside_codes_are_refused_before_a_table_is_made(conn: Conn) -> None:
    for options in ({}, {"transform": 7}):
        with pytest.raises(TableError, match="is searched and written by column 'code'"):
            pybq.Table(conn, "items", DIM, column="embedding", codes=True, **options)  # type: ignore[arg-type]
        assert conn.execute("SELECT to_regclass('items')").fetchone() == (None,)


@pytest.mark.parametrize("make", [pybq.Table, pybq.Table.open, pybq.Table.create])
def test_options_that_are_none_are_named(conn: Conn, table: pybq.Table, make: Any) -> None:
    for name in ("items", "others"):  # one that is there, one that is not
        with pytest.raises(TypeError, match="expected options of store, .*, got 'stor'"):
            make(conn, name, DIM, stor=None)
