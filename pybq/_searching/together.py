"""Many queries in one statement, by `bq_search`: whether it may stand for them, and its text."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from psycopg import BaseConnection, sql

from pybq._catalog.database import Database
from pybq._catalog.layout import Layout
from pybq._codes.metric import name_opclass

# Fewer queries are not worth a look at the catalog.
MANY = 8

# Of fewer the server may well read all, which is exact: BQ_FLAT_ROWS in extension/index/bqindex.h.
LEAST_ROWS = 10_000


async def find_index(db: Database, layout: Layout) -> int | None:
    """Find the index that `bq_search` can answer searches of all rows by; None: there is none.

    It asks for SELECT on the whole table, and knows nothing of row security, nor of tables that
    inherit from others, and of a planner that was told not to use an index.
    """
    assert layout.source is not None
    found = await db.fetch_one(
        """
        SELECT i.indexrelid FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        JOIN pg_class t ON t.oid = i.indrelid JOIN pg_am m ON m.oid = x.relam
        JOIN pg_opclass o ON o.oid = i.indclass[0]
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
        WHERE t.oid = %s AND a.attname = %s AND m.amname = 'bq' AND o.opcname = %s
            AND x.relkind = 'i' AND i.indisvalid AND NOT i.indcheckxmin AND i.indpred IS NULL
            AND t.relkind IN ('r', 'm') AND NOT t.relhassubclass AND t.reltuples >= %s
            AND has_table_privilege(t.oid, 'SELECT') AND NOT row_security_active(t.oid)
            AND current_setting('enable_indexscan')::boolean
            AND to_regprocedure('bq_search(regclass, anyarray, integer)') IS NOT NULL
        ORDER BY i.indnatts, i.indexrelid LIMIT 1
        """,
        [
            layout.oid,
            layout.source.name,
            name_opclass(layout.source.type_name, layout.metric),
            LEAST_ROWS,
        ],
    )
    return None if found is None else found[0]


def write_text(
    layout: Layout, connection: BaseConnection[object], k: int, columns: Sequence[str]
) -> str:
    """Return the statement: number of the query, from 0, key, distance, further columns.

    Positions of rows are good for the statement that finds them.
    """

    def quote(*parts: sql.Composable) -> str:
        return sql.SQL(".").join(parts).as_string(connection).replace("%", "%%")

    assert layout.source is not None
    type_ = quote(
        sql.Identifier(layout.source.type_schema), sql.Identifier(layout.source.type_name)
    )
    keys = [quote(sql.Identifier("bq_rows"), each.identifier) for each in layout.key]
    extra = [quote(sql.Identifier("bq_rows"), sql.Identifier(name)) for name in columns]
    return (
        f"SELECT {', '.join(['found.query - 1', *keys, 'found.distance', *extra])}"
        f" FROM bq_search(%(_bq_index)s::oid::regclass, %(_bq_queries)s::{type_}[], {k}) AS found"
        f" JOIN {quote(layout.identifier)} AS bq_rows ON bq_rows.ctid = found.tid"
    )


def to_array(values: Sequence[bytes], oid: int) -> bytes:
    """Values in binary as one array in binary."""
    parts = [struct.pack("!iiIii", 1, 0, oid, len(values), 1)]
    for value in values:
        parts += (struct.pack("!i", len(value)), value)
    return b"".join(parts)
