"""A query's way to the server: arguments -> Search -> Statement -> rows, which become Results."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import BaseConnection, sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from pybq._catalog.citus import set_everywhere
from pybq._catalog.database import Database, Row
from pybq._catalog.layout import Layout
from pybq._codes.arrays import as_numbers
from pybq._codes.quantizer import Quantizer
from pybq._searching.condition import Where, make_condition
from pybq._searching.fusion import Fusion, make_fusion, take_texts, write_fused
from pybq._searching.results import Output, Results
from pybq._searching.shards import Part
from pybq._searching.together import MANY, to_array, write_text
from pybq.errors import TableError

# The largest value of bq.probes: BQ_MAX_LISTS in extension/index/bqindex.h.
MAX_PROBES = 65_536

# What settings are that nobody has changed.
DEFAULTS = {"bq.probes": "0", "bq.recall": "0", "bq.iterative_scan": "strict_order"}

# Candidates for each wanted row, unless told otherwise: Table.search(rerank=4).
RERANK = 4


class Effort(NamedTuple):
    """What a search costs and finds: arguments of `Table.search`.

    Attributes
    ----------
    rerank : float
        Candidates as a multiple of k.
    probes : int or None
        Lists of the index that are read first; None for what the index or `bq.probes` says.

    Examples
    --------
    >>> effort = Effort(rerank=6, probes=128)  # as Table.calibrate returns it
    >>> effort._asdict()  # table.search(query, **effort._asdict())
    {'rerank': 6, 'probes': 128}
    """

    rerank: float
    probes: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What the text of the statement depends on."""

    k: int
    candidates: int | None  # None: no re-ranking
    columns: tuple[str, ...] = ()
    where: str = ""
    alias: str | None = None
    ranked: bool = False  # give the place of each row among the candidates, from 1, as well
    parts: tuple[Part, ...] = ()  # of a table of which some are on other servers
    together: bool = False  # all queries in one statement
    fusion: Fusion | None = None  # with a list by words


@dataclass(frozen=True, slots=True)
class Search:
    """One search of a table: its arguments, checked."""

    queries: NDArray[np.float32] | None  # of shape (q, dim); None: words alone
    shape: Shape
    parameters: Mapping[str, Any]  # of its condition
    probes: int | None
    recall: float | None
    results: Results
    index: int | None = None  # by which all queries are answered in one statement
    texts: Sequence[str] = ()  # of each query, its words


@dataclass(frozen=True, slots=True)
class Statement:
    """What a search sends: a text, its parameters for each query, settings for the time of it."""

    text: str
    parameters: Sequence[Mapping[str, Any]]
    settings: Mapping[str, str]
    together: int | None = None  # so many queries are in the one set of parameters
    fused: bool = False  # its order is not that of the distance


def make_search(
    layout: Layout,
    connection: BaseConnection[Any],
    query: ArrayLike | None,
    k: int = 10,
    *,
    rerank: float | None = RERANK,
    columns: Sequence[str] = (),
    where: Where | None = None,
    parameters: Mapping[str, Any] | None = None,
    output: Output = "hits",
    recall: float | None = None,
    probes: int | None = None,
    text: str | Sequence[str] | None = None,
    text_column: str | Sequence[str] | None = None,
    language: str | None = None,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
) -> Search:
    """Check the arguments of `Table.search`."""
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    queries = None if query is None else _take_queries(layout, query)
    single = isinstance(text, str) if query is None else np.ndim(query) == 1
    about_text = (text_column, language, weights, rrf, depth)
    fusion, texts = None, [""] * (1 if queries is None else len(queries))
    if text is not None:
        texts = take_texts(text, None if queries is None else len(queries))
        fusion = make_fusion(layout, k, queries is not None, *about_text)
    elif any(each is not None for each in about_text):
        raise ValueError("expected text with what says how it is searched, got that alone")
    elif queries is None:
        raise ValueError("expected a query, or text, got neither")
    if rerank is not None and not 1 <= rerank < math.inf:
        raise ValueError(f"expected a finite rerank of at least 1, got {rerank}")
    if probes is not None and not 1 <= probes <= MAX_PROBES:
        raise ValueError(f"expected probes between 1 and {MAX_PROBES}, got {probes}")
    if not layout.has_codes and rerank != RERANK:
        raise TableError(
            f"table {layout.name!r} has no column of codes: its index re-ranks by itself, ask "
            "for a recall in place of rerank"
        )
    if layout.sharded and (recall is not None or probes is not None):
        raise TableError(
            f"table {layout.name!r} has partitions on other servers, which settings of a search do "
            "not reach: ask for a recall by the option of their indexes, or of the foreign server, "
            "OPTIONS (options '-c bq.recall=0.99')"
        )
    if recall is not None and (layout.has_codes or recall != 1):
        check_recall(layout, recall)
        if layout.has_codes and (rerank != RERANK or probes is not None):
            raise ValueError("expected recall, or rerank and probes, which it stands for; got both")
    check_columns(columns)
    for name in columns:
        if name not in layout.columns:
            raise ValueError(f"no column {name!r} in table {layout.name!r}")
    condition = make_condition(where, parameters, layout, connection)
    candidates = None
    if rerank is not None and layout.source is not None and layout.has_codes:
        candidates = math.ceil((fusion.ranks.depth if fusion else k) * rerank)
    names = tuple(columns)
    return Search(
        queries,
        Shape(k, candidates, names, condition.text, condition.alias, fusion=fusion),
        condition.parameters,
        probes,
        recall,
        Results(output, layout, k, names, single, fused=fusion is not None),
        texts=texts,
    )


