"""Rows of a table as documents: written, found, read, changed and deleted."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from pybq._catalog.database import escape_percent, run
from pybq._catalog.layout import INTEGERS
from pybq._codes.metric import Metric
from pybq._documents.columns import Columns, Found
from pybq._documents.filters import JSON, Filter
from pybq._loading.ingest import OnConflict, ingest
from pybq._tables import reading
from pybq._tables.base import BaseTable
from pybq._tables.table import AsyncTable, Table

_T = TypeVar("_T")

# Options of `Table.search` that mean something with `text` only.
OF_WORDS = ("text_column", "language", "weights", "rrf", "depth")


class Documents:
    """A table of documents, or the same one opened by both kinds of connection.

    Operations are coroutine functions of a table and its columns, below; `do` is for callers that
    wait, from any thread, `ado` for those with an event loop: in a thread, if there is no
    AsyncTable. Columns are those of `Columns`.
    """

    def __init__(
        self,
        table: Table | AsyncTable,
        async_table: AsyncTable | None = None,
        content: str = "content",
        json: str | None = "metadata",
        fields: Sequence[str] | None = None,
        **more: Any,
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
        self.columns = Columns(table, content, json, fields, **more)
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
    keys = columns.to_keys(ids or [None] * n)
    missing = sum(key is None for key in keys)
    if missing:
        made = iter(await _make_keys(table, columns, missing))
        keys = [next(made) if key is None else key for key in keys]
    conflict: OnConflict = "error" if missing == n else "update"
    await _write(table, columns, keys, contents, metadatas, vectors, {}, conflict)
    return [columns.to_id(key) for key in keys]


async def write(
    table: BaseTable,
    columns: Columns,
    ids: Sequence[Any],
    contents: Sequence[str | None],
    metadatas: Sequence[Mapping[str, Any]],
    vectors: ArrayLike | Sequence[ArrayLike | None],
    others: Mapping[str, Sequence[Any]] | None = None,
    on_conflict: OnConflict = "error",
) -> int:
    """Write documents, which may lack a vector, all or none; returns how many.

    `others` are columns of what else they have.
    """
    keys = columns.to_keys(ids)
    given = (keys, contents, metadatas, vectors, others or {}, on_conflict)
    return await _write(table, columns, *given)


async def _write(
    table: BaseTable,
    columns: Columns,
    keys: list[Any],
    contents: Sequence[str | None],
    metadatas: Sequence[Mapping[str, Any]],
    vectors: ArrayLike | Sequence[ArrayLike | None],
    others: Mapping[str, Sequence[Any]],
    on_conflict: OnConflict,
) -> int:
    values = columns.to_values(contents, metadatas, others)
    given: Any = vectors
    missing = None
    if not isinstance(given, np.ndarray) and any(each is None for each in given):
        missing = np.array([each is None for each in given])
        given = [np.zeros(table.dim) if each is None else each for each in given]
    written = (keys, given, values, on_conflict, False, missing)
    return await ingest(table._db, table._layout, *written) if keys else 0


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
    vectors: bool = False,
    **options: Any,
) -> list[Found]:
    """Search; options are those of `Table.search`. With `text`, of the content by default.

    Without it, what says how words are searched is passed over: a store has it for all searches.
    With `vectors`, those of what was found are read, too, of what was not deleted since.
    """
    if options.get("text") is not None:
        options.setdefault("text_column", columns.content.name)
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
    found = [
        columns.to_document(hit.id, hit.columns, distance=hit.distance, score=hit.score)
        for hit in hits
    ]
    if not vectors or table._layout.source is None:
        return found
    rows = await reading.get(table, [each.key for each in found], [], vectors=True)
    return [
        replace(each, vector=row.vector)
        for each, row in zip(found, rows, strict=True)
        if row is not None
    ]


async def find_with_vectors(
    table: BaseTable, columns: Columns, query: ArrayLike, k: int, **options: Any
) -> tuple[list[Found], NDArray[np.float32]]:
    """Search for documents that have a vector, and return all of these, shape (n, dim)."""
    found = await find(table, columns, query, k, vectors=True, **options)
    kept = [each for each in found if each.vector is not None]
    return kept, np.array([each.vector for each in kept], np.float32).reshape(-1, table.dim)


async def read(
    table: BaseTable,
    columns: Columns,
    ids: Sequence[str] | None = None,
    filter: Filter | None = None,
    limit: int | None = None,
    vectors: bool = False,
) -> list[Found]:
    """Documents by their ids, in that order, and by a filter; else in the order of their keys."""
    condition, parameters = columns.write_condition(filter, ids)
    source = table._layout.source if vectors else None
    wanted: list[sql.Composable] = [columns.key.identifier]
    # as numbers of single precision, which texts of them are not
    wanted.append(sql.SQL("{}::real[]" if source else "{}").format(source and source.identifier))
    wanted += [sql.Identifier(name) for name in columns.read]
    rows = await table._db.fetch(
        sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY 1 {}").format(
            sql.SQL(", ").join(wanted),
            table.identifier,
            condition,
            sql.SQL("" if limit is None else f"LIMIT {limit:d}"),
        ),
        parameters,
    )
    found = [
        columns.to_document(
            key,
            dict(zip(columns.read, row, strict=True)),
            vector=None if vector is None else np.array(vector, np.float32),
        )
        for key, vector, *row in rows
    ]
    if ids is not None:
        keys = columns.to_keys(ids)
        places = {columns.to_id(key): place for place, key in reversed([*enumerate(keys)])}
        found.sort(key=lambda each: places[each.id])
    return found


async def change(
    table: BaseTable, columns: Columns, metadata: Mapping[str, Any], filter: Filter | None = None
) -> int:
    """Add to the metadata of documents, of all without a filter; returns of how many."""
    condition, parameters = columns.write_condition(filter)
    changes = columns.to_changes(metadata)
    if not changes:
        return await count(table, columns, filter)
    parts = []
    for i, (name, value) in enumerate(changes.items()):
        column = table._layout.columns[name]
        text = "{0} = {1}"
        if name == columns.json:
            text = "{0} = (coalesce({0}::jsonb, '{{}}') || {1})::{2}"
        is_json = column.type_name in JSON and value is not None
        parameters[f"c{i}"] = Jsonb(value) if is_json else value
        given = sql.Placeholder(f"c{i}")
        parts.append(sql.SQL(text).format(column.identifier, given, column.type))
    statement = sql.SQL("UPDATE {} SET {} WHERE {}").format(
        table.identifier, sql.SQL(", ").join(parts), condition
    )
    async with table._db.transaction():
        return await table._db.execute(statement, parameters)


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
