"""How large a table is: its pages, its rows."""

from __future__ import annotations

from psycopg import sql

from pybq._catalog.database import Database
from pybq._catalog.layout import Layout

# The tables that rows of a table are in: itself, or the leaves below it. Of a foreign one the pages
# are those of the last ANALYZE.
_LEAVES = """
    SELECT c.oid, c.reltuples, c.relpages, CASE WHEN c.relkind = 'f' THEN greatest(c.relpages, 0)
        ELSE pg_relation_size(c.oid) / current_setting('block_size')::int END AS pages
    FROM (SELECT %s::oid AS root) AS given
    JOIN pg_class c ON c.oid = root OR c.oid IN (
        SELECT relid FROM pg_partition_tree(root) WHERE isleaf)
    WHERE c.relkind <> 'p'
"""

# Of a table that Citus distributes: its shards. For format(), which has a word for each of them.
_SHARDS = """
    SELECT (info->>0)::float4 AS reltuples, (info->>1)::int AS relpages, (info->>2)::int AS pages
    FROM (SELECT %s::oid AS root) AS given
    JOIN pg_class c ON c.oid = root OR c.oid IN (
        SELECT relid FROM pg_partition_tree(root) WHERE isleaf)
    CROSS JOIN run_command_on_shards(c.oid, $$
        SELECT json_build_array(reltuples, relpages,
            pg_relation_size(oid) / current_setting('block_size')::int)
        FROM pg_class WHERE oid = '%%s'::regclass $$)
    CROSS JOIN LATERAL (SELECT result::json AS info) AS told
    WHERE c.relkind <> 'p'
"""

# Tables of more bytes are not counted unless asked to: that would take longer than a second.
MAX_COUNTED_NBYTES = 1 << 30


def _leaves(layout: Layout) -> str:
    """SQL of the tables that have the rows, whose parameter is the table's oid."""
    return _SHARDS if layout.distributed else _LEAVES


async def count_pages(db: Database, layout: Layout) -> int:
    """Return the number of pages, of all partitions if it has some."""
    row = await db.fetch_one(f"SELECT sum(pages) FROM ({_leaves(layout)}) AS leaves", [layout.oid])
    return int(row[0] or 0) if row else 0


async def count_rows(db: Database, layout: Layout) -> int:
    """Return the number of rows that the current role may see."""
    row = await db.fetch_one(sql.SQL("SELECT count(*) FROM {}").format(layout.identifier))
    assert row is not None
    return int(row[0])


async def tell_rows(db: Database, layout: Layout) -> tuple[int | None, bool]:
    """Return the number of rows, None for who may not read, and whether it was counted."""
    row = await db.fetch_one(
        "SELECT has_any_column_privilege(%s::oid, 'SELECT'), current_setting('block_size')::int",
        [layout.oid],
    )
    if row is None or not row[0]:
        return None, True
    if await count_pages(db, layout) * row[1] > MAX_COUNTED_NBYTES:
        estimated = await estimate_rows(db, layout)
        if estimated is not None:
            return estimated, False
    return await count_rows(db, layout), True


async def estimate_rows(db: Database, layout: Layout) -> int | None:
    """Estimate the number of rows as the planner does; None before the first VACUUM or ANALYZE.

    Of partitions: before the first of each that has pages.
    """
    row = await db.fetch_one(
        "SELECT CASE WHEN bool_and(reltuples >= 0 AND relpages > 0)"
        " THEN round(sum(reltuples / greatest(relpages, 1) * pages))::bigint END"
        f" FROM ({_leaves(layout)}) AS leaves WHERE pages > 0",
        [layout.oid],
    )
    return None if row is None or row[0] is None else int(row[0])