def _take_queries(layout: Layout, query: ArrayLike) -> NDArray[np.float32]:
    array = as_numbers(query, "a query")
    dim = layout.dim
    if array.ndim not in (1, 2) or array.shape[-1] != dim:
        raise ValueError(f"expected a query of shape ({dim},) or (q, {dim}), got {array.shape}")
    if not layout.has_codes and not np.isfinite(array).all():  # codes: as it is rotated
        raise ValueError("expected a query of finite values, got NaN or infinity")
    return np.atleast_2d(array.astype(np.float32, copy=False))


def with_effort(search: Search, effort: Effort) -> Search:
    """The same search with what was calibrated for its recall."""
    fusion = search.shape.fusion
    candidates = math.ceil((fusion.ranks.depth if fusion else search.shape.k) * effort.rerank)
    return replace(search, shape=replace(search.shape, candidates=candidates), probes=effort.probes)


def may_go_together(search: Search, layout: Layout) -> bool:
    """Whether it pays to look for an index that answers all queries in one statement."""
    return not (
        layout.has_codes
        or layout.remote
        or search.shape.where
        or search.shape.fusion
        or len(search.texts) < MANY
    )


class Writer:
    """Writes the statements of searches of one table."""

    def __init__(self, layout: Layout, connection: BaseConnection[Any]) -> None:
        _register_queries(connection, layout)
        self._layout = layout
        # Bounded, because conditions may be written anew for each search.
        self._write = lru_cache(100)(partial(_write_text, layout, connection))

    def write(self, search: Search, quantizer: Quantizer | None) -> Statement:
        """Return what to send; without a column of codes there is no quantizer."""
        layout = self._layout
        codes: Sequence[_Wire | None] = [None] * len(search.texts)
        exact = codes
        if quantizer is not None and search.queries is not None:
            codes = _to_wire("bqquery", quantizer.rotate(search.queries), quantizer.transform)
        if layout.source is not None and search.queries is not None:
            exact = _to_wire(layout.source.type_name, search.queries)
        settings = {} if search.probes is None else {"bq.probes": str(search.probes)}
        if search.recall is not None and not layout.has_codes:
            settings["bq.recall"] = str(search.recall)
        if search.shape.where:
            # The scan goes on until enough rows meet the condition. In strict order it would pass
            # over those that come late, even if there are no others.
            settings["bq.iterative_scan"] = "relaxed_order"
        if search.index is not None:
            return self._write_together(search, exact, settings)
        return Statement(
            self._write(search.shape),
            [
                {**search.parameters, "_bq_query": code, "_bq_exact": vector, "_bq_text": text}
                for code, vector, text in zip(codes, exact, search.texts, strict=True)
            ],
            settings,
            fused=search.shape.fusion is not None,
        )

    def _write_together(
        self, search: Search, queries: Sequence[_Wire | None], settings: Mapping[str, str]
    ) -> Statement:
        assert self._layout.source is not None
        vectors = [query.data for query in queries if query is not None]
        array = _Array(to_array(vectors, self._layout.source.type_oid))
        return Statement(
            self._write(replace(search.shape, together=True)),
            [{"_bq_index": search.index, "_bq_queries": array}],
            settings,
            together=len(vectors),
        )


