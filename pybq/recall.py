"""What searches of a table find, against the exact order of its stored vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import sql
from psycopg.rows import tuple_row

from pybq.database import Statement, escape_percent
from pybq.errors import TableError
from pybq.schema import OPERATORS
from pybq.sources import spread
from pybq.table import Table

# Candidates per wanted row; None: the order of the codes alone.
RERANKS: tuple[float | None, ...] = (None, 1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Recall:
    """What searches with one setting of `rerank` found.

    Attributes
    ----------
    rerank : float or None
        As given to `Table.search`.
    recall : float
        Share of the true k nearest rows among the k found; rows as near as the k-th count.
    milliseconds : float
        Median time of one search, with its round trip.
    """

    rerank: float | None
    recall: float
    milliseconds: float


def measure_recall(
    table: Table,
    queries: ArrayLike | None = None,
    k: int = 10,
    sample: int = 100,
    reranks: Sequence[float | None] = RERANKS,
) -> list[Recall]:
    """Measure recall@k of a table, as it is searched now.

    Parameters
    ----------
    table : Table
        One that stores vectors.
    queries : array_like of float, shape (q, dim), optional
        At most `sample` of them, spread evenly, are used. By default, vectors of random rows of
        the table; of each, the row itself is then not counted as found.
    k : int
        Rows wanted per query.
    sample : int
        Number of queries. Each is compared with all rows once.
    reranks : sequence of float or None
        Settings to be measured.

    Returns
    -------
    list of Recall
        One per setting. What counts is which rows are found: a search gives them in the order of
        its distance, which without re-ranking is that of the codes.

    Raises
    ------
    TableError
        If the table keeps codes only, or has no rows.
    ValueError
        If k or sample is below 1, or the shape of queries does not match.

    Examples
    --------
    >>> import psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     rows = table.ingest(range(1000), vectors)
    ...     (found,) = measure_recall(table, sample=20, reranks=[10])
    >>> found.recall > 0.98
    True
    """
    own, vectors = take_queries(table, queries, k, sample)
    more = k + (queries is None)  # a row finds itself
    reach = [find_exact(table, vector, key, k) for key, vector in zip(own, vectors, strict=True)]
    measured = []
    for rerank in reranks:
        table.search(vectors[0], more, rerank)  # plan and cache, as a running application has
        recalls, times = [], []
        for key, vector, limit in zip(own, vectors, reach, strict=True):
            start = time.perf_counter()
            hits = table.search(vector, more, rerank)
            times.append(time.perf_counter() - start)
            ids = [hit.id for hit in hits if key is None or hit.id != key][:k]
            near = sum(distance <= limit[-1] for distance in find_distances(table, vector, ids))
            recalls.append(near / len(limit) if limit else 1.0)
        measured.append(Recall(rerank, mean(recalls), 1e3 * median(times)))
    return measured


def take_queries(
    table: Table, queries: ArrayLike | None, k: int, sample: int
) -> tuple[list[Any], NDArray[Any]]:
    """Queries to measure with, and of each the key of the row that it comes from, if any."""
    if k < 1 or sample < 1:
        raise ValueError(f"expected k and sample of at least 1, got {k} and {sample}")
    if table.store is None:
        raise TableError(f"table {table.name!r} keeps codes only: there is no exact order")
    if queries is None:
        own, vectors = sample_rows(table, sample)
        if not own:
            raise TableError(f"table {table.name!r} has no rows")
        return own, vectors
    given = np.atleast_2d(np.asarray(queries))
    if given.ndim != 2 or given.shape[1] != table.dim or not len(given):
        raise ValueError(f"expected queries of shape (q, {table.dim}), got {given.shape}")
    vectors = given[spread(len(given), sample)]
    return [None] * len(vectors), vectors


def sample_rows(table: Table, n: int) -> tuple[list[Any], NDArray[np.float32]]:
    """Keys and vectors of random rows that have one."""
    rows = fetch_rows(
        table,
        "SELECT {id}, {vector}::real[] FROM {table}"
        " WHERE {id} IN (SELECT {id} FROM {table} WHERE {vector} IS NOT NULL"
        " ORDER BY random() LIMIT %s)",
        [n],
    )
    vectors = np.array([vector for _, vector in rows], np.float32).reshape(-1, table.dim)
    return [key for key, _ in rows], vectors


def find_exact(table: Table, vector: NDArray[Any], own: Any, k: int) -> list[float]:
    """Exact distances of the k nearest rows, but for the row that the query comes from."""
    with reading_all_rows(table):
        rows = fetch_rows(
            table,
            "SELECT {vector} {operator} %s::real[]::{type} AS distance FROM {table}"
            " WHERE {id} IS DISTINCT FROM %s AND {vector} IS NOT NULL ORDER BY distance LIMIT %s",
            [vector.tolist(), own, k],
        )
    return [row[0] for row in rows]


@contextmanager
def reading_all_rows(table: Table) -> Iterator[None]:
    """A transaction, or a part of the one that is open, that uses no index for an order.

    An index over the vectors would be approximate.
    """
    change = "SELECT current_setting('enable_indexscan'), set_config('enable_indexscan', %s, true)"
    with table.connection.transaction():
        ((before, _),) = fetch_rows(table, change, ["off"])
        yield
        # Not the default: the caller's transaction goes on, perhaps with a setting of its own.
        fetch_rows(table, change, [before])


def find_distances(table: Table, vector: NDArray[Any], ids: list[Any]) -> list[float]:
    """Exact distances of some rows."""
    rows = fetch_rows(
        table,
        "SELECT {vector} {operator} %s::real[]::{type} FROM {table} WHERE {id} = ANY(%s)",
        [vector.tolist(), ids],
    )
    return [row[0] for row in rows]


def fetch_rows(
    table: Table, query: str, parameters: list[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of a query that names the table, its columns and operator in braces."""
    with table.connection.transaction(), table.connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(compose(table, query), parameters or []).fetchall()


def compose(table: Table, query: str) -> Statement:
    assert table.source_column is not None and table.store is not None
    statement = sql.SQL(query).format(
        id=sql.Identifier(table.id_column),
        vector=sql.Identifier(table.source_column),
        type=sql.SQL(table.store),
        table=table.identifier,
        operator=sql.SQL(OPERATORS[table.metric]),
    )
    return escape_percent(statement, table.connection)
