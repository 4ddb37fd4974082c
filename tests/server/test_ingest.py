"""Table.ingest: all rows or none, the same codes as SQL, statistics that add up."""

from __future__ import annotations

import datetime
import enum
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from psycopg.types.json import Jsonb
from shared import Conn, Vectors, needs_pgvector

import pybq
from pybq import RowError
from pybq._choice.statistics import Statistics

DIM = 48
# More than one chunk of rows: see CHUNK_NBYTES in pybq/_loading/encode.py.
N = 50_000


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def lsa(lsa: tuple[Vectors, Vectors]) -> Vectors:
    """Real vectors (2000, 256) of uneven variances."""
    base, _ = lsa
    return base / np.linalg.norm(base, axis=1, keepdims=True)


@pytest.fixture
def other(conn: Conn) -> Iterator[Conn]:
    """A second connection to the same database."""
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other:
        yield other


def fetch(conn: Conn, query: str) -> Any:
    """Return the first value of the first row."""
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def known_statistics(conn: Conn, normalize: bool) -> Statistics:
    row = conn.execute("SELECT (statistics).* FROM bq_columns").fetchone()
    assert row is not None
    return Statistics.from_row(row, normalize)


def assert_same(a: Statistics, b: Statistics) -> None:
    assert a.count == b.count
    np.testing.assert_array_equal(a.positive, b.positive)
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment"):
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9 * np.abs(y).max(), err_msg=name)


# -- what is written ------------------------------------------------------------------


def test_floats_go_into_numeric_as_they_are_written(conn: Conn) -> None:
    table = pybq.Table.create(conn, "items", 4, store=None, columns={"price": "numeric(9, 2)"})
    prices = [1.5, np.float32(1.1), Decimal("2.25"), 3, None]
    assert table.ingest(range(5), np.eye(5, 4), {"price": prices}) == 5
    rows = conn.execute("SELECT price FROM items ORDER BY id").fetchall()
    assert rows == [(Decimal(f"{n}"),) for n in (1.5, 1.1, 2.25, 3)] + [(None,)]


def test_a_series_is_written_by_place_whatever_its_index(conn: Conn) -> None:
    pd = pytest.importorskip("pandas")
    table = pybq.Table.create(
        conn, "items", 4, store=None, id_type="text", columns={"title": "text", "n": "int"}
    )
    index = [2, 0, 1]
    columns = {
        "title": pd.Series(["x", None, "z"], index=index),
        "n": pd.Series([7, 8, 9], index=index),
    }
    ids = pd.Series(["a", "b", "c"], index=index)
    assert table.ingest(ids, np.eye(4)[:3], columns) == 3
    rows = conn.execute("SELECT id, title, n FROM items ORDER BY id").fetchall()
    assert rows == [("a", "x", 7), ("b", None, 8), ("c", "z", 9)]


SERIES = {
    "pandas": lambda pd, values: pd.Series(values, dtype="Int64", index=[2, 0, 1]),
    "pandas array": lambda pd, values: pd.array(values, dtype="Int64"),
    "polars": lambda pl, values: pl.Series(values),
    "pyarrow": lambda pa, values: pa.array(values),
    "pyarrow chunks": lambda pa, values: pa.chunked_array([values[:1], values[1:]]),
}


@pytest.mark.parametrize("kind", SERIES)
def test_what_a_series_misses_is_null_and_large_integers_keep_their_digits(
    conn: Conn, kind: str
) -> None:
    package = pytest.importorskip(kind.split()[0])
    columns = {"n": "numeric", "b": "bigint"}
    table = pybq.Table.create(conn, "items", 4, store=None, columns=columns)
    large = 2**60 + 1
    values, keys = (SERIES[kind](package, v) for v in ([large, None, 3], [1, 2, large]))
    table.ingest(keys, np.eye(4)[:3], {"n": values, "b": values})
    rows = conn.execute("SELECT id, n, b FROM items ORDER BY id").fetchall()
    assert rows == [(1, large, large), (2, None, None), (large, 3, 3)]
    without = SERIES[kind](package, [4, None, 5])
    with pytest.raises(psycopg.errors.NotNullViolation, match='null value in column "id"'):
        table.ingest(without, np.eye(4)[:3])