async def fetch(db: Database, layout: Layout, statement: Statement) -> list[list[Row]]:
    """Return the rows of each query: id, distance, further columns; nearest first.

    Without the index, rows that have no code, or no vector to be re-ranked by, come last, as
    do those of norm 0 by cosine distance. They are left out, as the index does.
    """
    text, parameters = statement.text, statement.parameters
    setting = _setting_everywhere if layout.distributed else _setting
    async with setting(db, statement.settings) if statement.settings else nullcontext():
        found: list[list[Row]]
        if statement.together is not None:
            found = [[] for _ in range(statement.together)]
            for query, *row in await db.fetch(text, parameters[0]):
                found[query].append(tuple(row))
        elif len(parameters) == 1:
            found = [await db.fetch(text, parameters[0])]
        else:
            found = await db.fetch_each(text, parameters)
    n = len(layout.key)
    if n > 1:
        found = [[(row[:n], *row[n:]) for row in rows] for rows in found]
    if statement.fused:
        return found
    # An index whose order is relaxed finds rows a little out of it, and the planner does not
    # sort what comes from an index.
    return [
        sorted((row for row in rows if row[1] is not None and row[1] == row[1]), key=itemgetter(1))
        for rows in found
    ]


@asynccontextmanager
async def _setting(db: Database, values: Mapping[str, str]) -> AsyncIterator[None]:
    """Let settings of the index, by name, have other values; one that is off stays so."""
    change = (
        "current_setting(%s, true), set_config(%s,"
        " CASE WHEN current_setting(%s, true) = 'off' THEN 'off' ELSE %s END, true)"
    )
    parameters = [part for name, value in values.items() for part in (name, name, name, value)]
    within = db.in_transaction
    async with db.transaction():
        row = await db.fetch_one(f"SELECT {', '.join([change] * len(values))}", parameters)
        yield
        if within:  # it goes on; if it has failed, it is rolled back, and the settings with it
            assert row is not None
            for name, before in zip(values, row[::2], strict=True):
                # null where the server has not loaded the extension's library yet
                await db.fetch("SELECT set_config(%s, %s, true)", [name, before or DEFAULTS[name]])


@asynccontextmanager
async def _setting_everywhere(db: Database, values: Mapping[str, str]) -> AsyncIterator[None]:
    """The same on the workers of Citus.

    What was set there cannot be asked for, and so is not put back, but rolled back.
    """
    async with db.transaction(force_rollback=True):
        names = list(values)
        row = await db.fetch_one(
            f"SELECT {', '.join(['current_setting(%s, true)'] * len(names))}", names
        )
        assert row is not None
        off = {name for name, before in zip(names, row, strict=True) if before == "off"}
        await set_everywhere(db, {name: values[name] for name in names if name not in off})
        yield


