"""Opening a table: what the catalog and bq_columns say of it, and whether that was asked for."""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, cast

from psycopg import DataError, ProgrammingError, sql
from psycopg.errors import DuplicateTable

from pybq._catalog import registry
from pybq._catalog.citus import is_distributed
from pybq._catalog.database import Database
from pybq._catalog.indexes import find_indexes
from pybq._catalog.layout import ITEM_NBYTES, PLACE, Column, Layout, name_table
from pybq._catalog.schema import (
    CreateOptions,
    OpenOptions,
    TableOptions,
    check_options,
    check_type,
    create_table,
    name_searched,
)
from pybq._codes.metric import Metric, check_metric
from pybq.errors import TableError


async def open_table(
    db: Database, name: str, dim: int | None, metric: Metric | None, options: OpenOptions
) -> Layout:
    """Open a table, as the constructor of `Table` promises; create it if there is none."""
    check_options(options, OpenOptions)
    schema, column = options.get("schema"), options.get("column")
    await db.register()
    table = await find_table(db, name, schema)
    if table is None:
        if dim is None:
            raise TableError(f"no table {name!r}; give dim to create it")
        searched = name_searched(options)
        if column in searched[1:]:
            raise TableError(
                f"no table {name!r}, and one that pybq makes with codes is searched and written by "
                f"column {searched[0]!r}; leave out column, or codes"
            )
        if column is not None and column not in searched:
            raise TableError(f"no table {name!r}, and one that pybq makes has no column {column!r}")
        # If another connection is faster, what it has made is opened.
        with suppress(DuplicateTable):
            made = {each: value for each, value in options.items() if each not in ("column", "key")}
            await create_table(db, name, dim, metric or "cosine", cast(CreateOptions, made))
        table = await find_table(db, name, schema)
        assert table is not None
    if table.kind == "v":
        raise TableError(f"{name!r} is a view: its rows have no place or key; open its table")
    key = options.get("key")
    named = (key,) if isinstance(key, str) else tuple(key or ())
    layout = await _read_layout(db, table, schema, column, named, dim, metric)
    for what, there, asked in (("dim", layout.dim, dim), ("metric", layout.metric, metric)):
        if asked is not None and asked != there:
            raise _disagrees(layout, what, there, asked)
    await _check_options(db, layout, options)
    return layout


def _disagrees(layout: Layout, what: str, there: object, asked: object) -> TableError:
    return TableError(f"table {layout.name!r} has {what} {there}, expected {asked}")


async def _check_options(db: Database, layout: Layout, options: TableOptions) -> None:
    """Refuse options that an existing table does not have."""
    if "store" in options and options["store"] != layout.store:
        raise _disagrees(layout, "store", layout.store, options["store"])
    if options.get("codes") not in (None, layout.has_codes):
        raise _disagrees(layout, "codes", layout.has_codes, options.get("codes"))
    transform = options.get("transform")
    if transform is not None:
        there = await registry.read_transform(db, layout)
        if there != transform:
            raise _disagrees(layout, "transform", there, transform)
    wanted = dict(options.get("columns") or {})
    for name in wanted:
        if name not in layout.columns:
            raise TableError(f"table {layout.name!r} has no column {name!r}, which was asked for")
    if "id_type" in options:
        wanted[layout.id.name] = options["id_type"]
    if not wanted:
        return
    try:
        async with db.transaction():
            different = await db.fetch(
                """
                SELECT a.attname, format_type(a.atttypid, NULL), w.type
                FROM unnest(%s::text[], %s::text[]) AS w(name, type)
                JOIN pg_attribute a ON a.attrelid = %s AND a.attname = w.name
                WHERE a.atttypid IS DISTINCT FROM to_regtype(w.type)
                """,
                [list(wanted), list(wanted.values()), layout.oid],
            )
    except (ProgrammingError, DataError):  # one is not even like the name of a type
        for name, asked in wanted.items():
            await check_type(db, name, asked)
        raise
    for name, there, asked in different:
        await check_type(db, name, asked)
        raise _disagrees(layout, f"column {name!r} of type", there, asked)


