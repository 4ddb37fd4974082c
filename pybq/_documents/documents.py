"""Rows of a table as documents: a key, content, a vector, metadata in columns or in JSON."""

from __future__ import annotations

import asyncio
import math
import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import Connection, sql

from pybq._catalog.database import BlockingDatabase, escape_percent, run
from pybq._catalog.layout import INTEGERS
from pybq._catalog.opening import find_table
from pybq._codes.metric import Metric
from pybq._documents.filters import JSON, Every, Fields, Filter, Keys, write_condition
from pybq._tables import reading, writing
from pybq._tables.base import BaseTable
from pybq._tables.table import AsyncTable, Table

_T = TypeVar("_T")

# Columns of these types are for searching, not for reading.
NO_METADATA = ("tsvector", "bqvec", "bqquery", "vector", "halfvec", "sparsevec")

# Frameworks have these as texts, as JSON does.
PARSERS: dict[str, Callable[[str], Any]] = {
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "uuid": uuid.UUID,
}


# Options of `Table.search` that mean something with `text` only.
OF_WORDS = ("text_column", "language", "weights", "rrf", "depth")


class Found(NamedTuple):
    """A document as a table has it."""

    id: str
    key: Any  # the same, as the table has it
    content: str
    metadata: dict[str, Any]
    distance: float  # NaN if it was not searched by a vector, or has none
    score: float | None  # of a search by words


class Columns:
    """Which columns of a table hold what of a document.

    Parameters
    ----------
    table : Table or AsyncTable
        With a primary key of one column.
    content : str
        Column of the text.
    json : str or None
        Column of type jsonb for metadata that have no column of their own; "metadata" is not
        asked to be there.
    fields : sequence of str, optional
        Columns of metadata, which are all written; left out, all further ones of the table, of
        which those are written that a document has.
    """

    def __init__(
        self,
        table: BaseTable,
        content: str = "content",
        json: str | None = "metadata",
        fields: Sequence[str] | None = None,
    ) -> None:
        layout = table._layout
        self.key = layout.id
        there = layout.columns
        if json == "metadata" and "metadata" not in there:
            json = None
        for name in (content, *(fields or ()), *([json] if json else ())):
            if name not in there:
                raise ValueError(f"no column {name!r} in table {layout.name!r} for documents")
        if json is not None and there[json].type_name not in JSON:
            raise ValueError(
                f"expected column {json!r} of type jsonb, got {there[json].declared}; say which "
                "one holds metadata, or None"
            )
        self.content, self.json, self.declared = content, json, fields is not None
        names = there if fields is None else fields
        self.fields = {
            name: there[name]
            for name in names
            if name not in (content, json)
            and (fields is not None or there[name].type_name not in NO_METADATA)
        }
        self.read = [content, *([json] if json else []), *self.fields]
        # What filters may name: of a table without JSON its key and content, too.
        known = dict(self.fields)
        if json is None:
            known = {self.key.name: self.key, content: there[content], **known}
        self._fields = Fields(self.key, known, None if json is None else there[json])

    def to_key(self, given: str) -> Any:
        """A value of the key from an id, which frameworks have as text."""
        try:
            if self.key.type_name in INTEGERS:
                return int(given)
            if self.key.type_name == "uuid":
                return uuid.UUID(str(given))
        except ValueError:
            raise ValueError(
                f"expected ids of type {self.key.declared}, that of column {self.key.name!r}, got "
                f"{given!r}"
            ) from None
        return str(given)

    def to_values(
        self, contents: Sequence[str], metadatas: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[Any]]:
        """Values of columns from content and metadata."""
        fields = [
            name for name in self.fields if self.declared or any(name in each for each in metadatas)
        ]
        values: dict[str, list[Any]] = {self.content: list(contents)}
        for name in fields:
            parse = PARSERS.get(self.fields[name].type_name)
            given = [each.get(name) for each in metadatas]
            values[name] = [parse(v) if parse and isinstance(v, str) else v for v in given]
        rest = [{k: v for k, v in each.items() if k not in self.fields} for each in metadatas]
        if self.json is not None:
            values[self.json] = rest
        elif any(rest):
            name = next(iter(next(filter(None, rest))))
            raise ValueError(
                f"no column for metadata {name!r}: expected {', '.join(self.fields) or 'none'}; a "
                "column of type jsonb takes all others"
            )
        return values

    def to_document(
        self,
        key: Any,
        values: Mapping[str, Any],
        distance: float = math.nan,
        score: float | None = None,
    ) -> Found:
        """A document from the columns of a row."""
        metadata = dict(values[self.json] or {}) if self.json is not None else {}
        metadata |= {name: values[name] for name in self.fields if values[name] is not None}
        return Found(str(key), key, values[self.content] or "", metadata, distance, score)

    def write_condition(
        self, filter: Filter | None, ids: Sequence[str] | None = None
    ) -> tuple[sql.Composed, dict[str, Any]]:
        """A condition and its parameters; without filter and ids it is true."""
        parts = [] if filter is None else [filter]
        if ids is not None:
            parts.append(Keys([self.to_key(each) for each in ids]))
        return write_condition(Every(parts), self._fields)


