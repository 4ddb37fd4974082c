"""Table.search: its order, the forms of its result, what is wrong with arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from psycopg import sql
from shared import Conn, needs_pgvector

import pybq
from pybq import TableError
from pybq._tables.bench import bench_table
from pybq._tables.recall import measure_recall

N, DIM = 3000, 32


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(rng.integers(2**32)).standard_normal((20, DIM), dtype=np.float32)


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    """Codes of N rows; price 0 to 99, day 0 to 9, every third sold, some titles with a %."""
    columns = {"price": "int", "day": "int", "title": "text", "sold": "bool"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=columns, transform=1)
    i = np.arange(N)
    titles = [f"{n}% wool" if n % 50 == 0 else f"title {n}" for n in i]
    table.ingest(i, vectors, {"price": i % 100, "day": i % 10, "title": titles, "sold": i % 3 == 0})
    return table


@needs_pgvector
@pytest.mark.parametrize("rerank", [None, 1.5, 4])
def test_rows_come_in_the_order_of_their_distances(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray, rerank: float | None
) -> None:
    """Of all scans: one that goes on through further lists need not find them so."""
    table = pybq.Table.create(conn, "items", DIM, columns={"price": "int"}, transform=1, codes=True)
    table.ingest(range(N), vectors, {"price": np.arange(N) % 10})
    conn.execute("CREATE INDEX ON items USING bq (code) WITH (lists = 40, probes = 1)")
    conn.execute("SET enable_seqscan = off")
    ((values,),) = conn.execute(
        "SELECT coalesce(enumvals, '{on,off}') FROM pg_settings WHERE name = 'bq.iterative_scan'"
    ).fetchall()
    for setting in values:
        conn.execute(sql.SQL("SET bq.iterative_scan = {}").format(setting))
        for where in (None, "price = 7"):
            found = table.search(queries, k=100, rerank=rerank, where=where, probes=2)
            assert setting == "off" or [len(hits) for hits in found] == [100] * len(queries)
            for hits in found:
                distances = [hit.distance for hit in hits]
                assert distances == sorted(distances)
        _, distances = table.search(queries, 200, rerank=rerank, where="price < 3", output="numpy")
        assert (np.diff(distances[np.isfinite(distances).all(axis=1)]) >= 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"where": " "}, ValueError, "expected a condition in where, got an empty text"),
        ({"where": "nope = 1"}, psycopg.errors.UndefinedColumn, '"nope"'),
        ({"where": "price < %(a)s", "parameters": {}}, psycopg.ProgrammingError, "a"),
        ({"rerank": np.inf}, ValueError, "expected a finite rerank of at least 1, got inf"),
        ({"rerank": np.nan}, ValueError, "expected a finite rerank of at least 1, got nan"),
        ({"query": ["1"] * DIM}, TypeError, "expected a query of float32, got dtype <U1"),
        ({"query": np.ones(DIM) * 1j}, TypeError, "expected a query of float32, got dtype complex"),
        ({"probes": 0}, ValueError, "expected probes between 1 and 65536, got 0"),
        ({"output": "list"}, ValueError, "expected output of hits, numpy, arrow, pandas, polars"),
        ({"columns": "price"}, TypeError, "expected columns as a sequence of names, got str"),
        ({"foo": 1}, TypeError, "expected options of rerank, .*, got 'foo'"),
        ({"recall": 0.9}, TableError, "keeps codes only: there is nothing to re-rank by"),
        ({"recall": 1.0}, ValueError, "expected recall above 0 and below 1, got 1.0"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    table: pybq.Table, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        table.search(**{"query": np.ones(DIM), **options})


# -- forms of the result --------------------------------------------------------------


def test_arrays(conn: Conn, table: pybq.Table, queries: np.ndarray) -> None:
    hits = table.search(queries, k=7)
    ids, distances = table.search(queries, k=7, output="numpy")
    assert (ids.dtype, distances.dtype) == (np.int64, np.float64)
    assert ids.tolist() == [[hit.id for hit in some] for some in hits]
    assert distances.tolist() == [[hit.distance for hit in some] for some in hits]
    one = table.search(queries[3], k=7, output="numpy")
    np.testing.assert_array_equal(one.ids, ids[3])
    np.testing.assert_array_equal(one.distances, distances[3])


FRAMES: dict[str, Callable[[Any], dict[str, list[Any]]]] = {
    "arrow": lambda frame: frame.to_pydict(),
    "pandas": lambda frame: frame.to_dict("list"),
    "polars": lambda frame: frame.to_dict(as_series=False),
}


@pytest.mark.parametrize("output", FRAMES)
def test_frames(table: pybq.Table, queries: np.ndarray, output: Any) -> None:
    pytest.importorskip({"arrow": "pyarrow"}.get(output, output))
    hits = table.search(queries, k=7, columns=["title", "price"])
    flat = [(i, hit) for i, some in enumerate(hits) for hit in some]
    frame = FRAMES[output](table.search(queries, 7, columns=["title", "price"], output=output))
    assert frame == {
        "query": [i for i, _ in flat],
        "id": [hit.id for _, hit in flat],
        "distance": [hit.distance for _, hit in flat],
        "title": [hit["title"] for _, hit in flat],
        "price": [hit["price"] for _, hit in flat],
    }
    one = FRAMES[output](table.search(queries[2], 7, output=output))
    assert one == {"id": [h.id for h in hits[2]], "distance": [h.distance for h in hits[2]]}
    nothing = FRAMES[output](table.search(queries, where="false", output=output))
    assert nothing == {"query": [], "id": [], "distance": []}


@pytest.mark.parametrize("output", ["arrow", "polars"])
def test_frames_have_the_same_types_whatever_was_found(
    conn: Conn, vectors: np.ndarray, output: Any
) -> None:
    module = pytest.importorskip({"arrow": "pyarrow"}.get(output, output))
    now = datetime(2026, 11, 21, 12, 30)
    values: dict[str, tuple[str, Any]] = {
        "title": ("text", "a title"),
        "letter": ("varchar(3)", "abc"),
        "price": ("int", 3),
        "weight": ("real", 0.5),
        "sold": ("bool", True),
        "picture": ("bytea", b"\0\1"),
        "day": ("date", now.date()),
        "made": ("timestamp", now),
        "owner": ("uuid", UUID(int=5)),
    }
    columns = {name: kind for name, (kind, _) in values.items()}
    table = pybq.Table.create(
        conn, "items", DIM, store=None, id_type="uuid", columns=columns, transform=1
    )
    ids = [UUID(int=i) for i in range(4)]
    filled = {name: [value, None, value, None] for name, (_, value) in values.items()}
    table.ingest(ids, vectors[:4], filled)
    frames = [
        table.search(vectors[0], columns=list(columns), where=where, output=output)
        for where in ("true", "false", "price IS NULL")
    ]
    rows, nothing, nulls = frames
    assert [len(frame) for frame in frames] == [4, 0, 2]
    assert rows.schema == nothing.schema == nulls.schema
    found = FRAMES[output](rows)
    i = found["id"].index(str(ids[2]))
    expected = {name: value for name, (_, value) in values.items()} | {"owner": str(UUID(int=5))}
    assert {name: found[name][i] for name in columns} == expected
    join = getattr(module, "concat_tables", None) or module.concat
    assert len(join(frames)) == 6


def test_nothing_is_imported_unasked() -> None:
    script = "import pybq._tables.table, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    assert "psycopg" in loaded
    assert not {"sqlalchemy", "pandas", "polars", "pyarrow", "pgvector"} & set(loaded)


@needs_pgvector
@pytest.mark.parametrize("measure_table", [measure_recall, bench_table])
def test_measuring_leaves_settings_as_they_were(
    conn: Conn, vectors: np.ndarray, measure_table: Any
) -> None:
    table = pybq.Table.create(conn, "items", DIM, codes=True)
    table.ingest(range(100), vectors[:100])
    for setting in ("off", "on"):
        with conn.transaction():
            conn.execute(f"SET LOCAL enable_indexscan = {setting}".encode())
            measure_table(table, sample=2)
            assert conn.execute("SHOW enable_indexscan").fetchone() == (setting,)
    assert conn.execute("SHOW enable_indexscan").fetchone() == ("on",)


# -- codes that were made anew --------------------------------------------------------


def test_a_table_follows_another_transform(
    conn: Conn, table: pybq.Table, vectors: np.ndarray
) -> None:
    """As after `reencode` by another process, or a first ingest that was rolled back."""
    assert table.search(vectors[5], k=1)[0].id == 5
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other:
        codes = pybq.Quantizer(DIM, 9).encode(vectors)
        pybq.psycopg.register_bq(other)
        other.cursor().executemany(
            "UPDATE items SET code = %s WHERE id = %s",
            [(pybq.Code(code), i) for i, code in enumerate(codes)],
        )
        other.execute("UPDATE bq_columns SET transform = 9")
    assert table.search(vectors[6], k=1)[0].id == 6
    with conn.transaction():
        assert table.search(vectors[7], k=1)[0].id == 7
