"""Indexes on a column of vectors or codes: what there is, what they say, the statement for one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from pybq._catalog.citus import name_shard
from pybq._catalog.database import Database, Row
from pybq._codes.metric import Metric, find_metric, name_opclass
from pybq.errors import ExtensionMissingError

MAX_INDEXED_DIM = 8000  # BQ_INDEX_MAX_DIM of extension/index/bqformat.h


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index that finds near rows: of bq, hnsw or ivfflat.

    Attributes
    ----------
    oid : int
    schema, name : str
    method : str
        "bq", "hnsw" or "ivfflat".
    metric : str or None
        "cosine", "l2" or "inner_product"; None if the operator class has several, as that of codes,
        or one that bq does not know.
    columns : tuple of (str or None)
        Of its keys; None: an expression.
    options : dict
    valid, partial : bool
    nbytes : int
    tablespace : str or None
        None: that of the database.
    partitioned : bool
        Whether it consists of those of partitions, which the attributes below are of together.
    lists, live_rows, transform : int or None
        Of an index of bq, for the owner of the table; the transform if all partitions have it.
    choice, hint : str or None
        Likewise: why that transform, and what would make the index better.
    """

    oid: int
    schema: str
    name: str
    method: str
    metric: Metric | None
    columns: tuple[str | None, ...]
    options: dict[str, str] = field(hash=False)
    valid: bool
    partial: bool
    nbytes: int
    tablespace: str | None
    partitioned: bool = False
    lists: int | None = None
    live_rows: int | None = None
    transform: int | None = None
    choice: str | None = None
    hint: str | None = None

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def answers(self, metric: Metric) -> bool:
        """Whether searches of all rows by a metric can use it."""
        return self.valid and not self.partial and self.metric in (metric, None)

    def __str__(self) -> str:
        kind = self.method if self.metric is None else f"{self.method}, {self.metric}"
        text = f"{self.name}: {kind}, {self.nbytes / 1e6:,.1f} MB"
        if not self.valid:
            return f"{text}, not valid"
        if self.live_rows is not None:
            lists = "1 list" if self.lists == 1 else f"{self.lists:,} lists"
            text += f", {self.live_rows:,} rows in {lists}"
            if self.transform is not None:
                text += (
                    f", after rotation {self.transform}"
                    if self.transform
                    else (", on the original axes")
                )
        if self.partial:
            text += ", partial"
        return f"{text}; {self.hint}" if self.hint else text


async def find_indexes(db: Database, table: int, column: str) -> list[VectorIndex]:
    """Find the indexes that begin with a column, oldest first."""
    rows = await db.fetch(
        """
        SELECT m.amname, o.opcname, x.oid, n.nspname, x.relname, array(
                   SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(n, at)
                   LEFT JOIN pg_attribute a
                   ON a.attrelid = i.indrelid AND a.attnum = k.n AND k.n > 0 ORDER BY k.at),
               x.reloptions, i.indisvalid, i.indpred IS NOT NULL, coalesce((
                   SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(x.oid))::bigint,
                   pg_relation_size(x.oid)),
               s.spcname, x.relkind = 'I'
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
        JOIN pg_namespace n ON n.oid = x.relnamespace JOIN pg_opclass o ON o.oid = i.indclass[0]
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        LEFT JOIN pg_tablespace s ON s.oid = x.reltablespace
        WHERE i.indrelid = %s AND a.attname = %s AND m.amname IN ('bq', 'hnsw', 'ivfflat')
        ORDER BY x.oid
        """,
        [table, column],
    )
    return [
        VectorIndex(
            oid,
            schema,
            name,
            method,
            find_metric(opclass),
            tuple(columns),
            dict(option.split("=", 1) for option in options or []),
            *rest,
        )
        for method, opclass, oid, schema, name, columns, options, *rest in rows
    ]


async def tell_index(db: Database, index: VectorIndex, distributed: bool = False) -> VectorIndex:
    """Add what an index of bq consists of, if the caller may know.

    That of a table that Citus distributes is empty, and made of those of the shards.
    """
    leaves = await find_leaves(db, index)
    if distributed:
        sizes = [
            await db.fetch_one("SELECT citus_relation_size(%s)", [leaf.oid]) for leaf in leaves
        ]
        index = replace(index, nbytes=sum(size[0] for size in sizes if size))
    if index.method != "bq" or not index.valid:
        return index
    tell = _tell_shards if distributed else _tell_leaf
    try:
        async with db.transaction():
            found = [part for leaf in leaves for part in await tell(db, leaf)]
    except InsufficientPrivilege:
        return index
    if not found:
        return index
    lists, live_rows = (sum(part[i] for part in found) for i in (1, 2))
    transform, choice = (
        found[0][i] if len({part[i] for part in found}) == 1 else None for i in (3, 4)
    )
    several = index.partitioned or distributed
    hints = [f"{part[0]}: {part[5]}" if several else part[5] for part in found if part[5]]
    hint = "; ".join(hints) or None
    return replace(
        index, lists=lists, live_rows=live_rows, transform=transform, choice=choice, hint=hint
    )


_INFO = (
    "SELECT relname, lists, live_rows, transform, choice, hint"
    " FROM pg_class AS c, bq_index_info(c.oid) WHERE c.oid = {}"
)