async def _read_layout(
    db: Database,
    table: FoundTable,
    named_schema: str | None,
    column: str | None,
    named_key: tuple[str, ...],
    dim: int | None,
    metric: Metric | None,
) -> Layout:
    """Find out what a table is: of its columns of codes and vectors the one that was named."""
    oid, schema, name, kind = table
    managed = await registry.find_entries(db, oid)
    attributes = await read_columns(db, oid)
    columns = {each.name: each for each, _, _ in attributes}
    dims = {each.name: typmod for each, typmod, _ in attributes if each.type_name in ITEM_NBYTES}
    choices = list(managed) or list(dims)
    if column is None and len(choices) != 1:
        if not choices:
            raise TableError(
                f"table {name!r} has no codes that pybq made, and no vectors of type "
                f"{' or '.join(ITEM_NBYTES)}"
            )
        raise TableError(f"table {name!r} has {', '.join(choices)}; say which one with column")
    column = choices[0] if column is None else column
    if column not in managed and column not in dims:
        there = ", ".join({**managed, **dims}) or "none of codes or vectors"
        raise TableError(f"table {name!r} has columns {there}, expected {column}")
    entry = managed.get(column)
    source, unfinished = (entry.source, entry.next_column) if entry else (None, None)
    for each in (column, source):
        if each is not None and each not in columns:
            raise TableError(
                f"table {name!r} has no column {each!r}, which bq_columns names; if it was "
                "renamed, call bq_rename_column, if it was dropped, bq_forget_column, too"
            )
    has_codes = entry is not None and source != column
    keys = tuple(each for each, _, is_key in attributes if is_key)
    if named_key and tuple(each.name for each in keys) != named_key:
        if keys:
            there = ", ".join(each.name for each in keys)
            raise TableError(f"table {name!r} has primary key {there}, expected {named_key}")
        for each in named_key:
            if each not in columns:
                raise TableError(f"table {name!r} has no column {each!r}, which key names")
        keys = tuple(columns[each] for each in named_key)
    keys = keys or (PLACE,)
    sharded = kind == "p" and await _has_foreign_partitions(db, oid)
    if has_codes and (len(keys) != 1 or keys == (PLACE,)):
        raise TableError(f"table {name!r} has no primary key of one column")
    distributed = await is_distributed(db, oid)
    if keys == (PLACE,) and (kind == "p" or distributed):
        what, parts = ("distributed", "shards") if distributed else ("partitioned", "partitions")
        remedy = "say with key which columns tell them apart"
        raise TableError(
            f"table {name!r} is {what} and has no primary key: rows of several {parts} are at the "
            f"same place; {remedy if sharded or distributed else 'add a primary key'}"
        )
    if keys == (PLACE,) and await _has_heirs(db, oid):
        raise TableError(
            f"other tables inherit from table {name!r}, which has no primary key: rows of several "
            "are at the same place; add a primary key"
        )
    searched = columns.pop(column)
    vectors: Column | None = searched
    if has_codes:
        vectors = None if source is None else columns.pop(source)
    if vectors is not None and vectors.type_name not in ITEM_NBYTES:
        there = f"halfvec({entry.dim if entry else 'n'})"
        raise TableError(
            f"column {source!r} of table {name!r} is of type {vectors.declared}, expected"
            f" {' or '.join(ITEM_NBYTES)}; change its type, for example to {there}"
        )
    for each in (*(key.name for key in keys), unfinished):  # the last one is of Table.reencode
        columns.pop(str(each), None)
    declared = has_codes or dims[column] is not None
    if entry is not None and has_codes:
        dim, metric = entry.dim, entry.metric
    else:
        metric = await _find_metric(db, name, oid, column, entry and entry.metric, metric)
        known_dim = (entry and entry.dim) or dims[column]
        dim = known_dim or await _read_dim(db, name, schema, column, dim)
    return Layout(
        *(name, schema, oid, dim, metric, keys, searched, vectors, columns),
        declared=declared,
        sharded=sharded,
        distributed=distributed,
        named_schema=named_schema,
    )


