"""What searches of a table find, against the exact order of its stored vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median

from numpy.typing import ArrayLike

from pybq._searching.search import RERANK
from pybq._tables.exact import find_nearest, find_share, take_queries
from pybq._tables.table import Table

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
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     rows = table.ingest(range(1000), vectors)
    ...     table.create_index()
    ...     (found,) = measure_recall(table, sample=20, recalls=[0.99])
    >>> found.recall > 0.98
    True
    """
    db, layout = table._db, table._layout
    own, vectors = take_queries(db, layout, queries, k, sample)
    more = k + (queries is None)  # a row finds itself
    nearest = [
        find_nearest(db, layout, vector, k, key) for key, vector in zip(own, vectors, strict=True)
    ]
    measured = []
    settings: list[tuple[float | None, float | None]] = [(RERANK, wanted) for wanted in recalls]
    if layout.sharded:  # which a setting of this session does not reach
        settings = [(RERANK, None)]
    if table.code_column is not None:
        settings = [(rerank, None) for rerank in reranks]
    for rerank, wanted in settings:
        search = partial(table.search, k=more, rerank=rerank, recall=wanted)
        search(vectors[0])  # plan and cache, as a running application has
        found, times = [], []
        for key, vector, true in zip(own, vectors, nearest, strict=True):
            start = time.perf_counter()
            hits = search(vector)
            times.append(time.perf_counter() - start)
            ids = [hit.id for hit in hits if key is None or hit.id != key][:k]
            found.append(find_share(db, layout, vector, ids, true))
        used = None if table.code_column is None else rerank
        measured.append(Recall(used, wanted, mean(found), 1e3 * median(times)))
    return measured