async def _tell_leaf(db: Database, leaf: Leaf) -> list[Row]:
    return await db.fetch(sql.SQL(_INFO).format(sql.SQL("%s")), [leaf.oid])


async def _tell_shards(db: Database, leaf: Leaf) -> list[Row]:
    """The same of each shard's index; nothing if one does not answer, or may not."""
    info = sql.SQL(_INFO).format(name_shard(leaf.schema, leaf.name))
    command = sql.SQL("SELECT row_to_json(info) FROM ({}) AS info").format(info)
    rows = await db.fetch(
        "SELECT success, result FROM pg_index, run_command_on_shards(indrelid, %s)"
        " WHERE indexrelid = %s",
        [command.as_string(db.connection), leaf.oid],
    )
    if not all(success for success, _ in rows):
        return []
    return [tuple(json.loads(result).values()) for _, result in rows]


class Leaf(NamedTuple):
    """An index with pages of its own."""

    oid: int
    schema: str
    name: str


async def find_leaves(db: Database, index: VectorIndex) -> list[Leaf]:
    """The indexes that an index consists of: itself, or those of partitions."""
    if not index.partitioned:
        return [Leaf(index.oid, index.schema, index.name)]
    rows = await db.fetch(
        "SELECT c.oid, n.nspname, c.relname FROM pg_partition_tree(%s)"
        " JOIN pg_class c ON c.oid = relid AND c.relkind = 'i'"
        " JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1",
        [index.oid],
    )
    return [Leaf(*row) for row in rows]


async def set_recall(db: Database, index: VectorIndex, recall: float | None) -> None:
    """Have an index find another share of the nearest rows, if one is asked for.

    PostgreSQL changes no options of an index that has partitions: those of today are changed,
    later ones begin with what it was made with.
    """
    if recall is None:
        return
    if not index.partitioned and recall == float(index.options.get("recall", 0)):
        return
    for _, schema, name in await find_leaves(db, index):
        change = sql.SQL("ALTER INDEX {} SET (recall = {})")
        await db.execute(change.format(sql.Identifier(schema, name), recall))


async def find_opclass(db: Database, type_name: str, metric: Metric) -> sql.Identifier:
    """The operator class, wherever it is; creates the extension that has it if it may."""
    name = name_opclass(type_name, metric)
    query = """
        SELECT n.nspname FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
        JOIN pg_namespace n ON n.oid = o.opcnamespace WHERE m.amname = 'bq' AND o.opcname = %s
    """
    found = await db.fetch_one(query, [name])
    if found is None:
        await create_extensions(db)
        found = await db.fetch_one(query, [name])
    assert found is not None
    return sql.Identifier(found[0], name)


async def create_extensions(db: Database) -> None:
    """Create bq and bq_pgvector, and what the latter needs, where they are missing.

    Of several that do so at once in transactions, one does, and the others find it done: CREATE
    EXTENSION IF NOT EXISTS would fail by a unique index of pg_extension.
    """
    there = "SELECT count(*) = 2 FROM pg_extension WHERE extname IN ('bq', 'bq_pgvector')"
    if await db.fetch_one(there) == (True,):
        return
    await db.fetch("SELECT pg_advisory_xact_lock(hashtext('pybq.create'), 0)")
    available = await db.fetch(
        "SELECT name FROM pg_available_extensions WHERE name IN ('bq', 'bq_pgvector')"
    )
    if len(available) < 2:
        raise ExtensionMissingError(
            "the server has no extension bq_pgvector; have it installed there: make install"
        )
    try:
        for name in ("bq", "bq_pgvector"):
            await db.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(sql.Identifier(name))
            )
    except InsufficientPrivilege as error:
        raise ExtensionMissingError(
            f"{error.diag.message_primary}; ask the owner of the database to run "
            "CREATE EXTENSION bq_pgvector CASCADE"
        ) from error


def write_index(
    table: sql.Identifier,
    column: str,
    opclass: sql.Composable | None = None,
    filters: Sequence[str | sql.Composable | None] = (),
    options: Mapping[str, str | float] | None = None,
    name: str | None = None,
    tablespace: str | None = None,
    concurrently: bool = False,
    only: bool = False,
) -> sql.Composed:
    """Return the statement that makes an index; without operator class, of the default one.

    Filters are names of columns, or expressions in parentheses.
    `only`: of a partitioned table, to which those of its partitions are to be attached.
    """
    first: sql.Composable = sql.Identifier(column)
    if opclass is not None:
        first = sql.SQL("{} {}").format(first, opclass)
    keys = [
        first,
        *(e if isinstance(e, sql.Composable) else sql.Identifier(str(e)) for e in filters),
    ]
    pairs = [
        sql.SQL("{} = {}").format(sql.SQL(option), sql.Literal(value))
        for option, value in (options or {}).items()
    ]
    return sql.SQL("CREATE INDEX {}{}ON {}{} USING bq ({}){}{}").format(
        sql.SQL("CONCURRENTLY " if concurrently else ""),
        sql.SQL("{} ").format(sql.Identifier(name)) if name else sql.SQL(""),
        sql.SQL("ONLY " if only else ""),
        table,
        sql.SQL(", ").join(keys),
        sql.SQL(" WITH ({})").format(sql.SQL(", ").join(pairs)) if pairs else sql.SQL(""),
        sql.SQL(" TABLESPACE {}").format(sql.Identifier(tablespace)) if tablespace else sql.SQL(""),
    )
