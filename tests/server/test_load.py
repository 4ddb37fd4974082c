"""Table.load: sources of any size in batches, resumable, in parallel."""

from __future__ import annotations

import asyncio
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn, needs_pgvector

import pybq
from pybq._loading import load

DIM = 16
ROWS = 1000


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((ROWS, DIM)).astype(np.float32) + 0.1


def create(conn: Conn, **options: Any) -> pybq.Table:
    return pybq.Table.create(conn, "items", DIM, **{"store": None, **options})


def ids(conn: Conn) -> list[Any]:
    """Keys of the table; leaves no transaction open."""
    found = [row[0] for row in conn.execute("SELECT id FROM items ORDER BY id")]
    conn.commit()
    return found


def assert_statistics(table: pybq.Table, vectors: np.ndarray) -> None:
    """Equal to those of a single pass."""
    expected = pybq.Statistics(DIM, normalize=True)
    expected.update(vectors)
    found = table.statistics()
    assert found.count == expected.count
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        left, right = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=name)


def frames(vectors: np.ndarray) -> dict[str, Callable[[], Any]]:
    titles = [f"title {i}" for i in range(len(vectors))]

    def arrow() -> Any:
        pa = pytest.importorskip("pyarrow")
        return pa.table({"id": range(ROWS), "embedding": vectors.tolist(), "title": titles})

    def pandas() -> Any:
        pd = pytest.importorskip("pandas")
        return pd.DataFrame({"id": range(ROWS), "embedding": list(vectors), "title": titles})

    def polars() -> Any:
        pl = pytest.importorskip("polars")
        return pl.DataFrame({"id": range(ROWS), "embedding": vectors.tolist(), "title": titles})

    def batches() -> Iterator[Any]:
        for i in range(0, ROWS, 70):
            part = slice(i, i + 70)
            yield range(ROWS)[part], vectors[part], {"title": titles[part]}

    return {
        "arrow": arrow,
        "reader": lambda: arrow().to_reader(max_chunksize=90),
        "pandas": pandas,
        "polars": polars,
        "mapping": lambda: {"id": np.arange(ROWS), "vectors": vectors, "title": np.array(titles)},
        "batches": batches,
    }


@needs_pgvector
@pytest.mark.parametrize("kind", list(frames(np.empty((0, DIM)))))
def test_sources_give_the_same_rows(conn: Conn, vectors: np.ndarray, kind: str) -> None:
    table = create(conn, store="vector", columns={"title": "text"})
    assert table.load(frames(vectors)[kind](), batch_rows=128) == ROWS
    rows = conn.execute("SELECT id, title, embedding::real[] FROM items ORDER BY id").fetchall()
    assert [row[:2] for row in rows] == [(i, f"title {i}") for i in range(ROWS)]
    np.testing.assert_array_equal(np.array([row[2] for row in rows], np.float32), vectors)
    assert_statistics(table, vectors)


def test_columns_that_cannot_be_stored_are_not_dropped(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn, columns={"made": "timestamp", "few": "int"})
    source: dict[str, Any] = {"vectors": vectors, "few": np.arange(3)}
    with pytest.raises(ValueError, match="'few' does not have one value for each vector"):
        table.load(source)
    source["made"] = np.full(ROWS, 1j)
    with pytest.raises(pybq.LoadError, match="column 'made' of type timestamp, row 0"):
        table.load(source, columns=["made"])
    assert table.load(source, columns=[]) == ROWS


