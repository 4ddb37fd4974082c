"""`Table.search` of a matrix: one statement where an index can answer all, and the same rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from databases import Databases

import pybq
from pybq._searching import search as searching

pytestmark = pytest.mark.autocommit

DIM = 32
ROWS = 12_000  # above together.LEAST_ROWS


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((ROWS, DIM), np.float32)


@pytest.fixture(scope="module")
def filled(databases_of_tests: Databases, vectors: np.ndarray) -> Iterator[str]:
    """A database with a table and its index; what tests change they roll back."""
    dsn = databases_of_tests.provide()
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        if conn.execute("SELECT to_regtype('vector')").fetchone() == (None,):
            pytest.skip("the server has no pgvector")
        conn.execute("CREATE EXTENSION bq_pgvector")
        table = pybq.Table.create(conn, "items", dim=DIM, columns={"query": "int"})
        table.ingest(range(ROWS), vectors, {"query": np.arange(ROWS) % 7})
        table.create_index()
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM ANALYZE items")
    yield dsn


@pytest.fixture
def table(filled: str) -> Iterator[pybq.Table]:
    with psycopg.connect(filled) as conn:
        yield pybq.Table.open(conn, "items")
        conn.rollback()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of searches."""
    texts: list[str] = []
    fetch = searching.fetch

    async def watch(db: Any, layout: Any, statement: Any) -> Any:
        texts.append(statement.text)
        return await fetch(db, layout, statement)

    monkeypatch.setattr("pybq._tables.reading.fetch", watch)
    return texts


def exact(vectors: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1)
    return np.argsort(-similarity)[:k]


def test_many_queries_are_one_statement(
    table: pybq.Table, vectors: np.ndarray, sent: list[str]
) -> None:
    queries = vectors[:20] + np.float32(0.1)
    ids, distances = table.search(queries, k=5, recall=1, output="numpy")
    assert len(sent) == 1 and "bq_search" in sent[0]
    np.testing.assert_array_equal(ids, [exact(vectors, q, 5) for q in queries])
    for query, row, near in zip(queries, ids, distances, strict=True):
        single = table.search(query, k=5, recall=1, output="numpy")
        np.testing.assert_array_equal(single.ids, row)
        np.testing.assert_array_equal(single.distances, near)
    assert not any("bq_search" in text for text in sent[1:])


def test_columns_come_along(table: pybq.Table, vectors: np.ndarray, sent: list[str]) -> None:
    found = table.search(vectors[:10], k=3, columns=["query"])
    assert "bq_search" in sent[0]
    assert [hits[0].id for hits in found] == list(range(10))
    assert all(hit["query"] == hit.id % 7 for hits in found for hit in hits)
    assert all(len(hits) == 3 for hits in found)


@pytest.mark.parametrize(
    "why",
    [
        "DROP INDEX items_embedding_idx",
        "SET LOCAL enable_indexscan = off",
        "CREATE TABLE more (x int) INHERITS (items)",
        "ALTER TABLE items ENABLE ROW LEVEL SECURITY; ALTER TABLE items FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY own ON items USING (query = 3); GRANT ALL ON items TO reader_of_some;"
        " SET LOCAL ROLE reader_of_some",
        "REVOKE ALL ON items FROM reader_of_some;"
        " GRANT SELECT (id, embedding) ON items TO reader_of_some;"
        " SET LOCAL ROLE reader_of_some",
    ],
)
def test_one_by_one_where_the_index_cannot(
    filled: str, vectors: np.ndarray, sent: list[str], why: str
) -> None:
    """It would see other rows, or be refused."""
    with psycopg.connect(filled) as conn:
        conn.execute("CREATE ROLE reader_of_some")
        conn.execute(why)  # type: ignore[arg-type]
        table = pybq.Table.open(conn, "items")
        found = table.search(vectors[:10], k=3)
        conn.rollback()
    assert len(sent) == 1 and "bq_search" not in sent[0]
    if "POLICY" in why:
        assert {hit.id % 7 for hits in found for hit in hits} == {3}
    else:
        assert [hits[0].id for hits in found] == list(range(10))


def test_conditions_and_few_queries_go_one_by_one(
    table: pybq.Table, vectors: np.ndarray, sent: list[str]
) -> None:
    table.search(vectors[:10], k=3, where="query = 3")
    table.search(vectors[:7], k=3)
    assert len(sent) == 2 and not any("bq_search" in text for text in sent)


def test_async_tables_do_the_same(filled: str, vectors: np.ndarray, sent: list[str]) -> None:
    async def work() -> Any:
        async with await psycopg.AsyncConnection.connect(filled) as conn:
            table = await pybq.AsyncTable.open(conn, "items")
            return await table.search(vectors[:10], k=3, output="numpy")

    ids, _ = asyncio.run(work())
    assert "bq_search" in sent[0]
    assert ids[:, 0].tolist() == list(range(10))


def test_settings_are_left_as_they_were(table: pybq.Table, vectors: np.ndarray) -> None:
    conn: Any = table._db.connection
    conn.execute("SET bq.recall = 0.9")
    table.search(vectors[:10], k=3, recall=0.99, probes=7)
    row = conn.execute("SELECT current_setting('bq.recall'), current_setting('bq.probes')")
    assert row.fetchone() == ("0.9", "0")