def _write_text(layout: Layout, connection: BaseConnection[Any], shape: Shape) -> str:
    """Return the query of this shape.  Its text is always the same, so psycopg prepares it.

    Limits are written out: with parameters a generic plan would guess them.
    """

    def quote(identifier: sql.Composable) -> str:
        return identifier.as_string(connection).replace("%", "%%")

    if shape.together:
        return write_text(layout, connection, shape.k, shape.columns)
    fusion = shape.fusion
    k = fusion.ranks.depth if fusion is not None else shape.k
    keys, searched = quote(layout.keys), quote(layout.searched.identifier)
    extra = "".join(f", {quote(sql.Identifier(name))}" for name in shape.columns)
    tables = [quote(layout.identifier)]
    if shape.alias is not None:
        tables[0] += f" AS {shape.alias}"
    if shape.parts:
        # what the condition calls the table by
        alias = shape.alias or quote(sql.Identifier(layout.name))
        tables = [f"{quote(sql.Identifier(*part))} AS {alias}" for part in shape.parts]
    # A condition ends with its line, whatever comment it may hold.
    condition = f" WHERE (\n{shape.where}\n)" if shape.where else ""

    def nearest(wanted: str, n: int, distance: int) -> str:
        """The nearest rows, their distance in that column; of partitions, asked one by one.

        PostgreSQL sends a LIMIT to another server only so; and without OFFSET 0 it would merge
        their rows in order, and for that begin with one server after the other.
        """
        each = [
            f"SELECT {wanted} FROM {table}{condition} ORDER BY {by_index} LIMIT {n}"
            for table in tables
        ]
        if not shape.parts:
            return each[0]
        parts = " UNION ALL ".join(f"({one})" for one in each)
        return f"SELECT * FROM ({parts} OFFSET 0) AS parts ORDER BY {distance} LIMIT {n}"

    def fuse(found: str, distance: str) -> str:
        assert fusion is not None
        if not fusion.by_vector:
            distance = "NULL::float8"
        lists = (found, distance, tables[0], shape.where)
        return write_fused(layout, quote, fusion, shape.k, shape.columns, *lists)

    sign = quote(layout.operator(layout.searched))
    by_index = f"{searched} {sign} %({'_bq_query' if layout.has_codes else '_bq_exact'})s"
    if shape.candidates is None or layout.source is None:
        wanted = f"{keys}, {by_index} AS distance{extra}"
        found = nearest(wanted, k, len(layout.key) + 1)
        return found if fusion is None else fuse(found, by_index)
    vector, sign = quote(layout.source.identifier), quote(layout.operator(layout.source))
    # Numbered when they are there: below a window, Citus sends no LIMIT to shards.
    place = ", row_number() OVER (ORDER BY bq_distance) AS place" if shape.ranked else ""
    candidates = f"{keys}, {vector}{extra}"
    if shape.parts or shape.ranked:
        candidates += f", {by_index} AS bq_distance"
    last = len(layout.key) + len(shape.columns) + 2
    exact = f"{vector} {sign} %(_bq_exact)s"
    found = (
        f"SELECT {keys}, {exact} AS distance{extra}{place}"
        f" FROM ({nearest(candidates, shape.candidates, last)}) AS candidates"
        f" ORDER BY 2 LIMIT {k}"
    )
    return found if fusion is None else fuse(found, exact)


def check_columns(columns: Sequence[str]) -> None:
    if isinstance(columns, str):
        raise TypeError("expected columns as a sequence of names, got str")


def check_recall(layout: Layout, recall: float) -> None:
    if not 0 < recall < 1:
        raise ValueError(f"expected recall above 0 and below 1, got {recall}")
    if layout.source is None:
        raise TableError(f"table {layout.name!r} keeps codes only: there is nothing to re-rank by")


class _Wire:
    """A query in the binary form of a type; pgvector's package is not needed for its types."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _BQQuery(_Wire):
    __slots__ = ()


class _Vector(_Wire):
    __slots__ = ()


class _Halfvec(_Wire):
    __slots__ = ()


class _Array(_Wire):
    """Queries, of the type that the statement says."""

    __slots__ = ()


_WIRES: dict[str, type[_Wire]] = {"bqquery": _BQQuery, "vector": _Vector, "halfvec": _Halfvec}


class _WireDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Wire) -> bytes:
        return obj.data


def _to_wire(type_name: str, values: NDArray[np.float32], second: int = 0) -> list[_Wire]:
    """The three types are alike: dim, another uint16, and the values, all big endian."""
    header = struct.pack("!HH", values.shape[1], second)
    with np.errstate(over="ignore"):  # the server reports infinity
        swapped = values.astype(">f2" if type_name == "halfvec" else ">f4")
    wire = _WIRES[type_name]
    return [wire(header + row.tobytes()) for row in swapped]


def _register_queries(connection: BaseConnection[Any], layout: Layout) -> None:
    """Adapt queries to the type of the codes' queries, and to that of the stored vectors."""
    # an array of any type is of that which the statement casts it to
    connection.adapters.register_dumper(_Array, type("ArrayDumper", (_WireDumper,), {"oid": 0}))
    oids = {"bqquery": connection.adapters.types["bqquery"].oid} if layout.has_codes else {}
    if layout.source is not None:
        oids[layout.source.type_name] = layout.source.type_oid
    for type_name, oid in oids.items():
        dumper = type("WireDumper", (_WireDumper,), {"oid": oid})
        connection.adapters.register_dumper(_WIRES[type_name], dumper)