@needs_pgvector
@pytest.mark.parametrize("store", ["halfvec", "vector"])
@pytest.mark.parametrize("transform", [0, 1])
def test_codes_are_those_of_the_stored_vectors(
    conn: Conn, vectors: np.ndarray, store: Any, transform: int
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=store, transform=transform, codes=True)
    assert table.ingest(range(N), vectors) == N
    assert fetch(conn, "SELECT count(*) FROM items") == N
    different = "code <> bq_encode(embedding::real[], transform(code))"
    assert fetch(conn, f"SELECT count(*) FROM items WHERE {different}") == 0
    assert fetch(conn, "SELECT min(transform(code)) || ' ' || max(transform(code)) FROM items") == (
        f"{transform} {transform}"
    )


@needs_pgvector
def test_rows_keep_their_order(conn: Conn, vectors: np.ndarray) -> None:
    pybq.Table.create(conn, "items", DIM, store="vector").ingest(range(N), vectors)
    for row in (0, 1, N // 2, N - 1):
        stored = fetch(conn, f"SELECT embedding::real[] FROM items WHERE id = {row}")
        np.testing.assert_array_equal(np.array(stored, np.float32), vectors[row])


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
    ],
    ids=["float64", "float16", "Fortran", "strided", "big endian", "lists"],
)
def test_any_float_array_will_do(conn: Conn, vectors: np.ndarray, convert: Any) -> None:
    vectors = vectors[:500].astype(np.float16).astype(np.float32)  # exact in all of them
    codes = []
    for name, given in (("plain", vectors), ("converted", convert(vectors))):
        table = pybq.Table.create(conn, name, DIM, store=None, transform=1)
        table.ingest(np.arange(500), given)
        codes.append(fetch(conn, f"SELECT string_agg(code::text, ' ' ORDER BY id) FROM {name}"))
    assert codes[0] == codes[1]


def test_further_columns_of_many_types(conn: Conn, vectors: np.ndarray) -> None:
    day = datetime.date(2026, 11, 21)
    moment = datetime.datetime(2026, 11, 21, 12, 30, tzinfo=datetime.timezone.utc)
    values: dict[str, tuple[str, Any]] = {
        "flag": ("boolean", [True, None, False]),
        "flags": ("boolean", np.array([True, False, True])),
        "small": ("smallint", np.array([1, -2, 3])),
        "number": ("int", [7, None, -7]),
        "ratio": ("real", [0.5, None, -2.0]),
        "weight": ("double precision", np.array([0.1, 0.2, 0.3])),
        "title": ("text", ["ä", None, ""]),
        "name": ("varchar(9)", np.array(["a", "b", "c"])),
        "raw": ("bytea", [b"\0\1", None, b""]),
        "key": ("uuid", [UUID(int=5), None, UUID(int=6)]),
        "doc": ("jsonb", [Jsonb({"a": [1]}), None, Jsonb("x")]),
        "day": ("date", [day, None, day]),
        "moment": ("timestamptz", [moment, None, moment]),
    }
    kinds = {name: kind for name, (kind, _) in values.items()}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=kinds)
    table.ingest([1, 2, 3], vectors[:3], {name: given for name, (_, given) in values.items()})
    for name, (_, given) in values.items():
        expected = [v.obj if isinstance(v, Jsonb) else v for v in given]
        found = [row[0] for row in conn.execute(f"SELECT {name} FROM items ORDER BY id".encode())]
        assert found == expected, name


class Mood(enum.Enum):
    sad = 1
    happy = 2


def test_enums_and_domains_are_written_as_what_they_are_made_of(
    conn: Conn, vectors: np.ndarray
) -> None:
    conn.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    conn.execute("CREATE DOMAIN good_mood AS mood CHECK (VALUE <> 'sad')")
    conn.execute("CREATE DOMAIN price AS numeric(9, 2) CHECK (VALUE > 0)")
    conn.execute("CREATE DOMAIN low_price AS price CHECK (VALUE < 10)")
    conn.execute("CREATE DOMAIN short AS text CHECK (length(VALUE) < 5)")
    kinds = {"mood": "mood", "good": "good_mood", "price": "low_price", "note": "short"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=kinds, id_type="short")
    assert table.columns == {"mood": "mood", "good": "good_mood", "price": "low_price"} | {
        "note": "short"
    }
    rows: dict[str, list[Any]] = {
        "mood": ["sad", None, Mood.happy],
        "good": ["happy", None, "happy"],
        "price": [1.5, None, Decimal("2.25")],
        "note": ["a", None, "c"],
    }
    assert table.ingest(["x", "y", "z"], vectors[:3], rows) == 3
    assert table.ingest(["x"], vectors[:1], {"mood": ["happy"]}, on_conflict="update") == 1
    rows["mood"] = ["happy", None, "happy"]
    found = conn.execute("SELECT mood, good, price, note FROM items ORDER BY id").fetchall()
    assert found == list(zip(*rows.values(), strict=True))
    with pytest.raises(psycopg.errors.CheckViolation, match="low_price"), conn.transaction():
        table.ingest(["w"], vectors[:1], {"price": [11]})
    with (
        pytest.raises(psycopg.errors.InvalidTextRepresentation, match='mood: "bored"'),
        conn.transaction(),
    ):
        table.ingest(["w"], vectors[:1], {"mood": ["bored"]})


