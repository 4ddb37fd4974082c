"""A table of pybq in the catalog: creating one, and finding out what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import TypedDict

from psycopg import DataError, ProgrammingError, sql
from psycopg.errors import DuplicateTable

from pybq._catalog import registry
from pybq._catalog.database import Database
from pybq._catalog.indexes import VectorIndex, find_indexes, find_opclass, write_index
from pybq._catalog.layout import (
    ITEM_NBYTES,
    PLACE,
    Column,
    Layout,
    Store,
    check_text,
    name_table,
)
from pybq._codes.core import nbytes
from pybq._codes.metric import Metric, check_metric
from pybq._codes.quantizer import Quantizer
from pybq.errors import ExtensionMissingError, TableError

# Bytes of a row that fit a page of 8 kB: PostgreSQL, heaptoast.h, TOAST_TUPLE_TARGET_MAIN.
MAX_ROW_NBYTES = 8160
# Rows above this many bytes are moved out of line unless told otherwise: TOAST_TUPLE_TARGET.
TOAST_NBYTES = 2032
# What the other columns of a row need at least: tuple header, id, vector headers.
ROW_OVERHEAD_NBYTES = 64
# A further column, large as it may be: a TOAST pointer, or a short value.
EXTRA_COLUMN_NBYTES = 24


class TableOptions(TypedDict, total=False):
    """What a table is created with beside its dimensions and metric; see `Table.create`."""

    store: Store | None
    codes: bool | None
    columns: Mapping[str, str] | None
    id_type: str
    transform: int | None


async def open_table(
    db: Database,
    name: str,
    dim: int | None,
    metric: Metric | None,
    schema: str | None,
    column: str | None,
    options: TableOptions,
) -> Layout:
    """Open a table, as the constructor of `Table` promises; create it if there is none."""
    known = TableOptions.__annotations__
    for option in options:
        if option not in known:
            raise TypeError(f"expected options of {', '.join(known)}, got {option!r}")
    await db.register()
    identifier = name_table(name, schema)
    found = await db.fetch_one("SELECT to_regclass(%s)", [identifier.as_string(db.connection)])
    if found == (None,):
        if dim is None:
            raise TableError(f"no table {name!r}; give dim to create it")
        # If another connection is faster, what it has made is opened.
        with suppress(DuplicateTable):
            await create_table(db, name, schema, dim, metric or "cosine", **options)
    layout = await _read_layout(db, name, schema, column, dim, metric)
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
            await _check_type(db, name, asked)
        raise
    for name, there, asked in different:
        await _check_type(db, name, asked)
        raise _disagrees(layout, f"column {name!r} of type", there, asked)


async def _read_layout(
    db: Database,
    name: str,
    schema: str | None,
    column: str | None,
    dim: int | None,
    metric: Metric | None,
) -> Layout:
    """Find out what a table is: of its columns of codes and vectors the one that was named."""
    regclass = name_table(name, schema).as_string(db.connection)
    managed = await registry.find_entries(db, regclass)
    oid, attributes = await _read_attributes(db, regclass)
    if await db.fetch_one("SELECT 1 FROM pg_class WHERE oid = %s AND relkind = 'v'", [oid]):
        raise TableError(f"{name!r} is a view: its rows have no place or key; open its table")
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
    keys = tuple(each for each, _, is_key in attributes if is_key) or (PLACE,)
    if has_codes and (len(keys) != 1 or keys == (PLACE,)):
        raise TableError(f"table {name!r} has no primary key of one column")
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
    return Layout(name, schema, oid, dim, metric, keys, searched, vectors, columns, declared)


async def _read_attributes(
    db: Database, regclass: str
) -> tuple[int, list[tuple[Column, int | None, bool]]]:
    """Return the oid of a table; and each column, its type's modifier, if it is of the key."""
    rows = await db.fetch(
        """
        SELECT a.attrelid, a.attname, t.typname, s.nspname, b.typname, bs.nspname, b.oid,
               b.typtype = 'e', nullif(coalesce(nullif(a.atttypmod, -1), b.typmod), -1),
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
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [regclass],
    )
    rows.sort(key=itemgetter(9))  # columns of the key in its order, not that of the table
    return rows[0][0], [(Column(*row[1:8]), row[8], row[9] > 0) for row in rows]


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


async def _read_dim(
    db: Database, name: str, schema: str | None, column: str, asked: int | None
) -> int:
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


async def create_table(
    db: Database,
    name: str,
    schema: str | None,
    dim: int,
    metric: str = "cosine",
    store: str | None = "halfvec",
    columns: Mapping[str, str] | None = None,
    id_type: str = "bigint",
    transform: int | None = None,
    codes: bool | None = None,
) -> None:
    """Create the table, and its row in bq_columns.

    Without a column of codes that row says what the index will be: its metric and transform.
    """
    codes = store is None if codes is None else codes
    if not codes and store is None:
        raise ValueError("expected store of halfvec or vector in a table without codes, got None")
    Quantizer(dim, transform or 0)  # checks both
    check_metric(metric)
    if store is not None and store not in ITEM_NBYTES:
        raise ValueError(f"expected store of {', '.join(ITEM_NBYTES)} or None, got {store!r}")
    columns = columns or {}
    for column in columns:
        check_text(f"column {column!r}", column)
        if column in ("id", "embedding", "code" if codes else "id"):
            raise ValueError(f"column {column!r} is the table's own; choose another name")
    identifier = name_table(name, schema)
    types = {"id": id_type, **columns}
    await db.register()  # says what is missing
    async with db.transaction():
        for column, type_name in types.items():
            await _check_type(db, column, type_name)
        if store is not None and await db.find_type(store) is None:
            raise ExtensionMissingError(
                f'type "{store}" not found; run CREATE EXTENSION vector, or keep codes only '
                "with store=None"
            )
        lines = [sql.SQL("id {} PRIMARY KEY").format(sql.SQL(id_type))]
        # The code first: what a scan reads of a row then lies together.
        if codes:
            lines.append(sql.SQL("code bqvec({}) NOT NULL").format(dim))
        if store is not None:
            lines.append(sql.SQL("embedding {}({}) NOT NULL").format(sql.SQL(store), dim))
        lines += [
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(type_name))
            for column, type_name in columns.items()
        ]
        # Of several at once, one creates it, and the others learn that it exists: without
        # the lock they would fail in the catalog, by a unique index of pg_type.
        await db.execute(
            "SELECT pg_advisory_xact_lock(hashtext('pybq.create'),"
            " hashtext(coalesce(%s, current_schema()) || '.' || %s))",
            [schema, name],
        )
        # A type ends with its line, whatever comment it may hold.
        await db.execute(
            sql.SQL("CREATE TABLE {} (\n{}\n)").format(identifier, sql.SQL("\n,").join(lines))
        )
        if store is not None:
            code_nbytes = nbytes(dim) if codes else 0
            row_nbytes = ITEM_NBYTES[store] * dim + code_nbytes + EXTRA_COLUMN_NBYTES * len(columns)
            await _keep_inline(db, identifier, ROW_OVERHEAD_NBYTES + row_nbytes)
        await registry.enter_column(
            db,
            identifier.as_string(db.connection),
            "code" if codes else "embedding",
            None if store is None else "embedding",
            dim,
            metric,
            transform,
        )


async def create_index(
    db: Database, layout: Layout, filters: Sequence[str] = (), recall: float | None = None
) -> None:
    """Build the index `USING bq` over codes or vectors, unless there is one."""
    if isinstance(filters, str):
        raise TypeError("expected filters as a sequence of names, got str")
    for name in filters:
        if name not in layout.columns and name not in (each.name for each in layout.key):
            raise ValueError(f"no column {name!r} in table {layout.name!r} to filter by")
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"expected recall above 0 and at most 1, got {recall}")
    if await _find_same(db, layout, filters):
        return
    async with db.transaction():
        # Writers have to wait anyway; now another connection that builds one does, too.
        await db.execute(
            sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(layout.identifier)
        )
        if not await _find_same(db, layout, filters):
            opclass = None
            if not layout.has_codes:
                opclass = await find_opclass(db, layout.searched.type_name, layout.metric)
            options = {} if recall is None else {"recall": recall}
            await db.execute(
                write_index(layout.identifier, layout.searched.name, opclass, filters, options)
            )


async def _find_same(
    db: Database, layout: Layout, filters: Sequence[str] = ()
) -> VectorIndex | None:
    """Find an index of bq that answers searches of all rows, with these filters if any."""
    for index in await find_indexes(db, layout.oid, layout.searched.name):
        filtered = not filters or set(filters) <= set(index.columns)
        if index.method == "bq" and index.answers(layout.metric) and filtered:
            return index
    return None


async def create_trigger(db: Database, layout: Layout) -> None:
    """Have the server make codes for writers that give none."""
    layout.need_codes()
    if layout.source is None:
        raise TableError(f"table {layout.name!r} keeps codes only: there are no vectors to encode")
    async with db.transaction():
        await db.execute(
            sql.SQL(
                "CREATE TRIGGER bq_encode BEFORE INSERT OR UPDATE OF {} ON {} FOR EACH ROW"
                " EXECUTE FUNCTION bq_encode_trigger({}, {})"
            ).format(
                layout.source.identifier,
                layout.identifier,
                sql.Literal(layout.code.name),
                sql.Literal(layout.source.name),
            )
        )


async def _check_type(db: Database, name: str, type_name: str) -> None:
    """Refuse what is not the name of a type: it goes into CREATE TABLE as it is."""
    try:
        async with db.transaction():
            found = await db.fetch_one("SELECT to_regtype(%s)", [type_name])
    except (ProgrammingError, DataError):
        found = None
    if found is None or found[0] is None:
        raise ValueError(f"column {name!r}: no type {type_name!r} in the database")


async def _keep_inline(db: Database, identifier: sql.Identifier, row_nbytes: int) -> None:
    """Keep the vector in its row if the row fits a page.

    Re-ranking reads a few vectors per query: 0.2 to 0.8 us each from the row, 3 to 7 us out of
    line (TOAST), where pgvector's types go by default once a row has more than 2 kB.
    """
    if row_nbytes > MAX_ROW_NBYTES:
        return
    await db.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(identifier)
    )
    if row_nbytes > TOAST_NBYTES:
        # Else all other columns would be moved out of each row in a vain attempt to shorten it.
        await db.execute(
            sql.SQL("ALTER TABLE {} SET (toast_tuple_target = {})").format(
                identifier, MAX_ROW_NBYTES
            )
        )
