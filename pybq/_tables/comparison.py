"""Columns of pgvector's types, and indexes on them: what there is, what each finds and costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from psycopg import Connection, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pybq._catalog import indexes as catalog
from pybq._catalog.database import BlockingDatabase, Statement, escape_percent, run
from pybq._catalog.indexes import VectorIndex
from pybq._catalog.layout import name_table
from pybq._codes.arrays import spread
from pybq._codes.metric import OPERATORS, Metric
from pybq.errors import TableError

# The setting that says how much a query of each method reads, its default, and its maximum.
_EFFORTS = {
    "bq": ("bq.recall", "bq.probes", "65536"),
    "hnsw": ("hnsw.ef_search", "hnsw.ef_search", "1000"),
    "ivfflat": ("ivfflat.probes", "ivfflat.probes", "32768"),
}

_COSTS = ("seq_page_cost", "random_page_cost", "cpu_index_tuple_cost", "cpu_operator_cost")


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of type vector or halfvec, as the catalog has it."""

    oid: int  # of its table
    schema: str
    table: str
    relkind: str
    name: str
    attnum: int
    type_name: str  # vector or halfvec
    type_schema: str  # where pgvector is
    dim: int | None  # None: not declared

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    @property
    def type(self) -> sql.Composed:
        return sql.SQL("{}({})").format(
            sql.Identifier(self.type_schema, self.type_name), self.dim or 0
        )

    def operator(self, metric: Metric) -> sql.Composed:
        """The operator, wherever pgvector is: its schema may not be on the search path."""
        return sql.SQL("OPERATOR({}.{})").format(
            sql.Identifier(self.type_schema), sql.SQL(OPERATORS[metric])
        )


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


def find_columns(
    conn: Connection[Any], table: str, schema: str | None = None
) -> dict[str, VectorColumn]:
    """Find the columns of vectors in a table, by name; TableError if there is no such table."""
    name = name_table(table, schema).as_string(conn)
    found = fetch(conn, "SELECT to_regclass(%s)::oid", [name])[0][0]
    if found is None:
        raise TableError(f"no table {table!r}")
    rows = fetch(
        conn,
        """
        SELECT c.oid, n.nspname, c.relname, c.relkind, a.attname, a.attnum, t.typname, s.nspname,
               nullif(coalesce(nullif(a.atttypmod, -1), d.typtypmod), -1)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type d ON d.oid = a.atttypid  -- which may be a domain
        JOIN pg_type t ON t.oid = coalesce(nullif(d.typbasetype, 0), d.oid)
        JOIN pg_namespace s ON s.oid = t.typnamespace
        JOIN pg_depend p ON p.classid = 'pg_type'::regclass AND p.objid = t.oid AND p.deptype = 'e'
        JOIN pg_extension e ON e.oid = p.refobjid AND e.extname = 'vector'
        WHERE c.oid = %s AND t.typname IN ('vector', 'halfvec') ORDER BY a.attnum
        """,
        [found],
    )
    return {each.name: each for each in (VectorColumn(*row) for row in rows)}


def find_column(
    conn: Connection[Any], table: str, column: str | None = None, schema: str | None = None
) -> VectorColumn:
    """Find the column of vectors in a table, which need not be named if there is only one.

    Raises
    ------
    TableError
        If there is no such table, no such column, or more than one.
    """
    columns = find_columns(conn, table, schema)
    names = ", ".join(columns)
    if column is not None and column not in columns:
        there = f"it has {names}" if columns else "it has none"
        raise TableError(
            f"table {table!r} has no column {column!r} of type vector or halfvec; {there}"
        )
    if not columns:
        raise TableError(f"table {table!r} has no column of pgvector's types vector or halfvec")
    if column is None and len(columns) > 1:
        raise TableError(f"table {table!r} has vectors in {names}; say which with column")
    return columns[column] if column is not None else next(iter(columns.values()))


def find_indexes(conn: Connection[Any], column: VectorColumn) -> list[VectorIndex]:
    """Find the indexes that begin with a column of vectors, oldest first."""
    return run(catalog.find_indexes(BlockingDatabase(conn), column.oid, column.name))