def test_a_column_that_nothing_can_be_written_to_is_named(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, columns={"spot": "point"})
    with pytest.raises(TypeError, match="column 'spot' of type point: psycopg has no binary"):
        table.ingest([1], vectors[:1], {"spot": ["(1,2)"]})


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_text_for_json_is_a_document(conn: Conn, vectors: np.ndarray, kind: str) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, columns={"doc": kind})
    given = ['{"a": [1]}', {"a": [2]}, '"x"', Jsonb("y"), "null", None, [3]]
    table.ingest(range(7), vectors[:7], {"doc": given})
    found = conn.execute("SELECT doc FROM items ORDER BY id").fetchall()
    assert found == [({"a": [1]},), ({"a": [2]},), ("x",), ("y",), (None,), (None,), ([3],)]
    assert fetch(conn, "SELECT count(*) FROM items WHERE doc IS NULL") == 1
    with pytest.raises(TypeError, match=f"column 'doc' of type {kind}, row 1: .*got 'plain'"):
        table.ingest([8, 9], vectors[:2], {"doc": ["1", "plain"]})


def test_times_of_numpy(conn: Conn, vectors: np.ndarray) -> None:
    kinds = {"day": "date", "moment": "timestamp", "span": "interval"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=kinds)
    nanoseconds = np.array(["2026-11-21T12:30:01.5", "NaT"], "datetime64[ns]")
    columns = {
        "day": nanoseconds.astype("datetime64[D]"),
        "moment": nanoseconds,
        "span": np.array([90, 0], "timedelta64[m]"),
    }
    table.ingest([1, 2], vectors[:2], columns)
    assert conn.execute("SELECT day, moment, span FROM items ORDER BY id").fetchall() == [
        (
            datetime.date(2026, 11, 21),
            datetime.datetime(2026, 11, 21, 12, 30, 1, 500_000),
            datetime.timedelta(minutes=90),
        ),
        (None, None, datetime.timedelta(0)),
    ]
    conn.execute("ALTER TABLE items ADD zoned timestamptz")
    wider = pybq.Table(conn, "items")
    for naive in (nanoseconds, nanoseconds.astype("datetime64[us]").tolist()):
        with pytest.raises(TypeError, match="'zoned' of type timestamptz, row 0: .* with its zone"):
            wider.ingest([3, 4], vectors[:2], {"zoned": naive})


def test_what_is_masked_is_null_and_no_vector(conn: Conn, vectors: np.ndarray) -> None:
    kinds = {"n": "int", "title": "text", "price": "numeric", "day": "date"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=kinds)
    mask = [False, True, False]
    columns = {
        "n": np.ma.array([1, 2, 3], mask=mask),
        "title": np.ma.array(["a", "b", "c"], mask=mask),
        "price": np.ma.array([1.5, 2.5, 3.5], mask=mask),
        "day": np.ma.array(np.array([1, 2, 3], "datetime64[D]"), mask=mask),
    }
    table.ingest(np.ma.array([1, 2, 3]), np.ma.array(vectors[:3]), columns)
    found = conn.execute("SELECT n, title, price, day - '1970-01-01' FROM items ORDER BY id")
    assert found.fetchall() == [
        (1, "a", Decimal("1.5"), 1),
        (None, None, None, None),
        (3, "c", Decimal("3.5"), 3),
    ]
    hidden = np.zeros((3, DIM), bool)
    hidden[1, 7] = True
    for kind in (np.float32, np.int64):
        with pytest.raises(RowError, match="NaN") as caught:
            table.ingest([4, 5, 6], np.ma.array(vectors[:3].astype(kind), mask=hidden))
        assert (caught.value.row, caught.value.id) == (1, 5)


def test_columns_left_out_get_their_default(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, columns={"n": "int"})
    conn.execute("ALTER TABLE items ALTER n SET DEFAULT 5")
    table.ingest([1], vectors[:1])
    assert fetch(conn, "SELECT n FROM items") == 5