def test_the_table_decides_what_values_become(conn: Conn, vectors: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    conn.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    columns = {"doc": "jsonb", "at": "date", "price": "numeric", "tags": "text[]", "mood": "mood"}
    table = create(conn, columns=columns)
    rows = [
        ({"a": [1]}, date(2026, 11, 21), Decimal("1.25"), ["a", "b"], "sad"),
        (None, None, None, None, None),
    ]
    values = dict(zip(columns, zip(*rows, strict=True), strict=True))
    frame = pa.table({"embedding": vectors[:2].tolist()} | {n: list(v) for n, v in values.items()})
    assert table.load(frame) == 2
    arrays: dict[str, Any] = {name: np.empty(2, object) for name in columns}
    for name, array in arrays.items():
        array[:] = values[name]
    arrays["at"] = np.array(values["at"], "datetime64[ns]")
    assert table.load({"vectors": vectors[:2], **arrays}, first_id=2, batch_rows=1) == 2
    assert table.load([(None, vectors[:2], arrays)], first_id=4) == 2
    found = conn.execute("SELECT doc, at, price, tags, mood FROM items ORDER BY id").fetchall()
    assert found == rows * 3


def test_lists_and_matrices_go_into_columns_of_arrays(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn, columns={"tags": "text[]", "pair": "real[]", "raw": "bytea"})
    tags, raw = [["a", "b"], ["c", None]], [b"\0", b"a\0"]
    pair = np.array([[1, 2], [3, 4]], np.float32)
    columns: dict[str, Any] = {"tags": tags, "pair": pair, "raw": raw}
    assert table.load([(None, vectors[:2], columns)]) == 2
    columns["vectors"] = vectors[:2]
    assert table.load(columns, vector_column="vectors", first_id=2, batch_rows=1) == 2
    assert table.ingest([4, 5], columns.pop("vectors"), columns) == 2
    found = conn.execute("SELECT tags, pair, raw FROM items ORDER BY id").fetchall()
    assert found == list(zip(tags, pair.tolist(), raw, strict=True)) * 3


def test_a_wrong_value_is_named_by_column_and_row(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn, columns={"n": "int", "title": "text"})
    titles: list[Any] = ["a"] * ROWS
    titles[730] = 5
    arrays = {"n": np.arange(ROWS), "title": np.array(titles, object)}
    with pytest.raises(pybq.LoadError, match="rows 700 to 799 .*'title' of type text, row 30: "):
        table.load({"vectors": vectors, **arrays}, batch_rows=100)
    with pytest.raises(TypeError, match="column 'title' of type text, row 730: expected str"):
        table.ingest(range(ROWS), vectors, arrays)
    arrays = {"n": np.arange(ROWS) * 2**40}
    with pytest.raises(ValueError, match="column 'n' of type int4, row 1: .* out of range"):
        table.ingest(range(ROWS), vectors, arrays)


def test_array_and_hdf5_have_keys_in_order(conn: Conn, vectors: np.ndarray, tmp_path: Path) -> None:
    table = create(conn)
    assert table.load(vectors, first_id=5, batch_rows=300) == ROWS
    assert ids(conn) == list(range(5, 5 + ROWS))
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["embeddings"], file["ids"] = vectors, np.arange(9000, 9000 + ROWS)
    assert table.load(tmp_path / "v.h5", batch_rows=300) == ROWS
    assert ids(conn)[ROWS:] == list(range(9000, 9000 + ROWS))


def test_values_that_are_missing_in_a_batch_are_null(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn, columns={"title": "text", "n": "int"})
    first = ([1, 2], vectors[:2], {"title": [None, None], "n": [7, None]})
    second = ([3], vectors[:1], {"title": ["c"], "n": [8]})
    assert table.load([first, second], batch_rows=2) == 3
    rows = conn.execute("SELECT id, title, n FROM items ORDER BY id").fetchall()
    assert rows == [(1, None, 7), (2, None, None), (3, "c", 8)]


@pytest.mark.parametrize("source", [np.empty((0, DIM)), [np.empty((0, DIM))] * 2])
def test_an_empty_source_decides_nothing(conn: Conn, source: Any) -> None:
    table = create(conn)
    assert table.load(source) == 0
    assert table.status().transform is None


@pytest.mark.parametrize("batch_rows", [2, None])
def test_batches_that_differ_are_refused(conn: Conn, vectors: np.ndarray, batch_rows: Any) -> None:
    table = create(conn, columns={"title": "text"})
    first = ([1, 2], vectors[:2], {"title": ["a", "b"]})
    for second, message in (
        (([3, 4], vectors[:2]), "the same columns in all batches"),
        ({"vectors": vectors[:2], "title": ["c", "d"]}, "keys in all or none"),
        (([3, 4], vectors[:2, :5], {"title": ["c", "d"]}), "batch 1: expected 16 dimensions"),
    ):
        with pytest.raises(
            pybq.LoadError, match=f"from {batch_rows or 0} on .*{message}"
        ) as caught:
            table.load([first, second], batch_rows=batch_rows, on_conflict="skip")
        assert isinstance(caught.value.__cause__, ValueError)
        assert ids(conn) == ([1, 2] if batch_rows else [])


def test_decision_sees_all_of_a_sorted_file(
    conn: Conn, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Even rows first, uneven ones last: the first batch alone would mislead."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    even = rng.standard_normal((4000, DIM))
    uneven = rng.standard_normal((4000, DIM)) * np.geomspace(30, 1, DIM)
    rows = np.vstack([even, uneven]).astype(np.float32)
    pyarrow.parquet.write_table(pa.table({"v": rows.tolist()}), tmp_path / "v.parquet")
    table = create(conn, metric="l2")
    table.load(tmp_path / "v.parquet", batch_rows=1000)
    status = table.status()
    assert status.decided_count == 8000 == status.count
    expected = pybq.Statistics(DIM)
    expected.update(rows)
    assert status.f_axis == pytest.approx(pybq.choose(expected).f_axis, rel=1e-6)


# -- conflicts ------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [None, "halfvec", "vector"])
def test_update_and_skip(
    conn: Conn, vectors: np.ndarray, store: Any, request: pytest.FixtureRequest
) -> None:
    if store:
        request.getfixturevalue("vector")
    table = create(conn, store=store, codes=True, columns={"n": "int"})
    first, second = vectors[:600], vectors[400:]
    assert table.ingest(range(600), first, {"n": [1] * 600}) == 600
    assert table.ingest(range(400, 1000), second, {"n": [2] * 600}, on_conflict="skip") == 400
    count = "SELECT count(*) FILTER (WHERE n = 1), count(*) FILTER (WHERE n = 2) FROM items"
    assert conn.execute(count).fetchone() == (600, 400)
    stored = vectors.astype(np.float16).astype(np.float32) if store == "halfvec" else vectors
    assert_statistics(table, stored)
    assert table.load([(range(500), -first[:500], {"n": [3] * 500})], on_conflict="update") == 500
    assert conn.execute(count).fetchone() == (100, 400)
    assert table.status().count == 1500
    (hit,) = table.search(-first[3], k=1)
    assert hit.id == 3


def test_only_rows_written_are_counted_and_once(
    conn: Conn, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = create(conn, codes=True, columns={"n": "int"})
    table.ingest(range(600), vectors[:600], {"n": [1] * 600})
    counted, update = [], pybq.Statistics.update

    def count(statistics: pybq.Statistics, rows: np.ndarray) -> None:
        counted.append(len(rows))
        update(statistics, rows)

    monkeypatch.setattr(pybq.Statistics, "update", count)
    table.ingest(range(400, 1000), vectors[400:], {"n": [2] * 600}, on_conflict="skip")
    assert sum(counted) == 400


@pytest.mark.parametrize("connections", [1, 2])
def test_rows_without_keys_are_refused_before_the_decision(
    conn: Conn, vectors: np.ndarray, connections: int
) -> None:
    table = create(conn)
    options: dict[str, Any] = {"on_conflict": "skip", "connections": connections}
    for source in (vectors, {"v": vectors}, [vectors[:5], vectors[5:]]):
        with pytest.raises(ValueError, match="expected ids with on_conflict='skip', got None"):
            table.load(source, first_id=None, **options)
        assert table.status().transform is None


@pytest.mark.usefixtures("vector")
def test_keys_that_do_not_fit_are_refused_before_anything_is_written(
    conn: Conn, vectors: np.ndarray
) -> None:
    conn.execute(f"CREATE TABLE bare (v vector({DIM}))".encode())
    conn.execute(f"CREATE TABLE pairs (v vector({DIM}), a int, b int, PRIMARY KEY (a, b))".encode())
    conn.commit()
    with pytest.raises(pybq.TableError, match="no primary key; write vectors with ids=None"):
        pybq.Table(conn, "bare").load({"v": vectors, "id": np.arange(len(vectors))})
    for name in ("bare", "pairs"):  # no number is a key of theirs
        with pytest.raises(ValueError, match="expected ids with on_conflict='skip', got None"):
            pybq.Table(conn, name).load(vectors, on_conflict="skip")


def test_columns_named_as_that_of_the_stage_do_no_harm(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn, columns={"bq_place": "int", "bq_place_": "int"})
    columns = {"bq_place": [5, 6], "bq_place_": [7, 8]}
    for on_conflict, written in (("skip", 2), ("skip", 0), ("update", 2)):
        options: dict[str, Any] = {"on_conflict": on_conflict}
        assert table.ingest([1, 2], vectors[:2], columns, **options) == written
    found = conn.execute("SELECT id, bq_place, bq_place_ FROM items ORDER BY id").fetchall()
    assert found == [(1, 5, 7), (2, 6, 8)]


def test_equal_keys_in_one_batch(conn: Conn, vectors: np.ndarray) -> None:
    keys = [0, 1, 1, 2, 1]
    table = create(conn, columns={"n": "int"})
    assert table.ingest(keys, vectors[:5], {"n": range(5)}, on_conflict="skip") == 3
    assert conn.execute("SELECT n FROM items ORDER BY id").fetchall() == [(0,), (1,), (3,)]
    assert_statistics(table, vectors[[0, 1, 3]])
    assert table.ingest(keys, vectors[:5], {"n": range(5)}, on_conflict="update") == 3
    assert conn.execute("SELECT n FROM items ORDER BY id").fetchall() == [(0,), (4,), (3,)]


def test_conflict_is_reported_with_what_was_written(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn)
    table.ingest([730], vectors[:1])
    with pytest.raises(pybq.LoadError, match="rows 600 to 799 of the source") as caught:
        table.load(vectors, batch_rows=200)
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert (caught.value.first, caught.value.last, caught.value.written) == (600, 799, 600)
    assert ids(conn) == [*range(600), 730]
    assert table.status().count == 601


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("name", [None, "mine"])
def test_a_source_that_fails_is_reported_with_what_was_written(
    conn: Conn, vectors: np.ndarray, connections: int, name: str | None
) -> None:
    """Also where the sample for the decision, of the first 20,000 rows, comes to it first."""
    table = create(conn)

    def batches() -> Iterator[Any]:
        for i in range(0, ROWS, 100):
            if i == 500:
                raise OSError("the disk is gone")
            yield range(i, i + 100), vectors[i : i + 100]

    with pytest.raises(pybq.LoadError, match="rows from 500 on of .*: the disk is gone") as caught:
        table.load(batches(), batch_rows=100, connections=connections, name=name)
    error = caught.value
    assert isinstance(error.__cause__, OSError)
    assert (error.first, error.last, error.written) == (500, None, 500)
    assert ids(conn) == list(range(500))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("connections", [1, 3])
def test_a_failure_is_the_same_on_any_number_of_connections(
    conn: Conn, vectors: np.ndarray, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = create(conn)
    write, calls = load.decide, []

    async def fail(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 4:
            raise pybq.TableError("no more")
        return await write(*arguments)

    monkeypatch.setattr(load, "decide", fail)
    with pytest.raises(pybq.LoadError, match="were not written: no more") as caught:
        table.load(vectors, batch_rows=100, connections=connections)
    assert isinstance(caught.value.__cause__, pybq.TableError)
    assert len(ids(conn)) == caught.value.written


# -- resuming -----------------------------------------------------------------------------------


def test_resume_goes_on_after_a_bad_row(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn)
    bad = vectors.copy()
    bad[555, 3] = np.nan
    with pytest.raises(pybq.LoadError, match="row 555 .id 555.: .*finite") as caught:
        table.load(bad, name="mine", batch_rows=100)
    assert isinstance(caught.value.__cause__, pybq.RowError)
    assert caught.value.written == table.status().count == 500
    assert table.load(vectors, name="mine", batch_rows=100, resume=True) == 500
    assert table.load(vectors, name="mine", batch_rows=100, resume=True) == 0
    assert ids(conn) == list(range(ROWS))
    assert_statistics(table, vectors)


@pytest.mark.parametrize("connections", [1, 3])
def test_a_forgotten_resume_does_no_harm(conn: Conn, vectors: np.ndarray, connections: int) -> None:
    table = create(conn)
    bad = vectors.copy()
    bad[350, 2] = np.nan
    with pytest.raises(pybq.LoadError, match="rows 300 to 399"):
        table.load(bad, name="v", batch_rows=100)
    with pytest.raises(pybq.LoadError, match="rows 0 to 99 .* duplicate key"):
        table.load(vectors, name="v", batch_rows=100, connections=connections)
    assert table.load(vectors, name="v", batch_rows=100, resume=True) == ROWS - 300
    assert ids(conn) == list(range(ROWS))
    conn.execute("DELETE FROM items WHERE id >= 50")
    conn.commit()
    options: Any = {"name": "v", "batch_rows": 100, "connections": connections}
    assert table.load(vectors, on_conflict="skip", **options) == ROWS - 50
    assert table.load(vectors, resume=True, **options) == 0


def test_resume_refuses_what_does_not_fit(conn: Conn, vectors: np.ndarray, tmp_path: Path) -> None:
    table = create(conn)
    np.save(tmp_path / "v.npy", vectors)
    assert table.load(tmp_path / "v.npy", batch_rows=400) == ROWS
    with pytest.raises(pybq.TableError, match="began with batch_rows=400"):
        table.load(tmp_path / "v.npy", batch_rows=300, resume=True)
    with pytest.raises(pybq.TableError, match="read in another way: .* keys from 0, .* from 5;"):
        table.load(tmp_path / "v.npy", batch_rows=400, resume=True, first_id=5)
    np.savez(tmp_path / "two.npz", a=vectors, b=vectors)
    assert table.load(tmp_path / "two.npz", vector_column="a", first_id=ROWS) == ROWS
    with pytest.raises(pybq.TableError, match="read in another way"):
        table.load(tmp_path / "two.npz", vector_column="b", first_id=ROWS, resume=True)
    conn.execute("DELETE FROM items WHERE id >= %s", [ROWS])
    conn.commit()
    np.save(tmp_path / "v.npy", vectors[:-1])
    with pytest.raises(pybq.TableError, match="has changed since its load began"):
        table.load(tmp_path / "v.npy", batch_rows=400, resume=True)
    with pytest.raises(ValueError, match="give the source a name"):
        table.load(vectors, resume=True)
    conn.execute("ALTER TABLE items ADD title text")
    conn.commit()
    wider, titles = pybq.Table(conn, "items"), np.full(ROWS, "a")
    source = {"vectors": vectors, "title": titles}
    options: Any = {"name": "t", "first_id": 5 * ROWS, "batch_rows": 100}
    assert wider.load(source, columns=[], **options) == ROWS
    with pytest.raises(pybq.TableError, match="columns: none, .* it is .*columns: title, "):
        wider.load(source, resume=True, **options)
    conn.execute("DELETE FROM items WHERE id >= %s", [ROWS])
    conn.commit()
    with (
        conn.transaction(),
        pytest.raises(pybq.TableError, match="a transaction is open|but one is open"),
    ):
        table.load(vectors, name="v", resume=True)
    # without resume it begins anew
    assert table.load(tmp_path / "v.npy", on_conflict="skip") == 0


def test_load_joins_an_open_transaction(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn)
    with pytest.raises(RuntimeError, match="enough"), conn.transaction():
        assert table.load(vectors, batch_rows=100) == ROWS
        raise RuntimeError("enough")
    assert ids(conn) == []
    assert table.status().count == 0


# -- in parallel ---------------------------------------------------------------------------------


def test_connections_write_at_once(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn)
    assert table.load(vectors, batch_rows=50, connections=3) == ROWS
    assert ids(conn) == list(range(ROWS))
    assert_statistics(table, vectors)


def test_connections_are_like_the_callers(conn: Conn, vectors: np.ndarray) -> None:
    class Price(int):
        pass

    class PriceDumper(psycopg.adapt.Dumper):
        format = psycopg.pq.Format.BINARY

        def dump(self, obj: Any) -> bytes:
            return struct.pack("!hhHHh", 1, 0, 0, 0, obj)  # numeric: one digit of base 10,000

    PriceDumper.oid = psycopg.postgres.types["numeric"].oid
    conn.execute("CREATE ROLE bq_test_loader")
    conn.execute("CREATE SCHEMA other AUTHORIZATION bq_test_loader")
    conn.execute("SET ROLE bq_test_loader")
    conn.execute("SET search_path = other, public")
    conn.execute("SET DateStyle = 'German'")
    table = create(conn, columns={"price": "numeric"})
    conn.execute("ALTER TABLE items ADD writer text DEFAULT current_user")
    conn.execute("ALTER TABLE items ADD style text DEFAULT current_setting('DateStyle')")
    conn.commit()
    conn.adapters.register_dumper(Price, PriceDumper)
    try:
        prices = np.empty(ROWS, object)
        prices[:] = [Price(7)] * ROWS
        source = {"vectors": vectors, "price": prices}
        assert table.load(source, batch_rows=100, connections=2) == ROWS
        found = conn.execute("SELECT DISTINCT writer, style, price FROM other.items").fetchall()
        assert found == [("bq_test_loader", "German, DMY", 7)]
    finally:
        conn.rollback()
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY bq_test_loader")
        conn.execute("DROP ROLE bq_test_loader")
        conn.commit()


def test_parallel_load_reports_and_resumes(conn: Conn, vectors: np.ndarray) -> None:
    table = create(conn)
    bad = vectors.copy()
    bad[555, 3] = np.inf
    with pytest.raises(pybq.LoadError, match="rows 550 to 599 of mine") as caught:
        table.load(bad, name="mine", batch_rows=50, connections=3)
    assert len(ids(conn)) == table.status().count == caught.value.written
    rest = ROWS - caught.value.written
    assert table.load(vectors, name="mine", batch_rows=50, connections=3, resume=True) == rest
    assert ids(conn) == list(range(ROWS))
    assert_statistics(table, vectors)


def test_async_load(server: pybq.Server, conn: Conn, vectors: np.ndarray) -> None:
    create(conn)

    async def main() -> int:
        dsn = conn.info.dsn
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            table = await pybq.AsyncTable.open(connection, "items")
            first = await table.load(vectors[:500], batch_rows=100)
            return first + await table.load(
                vectors[500:], first_id=500, batch_rows=100, connections=2
            )

    assert asyncio.run(main()) == ROWS
    assert ids(conn) == list(range(ROWS))


CHILD = """
import sys, time
import numpy as np, psycopg, pybq
from pybq._catalog import registry

dsn, path, first, hang = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
add, calls = registry.add_statistics, 0

async def add_or_hang(*arguments):
    global calls
    calls += 1
    if calls == hang:  # all of the batch but its statistics has been sent
        print("hangs", flush=True)
        time.sleep(600)
    await add(*arguments)

registry.add_statistics = add_or_hang
with psycopg.connect(dsn) as conn:
    table = pybq.Table(conn, "items")
    print(table.load(path, first_id=first, batch_rows=100, resume=True))
"""


def test_a_cancelled_load_lets_others_go_on(conn: Conn, vectors: np.ndarray) -> None:
    """Its threads wait for a lock which another task of the same loop has to let go."""
    create(conn, transform=1)
    dsn = psycopg.conninfo.make_conninfo(conn.info.dsn, options="-c lock_timeout=5s")
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"

    async def main() -> None:
        async with (
            await psycopg.AsyncConnection.connect(dsn) as own,
            await psycopg.AsyncConnection.connect(dsn) as holder,
        ):
            table = await pybq.AsyncTable.open(own, "items")
            await holder.execute("SELECT FROM bq_columns FOR UPDATE")
            loading = asyncio.create_task(table.load(vectors, batch_rows=100, connections=2))
            while (await (await holder.execute(waiting)).fetchone()) != (2,):
                await asyncio.sleep(0.01)
            loading.cancel()
            await asyncio.sleep(0)  # the load hears of it before the lock goes
            await holder.rollback()
            with pytest.raises(asyncio.CancelledError):
                await loading

    asyncio.run(main())
    assert ids(conn) == list(range(200))


@pytest.mark.once
def test_eight_processes_one_of_them_killed(
    conn: Conn, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A batch of the one that is killed is absent or whole; loading again completes it."""
    table = create(conn)
    n, processes = 1250, 8
    vectors = rng.standard_normal((processes * n, DIM)).astype(np.float32) + 0.1
    child = tmp_path / "child.py"
    child.write_text(textwrap.dedent(CHILD))

    def start(i: int, hang: int = 0) -> subprocess.Popen[str]:
        arguments = [conn.info.dsn, str(tmp_path / f"{i}.npy"), str(i * n), str(hang)]
        return subprocess.Popen(
            [sys.executable, str(child), *arguments], stdout=subprocess.PIPE, text=True
        )

    for i in range(processes):
        np.save(tmp_path / f"{i}.npy", vectors[i * n : (i + 1) * n])
    started = [start(i) for i in range(1, processes)]
    victim = start(0, hang=6)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "hangs\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, f"{n}\n")
    written = sum(key < n for key in ids(conn))
    assert written == 500, "five batches, and nothing of the sixth"
    again = start(0)
    assert again.communicate(timeout=120)[0] == f"{n - written}\n"
    assert ids(conn) == list(range(processes * n))
    assert_statistics(table, vectors)