def compare_indexes(
    conn: Connection[Any],
    column: VectorColumn,
    indexes: Sequence[VectorIndex],
    metric: Metric,
    k: int = 10,
    sample: int = 50,
    queries: ArrayLike | None = None,
) -> Comparison:
    """Measure what searches by each of some indexes find, and how long they take.

    Parameters
    ----------
    conn : psycopg.Connection
        With no transaction open.
    column : VectorColumn
    indexes : sequence of VectorIndex
        On that column, for that metric, and not partial.
    metric : {"cosine", "l2", "inner_product"}
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
    if k < 1 or sample < 1:
        raise ValueError(f"expected k and sample of at least 1, got {k} and {sample}")
    statement = sql.SQL(
        "SELECT {columns} FROM {table} WHERE {vector} IS NOT NULL"
        " ORDER BY {vector} {operator} %(query)s::{type} LIMIT %(k)s"
    )
    # The access method bq leaves queries alone that number rows in no order. To a scan of
    # pgvector's index that adds less than a microsecond for each row.
    plain, numbered = sql.SQL("ctid::text"), sql.SQL("ctid::text, row_number() OVER ()")
    names: dict[str, sql.Composable] = {
        "table": column.identifier,
        "vector": sql.Identifier(column.name),
        "operator": column.operator(metric),
        "type": column.type,
    }
    search = escape_percent(statement.format(columns=plain, **names), conn)
    others = escape_percent(statement.format(columns=numbered, **names), conn)
    searches = {index.oid: search if index.method == "bq" else others for index in indexes}
    if queries is None:
        asked = _sample_rows(conn, column, names, sample)
    else:
        given = np.atleast_2d(np.asarray(queries, np.float32))
        if given.ndim != 2 or given.shape[1] != column.dim or not len(given):
            raise ValueError(f"expected queries of shape (q, {column.dim}), got {given.shape}")
        asked = [("", str(given[i].tolist())) for i in spread(len(given), sample)]
    settings = {
        index.oid: _find_settings(
            conn, index, searches[index.oid], {"query": asked[0][1], "k": k + 1}
        )
        for index in indexes
    }
    exact_times: list[float] = []
    times: dict[int, list[float]] = {index.oid: [] for index in indexes}
    recalls: dict[int, list[float]] = {index.oid: [] for index in indexes}
    for own, query in asked:
        parameters = {"query": query, "k": k + 1}  # a row finds itself
        with _reading(conn):
            with _setting(conn, {"enable_indexscan": "off"}):
                elapsed, found = _search(conn, search, parameters, own, k)
            exact_times.append(elapsed)
            exact = _find_distances(conn, column, metric, query, found)
            for index in indexes:
                chosen = settings[index.oid]
                if chosen is None:
                    continue
                with _setting(conn, chosen):
                    elapsed, found = _search(conn, searches[index.oid], parameters, own, k)
                times[index.oid].append(elapsed)
                near = _find_distances(conn, column, metric, query, found)
                nhits = sum(distance <= max(exact) for distance in near) if exact else 0
                recalls[index.oid].append(nhits / len(exact) if exact else 1.0)
    return Comparison(
        k,
        len(asked),
        1e3 * median(exact_times),
        [
            IndexReport(
                index.name,
                index.method,
                _tell_effort(conn, index),
                index.nbytes,
                mean(recalls[index.oid]) if recalls[index.oid] else None,
                1e3 * median(times[index.oid]) if times[index.oid] else None,
            )
            for index in indexes
        ],
    )


def _sample_rows(
    conn: Connection[Any], column: VectorColumn, names: Mapping[str, sql.Composable], n: int
) -> list[tuple[str, str]]:
    """Places and vectors of random rows that have a distance from others."""
    statement = sql.SQL(
        "SELECT ctid::text, {vector}::text FROM {table} WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM {table} WHERE ({vector} {operator} {vector}) <> 'NaN'"
        " ORDER BY random() LIMIT %s))"
    ).format(**names)
    rows = fetch(conn, escape_percent(statement, conn), [n])
    if not rows:
        raise TableError(f"table {column.table!r} has no rows whose vectors can be compared")
    return [(place, vector) for place, vector in rows]


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
    explain = sql.SQL("EXPLAIN (FORMAT JSON) ") + search
    # What a method's estimate consists of differs, and with it what makes it the cheapest.
    for dear in (None, *_COSTS):
        settings = {"enable_seqscan": "off", "jit": "off"}
        if dear is not None:
            settings |= efforts | {name: "1000" if name == dear else "0" for name in _COSTS}
        with _reading(conn), _setting(conn, settings):
            ((plan,),) = fetch(conn, explain, parameters)
            if _scanned_index(plan[0]["Plan"]) == index.name:
                fetch(conn, search, parameters)  # caches, as a running application has them
                return settings
    return None


def _scanned_index(plan: dict[str, Any]) -> str | None:
    """The index that a plan reads rows by, in their order."""
    while plan["Node Type"] in ("Limit", "WindowAgg", "Result"):
        (plan,) = plan["Plans"]
    return plan["Index Name"] if plan["Node Type"] == "Index Scan" else None


def _search(
    conn: Connection[Any],
    search: Statement,
    parameters: dict[str, Any],
    own: str,
    k: int,
) -> tuple[float, list[str]]:
    """Seconds, and the places of the k rows found, without that of the query itself."""
    start = time.perf_counter()
    rows = fetch(conn, search, parameters)
    elapsed = time.perf_counter() - start
    return elapsed, [place for place, *_ in rows if place != own][:k]


def _find_distances(
    conn: Connection[Any], column: VectorColumn, metric: Metric, query: str, places: list[str]
) -> list[float]:
    """Exact distances of some rows; none of those that have none (NaN)."""
    statement = sql.SQL(
        "SELECT {vector} {operator} %s::{type} FROM {table} WHERE ctid = ANY(%s::tid[])"
    ).format(
        table=column.identifier,
        vector=sql.Identifier(column.name),
        operator=column.operator(metric),
        type=column.type,
    )
    rows = fetch(conn, escape_percent(statement, conn), [query, places])
    return [distance for (distance,) in rows if distance == distance]


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