# -- mistakes -------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    ("value", "store", "message"),
    [
        (np.nan, None, "NaN"),
        (-np.inf, None, "infinit"),
        (3e38, None, "norm"),
        (np.nan, "vector", "NaN"),
        (np.inf, "halfvec", "infinit"),
        (70_000.0, "halfvec", '70000 is too large for halfvec; keep such vectors with store="v'),
    ],
)
@pytest.mark.parametrize("codes", [True, False])
def test_a_bad_row_is_named_and_nothing_is_written(
    conn: Conn,
    vectors: np.ndarray,
    request: pytest.FixtureRequest,
    codes: bool,
    value: float,
    store: Any,
    message: str,
) -> None:
    if store is not None:
        request.getfixturevalue("vector")
    row = N - 1000  # in the last chunk
    vectors[row, 3] = value
    table = pybq.Table.create(conn, "items", DIM, store=store, codes=codes or store is None)
    ids = np.arange(N) + 10**6
    with pytest.raises(RowError, match=message) as caught:
        table.ingest(ids, vectors)
    assert (caught.value.row, caught.value.id) == (row, 10**6 + row)
    assert str(caught.value).startswith(f"row {row} (id {10**6 + row}): ")
    assert fetch(conn, "SELECT count(*) FROM items") == 0
    assert table.status().count == (0 if table.code_column else None)
    assert table.status().transform is None

    vectors[row] = 1
    assert table.ingest(ids, vectors) == N


