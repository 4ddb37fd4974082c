"""Indexes on a column of pgvector's types, side by side: what each finds and costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from numpy.typing import ArrayLike
from psycopg import Connection, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pybq._catalog.database import BlockingDatabase, Statement, escape_percent, run
from pybq._catalog.indexes import VectorIndex, find_indexes, find_leaves
from pybq._catalog.layout import Layout
from pybq._tables.exact import find_nearest, find_share, take_queries
from pybq._tables.table import Table
from pybq.errors import TableError

# The setting that says how much a query of each method reads, its default, and its maximum.
_EFFORTS = {
    "bq": ("bq.recall", "bq.probes", "65536"),
    "hnsw": ("hnsw.ef_search", "hnsw.ef_search", "1000"),
    "ivfflat": ("ivfflat.probes", "ivfflat.probes", "32768"),
}

_COSTS = ("seq_page_cost", "random_page_cost", "cpu_index_tuple_cost", "cpu_operator_cost")


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What searches by one index find and cost.

    Attributes
    ----------
    name, method : str
        Of the index; method "bq", "hnsw" or "ivfflat".
    effort : str
        Setting of the method that was in effect, e.g. ``"hnsw.ef_search = 40"``.
    nbytes : int
        Size of the index.
    recall : float or None
        Share of the true k nearest rows among the k found; rows as near as the k-th count. None
        if the planner could not be brought to use this index.
    milliseconds : float or None
        Median time of one search, planning and round trip included.
    """

    name: str
    method: str
    effort: str
    nbytes: int
    recall: float | None
    milliseconds: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Indexes on one column, measured in turn with the same queries.

    Attributes
    ----------
    k, queries : int
        Rows wanted per query, and the number of queries.
    exact_milliseconds : float
        Median time of a search that reads all rows.
    indexes : list of IndexReport
    """

    k: int
    queries: int
    exact_milliseconds: float
    indexes: list[IndexReport]


def compare_all(
    table: Table, k: int = 10, sample: int = 50, queries: ArrayLike | None = None
) -> Comparison:
    """Compare the indexes on the vectors of a table, and reading all of them: `compare_indexes`."""
    layout = table._layout
    if layout.source is None:
        raise TableError(f"table {table.name!r} keeps codes only: there is no exact order")
    found = run(find_indexes(table._db, layout.oid, layout.source.name))
    usable = [index for index in found if index.answers(layout.metric)]
    return compare_indexes(table.connection, layout, usable, k, sample, queries)


def check_comparable(layout: Layout) -> None:
    """Refuse a table of whose indexes the planner here cannot be made to take one."""
    if layout.distributed:
        raise TableError(
            f"table {layout.name!r} is distributed, and its indexes cannot be compared from here; "
            "pybq recall says what searches of it find"
        )


def compare_indexes(
    conn: Connection[Any],
    layout: Layout,
    indexes: Sequence[VectorIndex],
    k: int = 10,
    sample: int = 50,
    queries: ArrayLike | None = None,
) -> Comparison:
    """Measure what searches by each of some indexes find, and how long they take.

    Parameters
    ----------
    conn : psycopg.Connection
        With no transaction open.
    layout : Layout
        Of the table and its column of vectors; rows may be known by their place.
    indexes : sequence of VectorIndex
        On that column, for the metric of the layout, and not partial.
    k : int
        Rows wanted per query.
    sample : int
        Number of queries.
    queries : array_like of float, shape (q, dim), optional
        At most `sample` of them, spread evenly, are used. By default, vectors of random rows of
        the table; of each, the row itself is then not counted as found.

    Returns
    -------
    Comparison
        Each query is asked of all indexes in turn, at the settings of the session.

    Raises
    ------
    TableError
        If no row has a vector that others can be compared with.
    ValueError
        If k or sample is below 1, or the shape of queries does not match.

    Notes
    -----
    Fit for a table in use: nothing is changed and no lock taken but that of a SELECT. Which index
    the planner takes is settled by its cost settings and the form of the query, inside
    transactions that are read only and end with each query, so that no snapshot is held for long.
    What it does cost: `sample` times the table is read in full, for the exact order.
    """
    check_comparable(layout)
    db = BlockingDatabase(conn)
    own, vectors = take_queries(db, layout, queries, k, sample)
    source = layout.source
    assert source is not None
    statement = sql.SQL(
        "SELECT {columns} FROM {table} WHERE {vector} IS NOT NULL"
        " ORDER BY {vector} {operator} %(query)s::{type} LIMIT %(k)s"
    )
    # The access method bq leaves queries alone that number rows in no order. To a scan of
    # pgvector's index that adds less than a microsecond for each row.
    numbered = sql.SQL("{}, row_number() OVER ()").format(layout.keys)
    names: dict[str, sql.Composable] = {
        "table": layout.identifier,
        "vector": source.identifier,
        "operator": layout.operator(source),
        "type": sql.Identifier(source.type_schema, source.type_name),
    }
    search = escape_percent(statement.format(columns=layout.keys, **names), conn)
    others = escape_percent(statement.format(columns=numbered, **names), conn)
    searches = {index.oid: search if index.method == "bq" else others for index in indexes}
    asked = [{"query": str(vector.tolist()), "k": k + 1} for vector in vectors]  # finds itself
    settings = {
        index.oid: _find_settings(conn, index, searches[index.oid], asked[0]) for index in indexes
    }
    exact_times: list[float] = []
    times: dict[int, list[float]] = {index.oid: [] for index in indexes}
    recalls: dict[int, list[float]] = {index.oid: [] for index in indexes}
    for key, vector, parameters in zip(own, vectors, asked, strict=True):
        with _reading(conn):
            nearest = find_nearest(db, layout, vector, k, key)
            exact_times.append(nearest.seconds)
            for index in indexes:
                chosen = settings[index.oid]
                if chosen is None:
                    continue
                with _setting(conn, chosen):
                    start = time.perf_counter()
                    rows = fetch(conn, searches[index.oid], parameters)
                    times[index.oid].append(time.perf_counter() - start)
                found = [layout.take_key(row) for row in rows]
                ids = [each for each in found if key is None or each != key][:k]
                recalls[index.oid].append(find_share(db, layout, vector, ids, nearest))
    with _reading(conn):
        efforts = [_tell_effort(conn, index) for index in indexes]
    return Comparison(
        k,
        len(asked),
        1e3 * median(exact_times),
        [
            IndexReport(
                index.name,
                index.method,
                effort,
                index.nbytes,
                mean(recalls[index.oid]) if recalls[index.oid] else None,
                1e3 * median(times[index.oid]) if times[index.oid] else None,
            )
            for index, effort in zip(indexes, efforts, strict=True)
        ],
    )


def _find_settings(
    conn: Connection[Any], index: VectorIndex, search: Statement, parameters: dict[str, Any]
) -> dict[str, str] | None:
    """Settings with which the planner takes an index, and no other; None if there are none.

    They change nothing about the scan itself: costs are for the planner alone, and the efforts
    are those of other methods, which make them dear.
    """
    efforts = {
        name: maximum for method, (_, name, maximum) in _EFFORTS.items() if method != index.method
    }
    assert not isinstance(search, str)
    names = {leaf.name for leaf in run(find_leaves(BlockingDatabase(conn), index))}
    explain = sql.SQL("EXPLAIN (FORMAT JSON) ") + search
    # What a method's estimate consists of differs, and with it what makes it the cheapest.
    for dear in (None, *_COSTS):
        settings = {"enable_seqscan": "off", "jit": "off"}
        if dear is not None:
            settings |= efforts | {name: "1000" if name == dear else "0" for name in _COSTS}
        with _reading(conn), _setting(conn, settings):
            ((plan,),) = fetch(conn, explain, parameters)
            scanned = _scanned_indexes(plan[0]["Plan"])
            if scanned and scanned <= names:
                fetch(conn, search, parameters)  # caches, as a running application has them
                return settings
    return None


def _scanned_indexes(plan: dict[str, Any]) -> set[str]:
    """The indexes that a plan reads rows by, in their order: one for each partition."""
    while plan["Node Type"] in ("Limit", "WindowAgg", "Result", "Subquery Scan"):
        (plan,) = plan["Plans"]
    parts = plan["Plans"] if plan["Node Type"] == "Merge Append" else [plan]
    if any(part["Node Type"] != "Index Scan" for part in parts):
        return set()
    return {part["Index Name"] for part in parts}


def _tell_effort(conn: Connection[Any], index: VectorIndex) -> str:
    """The setting that decides how much a query reads."""
    name, probes, _ = _EFFORTS[index.method]
    settings = "SELECT current_setting(%s, true), current_setting(%s, true)"
    ((value, lists),) = fetch(conn, settings, [name, probes])
    if index.method != "bq":
        return f"{name} = {value}"
    if lists not in (None, "0"):
        return f"{probes} = {lists}"
    if "probes" in index.options and value in (None, "0"):
        return f"probes = {index.options['probes']}"
    if value in (None, "0"):
        value = index.options.get("recall", "0.98")
    return f"recall = {value}"


@contextmanager
def _reading(conn: Connection[Any]) -> Iterator[None]:
    """A transaction that sees the table as it was at its begin, and cannot write."""
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise TableError("indexes are compared in transactions of their own; commit this one first")
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


@contextmanager
def _setting(conn: Connection[Any], settings: dict[str, str]) -> Iterator[None]:
    """Other settings, for a part of the transaction that is open."""
    with conn.transaction(force_rollback=True):
        for name, value in settings.items():
            fetch(conn, "SELECT set_config(%s, %s, true)", [name, value])
        yield


def fetch(
    conn: Connection[Any], statement: Statement, parameters: Any = None
) -> list[tuple[Any, ...]]:
    """Return the rows of a query, planned anew: a plan that is kept outlives its settings."""
    query = statement.encode() if isinstance(statement, str) else statement
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query, parameters, prepare=False).fetchall()