class Documents:
    """A table of documents, or the same one opened by both kinds of connection.

    Operations are coroutine functions of a table and its columns, below; `do` is for callers that
    wait, from any thread, `ado` for those with an event loop: in a thread, if there is no
    AsyncTable.
    """

    def __init__(
        self,
        table: Table | AsyncTable,
        async_table: AsyncTable | None = None,
        content: str = "content",
        json: str | None = "metadata",
        fields: Sequence[str] | None = None,
    ) -> None:
        if isinstance(table, AsyncTable):
            if async_table is not None:
                raise TypeError("expected table as a Table beside async_table, got two AsyncTables")
            async_table = table
        elif not isinstance(table, Table):
            raise TypeError(f"expected a pybq.Table, got {type(table).__name__}")
        if not isinstance(async_table, AsyncTable | None):
            raise TypeError(f"expected a pybq.AsyncTable, got {type(async_table).__name__}")
        self.table = table
        self.columns = Columns(table, content, json, fields)
        self.metric: Metric = table.metric
        self._async_table = async_table

    def do(
        self,
        operation: Callable[..., Coroutine[Any, Any, _T]],
        *arguments: Any,
        **options: Any,
    ) -> _T:
        """Wait until an operation is done."""
        if isinstance(self.table, AsyncTable):
            raise TypeError(
                f"documents of {self.table!r} were opened with an AsyncTable alone: await the "
                "asynchronous method, or give a Table, too"
            )
        with _locks.setdefault(self.table.connection, threading.Lock()):
            return run(operation(self.table, self.columns, *arguments, **options))

    async def ado(
        self,
        operation: Callable[..., Coroutine[Any, Any, _T]],
        *arguments: Any,
        **options: Any,
    ) -> _T:
        """The same for callers with an event loop."""
        table = self._async_table
        if table is None:
            return await asyncio.to_thread(self.do, operation, *arguments, **options)
        return await table._db.run(operation(table, self.columns, *arguments, **options))


# A connection does one thing at a time, and an operation may be several statements.
_locks: WeakKeyDictionary[Connection[Any], threading.Lock] = WeakKeyDictionary()


def open_table(
    conn: Connection[Any],
    name: str,
    dim: int,
    metric: Metric | None = None,
    content_column: str = "content",
    metadata_column: str | None = "metadata",
    **_: Any,
) -> Table:
    """Open a table of documents; create it if there is none: text, and JSON for all metadata.

    Takes all options of a store, of which those count that name both columns.
    """
    if run(find_table(BlockingDatabase(conn), name, None)) is not None:
        return Table(conn, name, dim, metric)
    columns = {content_column: "text"} | ({metadata_column: "jsonb"} if metadata_column else {})
    return Table(conn, name, dim, metric, id_type="text", columns=columns)


async def put(
    table: BaseTable,
    columns: Columns,
    ids: Sequence[str | None] | None,
    contents: Sequence[str],
    metadatas: Sequence[Mapping[str, Any]] | None,
    vectors: ArrayLike,
) -> list[str]:
    """Write documents, over those of the same ids; returns the ids, made where there are none."""
    n = len(contents)
    metadatas = metadatas or [{}] * n
    for what, given in (("metadatas", metadatas), ("ids", ids)):
        if given is not None and len(given) != n:
            raise ValueError(f"expected {n} {what}, one for each text, got {len(given)}")
    if n == 0:
        return []
    values = columns.to_values(contents, metadatas)
    keys = [None if each is None else columns.to_key(each) for each in ids or [None] * n]
    missing = sum(key is None for key in keys)
    if missing:
        made = iter(await _make_keys(table, columns, missing))
        keys = [next(made) if key is None else key for key in keys]
    conflict: Any = "error" if missing == n else "update"
    await writing.ingest(table, keys, vectors, values, on_conflict=conflict, progress=False)
    return [str(key) for key in keys]


