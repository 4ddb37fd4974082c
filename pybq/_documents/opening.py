"""Opening a table of documents, or creating one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection, sql

from pybq._catalog.database import BlockingDatabase, Database, run
from pybq._catalog.indexes import create_extensions, find_opclass, write_index
from pybq._catalog.layout import Store, name_table
from pybq._catalog.opening import find_table
from pybq._catalog.schema import create_table, lock_name
from pybq._codes.metric import Metric
from pybq._tables.table import Table
from pybq.errors import TableError


def open_table(
    conn: Connection[Any],
    name: str,
    dim: int,
    metric: Metric | None = None,
    content_column: str = "content",
    metadata_column: str | None = "metadata",
    metadata_columns: Sequence[str] | None = None,
    **_: Any,
) -> Table:
    """Open a table of documents; create it if there is none: text, and JSON for all metadata.

    Takes all options of a store, of which those count that name columns.
    """
    if run(find_table(BlockingDatabase(conn), name, None)) is not None:
        return Table(conn, name, dim, metric)
    _refuse_new(name, metadata_columns)
    columns = name_columns(content_column, metadata_column)
    return Table(conn, name, dim, metric, id_type="text", columns=columns)


def open_indexed(
    conn: Connection[Any],
    name: str,
    schema: str | None,
    dim: int,
    metric: Metric,
    store: Store,
    columns: Mapping[str, str],
    json: str | None,
    indexed: Sequence[str],
    column: str | None = None,
    fields: Sequence[str] | None = None,
) -> Table:
    """Open a table of documents that may lack a vector; create it, with its index, if need be.

    Parameters
    ----------
    store, columns, json, indexed
        Of a new table: the type of its vectors, columns beside them, and of which column of JSON
        the index keeps which fields, as text.
    column : str, optional
        Of the table, if it has several of vectors.
    fields : sequence of str, optional
        Columns of metadata that a table must have; a new one has none.
    """
    db = BlockingDatabase(conn)
    if run(find_table(db, name, schema)) is None:
        _refuse_new(name, fields)
        kept = [sql.SQL("({} ->> {})").format(sql.Identifier(json or ""), f) for f in indexed]
        run(_create_indexed(db, name, schema, dim, metric, store, columns, kept))
    return Table(conn, name, dim, metric, schema=schema, column=column)


def _refuse_new(name: str, fields: Sequence[str] | None) -> None:
    """Columns of metadata have types, which nobody has said."""
    if fields:
        raise TableError(f"no table {name!r}; create it, with columns {', '.join(fields)}")


async def _create_indexed(
    db: Database,
    name: str,
    schema: str | None,
    dim: int,
    metric: Metric,
    store: Store,
    columns: Mapping[str, str],
    indexed: Sequence[sql.Composable],
) -> None:
    """All or nothing; of several at once, one does it, and the others find it done."""
    async with db.transaction():
        schema = await lock_name(db, name, schema)
        if await find_table(db, name, schema) is not None:
            return
        await create_extensions(db)
        options: Any = {"store": store, "columns": columns, "id_type": "text", "schema": schema}
        await create_table(db, name, dim, metric, options, may_lack_vectors=True)
        opclass = await find_opclass(db, store, metric)
        await db.execute(write_index(name_table(name, schema), "embedding", opclass, indexed))


def name_columns(content: str, json: str | None) -> dict[str, str]:
    """Columns of a new table of documents, and their types."""
    return {content: "text"} | ({json: "jsonb"} if json else {})
