"""How large a table is: its pages, its rows."""

from __future__ import annotations

from psycopg import sql

from pybq._catalog.database import Database
from pybq._catalog.layout import Layout

# Tables of more bytes are not counted unless asked to: that would take longer than a second.
MAX_COUNTED_NBYTES = 1 << 30


async def count_pages(db: Database, layout: Layout) -> int:
    """Return the number of pages; 0 of what has none itself, as a partitioned table."""
    row = await db.fetch_one(
        "SELECT pg_relation_size(%s::oid) / current_setting('block_size')::int", [layout.oid]
    )
    return int(row[0] or 0) if row else 0


async def count_rows(db: Database, layout: Layout) -> int:
    """Return the number of rows that the current role may see."""
    row = await db.fetch_one(sql.SQL("SELECT count(*) FROM {}").format(layout.identifier))
    assert row is not None
    return int(row[0])


async def tell_rows(db: Database, layout: Layout) -> tuple[int | None, bool]:
    """Return the number of rows, None for who may not read, and whether it was counted."""
    row = await db.fetch_one(
        "SELECT has_any_column_privilege(%s::oid, 'SELECT'), pg_relation_size(%s::oid)",
        [layout.oid, layout.oid],
    )
    if row is None or not row[0]:
        return None, True
    if row[1] > MAX_COUNTED_NBYTES:
        estimated = await estimate_rows(db, layout)
        if estimated is not None:
            return estimated, False
    return await count_rows(db, layout), True


async def estimate_rows(db: Database, layout: Layout) -> int | None:
    """Estimate the number of rows as the planner does; None before the first VACUUM or ANALYZE."""
    row = await db.fetch_one(
        "SELECT round(reltuples / relpages"
        " * (pg_relation_size(oid) / current_setting('block_size')::int))::bigint"
        " FROM pg_class WHERE oid = %s AND reltuples >= 0 AND relpages > 0",
        [layout.oid],
    )
    return None if row is None else int(row[0])
