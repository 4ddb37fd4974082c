"""Partitions that many processes write: each exactly once, with what Table.ingest would write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from shared import Conn, needs_pgvector

import pybq
from pybq._loading.partitions import (
    Target,
    Written,
    check_partitions,
    prepare,
    take_first,
    write_partition,
)

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.autocommit

DIM = 16
ROWS = 900
FRAME = {"id": False, "embedding": True, "title": False}
TIMEOUT = 60


@pytest.fixture
def vectors(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((ROWS, DIM)).astype(np.float32) + 0.1


def rows(vectors: NDArray[np.float32], first: int, last: int) -> list[Any]:
    """Some rows, in two batches."""
    middle = (first + last) // 2
    return [
        pa.record_batch(
            {
                "id": np.arange(a, b),
                "embedding": pa.array(list(vectors[a:b]), pa.list_(pa.float32())),
                "title": [f"title {i}" for i in range(a, b)],
            }
        )
        for a, b in ((first, middle), (middle, last))
    ]


def prepare_job(conn: Conn, vectors: NDArray[np.float32], **options: Any) -> Target:
    def sample(column: str, dim: int) -> NDArray[np.float32]:
        return take_first(rows(vectors, 0, ROWS), column, dim, ROWS)

    return prepare(conn.info.dsn, "items", "first", FRAME, sample, options)  # type: ignore[arg-type]


@pytest.fixture
def target(conn: Conn, vectors: NDArray[np.float32]) -> Target:
    pybq.Table.create(conn, "items", DIM, store=None, columns={"title": "text"})
    return prepare_job(conn, vectors)


def fetch(conn: Conn, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def assert_statistics(conn: Conn, vectors: NDArray[np.float32]) -> None:
    expected = pybq.Statistics(DIM, normalize=True)
    expected.update(vectors)
    found = pybq.Table(conn, "items").statistics()
    assert found.count == expected.count
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        left, right = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=name)


def test_partitions_are_what_sql_makes(
    conn: Conn, target: Target, vectors: NDArray[np.float32]
) -> None:
    parts = [(0, 400), (400, 400), (400, 401), (401, ROWS)]
    for number, (first, last) in enumerate(parts):
        found = write_partition(target, number, 4, rows(vectors, first, last))
        assert found == Written(number, last - first, True)
    transform = fetch(conn, "SELECT transform FROM bq_columns")
    for i, title, code, made in conn.execute(
        "SELECT id, title, code, bq_encode(v, %s) FROM items JOIN"
        " unnest(%s::int[], %s::text[]) AS s(i, t) ON i = id, CAST(t AS real[]) AS v",
        [transform, list(range(ROWS)), ["{" + ",".join(map(repr, v.tolist())) + "}"
                                        for v in vectors]],
    ):  # fmt: skip
        assert code == made and title == f"title {i}"
    assert fetch(conn, "SELECT array_agg(id::int ORDER BY id) FROM items") == list(range(ROWS))
    assert_statistics(conn, vectors)
    written = conn.execute("SELECT source, batch, written FROM bq_loads ORDER BY batch").fetchall()
    assert written == [("first", 0, 400), ("first", 2, 1), ("first", 3, 499)]


@needs_pgvector
def test_vectors_are_written_as_the_table_keeps_them(
    conn: Conn, vectors: NDArray[np.float32]
) -> None:
    pybq.Table.create(conn, "items", DIM, codes=False)
    target = prepare_job(conn, vectors)
    write_partition(target, 0, 1, rows(vectors, 0, ROWS))
    found = conn.execute("SELECT embedding::real[] FROM items ORDER BY id").fetchall()
    half = vectors.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.array([row[0] for row in found], np.float32), half)


def test_a_partition_is_written_once(
    conn: Conn, target: Target, vectors: NDArray[np.float32]
) -> None:
    part = rows(vectors, 0, 300)
    assert write_partition(target, 7, 8, part).written
    # as after a shuffle: the same rows in another order, in other batches
    table = pa.Table.from_batches(part)
    order = np.random.default_rng(1).permutation(300)
    again = table.take(pa.array(order)).combine_chunks().to_batches(max_chunksize=77)
    assert write_partition(target, 7, 8, again) == Written(7, 300, False)
    assert fetch(conn, "SELECT count(*) FROM items") == 300
    assert_statistics(conn, vectors[:300])


def test_other_rows_under_the_same_number_are_refused(
    conn: Conn, target: Target, vectors: NDArray[np.float32]
) -> None:
    write_partition(target, 0, 2, rows(vectors, 0, 300))
    for other in (rows(vectors, 1, 301), rows(vectors, 0, 299), []):
        with pytest.raises(pybq.TableError, match="partition 0 of first is not what was written"):
            write_partition(target, 0, 2, other)
    check_partitions(target, 2)
    with pytest.raises(pybq.TableError, match="begun with 2 partitions, and now there are 3"):
        check_partitions(target, 3)
    assert fetch(conn, "SELECT count(*) FROM items") == 300
    # another job may
    write_partition(replace(target, job="second"), 0, 3, rows(vectors, 300, 600))
    assert fetch(conn, "SELECT count(*) FROM items") == 600


def test_nothing_is_left_of_an_attempt_that_fails(
    conn: Conn, target: Target, vectors: NDArray[np.float32]
) -> None:
    def failing() -> Iterator[Any]:
        yield from rows(vectors, 0, 300)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        write_partition(target, 0, 1, failing())
    assert fetch(conn, "SELECT count(*) FROM items") == 0
    assert fetch(conn, "SELECT count(*) FROM bq_loads") == 0
    assert_statistics(conn, vectors[:0])
    assert write_partition(target, 0, 1, rows(vectors, 0, 300)).written


def test_a_row_that_is_wrong_is_named(
    conn: Conn, target: Target, vectors: NDArray[np.float32]
) -> None:
    vectors[250, 2] = np.nan
    with pytest.raises(pybq.RowError, match=r"row 150 \(id 250\): NaN .*partition 3 of first"):
        write_partition(target, 3, 4, rows(vectors, 100, 300))
    assert fetch(conn, "SELECT count(*) FROM items") == 0


def waits_for_a_lock(conn: Conn) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return bool(fetch(conn, query))


@pytest.mark.parametrize("outcome", ["commits", "fails", "is killed"])
def test_of_attempts_at_once_one_commits(
    conn: Conn, target: Target, vectors: NDArray[np.float32], outcome: str
) -> None:
    begun, go_on = Event(), Event()

    def slow() -> Iterator[Any]:
        yield rows(vectors, 0, 300)[0]
        begun.set()
        assert go_on.wait(TIMEOUT)
        if outcome == "fails":
            raise OSError("the file is gone")
        yield rows(vectors, 0, 300)[1]

    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(write_partition, target, 0, 1, slow())
            assert begun.wait(TIMEOUT)
            second = pool.submit(write_partition, target, 0, 1, rows(vectors, 0, 300))
            end = time.monotonic() + TIMEOUT
            while not waits_for_a_lock(conn):
                assert time.monotonic() < end and not second.done()
                time.sleep(0.01)
            if outcome == "is killed":
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND granted"
                )
        finally:
            go_on.set()
        won = outcome == "commits"
        if won:
            assert first.result(TIMEOUT) == Written(0, 300, True)
        else:
            with pytest.raises((OSError, psycopg.OperationalError)):
                first.result(TIMEOUT)
        assert second.result(TIMEOUT) == Written(0, 300, not won)
    assert fetch(conn, "SELECT array_agg(id::int ORDER BY id) FROM items") == list(range(300))
    assert fetch(conn, "SELECT count(*) FROM bq_loads") == 1
    assert_statistics(conn, vectors[:300])


def test_what_does_not_fit_is_refused_before_anything_is_written(
    conn: Conn, vectors: NDArray[np.float32]
) -> None:
    pybq.Table.create(conn, "items", DIM, store=None, columns={"title": "text"})
    with pytest.raises(ValueError, match="the frame: no column 'pages' to carry along"):
        prepare_job(conn, vectors, columns=["pages"])
    with pytest.raises(ValueError, match="no column 'key' among id, embedding, title"):
        prepare_job(conn, vectors, id_column="key")
    with pytest.raises(TypeError, match="unknown option 'colums'"):
        prepare_job(conn, vectors, colums=["title"])
    conn.execute("ALTER TABLE items DROP COLUMN title")
    with pytest.raises(ValueError, match="no column 'title' in table 'items'"):
        prepare_job(conn, vectors, columns=["title"])
    assert prepare_job(conn, vectors).columns == ()
