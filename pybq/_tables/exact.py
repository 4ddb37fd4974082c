"""What searches are judged by: queries, the nearest rows of all, and the share of them found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import sql

from pybq._catalog.database import BlockingDatabase, Row, run
from pybq._catalog.layout import Layout
from pybq._catalog.sample import sample_rows
from pybq._codes.arrays import as_numbers, spread
from pybq.errors import TableError


class Nearest(NamedTuple):
    """The nearest rows of all, by the stored vectors; those that have no distance are not there."""

    ids: list[Any]
    distances: list[float]
    seconds: float  # one search, with its round trip


def take_queries(
    db: BlockingDatabase, layout: Layout, queries: ArrayLike | None, k: int, sample: int
) -> tuple[list[Any], NDArray[np.float32]]:
    """Queries to measure with, and of each the key of the row that it comes from, or None.

    Given ones are spread evenly; without, they are vectors of rows drawn at random.
    """
    if k < 1 or sample < 1:
        raise ValueError(f"expected k and sample of at least 1, got {k} and {sample}")
    if layout.source is None:
        raise TableError(f"table {layout.name!r} keeps codes only: there is no exact order")
    if queries is None:
        own, vectors = run(sample_rows(db, layout, sample))
        if not own:
            raise TableError(f"table {layout.name!r} has no rows whose vectors can be compared")
        return own, vectors
    given = np.atleast_2d(as_numbers(queries, "queries").astype(np.float32, copy=False))
    if given.ndim != 2 or given.shape[1] != layout.dim or not len(given):
        raise ValueError(f"expected queries of shape (q, {layout.dim}), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("expected queries of finite values, got NaN or infinity")
    vectors = given[spread(len(given), sample)]
    return [None] * len(vectors), vectors


def find_nearest(
    db: BlockingDatabase, layout: Layout, vector: NDArray[Any], k: int, own: Any = None
) -> Nearest:
    """Find the k nearest rows by reading all, but for the one that the query comes from."""
    with _reading_all(db):
        start = time.perf_counter()
        query = vector.tolist()
        # the sum is no order that an index has: of another server, settings are not ours
        rows = _fetch(
            db,
            layout,
            "SELECT {keys}, {vector} {operator} %s::real[]::{type} AS distance FROM {table}"
            " WHERE {vector} IS NOT NULL ORDER BY "
            + ("({vector} {operator} %s::real[]::{type}) + 0" if layout.remote else "distance")
            + " LIMIT %s",
            [query, *([query] if layout.remote else []), k + (own is not None)],
        )
        seconds = time.perf_counter() - start
    found = [(layout.take_key(row), row[-1]) for row in rows if row[-1] == row[-1]]
    others = [(key, distance) for key, distance in found if own is None or key != own][:k]
    return Nearest([key for key, _ in others], [distance for _, distance in others], seconds)


def find_share(
    db: BlockingDatabase,
    layout: Layout,
    vector: NDArray[Any],
    ids: Sequence[Any],
    nearest: Nearest,
) -> float:
    """Share of the nearest rows among those found; rows as near as the last of them count."""
    if not nearest.ids:
        return 1.0
    condition, keys = layout.with_keys(ids)
    rows = _fetch(
        db,
        layout,
        "SELECT {vector} {operator} %s::real[]::{type} FROM {table} WHERE {condition}",
        [vector.tolist(), *keys],
        condition=condition,
    )
    reach = nearest.distances[-1]
    near = sum(bool(distance <= reach) for (distance,) in rows)
    return near / len(nearest.ids)


@contextmanager
def _reading_all(db: BlockingDatabase) -> Iterator[None]:
    """A transaction, or a part of the one that is open, that uses no index for an order.

    An index over the vectors would be approximate.
    """
    change = "SELECT current_setting('enable_indexscan'), set_config('enable_indexscan', %s, true)"
    with db.connection.transaction():
        row = run(db.fetch_one(change, ["off"]))
        assert row is not None
        yield
        # Not the default: the caller's transaction goes on, perhaps with a setting of its own.
        run(db.fetch(change, [row[0]]))


def _fetch(
    db: BlockingDatabase,
    layout: Layout,
    query: str,
    parameters: list[Any],
    **parts: sql.Composable,
) -> list[Row]:
    """Return the rows of a query that names the table, its columns and operator in braces."""
    assert layout.source is not None
    statement = sql.SQL(query).format(
        keys=layout.keys,
        vector=layout.source.identifier,
        type=layout.source.type,
        table=layout.identifier,
        operator=layout.operator(layout.source),
        **parts,
    )
    return run(db.fetch(statement, parameters))