def test_an_id_that_is_there_already_is_named(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    table.ingest(range(100), vectors[:100])
    with pytest.raises(psycopg.errors.UniqueViolation, match=r"\(id\)=\(99\) already exists"):
        table.ingest(range(99, 99 + N), vectors)
    assert fetch(conn, "SELECT count(*) FROM items") == 100
    assert table.status().count == 100


@pytest.mark.parametrize(
    ("ids", "shape", "columns", "error", "message"),
    [
        (range(3), (3, DIM + 1), {}, ValueError, r"expected vectors of shape \(n, 48\), got"),
        (range(3), (DIM,), {}, ValueError, r"expected vectors of shape \(n, 48\), got \(48,\)"),
        (range(4), (3, DIM), {}, ValueError, "id.*: expected 3 values, got 4"),
        (range(3), (3, DIM), {"n": [1]}, ValueError, "column 'n': expected 3 values, got 1"),
        (range(3), (3, DIM), {"m": [1, 2, 3]}, ValueError, "no column 'm' in table 'items'"),
        (range(3), (3, DIM), {"code": [1, 2, 3]}, ValueError, "no column 'code'"),
        (range(3), (3, DIM), {"n": [1, 2, 2**40]}, ValueError, "out of range"),
        (range(3), (3, DIM), {"n": ["a", "b", "c"]}, TypeError, "expected integers"),
        (range(3), (3, DIM), {"day": [1, 2, 3]}, TypeError, "'day' of type date, row 0"),
        ([1, None, 3], (3, DIM), {}, psycopg.errors.NotNullViolation, '"id"'),
    ],
)
def test_bad_input_says_what_is_wrong(
    conn: Conn, ids: Any, shape: Any, columns: Any, error: Any, message: str
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, columns={"n": "int", "day": "date"})
    with pytest.raises(error, match=message):
        table.ingest(ids, np.ones(shape, np.float32), columns)
    assert fetch(conn, "SELECT count(*) FROM items") == 0


def test_a_column_of_any_name_does_not_hide_the_keys(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None, columns={"ids": "int"})
    with pytest.raises(ValueError, match="^ids: expected 200 values, got 250"):
        table.ingest(range(250), vectors[:200], {"ids": range(200)})
    with pytest.raises(ValueError, match="^column 'ids': expected 200 values, got 250"):
        table.ingest(range(200), vectors[:200], {"ids": range(250)})
    assert table.ingest(range(200), vectors[:200], {"ids": range(200)}) == 200


def test_bad_dtype_says_what_is_wrong(conn: Conn) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    with pytest.raises(TypeError, match="expected vectors of float32, got dtype complex64"):
        table.ingest([1], np.ones((1, DIM), np.complex64))


# -- axes or rotation -----------------------------------------------------------------


def test_first_ingest_decides_and_the_rest_follow(
    conn: Conn, lsa: np.ndarray, rng: np.random.Generator
) -> None:
    table = pybq.Table.create(conn, "items", 256, store=None)
    table.ingest(range(1000), lsa[:1000])
    first = table.status()
    assert first.transform == 1
    assert first.f_rotate is not None and first.f_axis is not None
    assert first.f_rotate > first.f_axis + 0.02
    assert first.reason is not None and first.reason.startswith("rotate")

    # flat, independent coordinates alone would keep the axes
    table.ingest(range(1000, 2000), rng.choice([-1, 1], (1000, 256)).astype(np.float32))
    second = table.status()
    assert (second.count, second.decided_count) == (2000, 1000)
    assert (second.transform, second.decided_at) == (1, first.decided_at)
    assert fetch(conn, "SELECT count(*) FROM items WHERE transform(code) = 1") == 2000


def test_axes_are_kept_where_they_are_better(conn: Conn, rng: np.random.Generator) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    table.ingest(range(3000), np.tanh(3 * rng.standard_normal((3000, DIM))))
    assert table.status().transform == 0


def test_transform_can_be_set(conn: Conn, lsa: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", 256, store=None, transform=0)
    table.ingest(range(2000), lsa)
    status = table.status()
    assert (status.transform, status.reason) == (0, "set when the table was created")
    assert fetch(conn, "SELECT count(*) FROM items WHERE transform(code) = 0") == 2000


def test_a_second_first_ingest_waits_and_follows(conn: Conn, other: Conn, lsa: np.ndarray) -> None:
    first = pybq.Table.create(conn, "items", 256, store=None)
    second = pybq.Table(other, "items")
    signs = np.sign(lsa[1000:])  # these alone would keep the axes
    thread = threading.Thread(target=second.ingest, args=(range(1000, 2000), signs))
    with conn.transaction():
        first.ingest(range(1000), lsa[:1000])
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(60)
    assert fetch(conn, "SELECT count(*) FROM items WHERE transform(code) = 1") == 2000
    assert first.status().count == 2000


# -- statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_statistics_of_parts_are_those_of_the_whole(
    conn: Conn, vectors: np.ndarray, metric: Any
) -> None:
    table = pybq.Table.create(conn, "items", DIM, metric, store=None)
    for start, stop in ((0, 7), (7, 30_000), (30_000, N)):
        table.ingest(range(start, stop), vectors[start:stop])
    # cosine distance does not see the lengths of vectors
    whole = Statistics(DIM, normalize=metric == "cosine")
    whole.update(vectors)
    assert_same(known_statistics(conn, metric == "cosine"), whole)


def test_concurrent_ingests_lose_nothing(conn: Conn, vectors: np.ndarray) -> None:
    pybq.Table.create(conn, "items", DIM, "l2", store=None, transform=0)
    workers = 4

    def work(worker: int) -> None:
        rows = range(worker, N, workers)
        with psycopg.connect(conn.info.dsn, password=conn.info.password) as mine:
            table = pybq.Table(mine, "items")
            for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                table.ingest(part, vectors[part.start : part.stop : part.step])

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Statistics(DIM)
    whole.update(vectors)
    assert fetch(conn, "SELECT count(*) FROM items") == N
    assert_same(known_statistics(conn, False), whole)


# -- at any size ----------------------------------------------------------------------


def test_memory_stays_constant(conn: Conn, tmp_path: Path, rng: np.random.Generator) -> None:
    rows, dim = 100_000, 256  # 100 MB
    np.save(tmp_path / "vectors.npy", np.zeros((rows, dim), np.float32))
    writable = np.load(tmp_path / "vectors.npy", mmap_mode="r+")
    writable[:] = rng.standard_normal(dim, dtype=np.float32)
    writable[:, 0] = np.arange(rows)
    del writable
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    table = pybq.Table.create(conn, "items", dim, store=None, transform=0)
    tracemalloc.start()
    try:
        table.ingest(range(rows), vectors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # a few chunks of 4 MB of vectors, of what they become, and of what was sent
    assert peak < 40e6
    assert fetch(conn, "SELECT count(*) FROM items") == rows


def test_progress_is_shown_on_request(
    conn: Conn, vectors: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    table.ingest(range(100), vectors[:100])
    assert capfd.readouterr() == ("", "")  # not a terminal
    table.ingest(range(100, N), vectors[100:], progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ingest items" in err and f"{N - 100}/{N - 100}" in err


@pytest.mark.parametrize("write", ["ingest", "load"])
def test_progress_without_rich_is_refused_before_anything_is_written(
    conn: Conn, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)  # as if it were not installed
    given = (range(100), vectors[:100]) if write == "ingest" else (vectors[:100],)
    with pytest.raises(ModuleNotFoundError, match=r'needs rich; run pip install "pybq\[cli\]"'):
        getattr(table, write)(*given, progress=True)
    assert table.status().transform is None
