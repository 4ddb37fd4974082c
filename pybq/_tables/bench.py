"""What searches of a table cost and find: by its index, or by codes, and in exact order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from pybq._catalog.database import run
from pybq._catalog.size import count_rows
from pybq._searching.search import RERANK
from pybq._tables.exact import find_nearest, find_share, take_queries
from pybq._tables.table import Hit, Table


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one kind of search costs and finds.

    Attributes
    ----------
    method : str
        "as asked" of a table without a column of codes: what `Table.search` does by itself; else
        "codes alone" and "re-ranked"; and "exact".
    rerank : float or None
        As given to `Table.search`, for "re-ranked".
    recall : float
        Share of the true k nearest rows among the k found; rows as near as the k-th count.
    milliseconds, p95_milliseconds : float
        Median and 95th percentile of the time of one search, with its round trip.
    """

    method: str
    rerank: float | None
    recall: float
    milliseconds: float
    p95_milliseconds: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What `bench_table` measured, and on what.

    Attributes
    ----------
    table : str
    rows, dim, k, queries : int
    round_trip_milliseconds : float
        Median time of a prepared ``SELECT 1``: a part of each of the others.
    indexes : list of str
        Of bq on codes or vectors; without one, searches read all of them.
    measured : list of Measurement
    """

    table: str
    rows: int
    dim: int
    k: int
    queries: int
    round_trip_milliseconds: float
    indexes: list[str]
    measured: list[Measurement]


def bench_table(
    table: Table,
    queries: ArrayLike | None = None,
    k: int = 10,
    sample: int = 100,
    rerank: float = 4,
) -> Bench:
    """Time searches of a table on one connection, and compare what they find.

    Parameters
    ----------
    table : Table
        One that stores vectors. On a connection with ``autocommit=True``, as otherwise each
        search begins and ends a transaction, too.
    queries : array_like of float, shape (q, dim), optional
        At most `sample` of them, spread evenly, are used. By default, vectors of random rows of
        the table; of each, the row itself is then not counted as found.
    k : int
        Rows wanted per query.
    sample : int
        Number of queries.
    rerank : float
        Of the search that is re-ranked, in a table with a column of codes.

    Returns
    -------
    Bench
        The searches are asked in turn, so that what else the machine does meanwhile
        hits them alike.

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
    >>> with pybq.serve() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     rows = table.ingest(range(1000), vectors)
    ...     found = bench_table(table, sample=20)
    >>> [one.method for one in found.measured], found.measured[-1].recall
    (['as asked', 'exact'], 1.0)
    """
    db, layout = table._db, table._layout
    own, vectors = take_queries(db, layout, queries, k, sample)
    more = k + (queries is None)  # a row finds itself
    settings: dict[str, float | None] = {"as asked": RERANK}
    if table.code_column is not None:
        settings = {"codes alone": None, "re-ranked": rerank}
    for setting in settings.values():  # plan and cache, as a running application has
        table.search(vectors[0], more, rerank=setting)
    find_nearest(db, layout, vectors[0], k)
    names = (*settings, "exact")
    times: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[list[Any]]] = {name: [] for name in names}
    trips = []
    for vector in vectors:
        trips.append(_time_round_trip(table))
        for name, setting in settings.items():
            start = time.perf_counter()
            hits = cast(list[Hit], table.search(vector, more, rerank=setting))
            times[name].append(time.perf_counter() - start)
            found[name].append([hit.id for hit in hits])
    # Apart from the others: reading all vectors empties the caches of the processor.
    recalls: dict[str, list[float]] = {name: [] for name in names}
    for i, (key, vector) in enumerate(zip(own, vectors, strict=True)):
        nearest = find_nearest(db, layout, vector, k, key)
        times["exact"].append(nearest.seconds)
        recalls["exact"].append(1.0)
        for name in settings:
            ids = [each for each in found[name][i] if key is None or each != key][:k]
            recalls[name].append(find_share(db, layout, vector, ids, nearest))
    return Bench(
        table.name,
        run(count_rows(db, layout)),
        table.dim,
        k,
        len(vectors),
        1e3 * float(np.median(trips)),
        [index.name for index in table.status().indexes if index.method == "bq" and index.valid],
        [
            Measurement(
                name,
                settings.get(name) if table.code_column is not None else None,
                mean(recalls[name]),
                1e3 * float(np.median(times[name])),
                1e3 * float(np.percentile(times[name], 95)),
            )
            for name in times
        ],
    )


def _time_round_trip(table: Table) -> float:
    with table.connection.transaction(), table.connection.cursor() as cursor:
        start = time.perf_counter()
        cursor.execute("SELECT 1", prepare=True).fetchall()
        return time.perf_counter() - start
