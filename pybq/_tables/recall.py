"""What searches of a table find, against the exact order of its stored vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import sql
from psycopg.rows import tuple_row

from pybq._catalog.database import Statement, escape_percent
from pybq._codes.arrays import spread
from pybq._searching.search import RERANK
from pybq._tables.table import Table
from pybq.errors import TableError

# Candidates per wanted row; None: the order of the codes alone.
RERANKS: tuple[float | None, ...] = (None, 1, 2, 4, 8)
# What an index on vectors is asked for; None: what it finds unless told otherwise.
RECALLS: tuple[float | None, ...] = (None, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Recall:
    """What searches with one setting found.

    Attributes
    ----------
    rerank, wanted : float or None
        As given to `Table.search`: `rerank` of a table with a column of codes; `wanted`, its
        argument `recall`, of one without.
    recall : float
        Share of the true k nearest rows among the k found; rows as near as the k-th count.
    milliseconds : float
        Median time of one search, with its round trip.
    """

    rerank: float | None
    wanted: float | None
    recall: float
    milliseconds: float


def measure_recall(
    table: Table,
    queries: ArrayLike | None = None,
    k: int = 10,
    sample: int = 100,
    reranks: Sequence[float | None] = RERANKS,
    recalls: Sequence[float | None] = RECALLS,
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
    reranks, recalls : sequence of float or None
        Settings to be measured: `reranks` of a table with a column of codes, else `recalls`.

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
    ...     table.create_index()
    ...     (found,) = measure_recall(table, sample=20, recalls=[0.99])
    >>> found.recall > 0.98
    True
    """
    own, vectors = take_queries(table, queries, k, sample)
    more = k + (queries is None)  # a row finds itself
    reach = [find_exact(table, vector, key, k) for key, vector in zip(own, vectors, strict=True)]
    measured = []
    settings: list[tuple[float | None, float | None]] = [(RERANK, wanted) for wanted in recalls]
    if table.code_column is not None:
        settings = [(rerank, None) for rerank in reranks]
    for rerank, wanted in settings:
        search = partial(table.search, k=more, rerank=rerank, recall=wanted)
        search(vectors[0])  # plan and cache, as a running application has
        found, times = [], []
        for key, vector, limit in zip(own, vectors, reach, strict=True):
            start = time.perf_counter()
            hits = search(vector)
            times.append(time.perf_counter() - start)
            ids = [hit.id for hit in hits if key is None or hit.id != key][:k]
            near = sum(distance <= limit[-1] for distance in find_distances(table, vector, ids))
            found.append(near / len(limit) if limit else 1.0)
        used = None if table.code_column is None else rerank
        measured.append(Recall(used, wanted, mean(found), 1e3 * median(times)))
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
        "SELECT {keys}, {vector}::real[] FROM {table} WHERE ({keys}) IN (SELECT {keys} FROM {table}"
        " WHERE ({vector} {operator} {vector}) <> 'NaN' ORDER BY random() LIMIT %s)",
        [n],
    )
    vectors = np.array([row[-1] for row in rows], np.float32).reshape(-1, table.dim)
    return [take_key(row) for row in rows], vectors


def take_key(row: tuple[Any, ...]) -> Any:
    """The key of a row that ends with another value, as `Hit.id` has it."""
    return row[0] if len(row) == 2 else row[:-1]


def find_exact(table: Table, vector: NDArray[Any], own: Any, k: int) -> list[float]:
    """Exact distances of the k nearest rows, but for the row that the query comes from."""
    with reading_all_rows(table):
        rows = fetch_rows(
            table,
            "SELECT {keys}, {vector} {operator} %s::real[]::{type} AS distance FROM {table}"
            " WHERE {vector} IS NOT NULL ORDER BY distance LIMIT %s",
            [vector.tolist(), k + (own is not None)],
        )
    others = [row[-1] for row in rows if own is None or take_key(row) != own]
    return [distance for distance in others if distance == distance][:k]


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
    condition, keys = table._layout.with_keys(ids)
    rows = fetch_rows(
        table,
        "SELECT {vector} {operator} %s::real[]::{type} FROM {table} WHERE {condition}",
        [vector.tolist(), *keys],
        condition=condition,
    )
    return [row[0] for row in rows]


def fetch_rows(
    table: Table, query: str, parameters: list[Any] | None = None, **parts: sql.Composable
) -> list[tuple[Any, ...]]:
    """Return the rows of a query that names the table, its columns and operator in braces."""
    with table.connection.transaction(), table.connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(compose(table, query, **parts), parameters or []).fetchall()


def compose(table: Table, query: str, **parts: sql.Composable) -> Statement:
    layout = table._layout
    assert layout.source is not None
    statement = sql.SQL(query).format(
        keys=layout.keys,
        vector=layout.source.identifier,
        type=layout.source.type,
        table=layout.identifier,
        operator=layout.operator(layout.source),
        **parts,
    )
    return escape_percent(statement, table.connection)