async def _has_heirs(db: Database, table: int) -> bool:
    row = await db.fetch_one(
        "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = %s)", [table]
    )
    assert row is not None
    return bool(row[0])


async def _has_foreign_partitions(db: Database, table: int) -> bool:
    row = await db.fetch_one(
        "SELECT EXISTS (SELECT FROM pg_partition_tree(%s) JOIN pg_class c ON c.oid = relid"
        " WHERE c.relkind = 'f')",
        [table],
    )
    return row == (True,)


class FoundTable(NamedTuple):
    """A table as pg_class has it."""

    oid: int
    schema: str
    name: str
    kind: str  # relkind


async def find_table(db: Database, name: str, schema: str | None) -> FoundTable | None:
    """Find a table, on the search path without a schema."""
    row = await db.fetch_one(
        "SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)",
        [name_table(name, schema).as_string(db.connection)],
    )
    return None if row is None else FoundTable(*row)


async def read_columns(db: Database, table: int) -> list[tuple[Column, int | None, bool]]:
    """Return each column of a table, its type's modifier, and if it is of the key."""
    rows = await db.fetch(
        """
        SELECT a.attname, t.typname, s.nspname, b.typname, bs.nspname, b.oid,
               b.typtype = 'e', a.attgenerated <> '',
               nullif(coalesce(nullif(a.atttypmod, -1), b.typmod), -1),
               coalesce(k.place, 0)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        JOIN pg_namespace s ON s.oid = t.typnamespace
        CROSS JOIN LATERAL (
            WITH RECURSIVE base AS (
                SELECT t.oid, t.typname, t.typnamespace, t.typtype, t.typbasetype, -1 AS typmod,
                       t.typtypmod
                UNION ALL
                SELECT d.oid, d.typname, d.typnamespace, d.typtype, d.typbasetype, base.typtypmod,
                       d.typtypmod
                FROM base JOIN pg_type d ON d.oid = base.typbasetype
            )
            SELECT * FROM base WHERE typtype <> 'd'
        ) b
        JOIN pg_namespace bs ON bs.oid = b.typnamespace
        LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        LEFT JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
        ON k.attnum = a.attnum AND k.place <= i.indnkeyatts
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [table],
    )
    rows.sort(key=itemgetter(9))  # columns of the key in its order, not that of the table
    return [(Column(*row[:8]), row[8], row[9] > 0) for row in rows]


async def _find_metric(
    db: Database, name: str, table: int, column: str, known: Metric | None, asked: Metric | None
) -> Metric:
    """The metric of the indexes on a column of vectors: those of bq, else of pgvector.

    Without one, the one the table was created with, or what is asked for.
    """
    if asked is not None:
        check_metric(asked)
    valid = [one for one in await find_indexes(db, table, column) if one.valid]
    ours = [one.metric for one in valid if one.method == "bq"]
    others = [one.metric for one in valid]
    metrics = list(dict.fromkeys(each for each in ours or others if each))
    for each, there in ((asked, others), (known, metrics)):
        if each is not None and each in there:
            return each
    if len(metrics) > 1:
        raise TableError(
            f"column {column!r} of table {name!r} has indexes for {' and '.join(metrics)}; say "
            "which with metric"
        )
    return metrics[0] if metrics else known or asked or "cosine"


async def _read_dim(db: Database, name: str, schema: str, column: str, asked: int | None) -> int:
    """Dimensions of a column that declares none: those of its first row."""
    vector, table = sql.Identifier(column), name_table(name, schema)
    row = await db.fetch_one(
        sql.SQL("SELECT cardinality({0}::real[]) FROM {1} WHERE {0} IS NOT NULL LIMIT 1").format(
            vector, table
        )
    )
    dim = asked if row is None else int(row[0])
    if dim is None:
        raise TableError(f"column {column!r} of table {name!r} has no dimensions and no rows")
    return dim