async def _make_keys(table: BaseTable, columns: Columns, n: int) -> list[Any]:
    if columns.key.type_name not in INTEGERS:
        made = [uuid.uuid4() for _ in range(n)]
        return made if columns.key.type_name == "uuid" else [str(each) for each in made]
    rows = await table._db.fetch(
        "SELECT nextval(s::regclass) FROM pg_get_serial_sequence(%s, %s) AS s,"
        " generate_series(1, %s) WHERE s IS NOT NULL",
        [table.identifier.as_string(table._db.connection), columns.key.name, n],
    )
    if not rows:
        raise ValueError(
            f"expected ids: column {columns.key.name!r} of table {table.name!r} has no sequence "
            "that makes them"
        )
    return [row[0] for row in rows]


async def find(
    table: BaseTable,
    columns: Columns,
    query: ArrayLike | None,
    k: int,
    filter: Filter | None = None,
    ids: Sequence[str] | None = None,
    **options: Any,
) -> list[Found]:
    """Search; options are those of `Table.search`. With `text`, of the content by default.

    Without it, what says how words are searched is passed over: a store has it for all searches.
    """
    if options.get("text") is not None:
        options.setdefault("text_column", columns.content)
    else:
        options = {name: each for name, each in options.items() if name not in OF_WORDS}
    if filter is not None or ids is not None:
        if options.get("where") is not None:
            raise ValueError("expected a filter or where, got both")
        condition, parameters = columns.write_condition(filter, ids)
        # whose names may hold percent signs
        where = escape_percent(condition, table._db.connection)
        options |= {"where": where, "parameters": parameters}
    hits = await reading.search(table, query, k, columns=columns.read, **options)
    return [columns.to_document(hit.id, hit.columns, hit.distance, hit.score) for hit in hits]


async def find_with_vectors(
    table: BaseTable, columns: Columns, query: ArrayLike, k: int, **options: Any
) -> tuple[list[Found], NDArray[np.float32]]:
    """Search, and read the vectors of what was found, shape (n, dim)."""
    found = await find(table, columns, query, k, **options)
    rows = await reading.get(table, [each.key for each in found], [], vectors=True)
    kept = [
        (each, row.vector)
        for each, row in zip(found, rows, strict=True)
        if row is not None and row.vector is not None  # not deleted since
    ]
    vectors = np.array([vector for _, vector in kept], np.float32).reshape(-1, table.dim)
    return [each for each, _ in kept], vectors


async def read(
    table: BaseTable,
    columns: Columns,
    ids: Sequence[str] | None = None,
    filter: Filter | None = None,
    limit: int | None = None,
) -> list[Found]:
    """Documents by their ids, in that order, and by a filter; else in the order of their keys."""
    condition, parameters = columns.write_condition(filter, ids)
    names = [columns.key.identifier, *(sql.Identifier(name) for name in columns.read)]
    rows = await table._db.fetch(
        sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY 1 {}").format(
            sql.SQL(", ").join(names),
            table.identifier,
            condition,
            sql.SQL("" if limit is None else f"LIMIT {limit:d}"),
        ),
        parameters,
    )
    found = [
        columns.to_document(key, dict(zip(columns.read, row, strict=True))) for key, *row in rows
    ]
    if ids is not None:
        places = {str(columns.to_key(each)): place for place, each in reversed([*enumerate(ids)])}
        found.sort(key=lambda each: places[each.id])
    return found


async def remove(
    table: BaseTable,
    columns: Columns,
    ids: Sequence[str] | None = None,
    filter: Filter | None = None,
) -> int:
    """Delete documents by ids, filter, or both; without either, all."""
    condition, parameters = columns.write_condition(filter, ids)
    statement = sql.SQL("DELETE FROM {} WHERE {}").format(table.identifier, condition)
    async with table._db.transaction():
        return await table._db.execute(statement, parameters)


async def count(table: BaseTable, columns: Columns, filter: Filter | None = None) -> int:
    condition, parameters = columns.write_condition(filter)
    row = await table._db.fetch_one(
        sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table.identifier, condition), parameters
    )
    assert row is not None
    return int(row[0])
